"""Ranks that train together in the threads of this process, each with a trainer of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch.distributed as dist

from hpstudy.records import Run, StepRecord
from hpstudy.running.local import LOOPBACK
from hpstudy.spec import TrainerSpec
from hpstudy.training.ranks import PATIENCE, Ranks, find_store, open_store
from tests.helpers.training import SPEC, curve, make_trainer

Result = TypeVar("Result")


def together(count: int, work: Callable[[Ranks], Result], device: str = "cpu") -> list[Result]:
    """What each of `count` ranks gives for some work that they do at the same time."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    store = open_store()

    def one(rank: int) -> Result:
        group: Any = dist.ProcessGroupGloo(find_store(store.port), rank, count, PATIENCE)
        return work(Ranks(rank=rank, count=count, group=group, device=device))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def curves_of(
    count: int, of: Run, spec: TrainerSpec = SPEC, device: str = "cpu", **options: Any
) -> list[list[StepRecord]]:
    """The records of a run that so many ranks train together on one device, by rank."""
    spec = replace(spec, processes=count)
    return together(count, lambda ranks: curve(make_trainer(spec, device, ranks=ranks, **options), of), device)
