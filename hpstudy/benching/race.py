"""One training against the machine's limit and its peers: the same model on the same tokens, side by side in one run.

Every contender is a process of its own, so that none inherits another's allocator or threads, and they take turns
round by round, so that what else the machine does meanwhile falls on all of them alike.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple, Self, TypeVar

from hpstudy.errors import MachineError, UserError
from hpstudy.running.workers import Refused
from hpstudy.spec import PRESETS, ModelShape, vocab_size

Name = Literal["gemm", "hpstudy", "notebook", "transformers", "litgpt", "build-nanogpt"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every contender of a race trains."""

    name: str
    model: ModelShape
    tokenizer: str
    context: int
    sequences: Mapping[str, int]  # of one step, by kind of device
    micro_batch: Mapping[str, int]  # of hpstudy and of build-nanogpt, by kind of device

    @property
    def flops_per_token(self) -> int:
        """Multiplications and additions that training on one token needs, with no padding and nothing recomputed.

        6 for each weight of a matrix product (forward, and twice backward), 12·L·C·T for the attention.
        Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        """
        L, C, V, T = self.model.layers, self.model.width, vocab_size(self.tokenizer), self.context
        return 6 * (12 * L * C * C + V * C) + 12 * L * C * T


def _setting(
    preset: str, tokenizer: str, context: int, *, cpu: int, cuda: int, cuda_micro: int | None = None
) -> Setting:
    return Setting(
        name=preset,
        model=PRESETS[preset],
        tokenizer=tokenizer,
        context=context,
        sequences={"cpu": cpu, "cuda": cuda},
        micro_batch={"cpu": cpu, "cuda": cuda_micro or cuda},
    )


