"""A training that stops and resumes has the numbers of one that never stopped; a damaged file is never used."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hpstudy.hparams import GPT3
from hpstudy.spec import ModelShape
from hpstudy.training.checkpoint import MACHINE, NEWER, Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from hpstudy.training.trainer import Trainer
from tests.helpers.training import SPEC, curve, make_trainer, run

SMALL = replace(SPEC, model=ModelShape(layers=1, heads=2, width=16), tokenizer="gpt2:256", context=16, val_tokens=512)
HPARAMS = replace(GPT3, lr=3e-3, batch_tokens=256, micro_batch=8, warmup_fraction=0.2, batch_ramp_fraction=0.3)
RUN = run(HPARAMS)
ENVIRONMENT = dict.fromkeys(MACHINE, "here")


def saved_after(step: int, path: Path, trainer: Trainer) -> str:
    """Saves the first state at or after a step, and returns its fingerprint."""
    identity = fingerprint(SMALL, RUN, ENVIRONMENT)
    for record in trainer.train(RUN):
        if record.step >= step and (state := trainer.state()) is not None:
            save_checkpoint(path, Checkpoint(fingerprint=identity, bad_steps=3, state=state))
            return identity
    raise AssertionError("no state to save")


@pytest.mark.parametrize("step", [1, 5, 13, 20])
def test_a_run_resumes_from_a_file_with_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = curve(make_trainer(SMALL), RUN)
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(step, path, make_trainer(SMALL))
    found = load_checkpoint(path, identity)
    assert (found.bad_steps, found.state.step) == (3, step)
    other = make_trainer(SMALL)
    list(islice(other.train(replace(RUN, seed=9)), 7))  # what it trained before leaves no trace
    assert curve(other, RUN, found) == whole[step:]


def test_a_device_that_is_ahead_catches_up_before_it_has_a_state(tmp_path: Path) -> None:
    whole = curve(make_trainer(SMALL), RUN)
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(7, path, make_trainer(SMALL, steps_ahead=1))
    found = load_checkpoint(path, identity)
    assert found.state.step > 7
    assert curve(make_trainer(SMALL, steps_ahead=1), RUN, found) == whole[found.state.step :]


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    identity = saved_after(2, path, make_trainer(SMALL))
    whole = load_checkpoint(path, identity)
    content = path.read_bytes()
    for offset in range(7, len(content), len(content) // 97):
        damaged = bytearray(content)
        damaged[offset] ^= 0x20
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
    identity = saved_after(2, path, make_trainer(SMALL))
    os.truncate(path, int(size if size >= 1 or size == 0 else size * path.stat().st_size))
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, identity)


def test_a_file_of_another_run_or_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    saved_after(2, path, make_trainer(SMALL))
    for other in (
        fingerprint(SMALL, replace(RUN, seed=1), ENVIRONMENT),
        fingerprint(SMALL, replace(RUN, hparams=replace(HPARAMS, lr=1e-3)), ENVIRONMENT),
        fingerprint(replace(SMALL, context=32), RUN, ENVIRONMENT),
        fingerprint(SMALL, RUN, ENVIRONMENT | {"torch": "there"}),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            load_checkpoint(path, other)


def test_the_names_of_what_a_run_repeats_do_not_change_its_fingerprint() -> None:
    named = replace(RUN, of="search-0003", fraction=0.5)
    assert fingerprint(SMALL, named, ENVIRONMENT) == fingerprint(SMALL, RUN, ENVIRONMENT)


def test_the_fingerprint_has_newer_keys_of_the_spec_and_none_of_their_defaults() -> None:
    for newer in ({"deterministic": False}, {"gpus": 2}, {"processes": 2}):
        assert fingerprint(replace(SMALL, **newer), RUN, ENVIRONMENT) != fingerprint(SMALL, RUN, ENVIRONMENT)
    fixed = {key: value for key, value in asdict(SMALL).items() if key not in dict(NEWER)}
    trained = {key: value for key, value in asdict(RUN).items() if key not in ("of", "fraction")}
    machine = {key: ENVIRONMENT[key] for key in MACHINE}
    text = json.dumps([fixed, trained, machine], sort_keys=True, default=repr)  # as before the key
    assert fingerprint(SMALL, RUN, ENVIRONMENT) == hashlib.sha256(text.encode()).hexdigest()


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    path = tmp_path / "checkpoint.pt"
    torch.save({"fingerprint": Trap()}, path)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, "any")
    assert not (tmp_path / "trapped").exists()
