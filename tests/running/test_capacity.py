"""How many trainings run side by side, and how many workers a study gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.running.capacity import num_workers, trainings_at_once, trainings_per_device, worker_device
from hpstudy.running.interface import Options

SPEED = '[objective]\nmetric = "train/tok_per_sec"'
BOTH = '[objective]\nmetric = ["val/loss", "train/tok_per_sec"]'
SECONDS = {"tokens = 5120": "seconds = 60"}


def machine(*, cores: int = 8, num_gpus: int = 0) -> dict[str, int]:
    """What a worker reports of a machine."""
    return {"cores": cores, "num_gpus": num_gpus}


@pytest.fixture
def a_study(tiny):
    """The tiny study with a number of trials at once and threads of each."""

    def build(parallel: int = 16, threads: int = 1, *, replace: dict[str, str] | None = None, more: str = ""):
        changes = {"parallel = 2": f"parallel = {parallel}", "evals = 4": f"evals = 4\nthreads = {threads}"}
        return tiny(replace=changes | (replace or {}), more=more)

    return build


@pytest.mark.parametrize(
    ("cores", "threads", "parallel", "trainings"),
    [(8, 1, 16, 8), (8, 3, 16, 2), (8, 1, 4, 4), (2, 8, 16, 1)],
)
def test_a_cpu_holds_a_training_per_threads_cores_up_to_parallel(a_study, cores, threads, parallel, trainings):
    study = a_study(parallel, threads)
    assert trainings_per_device(study, machine(cores=cores)) == trainings
    assert trainings_at_once(study, machine(cores=cores), "auto") == trainings


@pytest.mark.parametrize(
    ("num_gpus", "device", "parallel", "trainings"),
    [
        (4, "auto", 16, 4),
        (4, "cuda", 16, 4),
        (4, "cuda:1", 16, 1),
        (4, "auto", 3, 3),
        (1, "auto", 16, 1),
    ],
)
def test_a_gpu_holds_one_training_whatever_the_cores(a_study, num_gpus, device, parallel, trainings):
    study = a_study(parallel)
    assert trainings_per_device(study, machine(num_gpus=num_gpus)) == 1
    assert trainings_at_once(study, machine(num_gpus=num_gpus), device) == trainings


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "trainings"), [(8, 1, 2, 4), (8, 2, 2, 2), (8, 1, 3, 2), (2, 1, 4, 1)]
)
def test_a_training_of_several_processes_takes_the_cores_of_all(a_study, cores, threads, processes, trainings):
    study = a_study(threads=threads, replace=ranks(processes=processes))
    assert trainings_per_device(study, machine(cores=cores)) == trainings
    assert workers(study, cores=cores) == (trainings, [])


@pytest.mark.parametrize(
    ("num_gpus", "gpus", "device", "first"),
    [
        (8, 1, "auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"]),
        (8, 2, "auto", ["cuda:0", "cuda:2", "cuda:4", "cuda:6"]),
        (8, 3, "cuda", ["cuda:0", "cuda:3"]),
        (8, 8, "auto", ["cuda:0"]),
        (8, 2, "cuda:4", ["cuda:4"]),
        (0, 1, "auto", ["auto"] * 8),
    ],
)
def test_each_worker_has_the_gpus_of_one_training(a_study, num_gpus: int, gpus: int, device: str, first: list[str]):
    study, has = a_study(replace=ranks(gpus=gpus)), machine(num_gpus=num_gpus)
    count, _ = workers(study, device=device, num_gpus=num_gpus)
    assert [worker_device(index, study, has, device) for index in range(count)] == first
    assert worker_device(count, study, has, device) == first[0]  # of a user who asks for one more


@pytest.mark.parametrize(
    ("equal", "gpus", "first"),
    [([0, 2, 3], 1, ["cuda:0", "cuda:2", "cuda:3"]), ([0, 2, 3, 5], 2, ["cuda:2"]), ([1, 2, 4], 2, ["cuda:1"])],
)
def test_gpus_of_one_training_are_neighbours_of_the_kind_that_the_first_worker_has(a_study, equal, gpus, first):
    study = a_study(replace=ranks(gpus=gpus))
    has = machine(num_gpus=6) | {"equal_gpus": equal, "device_name": "H100"}
    assert [worker_device(index, study, has, "auto") for index in range(len(first))] == first
    assert trainings_at_once(study, has, "auto") == len(first)
    options, lines = Options(runs=Path(), device="auto", wandb="disabled"), list[str]()
    assert num_workers(study, has, options, lines.append) == len(first)
    assert lines == [
        f"{6 - len(equal)} of 6 GPUs: not used, because they are not H100s; CUDA_VISIBLE_DEVICES chooses others"
    ]
    assert num_workers(replace(study, mixed=True), has, options, lines.append) == 6 // gpus  # of any kind
    assert len(lines) == 1


def ranks(**counts: int) -> dict[str, str]:
    """The change of the tiny study that gives a training several ranks."""
    (key,) = counts
    return {
        "precision": f"{key} = {counts[key]}\nprecision",
        "batch_tokens = 256": f"batch_tokens = {256 * counts[key]}",
    }


def workers(study, *, asked: int | None = None, device: str = "auto", **has: int) -> tuple[int, list[str]]:
    """(the number of workers, what the user is shown)."""
    lines: list[str] = []
    options = Options(runs=Path(), device=device, wandb="disabled", workers=asked)
    return num_workers(study, machine(**has), options, lines.append), lines


@pytest.mark.parametrize(
    ("has", "device", "count"),
    [({"cores": 6}, "auto", 6), ({"num_gpus": 4}, "auto", 4), ({"num_gpus": 4}, "cuda:1", 1)],
    ids=["cpu", "four gpus", "one of four gpus"],
)
def test_there_are_as_many_workers_as_trainings_fit_at_once(a_study, has, device, count):
    assert workers(a_study(), device=device, **has) == (count, [])


@pytest.mark.parametrize("asked", [1, 3, 12])
def test_the_user_may_ask_for_fewer_workers_or_more_than_fit(a_study, asked):
    assert workers(a_study(), asked=asked, cores=2) == (asked, [])
    assert workers(a_study(), asked=asked, num_gpus=2) == (asked, [])


def test_there_are_no_more_workers_than_parallel_trials(a_study):
    assert workers(a_study(4), asked=8, cores=8) == (4, ["4 workers of 8: [budget] parallel is 4"])
    assert workers(a_study(4), cores=8) == (4, [])


ONE = "one worker: this study measures speed, and trainings side by side slow each other"
ONE_PER_DEVICE = "one worker per device: this study measures speed, and trainings side by side slow each other"


@pytest.mark.parametrize("more", [SPEED, BOTH], ids=["speed", "loss and speed"])
@pytest.mark.parametrize(
    ("device", "num_gpus", "asked", "count", "lines"),
    [
        ("auto", 2, None, 2, []),
        ("auto", 2, 1, 1, []),
        ("auto", 8, 8, 4, [ONE_PER_DEVICE]),  # [budget] parallel is 4
        ("cuda:1", 2, None, 1, []),
        ("cuda:1", 2, 2, 1, [ONE]),
        ("auto", 0, None, 1, []),
        ("auto", 0, 4, 1, [ONE]),
    ],
)
def test_a_study_that_measures_speed_has_one_worker_per_device(a_study, more, device, num_gpus, asked, count, lines):
    assert workers(a_study(4, more=more), asked=asked, device=device, num_gpus=num_gpus) == (count, lines)


@pytest.mark.parametrize(("num_gpus", "asked", "lines"), [(0, None, []), (2, None, []), (2, 2, [ONE])])
def test_a_budget_in_seconds_has_one_worker_in_all(a_study, num_gpus, asked, lines):
    assert workers(a_study(replace=SECONDS), asked=asked, num_gpus=num_gpus) == (1, lines)
