"""`doctor` and `bench`: what this machine has, and how fast it trains."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hpstudy.cli.common import out, say
from hpstudy.errors import HpstudyError, MachineError, UserError
from hpstudy.files import cache_dir
from hpstudy.running.bench import QUICK, SETTINGS, BenchResult
from hpstudy.running.bench import bench as measure
from hpstudy.running.executors import wait_until_ready
from hpstudy.running.local import LocalExecutor
from hpstudy.running.messages import Setup
from hpstudy.spec import PRESETS, TrainerSpec, ranks_named
from hpstudy.tracking.wandb_settings import resolve_mode

PACKAGES = ("torch", "optuna", "wandb", "tiktoken", "pandas", "pyarrow")
FREE_GIB_NEEDED = 1.0
ROUNDS = 5

TURN_SECONDS, QUICK_TURN_SECONDS = 1.0, 0.25

PROBE = TrainerSpec(
    model=PRESETS["gpt-2x64"],
    corpus="asv",
    tokenizer="bytes",
    context=64,
    tokens=4096,
    evals=1,
    val_tokens=4096,
)
"""A tiny training. Building it exercises tokenizer, corpus, device and worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `doctor`."""

    what: str
    good: bool
    found: str


def doctor(runs: Path, device: str) -> None:
    """Prints one line per thing that a study needs. Raises MachineError if one is missing."""
    table = Table(box=None, show_header=False)
    missing = []
    for check in _checks(runs, device):
        state = Text("ok", style="green") if check.good else Text("missing", style="red")
        table.add_row(state, check.what, check.found)
        if not check.good:
            missing.append(check.what)
    out().print(table)
    if missing:
        raise MachineError(f"missing here: {', '.join(missing)}; the lines above say what each needs")


def _checks(runs: Path, device: str) -> Iterator[Check]:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield Check(what="packages", good=True, found=f"Python {platform.python_version()}, {versions}")
    yield Check(what="cores", good=True, found=f"{os.cpu_count()} ({platform.machine()})")
    yield _probe("training", lambda: _training(device))
    yield _probe("W&B", lambda: f"mode auto is {resolve_mode('auto')} here")
    yield _folder("cache", cache_dir())
    yield _folder("runs", runs)


def _training(device: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        executor = LocalExecutor(Path(folder))
        worker = executor.start(Setup(spec=PROBE, device=device, base=Path.cwd()), 0)
        try:
            found = wait_until_ready(worker).environment
        finally:
            executor.stop([worker])
    return f"{found['device']} ({found['device_name']}), {found['precision']}: {found['reason']}"


def _probe(what: str, find: Callable[[], str]) -> Check:
    try:
        return Check(what=what, good=True, found=find())
    except HpstudyError as error:
        return Check(what=what, good=False, found=str(error))


def _folder(what: str, path: Path) -> Check:
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    good = os.access(there, os.W_OK) and free >= FREE_GIB_NEEDED
    return Check(what=f"{what} folder", good=good, found=f"{path}, {free:.0f} GiB free")


def bench(*, device: str, threads: int, gpus: int, processes: int, quick: bool, preset: str | None) -> None:
    """Prints one row per model."""
    if gpus > 1 and processes > 1:
        raise UserError(f"--processes {processes}: is for a CPU, but --gpus is {gpus}; leave one of them out")
    settings = [setting for setting in SETTINGS if setting.name == preset] if preset else QUICK if quick else SETTINGS
    if not settings:
        raise UserError(f"--preset {preset}: must be one of {', '.join(setting.name for setting in SETTINGS)}")
    turn_seconds = QUICK_TURN_SECONDS if quick else TURN_SECONDS
    found = []
    with tempfile.TemporaryDirectory(prefix="hpstudy-bench-") as folder, _flags_named(gpus=gpus, processes=processes):
        for setting in settings:
            say(f"measuring {setting.name}")
            executor = LocalExecutor(Path(folder))
            found.append(
                measure(
                    setting,
                    device=device,
                    threads=threads,
                    gpus=gpus,
                    processes=processes,
                    rounds=ROUNDS,
                    turn_seconds=turn_seconds,
                    executor=executor,
                )
            )
    words = [found[0].device_name, found[0].precision, f"{threads} thread{'s' if threads > 1 else ''}"]
    out().print(", ".join(filter(None, [*words, ranks_named(gpus, processes)])))
    out().print(bench_table(found))
    profiled = [result for result in found if result.figures.shares]
    if profiled:
        out().print()
        out().print(shares_table(profiled))
        out().print()
    if len(profiled) < len(found):
        say("torch's profiler recorded nothing on some models, so their shares of a step are missing")
    repeats = all(result.figures.repeats for result in found)
    out().print(f"the same numbers to the last bit when trained again: {'yes' if repeats else 'no'}")


@contextlib.contextmanager
def _flags_named(**flags: int) -> Iterator[None]:
    """Makes an error that blames a key of [trainer] blame the flag, as no study file states it here."""
    try:
        yield
    except UserError as error:
        problems = list(error.problems)
        for key, value in flags.items():
            stated = [problem.replace(f"[trainer] {key}:", f"--{key} {value}:") for problem in problems]
            problems = [problem.replace(f" {key} = ", f" --{key} ") for problem in stated]
        raise UserError(problems) from None


def bench_table(found: list[BenchResult]) -> Table:
    """A row per model. The limit is the fastest large matrix product in the training's precision.

    The cold start is what the first two steps take longer than the same steps again: compilation on a GPU.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    for heading in ("tok/s", "MFU", "limit GFLOP/s", "peak GiB", "cold start s"):
        table.add_column(heading, justify="right")
    for result in found:
        table.add_row(
            f"{result.setting.name} at {result.setting.context}",
            f"{result.tok_per_sec:,.0f}",
            f"{result.mfu:.1%}",
            f"{result.figures.flops_per_second / 1e9:,.0f}",
            f"{result.figures.peak_gib:.2f}",
            f"{result.figures.cold_start_seconds:.1f}",
        )
    return table


def shares_table(found: Sequence[BenchResult]) -> Table:
    """A row per kind of work, a column per model: its share of a step's time, by the profiler."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("share of a step")
    for result in found:
        table.add_column(result.setting.name, justify="right")
    for kind in found[0].figures.shares:
        shares = [result.figures.shares[kind] for result in found]
        if any(shares):
            table.add_row(kind, *(f"{share:.1%}" for share in shares))
    return table
