"""How fast this machine trains: measured by a real worker, and printed by `hpstudy bench`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from hpstudy.cli import machine_commands
from hpstudy.errors import MachineError, UserError
from hpstudy.records import BenchmarkFigures, StepRecord
from hpstudy.running.bench import SETTINGS, BenchResult, BenchSetting, bench
from hpstudy.running.local import LocalExecutor
from hpstudy.spec import ModelShape
from hpstudy.training.benchmark import benchmark
from hpstudy.training.device import place
from hpstudy.training.profile import KINDS
from hpstudy.training.ranks import ALONE
from tests.helpers.command_line import hpstudy
from tests.helpers.running import run_at_start
from tests.helpers.stores import step_record
from tests.helpers.tiny import TINY_SETTING
from tests.helpers.training import HPARAMS, SPEC, make_trainer

NEGATIVE = replace(TINY_SETTING, model=ModelShape(layers=1, heads=2, width=-16))
CANNOT_BE_BUILT = "RuntimeError: Trying to create tensor with negative dimension -16: [256, -16]"


def measure(setting: BenchSetting, folder: Path, *, device: str = "cpu") -> BenchResult:
    return bench(setting, device=device, threads=1, rounds=2, turn_seconds=0.02, executor=LocalExecutor(folder))


def test_a_token_of_gpt_125m_needs_854_million_flops():
    # 12 * 12 * 768² = 84,934,656 weights in the layers and 50257 * 768 = 38,597,376 in the output; six for each
    # makes 741,192,192; attention 12 * 12 * 768 * 1024 = 113,246,208
    assert SETTINGS[-1].name == "gpt-125m"
    assert SETTINGS[-1].flops_per_token == 854_438_400


def test_mfu_is_the_flop_of_training_as_a_share_of_the_fastest_matrix_product():
    figures = BenchmarkFigures(
        steps_per_second=(1.0,),
        flops_per_second=8_544_384_000.0,
        peak_gib=1.0,
        repeats=True,
        cold_start_seconds=0.0,
        shares={},
    )
    result = BenchResult(setting=SETTINGS[-1], device_name="here", precision="fp32", tok_per_sec=2.0, figures=figures)
    assert result.mfu == pytest.approx(0.2)


def test_a_worker_measures_a_setting(tmp_path: Path):
    result = measure(TINY_SETTING, tmp_path)
    rates = result.figures.steps_per_second
    assert len(rates) == 2
    assert min(rates) > 0
    assert result.tok_per_sec == pytest.approx(sum(rates) / 2 * 4 * 16)
    assert 0 < result.mfu < 1
    assert result.figures.repeats is True
    assert result.figures.peak_gib > 0.05  # torch alone takes more
    assert result.figures.cold_start_seconds >= 0
    assert result.figures.shares["matrix products"] > 0
    assert sum(result.figures.shares.values()) == pytest.approx(1)
    assert result.device_name
    assert result.precision in ("fp32", "bf16")


def test_a_model_that_cannot_be_built_is_an_error_with_the_reason(tmp_path: Path):
    with pytest.raises(MachineError) as error:
        measure(NEGATIVE, tmp_path)
    assert str(error.value) == CANNOT_BE_BUILT


def test_a_tokenizer_that_does_not_exist_is_the_users_error(tmp_path: Path):
    with pytest.raises(UserError) as error:
        measure(replace(TINY_SETTING, tokenizer="gpt3"), tmp_path)
    assert str(error.value).startswith('unknown tokenizer "gpt3"; did you mean "gpt2"?')


CRAMPED = """
from hpstudy.training.trainer import Trainer


def train(self, runs):
    raise MemoryError("no room")


Trainer.train = train
"""
DEADLY = "import os\n" + CRAMPED.replace('raise MemoryError("no room")', "os.kill(os.getpid(), 9)")


@pytest.mark.parametrize(
    ("code", "why"), [(CRAMPED, "MemoryError: no room"), (DEADLY, "its log is empty")], ids=["fails", "dies"]
)
def test_a_model_that_cannot_train_is_an_error_with_the_reason(tmp_path: Path, monkeypatch, code: str, why: str):
    run_at_start(tmp_path / "site", code, monkeypatch)
    with pytest.raises(MachineError) as error:
        measure(TINY_SETTING, tmp_path)
    assert str(error.value) == f"tiny does not run here: {why}; try another --preset"


def test_a_device_that_is_not_there_is_the_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="--device cuda:99: "):
        measure(TINY_SETTING, tmp_path, device="cuda:99")


def test_the_benchmark_has_a_rate_per_round_and_a_trainer_that_repeats():
    figures = benchmark(make_trainer(SPEC), HPARAMS, rounds=3, turn_seconds=0.01)
    assert len(figures.steps_per_second) == 3
    assert min(figures.steps_per_second) > 0
    assert figures.flops_per_second > 1e8
    assert figures.repeats is True


class Drifting:
    """A trainer whose losses differ from training to training."""

    placement = place("cpu", "fp32")
    memory_gib = placement.memory_gib
    ranks = ALONE

    def __init__(self) -> None:
        self._losses = count()

    def train(self, _: object) -> Iterator[StepRecord]:
        while True:
            yield step_record(1, float(next(self._losses)), steps=20)


def test_the_benchmark_notices_a_trainer_that_does_not_repeat():
    assert benchmark(Drifting(), HPARAMS, rounds=1, turn_seconds=0.001).repeats is False


def test_hpstudy_bench_prints_a_row_for_the_preset():
    result = hpstudy("bench", "--preset", "gpt-2x64", "--quick", "--device", "cpu")
    assert result.code == 0, result.err
    machine, heading, row, _, shares_heading, *shares, _, repeats = result.out.splitlines()
    assert re.search(r", (fp32|bf16), 1 thread$", machine)
    assert heading.split() == ["model", "tok/s", "MFU", "limit", "GFLOP/s", "peak", "GiB", "cold", "start", "s"]
    assert re.fullmatch(r"gpt-2x64 at 128 +[\d,]+ +\d+\.\d% +[\d,]+ +\d+\.\d\d +\d+\.\d", row.rstrip())
    assert shares_heading.split() == ["share", "of", "a", "step", "gpt-2x64"]
    assert [re.split("  +", each)[0] for each in shares] == [
        *(kind for kind in KINDS if kind != "sums over ranks"),
        "other",
        "outside torch",
    ]
    assert all(re.fullmatch(r".+  \d+\.\d%", each.rstrip()) for each in shares)
    assert repeats == "the same numbers to the last bit when trained again: yes"
    assert result.err == "measuring gpt-2x64\n"


def test_hpstudy_bench_reports_a_model_that_cannot_be_built_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_commands, "SETTINGS", [NEGATIVE])
    result = hpstudy("bench", "--preset", "tiny", "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"measuring tiny\n{CANNOT_BE_BUILT}\n"


def test_hpstudy_bench_takes_gpus_or_processes_of_a_training():
    result = hpstudy("bench", "--gpus", "2", "--processes", "2")
    assert (result.code, result.out) == (2, "")
    assert result.err == "--processes 2: is for a CPU, but --gpus is 2; leave one of them out\n"
