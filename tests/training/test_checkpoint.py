"""A training that stops and goes on is the training that never stopped; a damaged file is never used."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hpstudy.hparams import GPT3
from hpstudy.records import Run
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.checkpoint import MACHINE, Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from hpstudy.training.corpus import load_corpus
from hpstudy.training.device import Placement, place
from hpstudy.training.trainer import Trainer

HPARAMS = replace(GPT3, lr=3e-3, batch_tokens=256, micro_batch=8, warmup_fraction=0.2, batch_ramp_fraction=0.3)
SPEC = TrainerSpec(
    model=ModelShape(layers=1, heads=2, width=16),
    corpus="asv",
    tokenizer="gpt2:256",
    context=16,
    tokens=20 * 256,
    seconds=None,
    evals=4,
    seed=0,
    threads=1,
    precision="fp32",
    val_tokens=512,
    ramp_multiple=1,
)
RUN = Run(run_id="search-0000", phase="search", trial=0, seed=0, tokens=20 * 256, hparams=HPARAMS)
ENVIRONMENT = dict.fromkeys(MACHINE, "here")
TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


def make_trainer() -> Trainer:
    return Trainer(SPEC, load_corpus(SPEC.corpus, SPEC.tokenizer, SPEC.val_tokens), place("cpu", SPEC.precision))


def curve(trainer: Trainer, checkpoint: Checkpoint | None = None) -> list[object]:
    return [replace(record, **TIMES) for _, record in trainer.train([RUN], checkpoint=checkpoint)]


def saved_after(step: int, path: Path, trainer: Trainer) -> str:
    identity = fingerprint(SPEC, RUN, ENVIRONMENT)
    for _, record in trainer.train([RUN]):
        if record.step >= step and (state := trainer.state()) is not None:
            save_checkpoint(path, Checkpoint(fingerprint=identity, bad_steps=3, state=state))
            return identity
    raise AssertionError("no state to save")


@pytest.mark.parametrize("step", [1, 5, 13, 20])
def test_a_run_goes_on_from_a_file_with_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = curve(make_trainer())
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(step, path, make_trainer())
    found = load_checkpoint(path, identity)
    assert (found.bad_steps, found.state.step) == (3, step)
    other = make_trainer()
    list(islice(other.train([replace(RUN, seed=9)]), 7))  # what it trained before leaves no trace
    assert curve(other, found) == whole[step:]


def test_a_device_that_is_ahead_catches_up_before_it_has_a_state(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = curve(make_trainer())
    monkeypatch.setattr(Placement, "steps_unread", property(lambda _: 1))
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(7, path, make_trainer())
    found = load_checkpoint(path, identity)
    assert found.state.step > 7
    assert curve(make_trainer(), found) == whole[found.state.step :]


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(2, path, make_trainer())
    whole = load_checkpoint(path, identity)
    bytes_ = path.read_bytes()
    for place_ in range(7, len(bytes_), len(bytes_) // 97):
        damaged = bytearray(bytes_)
        damaged[place_] ^= 0x20
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path, identity)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # padding between the parts
            assert torch.equal(found.state.weights, whole.state.weights)
            assert str(found.state.optimizer) == str(whole.state.optimizer)


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: float) -> None:
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(2, path, make_trainer())
    os.truncate(path, int(size if size >= 1 or size == 0 else size * path.stat().st_size))
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, identity)


def test_a_file_of_another_run_or_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    saved_after(2, path, make_trainer())
    for other in (
        fingerprint(SPEC, replace(RUN, seed=1), ENVIRONMENT),
        fingerprint(SPEC, replace(RUN, hparams=replace(HPARAMS, lr=1e-3)), ENVIRONMENT),
        fingerprint(replace(SPEC, context=32), RUN, ENVIRONMENT),
        fingerprint(SPEC, RUN, ENVIRONMENT | {"torch": "there"}),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            load_checkpoint(path, other)


def test_a_pickle_in_a_checkpoints_place_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    path = tmp_path / "checkpoint.pt"
    torch.save({"fingerprint": Trap()}, path)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, "any")
    assert not (tmp_path / "trapped").exists()
