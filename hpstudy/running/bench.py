"""How fast training is on this machine, beside the machine's own limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from hpstudy.errors import MachineError
from hpstudy.hparams import GPT3, HParams
from hpstudy.records import BenchmarkFigures
from hpstudy.running.executors import Executor, wait_until_ready
from hpstudy.running.messages import Benchmark, Benchmarked, Setup
from hpstudy.spec import PRESETS, ModelShape, TrainerSpec, flops_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSetting:
    """A training to measure."""

    name: str
    model: ModelShape
    tokenizer: str
    context: int
    sequences: Mapping[str, int]  # of one step, by kind of device
    micro_batch: Mapping[str, int]  # by kind of device

    @property
    def flops_per_token(self) -> int:
        """FLOP that training on one token needs."""
        return flops_per_token(self.model, self.tokenizer, self.context)

    def spec(self, threads: int, gpus: int = 1, processes: int = 1) -> TrainerSpec:
        """The trainer spec of an endless run."""
        return TrainerSpec(
            model=self.model,
            corpus="asv",
            tokenizer=self.tokenizer,
            context=self.context,
            tokens=10**15,
            evals=1,
            val_tokens=self.context,
            threads=threads,
            gpus=gpus,
            processes=processes,
        )

    def hparams(self, kind: str, ranks: int = 1) -> HParams:
        """GPT-3's values at this setting's batch for a kind of device, "cpu" or "cuda": at least a sequence a rank."""
        sequences = -(-self.sequences[kind] // ranks)  # of each rank
        return replace(
            GPT3,
            batch_tokens=sequences * ranks * self.context,
            micro_batch=math.gcd(self.micro_batch[kind], sequences),
            batch_ramp_fraction=0.0,
        )


def _setting(
    preset: str, tokenizer: str, context: int, *, cpu: int, cuda: int, cuda_micro: int | None = None
) -> BenchSetting:
    return BenchSetting(
        name=preset,
        model=PRESETS[preset],
        tokenizer=tokenizer,
        context=context,
        sequences={"cpu": cpu, "cuda": cuda},
        micro_batch={"cpu": cpu, "cuda": cuda_micro or cuda},
    )


SETTINGS = (
    _setting("gpt-2x64", "gpt2:512", 128, cpu=16, cuda=512),
    _setting("gpt-4x128", "gpt2", 128, cpu=16, cuda=256),
    _setting("gpt-6x256", "gpt2", 256, cpu=8, cuda=128),
    _setting("gpt-125m", "gpt2", 1024, cpu=1, cuda=512, cuda_micro=64),  # GPT-3's batch, 2^19 tokens
)
QUICK = SETTINGS[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The speed of one setting on this machine."""

    setting: BenchSetting
    device_name: str
    precision: str
    tok_per_sec: float  # median over the rounds
    figures: BenchmarkFigures

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the FLOP that training needs, as a share of the fastest matrix product's."""
        return self.tok_per_sec * self.setting.flops_per_token / self.figures.flops_per_second


def bench(
    setting: BenchSetting,
    *,
    device: str,
    threads: int,
    gpus: int = 1,
    processes: int = 1,
    rounds: int,
    turn_seconds: float,
    executor: Executor,
) -> BenchResult:
    """Measures one setting in a worker of its own. Raises UserError or MachineError if it cannot run."""
    spec = setting.spec(threads, gpus, processes)
    worker = executor.start(Setup(spec=spec, device=device, base=Path.cwd()), 0)
    try:
        environment = wait_until_ready(worker).environment
        hparams = setting.hparams(environment["device"], spec.ranks)
        worker.send(Benchmark(hparams=hparams, rounds=rounds, turn_seconds=turn_seconds))
        report = worker.receive()
        if not isinstance(report, Benchmarked) or report.figures is None:
            why = report.message if isinstance(report, Benchmarked) else worker.last_words().last_line
            raise MachineError(f"{setting.name} does not run here: {why}; try another --preset")
    finally:
        executor.stop([worker])
    return BenchResult(
        setting=setting,
        device_name=environment["device_name"],
        precision=environment["precision"],
        tok_per_sec=median(report.figures.steps_per_second) * hparams.batch_tokens,
        figures=report.figures,
    )
