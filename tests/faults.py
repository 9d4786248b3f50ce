"""Faults done to real studies at random moments: `python -m tests.faults` (make faults) prints what was lost.

A study is struck, run again by the same command until it ends, and compared with one that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpstudy.errors import HpstudyError
from hpstudy.progress import StudyProgress
from hpstudy.records import StepRecord, changes
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Options, StopRequest
from hpstudy.search import Search
from hpstudy.study import load_study
from hpstudy.tracking.store import RunStore
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
SAID = "said.txt"  # beside the study file: what its sessions told the user
SESSIONS = 200  # before a study that does not end counts as lost
Strike = Callable[[subprocess.Popen[bytes], Path, random.Random], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that may happen to a study, and how often a try does it."""

    name: str
    strike: Strike
    more: str = ""  # of the study file's [budget]
    workers: int = 1
    anytime: bool = True  # or only once steps come


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a study lacks, or has too much of, beside an uninterrupted one."""

    steps_lost: int = 0
    steps_doubled: int = 0
    steps_changed: int = 0
    trials_lost: int = 0

    def __add__(self, other: Losses) -> Losses:
        return Losses(**{key: getattr(self, key) + getattr(other, key) for key in self.__slots__})


def workers_of(driver: int) -> list[int]:
    """Pids of the worker processes of a driver, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == driver and b"worker_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
        except (OSError, ValueError):
            continue
    return found


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill_worker(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    for pid in workers_of(driver.pid)[:1]:
        send(pid, signal.SIGKILL)


def stop_worker(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    for pid in workers_of(driver.pid)[:1]:
        send(pid, signal.SIGSTOP)


def kill_driver(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    workers = workers_of(driver.pid)
    driver.kill()
    driver.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they end by themselves
        assert time.monotonic() < end, "a worker has outlived its driver"
        time.sleep(0.01)


def kill_both(driver: subprocess.Popen[bytes], _store: Path, rng: random.Random) -> None:
    pids = [driver.pid, *workers_of(driver.pid)]
    for pid in rng.sample(pids, len(pids)):
        send(pid, signal.SIGKILL)
    driver.wait()


def terminate(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    driver.terminate()
    driver.wait()


def kill_and_cut(driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> None:
    """Kills both, then cuts the end off what they were writing."""
    kill_both(driver, store, rng)
    unfinished = [path for path in store.glob("search-*") if not (path / "result.json").exists()]
    for path in [file for folder in unfinished for file in (folder / "steps.jsonl", folder / "checkpoint.pt")]:
        if path.exists() and rng.random() < 0.7:
            size = path.stat().st_size
            os.truncate(path, max(0, size - rng.randrange(1, 400)))
    journal = store / "optuna.journal"
    if journal.exists() and rng.random() < 0.5 and (last := journal.read_bytes().splitlines(keepends=True)[-1:]):
        os.truncate(journal, journal.stat().st_size - rng.randrange(1, len(last[0]) + 1))


FAULTS = (
    Fault(name="kill -9 of the worker", strike=kill_worker),
    Fault(name="kill -9 of the driver", strike=kill_driver),
    Fault(name="kill -9 of both", strike=kill_both),
    Fault(name="kill -9 of both, two workers", strike=kill_both, workers=2),
    Fault(name="kill -9, files cut short", strike=kill_and_cut),
    Fault(name="SIGTERM", strike=terminate),
    Fault(name="worker hangs (SIGSTOP)", strike=stop_worker, more="hang_seconds = 3", anytime=False),
)


def write_study(folder: Path, more: str = "") -> Path:
    """The tiny study in a folder of its own."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(more=more))
    return path


def session(study: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    """`hpstudy run` in another process, with a checkpoint after every step; the runs lie beside the study."""
    with (study.parent / SAID).open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults", "--drive", str(study), "--workers", str(workers)],
            cwd=ROOT,
            stdout=said,
            stderr=said,
        )


def drive(study_file: Path, workers: int) -> int:
    """The other process."""
    study, stop = load_study(str(study_file)), StopRequest()
    signal.signal(signal.SIGTERM, lambda *_: setattr(stop, "requested", True))
    options = Options(runs=study_file.parent, device="cpu", wandb="disabled", workers=workers, checkpoint_seconds=0.0)
    progress = StudyProgress(study, Console(file=sys.stdout, width=1000))
    try:
        run_study(study, options, progress, stop)
    except HpstudyError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


def num_steps(store: Path) -> int:
    """Lines in the step files of a study."""
    return sum(path.read_bytes().count(b"\n") for path in store.glob("*/steps.jsonl"))


def moment(driver: subprocess.Popen[bytes], store: Path, rng: random.Random, *, anytime: bool) -> bool:
    """Waits for a random moment, of the start or of the next two runs; False where the session ends before it."""
    until = time.monotonic() + (rng.uniform(0, 4) if anytime and rng.random() < 0.15 else 600)
    target = num_steps(store) + rng.randint(20, 50)  # so that no run is struck time and again
    while num_steps(store) < target and time.monotonic() < until:
        if driver.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    return driver.poll() is None


def struck(fault: Fault, study: Path, rng: random.Random, most: int) -> int:
    """Runs a study to its end and strikes it up to `most` times; returns how often it did."""
    times, store = 0, study.parent / study.stem
    for _ in range(SESSIONS):
        with session(study, fault.workers) as driver:
            while times < most and moment(driver, store, rng, anytime=fault.anytime):
                fault.strike(driver, store, rng)
                times += 1
            if driver.wait() == 0:
                return times
    raise AssertionError(f"{study}: not at its end after {SESSIONS} sessions")


def untouched(folder: Path) -> RunStore:
    """The study that nothing happens to."""
    with session(write_study(folder)) as driver:
        assert driver.wait() == 0, (folder / SAID).read_text()
    return RunStore(folder / "tiny")


def losses(found: RunStore, reference: RunStore) -> Losses:
    """What a study lacks beside another."""
    total = Losses()
    views = {view.run_id: view for view in found.runs()}
    for view in reference.runs():
        expected = list(view.records())
        got: list[StepRecord] = list(views[view.run_id].records()) if view.run_id in views else []
        by_step = {record.step: record for record in got}
        lost = [record for record in expected if record.step not in by_step]
        total += Losses(
            steps_lost=len(lost),
            steps_doubled=len(got) - len(by_step),
            steps_changed=sum(bool(r.step in by_step and changes(r, by_step[r.step])) for r in expected),
        )
    told = [_trials(store) for store in (found, reference)]
    missing = Counter(map(repr, told[1])) - Counter(map(repr, told[0]))
    return replace(total, trials_lost=missing.total() + max(0, len(told[0]) - len(told[1])))


def _trials(store: RunStore) -> list[object]:
    """Numbers, values, states and objectives: another proposal, or a trial that is still running, counts as lost."""
    study = load_study(str(store.root.with_suffix(".toml")))
    return list(Search(study, store.root / "optuna.journal", read_only=True).trials())


def attempt(fault: Fault, folder: Path, reference: RunStore, seed: int, most: int) -> tuple[int, Losses]:
    """One study struck up to `most` times: how often it was, and what it has lost."""
    study = write_study(folder, fault.more)
    times = struck(fault, study, random.Random(seed), most)
    return times, losses(RunStore(folder / study.stem), reference)


def tried(fault: Fault, folder: Path, reference: RunStore, tries: int) -> tuple[int, Losses]:
    """As many studies as it takes to strike that often: how often it was, and what they have lost."""
    times, lost, seed = 0, Losses(), 0
    while times < tries:
        (here := folder / f"{fault.name.replace(' ', '-').replace('/', '')}-{seed}").mkdir()
        more, lacking = attempt(fault, here, reference, seed, tries - times)
        times, lost, seed = times + more, lost + lacking, seed + 1
    return times, lost


def main() -> int:
    """Prints the table; 1 when anything was lost, doubled or changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="of each fault (3)")
    parser.add_argument("--long", action="store_true", help="100 tries of each")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        return drive(asked.drive, asked.workers)
    table = Table("fault", box=None, header_style="", pad_edge=False)
    for column in ("times tried", "steps lost", "steps doubled", "steps changed", "trials lost"):
        table.add_column(column, justify="right")
    total, progress = Losses(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = untouched(folder)
        for fault in FAULTS:
            times, lost = tried(fault, folder, reference, 100 if asked.long else asked.tries)
            progress.print(f"{fault.name}: {times} times", soft_wrap=True)
            table.add_row(fault.name, str(times), *(str(getattr(lost, key)) for key in Losses.__slots__))
            total += lost
    Console(width=100).print(table)
    return int(total != Losses())


if __name__ == "__main__":
    sys.exit(main())
