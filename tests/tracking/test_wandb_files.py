"""W&B's files of finished runs, written by processes of their own: whole, once, and never in training's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.processes import LOWEST
from hpstudy.study import Study
from hpstudy.tracking import wandb_files
from hpstudy.tracking.store import RunStore, RunView
from hpstudy.tracking.wandb_sink import WandbSink, sink_for
from tests.helpers.command_line import run_python
from tests.helpers.running import any_alive, workers_of
from tests.helpers.samples import header, record, result
from tests.helpers.wandb_rows import history, inspected, same, wait_until

STEPS = 60
START_SECONDS = 60.0  # for a writer on a busy machine


@pytest.fixture
def store(home: Path) -> RunStore:
    """A study of four finished runs."""
    store = RunStore(home / "quickstart")
    store.create()
    for trial in range(4):
        add(store, trial, STEPS)
    return store


def add(store: RunStore, trial: int, steps: int) -> RunView:
    """Another finished run."""
    begun = header(f"search-000{trial}", trial=trial, wandb_id=f"id-{trial}")
    writer = store.begin(begun)
    for step in range(1, steps + 1):
        writer.append(record(step, evaluated=step == 10))
    writer.finish(result(steps=steps))
    return store.view(begun.run.run_id)


def sink_of(store: RunStore, messages: list[str], *, meanwhile: bool = False) -> WandbSink:
    """A sink that writes finished runs offline."""
    return WandbSink(
        mode="offline",
        project="p",
        entity=None,
        directory=store.root,
        extra={"corpus": "asv"},
        say=messages.append,
        live=False,
        meanwhile=meanwhile,
    )


def deliver(store: RunStore) -> list[str]:
    """Writes what is missing, as a study does at its end; returns what it said."""
    messages: list[str] = []
    sink = sink_of(store, messages)
    for view in store.runs():
        sink.replay(view)
    sink.drain(lambda: None)
    sink.close(30)
    return messages


def marked(store: RunStore) -> dict[str, str]:
    """The W&B ids of the runs that count as delivered offline."""
    found = {view.run_id: view.folder / "wandb.json" for view in store.runs()}
    marks = {run_id: json.loads(path.read_text()) for run_id, path in found.items() if path.exists()}
    assert all((mark["mode"], mark["url"]) == ("offline", None) for mark in marks.values())
    return {run_id: mark["id"] for run_id, mark in marks.items()}


def is_whole(store: RunStore, run_id: str) -> bool:
    """Whether each run has one file, and that of `run_id` all of its steps."""
    view = store.view(run_id)
    rows = history(inspected(store.root, view.header.wandb_id))
    return same(rows, list(view.records())) and len(begun_files(store)) == len(store.runs())


def writers() -> list[int]:
    """Pids of the writer processes of this process."""
    return workers_of(os.getpid(), "wandb_files")


def begun_files(store: RunStore, wandb_id: str = "id-*") -> dict[Path, int]:
    """When each file that was begun of these runs was last written, in nanoseconds."""
    found = (store.root / "wandb").glob(f"offline-run-*-{wandb_id}/*.wandb")
    return {path: path.stat().st_mtime_ns for path in found}


def test_several_processes_write_each_run_once_and_the_driver_never_loads_wandb(
    store: RunStore, tmp_path: Path
) -> None:
    """Two writers, because two runs have the rows for which another one is started. None imports from its folder."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("hpstudy", "numpy", "wandb"):
        (here / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    program = f"""
import os, sys
from pathlib import Path
from hpstudy.tracking import wandb_files
from tests.helpers.running import workers_of
from tests.tracking.test_wandb_files import RunStore, deliver, sink_of
wandb_files.ROWS, wandb_files.cores = {2 * STEPS}, lambda: 2
store, messages, seen = RunStore(Path({str(store.root)!r})), [], set()
os.chdir({str(here)!r})
sink = sink_of(store, messages)
for view in store.runs():
    sink.replay(view)
sink.drain(lambda: seen.update(workers_of(os.getpid(), "wandb_files")))
sink.close(30)
print(messages, len(seen), "wandb" in sys.modules, workers_of(os.getpid(), "wandb_files"))
"""
    done = run_python(program, check=True)
    assert (done.stdout, done.stderr) == ("[] 2 False []\n", "")
    assert marked(store) == {f"search-000{trial}": f"id-{trial}" for trial in range(4)}
    assert is_whole(store, "search-0003")


def test_a_killed_writer_is_reported_once_and_the_next_session_writes_the_rest_once(store: RunStore) -> None:
    add(store, 4, 4000)
    messages: list[str] = []
    sink = sink_of(store, messages)
    for view in store.runs():
        sink.replay(view)
    wait_until(lambda: begun_files(store, "id-4"), START_SECONDS)
    (writer,) = writers()
    os.kill(writer, signal.SIGKILL)
    sink.drain(lambda: None)
    sink.close(30)
    (line,) = messages
    assert line == (
        "W&B: MachineError: the process that writes W&B's files died (exit code -9); W&B is left out from here; "
        f"the run store has every step: `hpstudy sync quickstart --runs {store.root.parent}` sends what is missing"
    )
    before = begun_files(store, "id-0")
    assert (len(marked(store)), len(before)) == (4, 1)
    assert deliver(store) == []
    assert set(marked(store)) == {f"search-000{trial}" for trial in range(5)}
    assert begun_files(store, "id-0") == before  # it was left alone
    assert is_whole(store, "search-0004")


def test_a_stop_ends_the_writers_at_once_and_a_resumed_study_writes_the_rest(store: RunStore) -> None:
    long, messages = add(store, 4, 4000), list[str]()
    sink = sink_of(store, messages)
    sink.replay(long)
    wait_until(lambda: begun_files(store, "id-4"), START_SECONDS)
    pids, began = writers(), time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # or it may have written the run before it is ended
    for view in store.runs():
        sink.replay(view)
    sink.close(30, hurried=True)
    assert time.monotonic() - began < 5.0
    assert (messages, marked(store), any_alive(pids)) == ([], {}, False)
    assert deliver(store) == []
    assert len(marked(store)) == 5
    assert is_whole(store, "search-0004")


def test_the_writers_of_a_killed_driver_end_with_it(store: RunStore) -> None:
    long = add(store, 4, 20_000)
    program = f"""
import time
from pathlib import Path
from tests.tracking.test_wandb_files import RunStore, sink_of
sink = sink_of(RunStore(Path({str(store.root)!r})), [])
sink.replay(RunStore(Path({str(store.root)!r})).view({long.run_id!r}))
time.sleep(60)
"""
    driver = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: begun_files(store, "id-4"), START_SECONDS)
    (writer,) = pids = workers_of(driver.pid, "wandb_files")
    pids += workers_of(writer, "wandb-core")
    assert len(pids) == 2
    driver.kill()
    driver.wait()
    wait_until(lambda: not any_alive(pids))
    assert marked(store) == {}


