"""Injects faults into real studies at random moments: `python -m tests.bench.faults` prints what the studies lost.

After each fault the same command runs the study again, until it ends without another. If the command refuses what it
finds, the fault is undone. Then the study is compared with one without faults. A traceback counts as a wrong answer.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpstudy.cli.progress import StudyProgress
from hpstudy.errors import HpstudyError
from hpstudy.processes import STOP_SIGNALS
from hpstudy.records import StepRecord, step_differences
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Options, StopRequest
from hpstudy.search import Search
from hpstudy.study import load_study
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore
from tests.bench import ROOT
from tests.helpers.lacking import lacking_calls
from tests.helpers.running import any_alive, workers_of
from tests.helpers.tiny import TINY

OUTPUT = "output.txt"  # beside the study file: what its sessions printed
SESSIONS = 200  # after which a study that has not ended counts as lost
REFUSED = (1, 2)  # exit codes with which a session names what it found


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What a fault leaves: the variables of the next session, and what puts it right if that session refuses it."""

    variables: Mapping[str, str] = field(default_factory=dict)
    undo: Callable[[], object] = lambda: None


Inject = Callable[[subprocess.Popen[bytes], Path, random.Random], Aftermath | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that may happen to a study."""

    name: str
    inject: Inject  # called with the driver, the study's folder of runs, and random numbers
    more: str = ""  # lines for the study file's [budget]
    workers: int = 1
    anytime: bool = True  # also while the driver starts; else only between steps
    lockless: bool = False  # on a file system that cannot lock files


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """How a study differs from one without faults."""

    steps_lost: int = 0
    steps_doubled: int = 0
    steps_changed: int = 0
    trials_lost: int = 0
    wrong_answers: int = 0  # verdicts, trials or tables that differ; tracebacks too

    def __add__(self, other: Losses) -> Losses:
        return Losses(**{key: getattr(self, key) + getattr(other, key) for key in self.__slots__})


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may have ended."""
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
    while any_alive(workers):  # they end by themselves
        assert time.monotonic() < end, "a worker still runs a minute after its driver was killed"
        time.sleep(0.01)


def kill_both(driver: subprocess.Popen[bytes], _store: Path, rng: random.Random) -> None:
    pids = [driver.pid, *workers_of(driver.pid)]
    for pid in rng.sample(pids, len(pids)):
        send(pid, signal.SIGKILL)
    driver.wait()


def terminate(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    driver.terminate()
    driver.wait()


def hang_up(driver: subprocess.Popen[bytes], _store: Path, _rng: random.Random) -> None:
    driver.send_signal(signal.SIGHUP)
    driver.wait()


def run_folder(store: Path, rng: random.Random) -> Path | None:
    """The folder of a run that has begun, whether it trains or has ended."""
    folders = sorted(path for path in store.glob("search-*") if path.is_dir() and not path.name.endswith("-bak"))
    return rng.choice(folders) if folders else None


def remove_run(_driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> Aftermath | None:
    """Removes a run's folder. The driver may write into it meanwhile, so that some of it stays."""
    if not (folder := run_folder(store, rng)):
        return None
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    remove()
    return Aftermath(undo=remove)


def copy_run(_driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> None:
    if folder := run_folder(store, rng):
        subprocess.run(["cp", "-r", folder, f"{folder}-bak"], stderr=subprocess.DEVNULL, check=False)


def change_byte(driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> Aftermath | None:
    """Kills both, then changes one byte of any file."""
    kill_both(driver, store, rng)
    files = sorted(
        path for path in store.rglob("*") if path.is_file() and path.stat().st_size and path.suffix != ".log"
    )
    names = sorted({path.name for path in files})
    if not names:
        return None
    name = rng.choice(names)
    path = rng.choice([path for path in files if path.name == name])
    content = path.read_bytes()
    at = rng.randrange(len(content))
    changed = bytes([rng.choice([byte for byte in (rng.randrange(256), *b"0123456789") if byte != content[at]])])
    path.write_bytes(content[:at] + changed + content[at + 1 :])

    def undo() -> None:
        if path.exists() and (now := path.read_bytes())[at : at + 1] == changed:
            path.write_bytes(now[:at] + content[at : at + 1] + now[at + 1 :])

    return Aftermath(undo=undo)


def change_environment(driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> Aftermath:
    """Kills both, then lets the study go on with other vector instructions, if it has noted those it began with."""
    kill_both(driver, store, rng)
    if not (store / ENVIRONMENT).exists():
        return Aftermath()
    return Aftermath(variables={"ATEN_CPU_CAPABILITY": rng.choice(["default", "avx2"])})


def second_driver(_driver: subprocess.Popen[bytes], store: Path, _rng: random.Random) -> None:
    """Starts the study a second time while it runs."""
    with session(store.with_suffix(".toml"), lockless=True) as second:
        assert second.wait() != 0 or _driver.poll() == 0, "two drivers wrote one study"


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
    Fault(name="kill -9 of the worker", inject=kill_worker),
    Fault(name="kill -9 of the driver", inject=kill_driver),
    Fault(name="kill -9 of both", inject=kill_both),
    Fault(name="kill -9 of both, two workers", inject=kill_both, workers=2),
    Fault(name="kill -9, files cut short", inject=kill_and_cut),
    Fault(name="SIGTERM", inject=terminate),
    Fault(name="worker hangs (SIGSTOP)", inject=stop_worker, more="hang_seconds = 3", anytime=False),
    Fault(name="SIGHUP", inject=hang_up),
    Fault(name="a run's folder removed", inject=remove_run),
    Fault(name="a run's folder copied", inject=copy_run),
    Fault(name="kill -9, a byte changed", inject=change_byte),
    Fault(name="other vector instructions", inject=change_environment),
    Fault(name="second driver, no file locks", inject=second_driver, lockless=True, anytime=False),
)


def write_study(folder: Path, more: str = "", *, replace: Mapping[str, str] | None = None) -> Path:
    """The tiny study in a folder of its own; `replace` maps old text to new."""
    path, text = folder / "tiny.toml", TINY.format(more=more)
    for old, new in (replace or {}).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def session(
    study: Path, workers: int = 1, *, lockless: bool = False, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Runs a study in another process, with a checkpoint after every step; its runs are kept beside the study file."""
    lacking = lacking_calls(study.parent, flock=errno.ENOSYS) if lockless else {}
    with (study.parent / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.bench.faults", "--drive", str(study), "--workers", str(workers)],
            cwd=ROOT,
            env={**os.environ, **lacking, **(variables or {})},
            stdout=output,
            stderr=output,
        )


def drive(study_file: Path, workers: int, cluster: str | None = None) -> int:
    """What a session's process does; returns its exit code."""
    study, stop = load_study(str(study_file)), StopRequest()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: setattr(stop, "requested", True))
    options = Options(
        runs=study_file.parent,
        device="cpu",
        wandb="disabled",
        workers=workers,
        checkpoint_seconds=0.0,
        cluster=cluster,
    )
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


def wait_for_moment(driver: subprocess.Popen[bytes], store: Path, rng: random.Random, *, anytime: bool) -> bool:
    """Waits until 20 to 50 more steps are recorded; False if the session ends before.

    With `anytime` one wait in seven ends within 4 seconds, which may be while the driver starts.
    """
    until = time.monotonic() + (rng.uniform(0, 4) if anytime and rng.random() < 0.15 else 600)
    target = num_steps(store) + rng.randint(20, 50)  # so that every run ends after a few faults
    while num_steps(store) < target and time.monotonic() < until:
        if driver.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    return driver.poll() is None


def run_with_fault(fault: Fault, study: Path, rng: random.Random, most: int) -> tuple[int, int]:
    """Runs a study to its end and injects the fault up to `most` times: (how often, how often it was refused)."""
    times, refused, store = 0, 0, study.parent / study.stem
    left: list[Aftermath] = []  # of faults that no session has met yet
    variables: list[Mapping[str, str]] = [{}]  # the last are the next session's; those before are tried if it refuses
    for _ in range(SESSIONS):
        before, steps = times, num_steps(store)
        with session(study, fault.workers, lockless=fault.lockless, variables=variables[-1]) as driver:
            while times < most and wait_for_moment(driver, store, rng, anytime=fault.anytime):
                if num_steps(store) > steps:
                    left = []  # it has met them, and goes on
                left += filter(None, [fault.inject(driver, store, rng)])
                times += 1
            code = driver.wait()
        if code in REFUSED:
            variables = variables[:-1] or [{}]
            if left:
                for aftermath in reversed(left):
                    aftermath.undo()
                refused, left = refused + 1, []
        elif left and times > before:
            variables.append(left[-1].variables)
        if code == 0 and times == before:
            return times, refused
    raise AssertionError(f"{study}: has not ended after {SESSIONS} sessions")


def run_without_faults(folder: Path) -> RunStore:
    """The tiny study, run in a folder of its own."""
    with session(write_study(folder)) as driver:
        assert driver.wait() == 0, (folder / OUTPUT).read_text()
    return RunStore(folder / "tiny")


def losses(found: RunStore, reference: RunStore) -> Losses:
    """How a study differs from the reference."""
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
            steps_changed=sum(bool(r.step in by_step and step_differences(r, by_step[r.step])) for r in expected),
        )
    ours, expected_trials = (_trials(store) for store in (found, reference))
    missing = Counter(map(repr, expected_trials)) - Counter(map(repr, ours))
    return replace(
        total,
        trials_lost=missing.total() + max(0, len(ours) - len(expected_trials)),
        wrong_answers=int(_answer(found) != _answer(reference))
        + (found.root.parent / OUTPUT).read_text(errors="replace").count("Traceback"),
    )


def _answer(store: RunStore) -> object:
    """What a reader learns: the verdict, and every trial with its loss, without times."""
    from hpstudy.analysis.results import load  # here: pandas must not be in the sessions, which may have a false clock

    results = load(store.root.name, store.root.parent)
    trials = results.trials[["run_id", "outcome", "lr", "beta2", "val_loss", "best_val_loss", "tokens"]]
    return results.verdict().sentence, trials.to_csv()


def _trials(store: RunStore) -> list[object]:
    """Number, values, state and objectives of each trial. One that differs in any of them counts as lost."""
    study = load_study(str(store.root.with_suffix(".toml")))
    return list(Search(study, store.root / "optuna.journal", read_only=True).trials())


def attempt(fault: Fault, folder: Path, reference: RunStore, seed: int, most: int) -> tuple[int, int, Losses]:
    """Runs one study and injects the fault up to `most` times: (how often, how often refused, what it has lost)."""
    study = write_study(folder, fault.more)
    times, refused = run_with_fault(fault, study, random.Random(seed), most)
    return times, refused, losses(RunStore(folder / study.stem), reference)


def attempts(fault: Fault, folder: Path, reference: RunStore, times: int) -> tuple[int, int, Losses]:
    """Runs studies until the fault was injected that often: (how often, how often refused, what they have lost)."""
    done, refused, lost, seed = 0, 0, Losses(), 0
    while done < times:
        (here := folder / f"{re.sub('[^a-z0-9]+', '-', fault.name.lower())}-{seed}").mkdir()
        more, refused_here, losses_here = attempt(fault, here, reference, seed, times - done)
        done, refused, lost, seed = done + more, refused + refused_here, lost + losses_here, seed + 1
    return done, refused, lost


def cluster_faults(only: str, times: int) -> int:
    """Prints the table of the faults of a cluster; returns 1 if anything was lost, doubled or changed."""
    from tests.bench.cluster_faults import all_faults

    table = Table("fault", box=None, header_style="", pad_edge=False)
    for column in ("times", "resumes within", *(key.replace("_", " ") for key in Losses.__slots__)):
        table.add_column(column, justify="right")
    total, progress = Losses(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as name, all_faults(only, Path(name), times) as found:
        for fault, done, wait, lost in found:
            progress.print(f"{fault}: {done} times, resumed within {wait:.0f} s", soft_wrap=True)
            table.add_row(fault, str(done), f"{wait:.0f} s", *(str(getattr(lost, key)) for key in Losses.__slots__))
            total += lost
    Console(width=120).print(table)
    return int(total != Losses())


def main() -> int:
    """Prints the table; returns 1 if anything was lost, doubled or changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description=__doc__)
    parser.add_argument("--times", type=int, default=3, metavar="N", help="how often to inject each fault (3)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose name has these words")
    parser.add_argument("--long", action="store_true", help="inject each fault 100 times")
    parser.add_argument("--cluster", action="store_true", help="the faults of a Ray cluster instead; needs root")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        return drive(args.drive, args.workers, args.join)
    if args.cluster:
        return cluster_faults(args.only, 20 if args.long else args.times)
    table = Table("fault", box=None, header_style="", pad_edge=False)
    for column in ("times", "refused", *(key.replace("_", " ") for key in Losses.__slots__)):
        table.add_column(column, justify="right")
    total, progress = Losses(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = run_without_faults(folder)
        for fault in (fault for fault in FAULTS if args.only in fault.name):
            times, refused, lost = attempts(fault, folder, reference, 100 if args.long else args.times)
            progress.print(f"{fault.name}: {times} times", soft_wrap=True)
            table.add_row(fault.name, str(times), str(refused), *(str(getattr(lost, key)) for key in Losses.__slots__))
            total += lost
    Console(width=120).print(table)
    return int(total != Losses())


if __name__ == "__main__":
    sys.exit(main())
