"""The worker's end: what it reports and leaves after a failure."""

from __future__ import annotations

import sys
from dataclasses import replace
from multiprocessing import Pipe

import pytest
import torch

from hpstudy.hparams import GPT3
from hpstudy.records import Outcome
from hpstudy.running.messages import Finished, Train
from hpstudy.running.worker_main import measure, train
from tests.helpers.training import run


class Cramped:
    """A trainer without memory."""

    @property
    def spec(self) -> None:
        raise MemoryError

    def measure(self, *_: object, **__: object) -> None:
        raise MemoryError


def test_memory_is_freed_once_no_traceback_refers_to_it(monkeypatch: pytest.MonkeyPatch):
    handled: list[BaseException | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handled.append(sys.exc_info()[1]))
    assert measure(Cramped(), GPT3, 1).speed is None
    ours, theirs = Pipe()
    train(Cramped(), Train(runs=(run(), replace(run(), run_id="search-0001")), awaits_decision=False), {}, theirs)
    finished = ours.recv()
    assert isinstance(finished, Finished)
    assert (finished.run_ids, finished.outcome) == (("search-0000", "search-0001"), Outcome.OUT_OF_MEMORY)
    assert handled == [None, None]
