"""The worker's end: what it reports and leaves after a failure."""

from __future__ import annotations

import sys
from multiprocessing import Pipe

import pytest
import torch

from hpstudy.hparams import GPT3
from hpstudy.records import Outcome
from hpstudy.running.messages import TimeSteps, Train
from hpstudy.running.worker_main import time_steps, train
from hpstudy.training.device import Placement, place
from tests.helpers.training import run


class Cramped:
    """A trainer without memory."""

    @property
    def spec(self) -> None:
        raise MemoryError

    def time_steps(self, *_: object) -> None:
        raise MemoryError

    @property
    def placement(self) -> Placement:
        return place("cpu", "fp32")


def test_memory_is_freed_once_no_traceback_refers_to_it(monkeypatch: pytest.MonkeyPatch):
    handled: list[BaseException | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handled.append(sys.exc_info()[1]))
    timed = time_steps(Cramped(), TimeSteps(hparams=GPT3, steps=1, evaluate=False))
    assert (timed.step_seconds, timed.message) == ((), "out of memory")
    finished = train(Cramped(), Train(run=run(), awaits_decision=False), {}, Pipe()[0])
    assert finished.outcome is Outcome.OUT_OF_MEMORY
    assert handled == [None, None]