def test_a_writer_beside_training_gets_only_spare_time_and_is_replaced_if_it_gets_none_after(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_files, "LOW_ROWS", 4 * STEPS)
    monkeypatch.setattr(wandb_files, "LOW_SECONDS", 0.1)
    messages: list[str] = []
    sink = sink_of(store, messages, meanwhile=True)
    for view in store.runs():
        assert view.result
        sink.finish(view.run_id, view.result)
    wait_until(writers, START_SECONDS)
    (low,) = writers()
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, low) == LOWEST, START_SECONDS)
    if (group := Path(f"/proc/{low}/autogroup")).exists():
        wait_until(lambda: group.read_text().split()[-1] == str(LOWEST), START_SECONDS)
    os.kill(low, signal.SIGSTOP)
    for view in store.runs():
        sink.replay(view)
    sink.drain(lambda: None)
    assert low not in writers()
    sink.close(30)
    assert (messages, len(marked(store))) == ([], 4)
    assert is_whole(store, "search-0000")


@pytest.mark.parametrize("metric", ["val/loss", "train/tok_per_sec"])
def test_nothing_is_written_while_others_train_in_a_study_that_measures_speed(
    tiny: Callable[..., Study], store: RunStore, metric: str
) -> None:
    sink = sink_for(
        tiny(replace={"[budget]": f'[objective]\nmetric = "{metric}"\n[budget]'}), store.root, "offline", print
    )
    sink.finish("search-0000", result(steps=wandb_files.LOW_ROWS))
    assert len(sink._files._threads) == (metric == "val/loss")
    sink.close()
