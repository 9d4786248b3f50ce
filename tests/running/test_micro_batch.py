"""`micro_batch = "auto"` with real workers: found once, kept by the study and by the cache."""

from __future__ import annotations

import os
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from test_interruptions import workers_of

from hpstudy.errors import MachineError
from hpstudy.records import Run, StepRecord
from hpstudy.running.cost import estimate, welcome
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.running.micro_batch import find
from hpstudy.running.workers import Order, Setup, Timed, TimeSteps, Worker
from hpstudy.study import Study
from studies import Watch, go

AUTO = {  # 128 sequences: 64 and 128 may be tried
    "micro_batch = 16": 'micro_batch = "auto"',
    "batch_tokens = 256": "batch_tokens = 2048",
    "tokens = 5120": "tokens = 10_240",
    "trials = 5": "trials = 1",
}


@pytest.fixture(autouse=True)
def own_answers(cache_folder: Path) -> Path:
    """No test knows another's answer."""
    folder = cache_folder / "micro-batch"
    for note in folder.glob("*.json"):
        note.unlink()
    return folder


class Doomed(Worker):
    """A worker that is killed, as by a kernel without memory, when it is told to time its `fatal`-th micro-batch."""

    def __init__(self, setup: Setup, log: Path, fatal: int) -> None:
        self._left = fatal
        super().__init__(setup, log)

    def send(self, order: Order) -> None:
        if isinstance(order, TimeSteps):
            self._left -= 1
            if not self._left:
                os.kill(self._process.pid, signal.SIGKILL)
        super().send(order)


def setup(study: Study) -> Setup:
    return Setup(spec=study.spec, device="cpu", base=Path.cwd())


def test_a_study_finds_its_micro_batch_once_and_keeps_it(tiny, tmp_path: Path, own_answers: Path):
    study, watch = tiny(replace=AUTO), Watch()
    store = go(study, tmp_path / "runs", watch=watch)
    (line,) = [line for line in watch.said if line.startswith("micro_batch: ")]
    size = int(re.match(r"micro_batch: (\d+), the smallest within 2% of the fastest of 64 \(", line).group(1))
    assert size in (64, 128)
    assert store.read_json("calibration.json") == {"micro_batch": size}
    assert store.header("search-0000").run.hparams.micro_batch == size
    assert store.read_json("study.json")["hparams.micro_batch"] == "auto"
    (note,) = own_answers.glob("*.json")

    note.unlink()
    store.write_json("calibration.json", {"micro_batch": 32})  # another answer than could be found again
    go(study, tmp_path / "runs", trials=2)
    assert store.header("search-0001").run.hparams.micro_batch == 32
    assert not list(own_answers.glob("*.json"))  # nothing was probed


def test_a_study_that_has_probed_micro_batch_and_pack_is_stopped_with_a_checkpoint(tiny, tmp_path: Path):
    long = AUTO | {"tokens = 5120": "tokens = 1_024_000", "parallel = 2": "parallel = 1"}
    study, stop = tiny(replace=long, more='pack = "auto"'), StopRequest()

    def ask(_: Run, record: StepRecord) -> None:
        stop.requested = record.step == 2

    with pytest.raises(Interrupted):
        go(study, tmp_path, watch=Watch(ask), stop=stop)
    assert (tmp_path / study.name / "search-0000" / "checkpoint.pt").exists()


def test_a_known_answer_is_taken_and_a_damaged_one_is_probed_again(tiny, tmp_path: Path, own_answers: Path):
    study = tiny(replace=AUTO)
    worker = Worker(setup(study), tmp_path / "worker.log")
    environment = welcome(worker).environment
    first = find(study, worker, environment, lambda _: None)
    (note,) = own_answers.glob("*.json")
    intact = note.read_text()
    assert (first.size, first.probed) == (_size(intact), True)

    said: list[str] = []
    again = find(study, worker, environment, said.append)
    assert (again.size, again.probed) == (first.size, False)
    assert len(said) == 1
    assert said[0].endswith("; known from before")
    assert find(study, worker, environment | {"memory_gib": environment["memory_gib"] + 8}, said.append).probed
    note, _ = sorted(own_answers.glob("*.json"), key=lambda path: path.stat().st_mtime)

    for damaged in (intact[: len(intact) // 2], intact.replace(f'"micro_batch": {first.size}', '"micro_batch": 7')):
        note.write_text(damaged)
        said.clear()
        found = find(study, worker, environment, said.append)
        assert found.probed
        assert said[0].startswith(str(note))
        assert len(said) == 3  # what is damaged, what is probed, what was found
        assert _size(note.read_text()) == found.size
    worker.stop()

    cost = estimate(study, "cpu", [1.0], tmp_path / "check.log", said.append)
    assert list(cost.speeds) == [found.size]


def _size(note: str) -> int:
    return int(re.search(r'"micro_batch": (\d+)', note).group(1))


def test_a_worker_that_dies_for_want_of_memory_ends_the_probes(tiny, tmp_path: Path):
    study, said = tiny(replace=AUTO), []
    worker = Doomed(setup(study), tmp_path / "worker.log", fatal=2)
    found = find(study, worker, welcome(worker).environment, said.append)
    worker.stop()
    assert found.size == 64
    assert "128 (does not run: its worker died" in said[-1]


def test_a_study_of_which_nothing_runs_is_told_so(tiny, tmp_path: Path):
    study = tiny(replace=AUTO)
    worker = Doomed(setup(study), tmp_path / "worker.log", fatal=1)
    with pytest.raises(MachineError, match=r"no micro-batch of this study runs here: 64 .*take a smaller model"):
        find(study, worker, welcome(worker).environment, lambda _: None)
    worker.stop()


def test_memory_that_runs_out_is_reported_and_leaves_the_worker_usable(tiny, tmp_path: Path):
    large = {**AUTO, "batch_tokens = 256": "batch_tokens = 65_536", "tokens = 5120": "tokens = 65_536"}
    study = tiny(replace={**large, "gpt2:256": "gpt2:4096"})
    whole = replace(study.baseline_hparams(None), micro_batch=4096)
    worker = Worker(setup(study), tmp_path / "worker.log")
    welcome(worker)
    (pid,) = workers_of(os.getpid())
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    worker.send(TimeSteps(hparams=whole))
    report = worker.receive()
    resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    worker.send(TimeSteps(hparams=replace(whole, batch_tokens=1024, micro_batch=64)))
    after = worker.receive()
    worker.stop()
    assert isinstance(report, Timed)
    assert (report.step_seconds, report.message) == (None, "out of memory")
    assert isinstance(after, Timed)
    assert after.step_seconds is not None
    assert 0 < after.peak_gib < after.room_gib
