"""Races hpstudy's trainer against other trainers and the machine's limit: the same model on the same tokens.

Every contender is a process of its own, so that none inherits another's allocator or threads. They take turns, so that
whatever else the machine does affects all of them alike.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import torch

from hpstudy.errors import MachineError
from hpstudy.running.bench import BenchSetting
from hpstudy.running.executors import refusal
from hpstudy.running.messages import Refused
from tests.bench import ROOT

Name = Literal["gemm", "hpstudy", "notebook", "transformers", "litgpt", "build-nanogpt", "notebook, fp32, fused"]
FUSED_FP32: Name = "notebook, fp32, fused"  # the notebook's loop with torch's fused AdamW, and no bf16

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Order: build a contender."""

    contender: Name
    setting: BenchSetting
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
    peak_memory_gib: float  # of the process so far, or of its tensors on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class DoesNotFit:
    """Report: memory ran out while the contender was built or in its turn. Its process has ended."""


class Spread(NamedTuple):
    """A figure's median, lowest and highest over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one contender's turns took."""

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

    setting: BenchSetting
    gemm: Result  # large matrix products in the same precision
    results: dict[Name, Result]

    @property
    def limit(self) -> float:
        """FLOP/s of the fastest of all the large matrix products."""
        return self.gemm.built.flops_per_step / min(min(turn.seconds) for turn in self.gemm.turns)

    def mfu(self, name: Name) -> float:
        """Model FLOPs utilization: a contender's FLOP per second as a share of the limit."""
        return self.results[name].flops_per_second / self.limit

    def speedup(self, name: Name) -> Spread:
        """How many times as fast hpstudy is, round by round."""
        ours, theirs = self.results["hpstudy"].steps_per_second, self.results[name].steps_per_second
        return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def peers_here(device: str) -> tuple[list[Name], dict[Name, str]]:
    """(the peers that can run here on a device, why the others cannot).

    On a CPU with bf16 arithmetic, a plain loop may be faster in fp32, so that one races there too.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    packaged: tuple[Name, ...] = ("transformers", "litgpt")
    reason = "is not installed; it comes with: pip install 'hpstudy[peers]'"
    left_out = {name: reason for name in packaged if find_spec(name) is None}
    if not on_gpu and not _compiles_on_cpu():
        left_out["build-nanogpt"] = "is compiled, but a C++ compiler or Python's headers are missing"
    peers: list[Name] = ["notebook", *packaged, "build-nanogpt", *([] if on_gpu else [FUSED_FP32])]
    return [name for name in peers if name not in left_out], left_out


def _compiles_on_cpu() -> bool:
    """Whether torch.compile finds what it needs for a CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def race(
    setting: BenchSetting,
    names: Sequence[Name],
    *,
    device: str = "auto",
    threads: int = 1,
    rounds: int = 5,
    turn_seconds: float = 1.0,
    say: Callable[[str], None],
) -> Race:
    """Lets the contenders take turns of about `turn_seconds`, at least one step, after one round of warm-up.

    A peer that does not fit into memory is left out, with a line. Raises UserError if there is no such device,
    MachineError if a contender dies or hpstudy does not fit.
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
                raise MachineError(f"{setting.name}: {name} does not fit into memory beside its peers")
            say(f"{setting.name}: {name} does not fit into memory beside the others and is left out")
    results = {name: Result(built=built[name], turns=tuple(those)) for name, those in turns.items()}
    return Race(setting=setting, gemm=results.pop("gemm"), results=results)


def taking_turns(contenders: Mapping[Name, T], rounds: int) -> Iterator[tuple[int, Name, T]]:
    """(number of the round from 0, name, contender), in the order A B C A B C…"""
    for number in range(rounds):
        for name, contender in contenders.items():
            yield number, name, contender


class Contender:
    """A contender's process, which ends with the context."""

    def __init__(self, job: Job) -> None:
        self._job = job
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.contender_main"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
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
        """Waits until the contender is ready; None if it does not fit. Raises UserError or MachineError."""
        match self._receive():
            case Built() as built:
                return built
            case DoesNotFit():
                return None
            case Refused() as report:
                raise refusal(report)
            case report:
                raise AssertionError(f"unexpected report {report!r}")

    def turn(self, seconds: float) -> Turn | None:
        """Steps for about `seconds`, at least one; None if they do not fit, and the contender has ended."""
        self._connection.send(seconds)
        report = self._receive()
        assert isinstance(report, Turn | DoesNotFit)
        return report if isinstance(report, Turn) else None

    def _receive(self) -> object:
        try:
            report: object = self._connection.recv()
        except (EOFError, OSError) as error:
            job = self._job
            raise MachineError(f"{job.contender} died on {job.setting.name}; its output is above") from error
        return report


def _environment(job: Job) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    # makes cuBLAS deterministic, as in a worker
    return threads | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if job.contender == "hpstudy" else threads