SETTINGS = (  # a step takes seconds at most, save a peer's of gpt-125m
    _setting("gpt-2x64", "gpt2:512", 128, cpu=16, cuda=512),
    _setting("gpt-4x128", "gpt2", 128, cpu=16, cuda=256),
    _setting("gpt-6x256", "gpt2", 256, cpu=8, cuda=128),
    _setting("gpt-125m", "gpt2", 1024, cpu=1, cuda=512, cuda_micro=64),  # GPT-3's batch, 2^19 tokens
)
QUICK = SETTINGS[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a contender's process is told first."""

    contender: Name
    setting: Setting
    device: str  # as given on the command line: auto, cpu, cuda, cuda:N
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Report: the contender is ready to take its turns."""

    device: str
    precision: str
    tokens_per_step: int
    flops_per_step: int
    repeats: bool | None = None  # hpstudy: whether its first steps, trained twice, gave the same numbers bitwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Report: the steps of one turn."""

    seconds: tuple[float, ...]  # of each step
    peak_memory_gib: float  # of the process until now, or of its tensors on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class DoesNotFit:
    """Report: memory ran out as the contender was built or in its turn, and its process has ended."""


class Spread(NamedTuple):
    """A figure's median over the rounds, and how far they scatter."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one contender did."""

    built: Built
    turns: tuple[Turn, ...]

    @property
    def steps_per_second(self) -> tuple[float, ...]:
        """Of each turn."""
        return tuple(len(turn.seconds) / sum(turn.seconds) for turn in self.turns)

    @property
    def tok_per_sec(self) -> float:
        """The median over the turns."""
        return statistics.median(self.steps_per_second) * self.built.tokens_per_step

    @property
    def flops_per_second(self) -> float:
        """The median over the turns."""
        return statistics.median(self.steps_per_second) * self.built.flops_per_step

    @property
    def peak_memory_gib(self) -> float:
        """Of all turns."""
        return max(turn.peak_memory_gib for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What a race measured."""

    setting: Setting
    gemm: Result  # large matrix products in the same precision
    results: dict[Name, Result]

    @property
    def limit(self) -> float:
        """FLOP/s of the fastest of all the large matrix products."""
        return self.gemm.built.flops_per_step / min(min(turn.seconds) for turn in self.gemm.turns)

    def mfu(self, name: Name) -> float:
        """Model FLOPs utilization: what a contender needs per second, as a share of the limit."""
        return self.results[name].flops_per_second / self.limit

    def speedup(self, name: Name) -> Spread:
        """How many times as fast hpstudy is, round by round."""
        ours, theirs = self.results["hpstudy"].steps_per_second, self.results[name].steps_per_second
        return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def peers_here(setting: Setting) -> tuple[list[Name], list[Name]]:
    """The peers that can run here, and those that are not installed; build-nanogpt is a recipe for gpt-125m."""
    packaged: tuple[Name, ...] = ("transformers", "litgpt")
    missing = [name for name in packaged if find_spec(name) is None]
    recipes: list[Name] = ["build-nanogpt"] if setting.name == "gpt-125m" else []
    return ["notebook", *(name for name in packaged if name not in missing), *recipes], missing


def race(
    setting: Setting,
    names: Sequence[Name],
    *,
    device: str = "auto",
    threads: int = 1,
    rounds: int = 5,
    turn_seconds: float = 1.0,
    say: Callable[[str], None],
) -> Race:
    """Lets the contenders take turns of about `turn_seconds`, at least one step, after a turn that is not counted.

    A peer that does not fit into the memory is left out, with a line. Raises UserError when the device is not there,
    MachineError when a contender dies or hpstudy does not fit.
    """
    field: tuple[Name, ...] = ("gemm", *names)
    with ExitStack() as stack:
        jobs = [Job(contender=name, setting=setting, device=device, threads=threads) for name in field]
        contenders = {job.contender: stack.enter_context(Contender(job)) for job in jobs}
        built = {name: report for name, contender in contenders.items() if (report := contender.built()) is not None}
        turns: dict[Name, list[Turn]] = {name: [] for name in built}
        for number, name, contender in taking_turns(contenders, rounds + 1):
            if name == field[0]:
                say(f"{setting.name}: {f'round {number} of {rounds}' if number else 'warming up'}")
            turn = contender.turn(turn_seconds) if name in turns else None
            if turn is None:
                turns.pop(name, None)
            elif number:
                turns[name].append(turn)
    for name in field:
        if name not in turns:
            if name in ("gemm", "hpstudy"):
                raise MachineError(f"{setting.name}: {name} does not fit into the memory beside its peers")
            say(f"{setting.name}: {name} does not fit into the memory beside the others and is left out")
    results = {name: Result(built=built[name], turns=tuple(those)) for name, those in turns.items()}
    return Race(setting=setting, gemm=results.pop("gemm"), results=results)


def taking_turns(contenders: Mapping[Name, T], rounds: int) -> Iterator[tuple[int, Name, T]]:
    """A B C A B C …, each with the number of its round, from 0."""
    for number in range(rounds):
        for name, contender in contenders.items():
            yield number, name, contender


class Contender:
    """The near end of a contender's process, which ends with it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hpstudy.benching.contender_main"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | _environment(job),
            )
        self._connection = Connection(ours.detach())
        self._connection.send(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def built(self) -> Built | None:
        """Waits until the contender is ready; None where it does not fit. Raises UserError or MachineError."""
        match self._receive():
            case Built() as built:
                return built
            case DoesNotFit():
                return None
            case Refused(problems=problems, by_user=by_user):
                raise UserError(problems) if by_user else MachineError("; ".join(problems))
            case report:
                raise AssertionError(f"unexpected report {report!r}")

    def turn(self, seconds: float) -> Turn | None:
        """Steps for about so long, at least one; None where they do not fit, and then no more."""
        self._connection.send(seconds)
        report = self._receive()
        assert isinstance(report, Turn | DoesNotFit)
        return report if isinstance(report, Turn) else None

    def _receive(self) -> object:
        try:
            report: object = self._connection.recv()
        except (EOFError, OSError) as error:
            job = self._job
            raise MachineError(f"{job.contender} died on {job.setting.name}; what it said is above") from error
        return report


def _environment(job: Job) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    # as a worker has it: what cuBLAS needs to be deterministic
    return threads | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if job.contender == "hpstudy" else threads
