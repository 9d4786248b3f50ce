"""How many trainings fit on this machine at once, and how many workers a study gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpstudy.running.interface import Options
from hpstudy.study import Study


def trainings_per_device(study: Study, environment: Mapping[str, Any]) -> int:
    """Trainings that share a device and its memory: one on a GPU, on a CPU one per `threads` cores of each process.

    At most `parallel`. --workers does not change it, so that no flag changes what is measured for a device.
    """
    if environment["num_gpus"]:
        return 1
    cores: int = environment["cores"]
    return min(max(1, cores // (study.spec.threads * study.spec.processes)), study.budget.parallel)


def trainings_at_once(study: Study, environment: Mapping[str, Any], device: str) -> int:
    """Trainings that run side by side on all devices that `device` names, at most `parallel`."""
    devices = 1 if device.startswith("cuda:") else max(1, len(_first_gpus(study, environment)))
    return min(devices * trainings_per_device(study, environment), study.budget.parallel)


def worker_device(index: int, study: Study, environment: Mapping[str, Any], device: str) -> str:
    """The device of a study's worker, by its number: the first of its `gpus` GPUs, or what the user named."""
    first = _first_gpus(study, environment) if environment else []
    return f"cuda:{first[index % len(first)]}" if first and device in ("auto", "cuda") else device


def _first_gpus(study: Study, environment: Mapping[str, Any]) -> list[int]:
    """The first GPU of each training that fits on this machine; each has `gpus` neighbours, all of one kind.

    That is the kind of the GPU that the environment is of, since another would round differently.
    """
    usable, found = set(_usable_gpus(study, environment)), list[int]()
    for gpu in sorted(usable):
        if usable.issuperset(own := range(gpu, gpu + study.spec.gpus)):
            found.append(gpu)
            usable.difference_update(own)
    return found


def _usable_gpus(study: Study, environment: Mapping[str, Any]) -> Sequence[int]:
    """The GPUs of the kind that the environment is of; every one if the study takes several kinds."""
    every = range(environment["num_gpus"])
    return every if study.mixed else environment.get("equal_gpus", every)


def num_workers(
    study: Study,
    environment: Mapping[str, Any],
    options: Options,
    say: Callable[[str], None],
    places: int | None = None,
) -> int:
    """Workers to start: as many as asked for, else as many as trainings fit at once.

    A study that measures speed gets one worker per device, or one in all if its budget is in seconds, because trainings
    side by side slow each other. There are never more workers than trials that may be proposed ahead. `places`:
    trainings that fit at once, if they are not those of this machine.
    """
    at_once = trainings_at_once(study, environment, options.device) if places is None else places
    unlike = environment["num_gpus"] - len(_usable_gpus(study, environment))
    if unlike and not options.device.startswith("cuda:"):
        say(
            f"{unlike} of {environment['num_gpus']} GPUs: not used, because they are not "
            f"{environment['device_name']}s; CUDA_VISIBLE_DEVICES chooses others"
        )
    if study.measures_speed:
        devices = at_once if environment["num_gpus"] and study.spec.seconds is None else 1
        if (options.workers or 1) > devices:
            alone = "one worker" if devices == 1 else "one worker per device"
            say(f"{alone}: this study measures speed, and trainings side by side slow each other")
        return min(options.workers or devices, devices)
    wanted = options.workers or at_once
    most = study.budget.parallel
    if wanted > most:
        say(f"{most} worker{'s' if most > 1 else ''} of {wanted}: [budget] parallel is {most}")
    return min(wanted, most)
