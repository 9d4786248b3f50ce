"""The devices and precisions that this machine has, and the refusal of others."""

# ruff: noqa: E501  (the table quotes each sentence whole)

from __future__ import annotations

import pickle

import pytest
import torch

from hpstudy.errors import UserError
from hpstudy.training.checkpoint import MACHINE
from hpstudy.training.device import Placement, demand_determinism, is_out_of_memory, place, require_ranks

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests machines without a GPU")


@without_gpu
def test_auto_is_the_cpu_without_a_gpu() -> None:
    placement = place("auto", "fp32")
    assert (placement.device, placement.kind, placement.is_cuda) == ("cpu", "cpu", False)
    assert (placement.precision, placement.reason) == ("fp32", "the study asks for it")


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_missing_is_refused(device: str) -> None:
    with pytest.raises(UserError) as caught:
        place(device, "auto")
    assert list(caught.value.problems) == [
        f"--device {device}: no CUDA GPU was found; use --device cpu, or leave the flag out"
    ]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(UserError) as caught:
        place(device, "auto")
    assert list(caught.value.problems) == [f"--device {device}: must be auto, cpu, cuda or cuda:N; use --device auto"]


@pytest.mark.parametrize(
    ("device", "needed", "problem"),
    [
        ("cpu", {"gpus": 2}, "[trainer] gpus: a training takes 2 CUDA GPUs, but would run on the CPU; run it where they are, or use processes = 2 instead"),
        ("cuda:0", {"processes": 3}, "[trainer] processes: a training on a CPU has 3, but would run on a GPU; use --device cpu, or gpus = 3 instead"),
        ("cuda:0", {"gpus": 8}, "[trainer] gpus: a training takes 8, but this machine has 4 CUDA devices; lower gpus"),
        ("cuda:3", {"gpus": 2}, "[trainer] gpus: a training takes 2 from cuda:3 on, but this machine has 4 CUDA devices; lower gpus, or leave --device out"),
    ],
)  # fmt: skip
def test_ranks_for_which_there_is_no_room_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, needed: dict[str, int], problem: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    placement = Placement(device=device, precision="fp32", reason="")
    with pytest.raises(UserError) as caught:
        require_ranks(placement, **{"gpus": 1, "processes": 1, **needed})
    assert list(caught.value.problems) == [problem]


def test_the_ranks_of_a_training_have_the_devices_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    first = Placement(device="cuda:2", precision="fp32", reason="")
    require_ranks(first, gpus=2, processes=1)
    assert first.device_of(1) == "cuda:3"
    assert place("cpu", "fp32").device_of(1) == "cpu"


def test_the_precision_is_bf16_only_if_the_cpu_has_it() -> None:
    automatic = place("cpu", "auto")
    if automatic.precision == "bf16":
        assert place("cpu", "bf16") == automatic
        return
    with pytest.raises(UserError) as caught:
        place("cpu", "bf16")
    assert list(caught.value.problems) == [
        '[trainer] precision: this CPU has no bf16 arithmetic; use precision = "fp32" or "auto"'
    ]


def test_the_driver_reads_an_environment_without_torch() -> None:
    environment = place("cpu", "fp32").environment()
    assert {type(value) for value in environment.values()} <= {str, int, bool, float}
    assert b"torch_version" not in pickle.dumps(environment)


def test_determinism_is_demanded_as_torch_does_it() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    for demanded in (True, False):
        demand_determinism(demanded)
        assert torch.are_deterministic_algorithms_enabled() is demanded
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    demand_determinism(before)


def test_a_cpu_repeats_whatever_the_study_asks_for() -> None:
    assert place("cpu", "fp32", deterministic=False) == place("cpu", "fp32")
    assert place("cpu", "fp32").environment()["deterministic"] is True


def test_products_are_in_bf16_only_under_a_bf16_placement() -> None:
    for precision in ("fp32", "auto"):
        placement = place("cpu", precision)
        with placement.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if placement.precision == "bf16" else torch.float32)


def test_the_environment_names_what_the_numbers_depend_on() -> None:
    environment = place("cpu", "fp32").environment()
    assert {"corpus_digest"} == set(MACHINE) - environment.keys()
    assert (environment["device"], environment["precision"], environment["num_gpus"]) == ("cpu", "fp32", 0)
    assert environment["device_name"]
    assert environment["memory_gib"] > 0


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_recognised_among_other_errors(error: Exception, found: bool) -> None:
    assert is_out_of_memory(error) is found
