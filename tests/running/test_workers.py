"""The two ends of a worker: what its process is started with, and what it leaves after a failure."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Run
from hpstudy.running.driver import num_workers
from hpstudy.running.interface import Options
from hpstudy.running.worker_main import _measure, _train
from hpstudy.running.workers import Finished, Train, _spawn
from hpstudy.training.shards import cache_dir

RUN = Run(run_id="search-0000", phase="search", trial=0, seed=0, tokens=1, hparams=GPT3)


class Cramped:
    """A trainer without memory."""

    @property
    def spec(self) -> None:
        raise MemoryError

    def measure(self, *_: object, **__: object) -> None:
        raise MemoryError


def test_memory_is_given_back_once_no_traceback_holds_it(monkeypatch: pytest.MonkeyPatch):
    holding: list[BaseException | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: holding.append(sys.exc_info()[1]))
    assert _measure(Cramped(), GPT3, 1).speed is None
    ours, theirs = Pipe()
    _train(Cramped(), Train(runs=(RUN, replace(RUN, run_id="search-0001")), judged=False), {}, theirs)
    finished = ours.recv()
    assert isinstance(finished, Finished)
    assert (finished.run_ids, finished.outcome) == (("search-0000", "search-0001"), Outcome.OUT_OF_MEMORY)
    assert holding == [None, None]


def test_compiled_code_is_kept_in_hpstudys_cache_unless_the_user_has_another_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", lambda _, *, env, **__: env)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert _spawn(theirs, io.BytesIO(), 1)["TORCHINDUCTOR_CACHE_DIR"] == str(cache_dir() / "inductor")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
        assert _spawn(theirs, io.BytesIO(), 1)["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


THROUGHPUT, SECONDS = {}, {"tokens = 5120": "seconds = 60"}


@pytest.mark.parametrize(
    ("replaced", "device", "num_gpus", "asked", "workers"),
    [
        (THROUGHPUT, "auto", 2, None, 2),
        (THROUGHPUT, "auto", 8, 8, 2),  # [budget] parallel is 2
        (THROUGHPUT, "cuda:1", 2, None, 1),
        (THROUGHPUT, "auto", 0, 4, 1),
        (SECONDS, "auto", 2, None, 1),
    ],
)
def test_where_speed_is_measured_no_device_has_two_workers(
    tiny, replaced: dict[str, str], device: str, num_gpus: int, asked: int | None, workers: int
):
    study = tiny(replace=replaced, more='[objective]\nmetric = "train/tok_per_sec"' if replaced is THROUGHPUT else "")
    options = Options(runs=Path(), device=device, wandb="disabled", workers=asked)
    said: list[str] = []
    assert num_workers(study, {"num_gpus": num_gpus, "cores": 8}, options, 1, said.append) == workers
    assert len(said) == (asked is not None)
