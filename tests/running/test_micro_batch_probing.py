"""`micro_batch = "auto"` with real workers: measured once, then kept by the study and by the cache."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.errors import MachineError
from hpstudy.running.cost import estimate
from hpstudy.running.executors import Worker, time_steps, wait_until_ready
from hpstudy.running.local import LocalExecutor, LocalWorker
from hpstudy.running.messages import Order, Setup, TimeSteps
from hpstudy.running.micro_batch import FIRST_TOKENS, find_micro_batch
from hpstudy.study import Study
from tests.helpers.running import Watch, interrupt, kill_workers, run_here, workers_of

AUTO = {  # 128 sequences: 64 and 128 may be tried
    "micro_batch = 16": 'micro_batch = "auto"',
    "batch_tokens = 256": "batch_tokens = 2048",
    "tokens = 5120": "tokens = 10_240",
    "trials = 5": "trials = 1",
}


@pytest.fixture(autouse=True)
def known_answers(cache_folder: Path) -> Path:
    """The cache of measured micro-batches, emptied before each test."""
    folder = cache_folder / "micro-batch"
    for note in folder.glob("*.json"):
        note.unlink()
    return folder


class Doomed(LocalWorker):
    """A worker that is killed, as by a kernel out of memory, when it is ordered to time its `fatal`-th micro-batch."""

    fatal = 1

    def send(self, order: Order) -> None:
        if isinstance(order, TimeSteps):
            self.fatal -= 1
            if not self.fatal:
                kill_workers()
        super().send(order)


def none() -> Worker:
    """For a search in which no other worker is needed."""
    raise AssertionError


def setup(study: Study) -> Setup:
    return Setup(spec=study.spec, device="cpu", base=Path.cwd())


def test_a_study_measures_its_micro_batch_once_and_keeps_it(tiny, tmp_path: Path, known_answers: Path):
    study, watch = tiny(replace=AUTO), Watch()
    store = run_here(study, tmp_path / "runs", watch=watch)
    (line,) = [line for line in watch.lines if line.startswith("micro_batch: ")]
    size = int(re.match(r"micro_batch: (\d+), the smallest within 2% of the fastest of 64 \(", line).group(1))
    assert size in (64, 128)
    assert store.read_json("calibration.json") == {"micro_batch": size}
    assert store.header("search-0000").run.hparams.micro_batch == size
    assert store.read_json("study.json")["hparams.micro_batch"] == "auto"
    (note,) = known_answers.glob("*.json")

    note.unlink()
    store.write_json("calibration.json", {"micro_batch": 32})  # none of the sizes that are tried
    run_here(study, tmp_path / "runs", trials=2)
    assert store.header("search-0001").run.hparams.micro_batch == 32
    assert not list(known_answers.glob("*.json"))  # nothing was measured


def test_a_study_that_has_measured_its_micro_batch_is_stopped_with_a_checkpoint(tiny, tmp_path: Path):
    long = AUTO | {"tokens = 5120": "tokens = 1_024_000", "parallel = 2": "parallel = 1"}
    study = tiny(replace=long)
    interrupt(study, tmp_path, "search-0000", 2)
    assert (tmp_path / study.name / "search-0000" / "checkpoint.pt").exists()


def test_a_known_answer_is_used_and_a_damaged_one_is_measured_again(tiny, tmp_path: Path, known_answers: Path):
    study = tiny(replace=AUTO)
    worker = LocalWorker(setup(study), tmp_path / "worker.log")
    environment = wait_until_ready(worker).environment
    first = find_micro_batch(study, worker, environment, lambda _: None, none)
    (note,) = known_answers.glob("*.json")
    intact = note.read_text()
    assert (first.size, first.probed) == (size_in(intact), True)

    lines: list[str] = []
    again = find_micro_batch(study, worker, environment, lines.append, none)
    assert (again.size, again.probed) == (first.size, False)
    assert len(lines) == 1
    assert lines[0].endswith("; known from before")
    assert find_micro_batch(
        study, worker, environment | {"memory_gib": environment["memory_gib"] + 8}, lines.append, none
    ).probed
    note, _ = sorted(known_answers.glob("*.json"), key=lambda path: path.stat().st_mtime)

    for damaged in (intact[: len(intact) // 2], intact.replace(f'"micro_batch": {first.size}', '"micro_batch": 7')):
        note.write_text(damaged)
        lines.clear()
        found = find_micro_batch(study, worker, environment, lines.append, none)
        assert found.probed
        assert lines[0].startswith(str(note))
        assert len(lines) == 3  # what is damaged, what is measured, what was found
        assert size_in(note.read_text()) == found.size
    worker.last_words()

    cost = estimate(study, "cpu", [1.0], LocalExecutor(tmp_path), lines.append)
    assert list(cost.timed) == [found.size]


def size_in(note: str) -> int:
    return int(re.search(r'"micro_batch": (\d+)', note).group(1))


def test_a_worker_that_dies_for_want_of_memory_ends_the_search_for_a_size(tiny, tmp_path: Path):
    study, lines = tiny(replace=AUTO), []
    worker = Doomed(setup(study), tmp_path / "worker.log")
    worker.fatal = 2
    found = find_micro_batch(study, worker, wait_until_ready(worker).environment, lines.append, none)
    worker.last_words()
    assert found.size == 64
    assert "128 (does not run: its worker died" in lines[-1]


def test_a_study_of_which_no_size_runs_is_an_error(tiny, tmp_path: Path):
    study = tiny(replace=AUTO)
    worker = Doomed(setup(study), tmp_path / "worker.log")
    with pytest.raises(MachineError, match=r"no micro-batch of this study runs here: 64 .*take a smaller model"):
        find_micro_batch(study, worker, wait_until_ready(worker).environment, lambda _: None, none)
    worker.last_words()


def test_smaller_sizes_are_tried_on_another_worker_once_one_has_died(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(FIRST_TOKENS, "cpu", 2048)  # 128 sequences
    study, workers = tiny(replace=AUTO), []

    def another() -> Worker:
        workers.append(LocalWorker(setup(study), tmp_path / f"worker-{len(workers)}.log"))
        wait_until_ready(workers[-1])
        return workers[-1]

    environment = wait_until_ready(first := Doomed(setup(study), tmp_path / "worker.log")).environment
    found = find_micro_batch(study, first, environment, lambda _: None, another)
    for worker in (first, *workers):
        worker.last_words()
    assert (found.size, len(workers)) == (64, 1)


def test_memory_that_runs_out_is_reported_and_leaves_the_worker_usable(tiny, tmp_path: Path):
    large = {**AUTO, "batch_tokens = 256": "batch_tokens = 65_536", "tokens = 5120": "tokens = 65_536"}
    study = tiny(replace={**large, "gpt2:256": "gpt2:4096"})
    whole = replace(study.baseline_hparams(None), micro_batch=4096)
    worker = LocalWorker(setup(study), tmp_path / "worker.log")
    wait_until_ready(worker)
    (pid,) = workers_of(os.getpid())
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    report = time_steps(worker, whole, steps=3)
    resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = time_steps(worker, replace(whole, batch_tokens=1024, micro_batch=64), steps=3)
    worker.last_words()
    assert (report.step_seconds, report.median_step, report.message) == ((), None, "out of memory")
    assert len(after.step_seconds) == 3
    assert 0 < after.peak_gib < after.room_gib
