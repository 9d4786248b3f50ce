"""Several GPUs of one machine: one worker each, and what happens on one of them does not disturb the others.

The driver, the pool, the search and the store are real. The workers are made up: they report what a GPU's would.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpstudy.errors import MachineError
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running import driver, pool, worker_main
from hpstudy.running.environment import kind_of
from hpstudy.running.executors import Ending
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.running.local import worker_environment
from hpstudy.running.messages import (
    Finished,
    Order,
    Ready,
    Recorded,
    Refused,
    Report,
    Save,
    Setup,
    Timed,
    TimeSteps,
    Train,
)
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from hpstudy.training.checkpoint import fingerprint
from hpstudy.training.device import Placement
from tests.bench.fleet import ENVIRONMENT, Fleet, MadeUpWorker
from tests.helpers.running import Watch, run_here, trials
from tests.helpers.training import run as a_run

STEPS = 20
NO_MEMORY = "torch.OutOfMemoryError: tried to allocate 2.50 GiB"
Tiny = Callable[..., Study]
Stop = tuple[str, int] | None  # the user stops the study at this run's step


class GpuWorker(MadeUpWorker):
    """A made-up worker on one GPU, whose `trouble` says how it ends a run or itself: run id and step -> a report."""

    def __init__(self, setup: Setup, number: int, gpus: Gpus) -> None:
        super().__init__(number, STEPS, gpus)
        self.device = setup.device if setup.device.startswith("cuda:") else "cuda:0"
        self._trouble = gpus.trouble
        ready = Ready(environment=gpus.environment(self.device), num_params=1000)
        self._reports[0] = gpus.refused.get(self.device, ready)
        self._gpus = gpus

    def send(self, order: Order) -> None:
        """Takes an order and notes the run, the device and the micro-batch."""
        if isinstance(order, Train):
            self._gpus.given.append((order.run.run_id, self.device, order.run.hparams.micro_batch))
            paces = (seconds for start, seconds in self._gpus.slow.items() if order.run.run_id.startswith(start))
            self.pace = next(paces, 1.0)
        if not (isinstance(order, Save) and self._gpus.keeps_no_state):
            super().send(order)

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """A report, the one of its trouble once."""
        report = super().receive(meanwhile)
        if isinstance(report, Recorded) and self._train is not None:
            ending = self._trouble.pop((self._train.run.run_id, report.record.step), report)
            if ending is not report:
                self._gpus.forget(self)
                if ending is not None:
                    self._train = None
            return ending
        return report

    def last_words(self) -> Ending:
        """That it was killed."""
        return Ending(cause=f"the worker on {self.device} died", last_line="")


@dataclass
class Gpus(Fleet):
    """The GPUs of one machine, as an executor."""

    names: Sequence[str] = ("H100",) * 4
    trouble: dict[tuple[str, int], Report | None] = field(default_factory=dict)
    refused: Mapping[str, Refused] = field(default_factory=dict)
    slow: Mapping[str, float] = field(default_factory=dict)  # seconds of a step, by the start of a run's id
    keeps_no_state: bool = False  # an order to save a checkpoint comes too late
    started: list[str] = field(default_factory=list)  # the device of each worker
    given: list[tuple[str, str, int]] = field(default_factory=list)  # run, device, micro-batch

    def __post_init__(self) -> None:
        super().__init__(len(self.names), STEPS)

    def environment(self, device: str) -> dict[str, Any]:
        """That of a worker on a device, as `Placement.environment` has it."""
        name = self.names[int(device.partition(":")[2])]
        equal = [index for index, other in enumerate(self.names) if other == name]
        gpu = {"device": "cuda", "device_name": name, "num_gpus": len(self.names), "equal_gpus": equal}
        return ENVIRONMENT | gpu

    def start(self, setup: Setup, number: int) -> GpuWorker:
        """See `Executor`."""
        worker = GpuWorker(setup, number, self)
        self.started.append(worker.device)
        self.wake(worker)
        return worker

    def places(self, here: int) -> int:
        """See `Executor`."""
        return here

    def forget(self, worker: MadeUpWorker) -> None:
        """Lets a worker report no more until it gets another order."""
        self.stop([worker])

    def stop(self, workers: Sequence[Any]) -> None:
        """See `Executor`."""
        self._next = [each for each in self._next if each[2] not in workers]


@pytest.fixture
def on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Study, RunStore, Watch]]:
    """Runs the tiny study with four trials at once on GPUs."""

    def run(
        gpus: Gpus, *, device: str = "auto", workers: int = 4, stop: Stop = None, **changes: str
    ) -> tuple[Study, RunStore, Watch]:
        monkeypatch.setattr(driver, "executor_for", lambda *_: gpus)
        monkeypatch.setattr(pool, "may_have_gpu", lambda: True)
        more = changes.pop("more", "")
        study = tiny(replace={"parallel = 2": "parallel = 4", "trials = 5": "trials = 8"} | changes, more=more)
        request = StopRequest()

        def ask(run: Run, record: StepRecord) -> None:
            request.requested |= (run.run_id, record.step) == stop

        watch = Watch(ask)
        runs = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        try:
            store = run_here(study, runs, watch=watch, stop=request, device=device, workers=workers)
        except Interrupted:
            return study, RunStore(runs / study.name), watch
        results = [view.result for view in store.runs()]
        assert all(result and (result.outcome is Outcome.FAILED or result.steps == STEPS) for result in results)
        return study, store, watch

    return run


FOUR = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


@pytest.mark.parametrize(
    ("device", "changes", "devices"),
    [
        ("auto", {}, FOUR),
        ("cuda", {}, FOUR),
        ("cuda:1", {}, ["cuda:1"] * 4),  # the user asks for four workers there
        ("auto", {'precision = "fp32"': 'precision = "fp32"\ngpus = 2', "batch_tokens = 256": "batch_tokens = 512",
                  "tokens = 5120": "tokens = 10240"}, ["cuda:0", "cuda:2", "cuda:0", "cuda:2"]),
    ],
    ids=["all", "cuda", "one", "pairs"],
)  # fmt: skip
def test_each_worker_has_its_own_gpu_and_trains_there(
    on: Any, device: str, changes: dict[str, str], devices: list[str]
):
    gpus = Gpus()
    on(gpus, device=device, **changes)
    assert gpus.started == devices
    assert {device for _, device, _ in gpus.given} == set(devices)


def test_a_study_by_speed_has_one_worker_per_gpu_and_a_pinned_one_has_one(on: Any):
    speed = '[objective]\nmetric = "train/tok_per_sec"'
    every, pinned = Gpus(), Gpus()
    on(every, workers=8, more=speed)
    on(pinned, workers=8, more=speed, device="cuda:1")
    assert (every.started, pinned.started) == (FOUR, ["cuda:1"])


def test_four_gpus_give_the_trials_and_the_results_of_one(on: Any):
    study, one, _ = on(Gpus(names=("H100",)), workers=1)
    _, four, _ = on(Gpus())
    assert trials(study, one) == trials(study, four)
    assert [(v.header.run, v.header.kind, v.result) for v in one.runs()] == [
        (v.header.run, v.header.kind, v.result) for v in four.runs()
    ]


def test_a_run_that_finds_no_memory_on_one_gpu_is_tried_again_smaller_while_the_others_train_on(on: Any):
    _, calm, _ = on(Gpus())
    full = Finished(outcome=Outcome.OUT_OF_MEMORY, message=NO_MEMORY)
    gpus = Gpus(trouble={("search-0001", 7): full})
    _, store, watch = on(gpus)
    assert watch.lines[-1] == "search-0001: out of memory at micro_batch 16; tried again at 8"
    assert [size for run, _, size in gpus.given if run == "search-0001"] == [16, 8]
    others = [(run, size) for run, _, size in gpus.given if run != "search-0001"]
    assert sorted(others) == [(f"search-000{number}", 16) for number in (0, *range(2, 8))]
    assert gpus.started == FOUR
    for before, now in zip(calm.runs(), store.runs(), strict=True):
        assert [record.loss for record in before.records()] == [record.loss for record in now.records()]


def test_a_worker_that_dies_on_one_gpu_is_replaced_there_and_its_run_starts_again(on: Any):
    gpus = Gpus(trouble={("search-0002", 7): None})
    _, _, watch = on(gpus)
    (lost,) = {device for run, device, _ in gpus.given[:4] if run == "search-0002"}
    assert gpus.started == [*FOUR, lost]
    assert watch.started.count("search-0002") == 2
    assert f"search-0002: the worker on {lost} died; it starts again" in watch.lines


def test_a_worker_whose_gpu_broke_ends_with_its_run_and_the_others_train_on(on: Any):
    broken = Finished(outcome=Outcome.FAILED, message="RuntimeError: CUDA error: an illegal memory access", last=True)
    gpus = Gpus(trouble={("search-0002", STEPS): broken})
    _, store, _ = on(gpus)
    (lost,) = {device for run, device, _ in gpus.given if run == "search-0002"}
    assert gpus.started == [*FOUR, lost]
    outcomes = [view.result.outcome for view in store.runs()]
    assert outcomes == [Outcome.FAILED if number == 2 else Outcome.COMPLETE for number in range(8)]


def test_a_gpu_whose_memory_another_program_has_is_left_out_if_others_train(on: Any):
    full = Refused(problems=(NO_MEMORY,), by_user=False)
    gpus = Gpus(refused={"cuda:2": full})
    _, _, watch = on(gpus)
    assert gpus.started == FOUR
    assert {device for _, device, _ in gpus.given} == {"cuda:0", "cuda:1", "cuda:3"}
    assert f"worker 2, on cuda:2, is left out until the study is resumed: {NO_MEMORY}" in watch.lines
    with pytest.raises(MachineError, match="tried to allocate"):
        on(Gpus(refused={"cuda:0": full}))


def test_every_result_is_told_to_the_search_although_the_last_trials_gpu_broke_and_the_others_train_ahead(on: Any):
    broken = Finished(outcome=Outcome.FAILED, message="RuntimeError: CUDA error: an illegal memory access", last=True)
    slow = {"search-0001": 300.0, "baseline-s": 400.0}  # all other trials wait for its turn to be told
    gpus = Gpus(trouble={("search-0001", STEPS): broken}, slow=slow)
    changes = {"parallel = 2": "parallel = 8", "trials = 5": "trials = 8"}
    study, store, _ = on(gpus, more="[confirm]\nseeds = [11, 12, 13, 14, 15]", **changes)
    assert [run for run, _, _ in gpus.given][7:9] == ["search-0007", "baseline-s11"]
    states = [trial.state for trial in trials(study, store)]
    assert states == ["complete", "failed", *["complete"] * 6]


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_run_stopped_before_its_last_step_is_called_recorded_although_no_checkpoint_came(on: Any, pruner: str):
    gpus = Gpus(names=("H100",), keeps_no_state=True)
    _, store, watch = on(gpus, workers=1, stop=("search-0000", STEPS - 1), more=f'pruner = "{pruner}"')
    assert watch.lines[-1] == "search-0000: its last step is recorded"
    assert [len(list(view.records())) for view in store.runs()] == [STEPS]


def test_gpus_of_another_kind_than_the_first_are_left_out(on: Any):
    gpus = Gpus(names=("H100", "T400", "H100", "T400"))
    _, _, watch = on(gpus, workers=2)
    assert gpus.started == ["cuda:0", "cuda:2"]
    assert "2 of 4 GPUs: not used, because they are not H100s; CUDA_VISIBLE_DEVICES chooses others" in watch.lines


def test_equal_gpus_are_one_kind_whatever_their_numbers(monkeypatch: pytest.MonkeyPatch, tiny: Tiny):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {1: "T400", "cuda:1": "T400"}.get(device, "H100"))
    total = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: total)
    first, last = (
        Placement(device=device, precision="bf16", reason="").environment() | {"ranks": 1, "corpus_digest": "a"}
        for device in ("cuda:0", "cuda:2")
    )
    assert first == last
    assert (first["device"], first["num_gpus"], first["equal_gpus"], first["memory_gib"]) == ("cuda", 3, [0, 2], 80)
    assert kind_of(first) == kind_of(last)
    assert fingerprint(tiny().spec, a_run(), first) == fingerprint(tiny().spec, a_run(), last)


def test_every_worker_process_sees_all_gpus_so_that_their_numbers_are_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    environment = worker_environment(threads=1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


TIMED = Timed(step_seconds=(), eval_seconds=None, peak_gib=0, room_gib=math.inf)


@pytest.mark.parametrize(
    ("device", "report", "ends"),
    [
        ("cuda:1", Finished(outcome=Outcome.FAILED, message="CUDA error"), True),
        ("cuda:1", Finished(outcome=Outcome.OUT_OF_MEMORY, message="out of memory"), False),
        ("cuda:1", Finished(outcome=Outcome.COMPLETE, message=""), False),
        ("cpu", Finished(outcome=Outcome.FAILED, message="RuntimeError"), False),
        ("cuda:1", replace(TIMED, message="CUDA error"), True),
        ("cuda:1", replace(TIMED, message="out of memory"), False),
        ("cuda:1", replace(TIMED, step_seconds=(0.1,)), False),
    ],
)
def test_a_process_ends_with_an_error_of_its_gpu_that_may_stay(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, device: str, report: Finished | Timed, ends: bool
):
    placement = Placement(device=device, precision="fp32", reason="")
    trainer = SimpleNamespace(ranks=SimpleNamespace(alone=True), placement=placement, num_params=1)
    monkeypatch.setattr(worker_main, "_build", lambda *_: (trainer, {}))
    monkeypatch.setattr(worker_main, "train", lambda *_: report)
    monkeypatch.setattr(worker_main, "time_steps", lambda *_: report)
    line = Line(
        Setup(spec=tiny().spec, device=device, base=Path()),
        Train(run=a_run(), awaits_decision=False)
        if isinstance(report, Finished)
        else TimeSteps(hparams=GPT3, steps=1, evaluate=False),
    )
    with contextlib.suppress(EOFError):
        worker_main.serve(line)  # type: ignore[arg-type]
    assert line.sent[1:] == [replace(report, last=ends)]
    assert line.ended == (not ends)


class Line:
    """A driver's pipe with these orders and no more."""

    def __init__(self, *orders: Order) -> None:
        self._orders, self.sent, self.ended = list(orders), list[Report](), False

    def recv(self) -> Order:
        """The next order. Raises EOFError once there is none, as a pipe whose driver has gone."""
        if not self._orders:
            self.ended = True
            raise EOFError
        return self._orders.pop(0)

    def send(self, report: Report) -> None:
        """Keeps a report."""
        self.sent.append(report)
