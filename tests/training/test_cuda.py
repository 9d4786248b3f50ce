"""What a GPU's path adds: read late, captured, compiled. Here as far as a CPU goes; the rest where a GPU is."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpstudy.hparams import GPT3
from hpstudy.records import Run, StepRecord
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.corpus import load_corpus
from hpstudy.training.cuda import Reading, captured, same_bits
from hpstudy.training.device import Placement, place, prepare_process
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.kernels import output_loss
from hpstudy.training.trainer import Trainer
from tests.golden import curves

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SPEC = TrainerSpec(
    model=ModelShape(layers=2, heads=2, width=32),
    corpus="asv",
    tokenizer="gpt2:500",
    context=32,
    tokens=20 * 256,
    seconds=None,
    evals=4,
    val_tokens=512,
    seed=0,
    threads=1,
    precision="auto",
    ramp_multiple=2,
)
HPARAMS = replace(
    GPT3, lr=3e-3, batch_tokens=256, micro_batch=2, warmup_fraction=0.25, batch_ramp_fraction=0.5, batch_ramp_start=0.25
)
RUN = Run(run_id="search-0000", phase="search", trial=0, seed=0, tokens=20 * 256, hparams=HPARAMS)
TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


def make_trainer(device: str = "cpu") -> Trainer:
    return Trainer(SPEC, load_corpus(SPEC.corpus, SPEC.tokenizer, SPEC.val_tokens), place(device, SPEC.precision))


def curve(trainer: Trainer) -> list[StepRecord]:
    return [replace(record, **TIMES) for _, record in trainer.train([RUN])]


def read_steps_late(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(Placement, "steps_unread", property(lambda _: steps))


def launched_at_each_record(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepRecord, int]]:
    launched = []
    accumulate = trainer._accumulate_gradients
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_accumulate_gradients", lambda *args: launched.append(1) or accumulate(*args))
        return [(record, len(launched)) for _, record in trainer.train([RUN])]


def test_records_read_late_are_those_read_at_once(monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer()
    expected = curve(trainer)
    read_steps_late(monkeypatch, 1)
    assert curve(trainer) == expected
    broken = trainer.train([RUN])
    next(broken)
    broken.close()
    assert curve(trainer) == expected


def test_a_record_comes_one_step_late_but_at_once_after_an_evaluation(monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer()
    assert all(record.step == launched for record, launched in launched_at_each_record(trainer, monkeypatch))
    read_steps_late(monkeypatch, 1)
    late = launched_at_each_record(trainer, monkeypatch)
    assert [launched - record.step for record, launched in late] == [0 if r.evaluated else 1 for r, _ in late]
    assert [r.eval_index for r, _ in late if r.evaluated] == [1, 2, 3, 4]


def test_a_run_is_late_again_after_one_that_was_left_while_it_caught_up(monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer()
    read_steps_late(monkeypatch, 1)
    expected = launched_at_each_record(trainer, monkeypatch)
    broken = trainer.train([RUN])
    next(broken)
    assert trainer.state() is None
    broken.close()
    assert [launched for _, launched in launched_at_each_record(trainer, monkeypatch)] == [n for _, n in expected]


def test_a_step_that_is_read_late_took_no_longer():
    reading = Reading(torch.device("cpu"))
    reading.send(torch.tensor([1.0, 2.0]))
    first = reading.read()
    torch.randn(512, 512) @ torch.randn(512, 512)
    assert reading.read() == first
    assert first[0] == [1.0, 2.0]
    assert 0 < first[1] < 1


class Line:
    """The smallest model there is: loss = weight * mean(inputs * targets)."""

    def __init__(self, factor: float = 1.0) -> None:
        self.grads, self.factor = torch.zeros(1), factor

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        gradient = (inputs_BT * targets_BT).float().mean() * share
        self.grads += self.factor * gradient
        return 3.0 * gradient


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_where_nothing_can_be_captured_the_micro_batch_runs_as_it_is(caplog: pytest.LogCaptureFixture):
    line, ids = Line(), torch.arange(6).view(2, 3)
    with caplog.at_level(logging.WARNING):
        assert captured(line, line.grads, ids, ids) is line
    assert len(caplog.records) == 1
    assert "no CUDA graph" in caplog.text


def test_a_graph_with_other_gradients_is_told_apart():
    one, ids = Line(), torch.arange(6).view(2, 3)

    def other(inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        loss = one(inputs_BT, targets_BT, share)
        one.grads.mul_(1 + 2**-23)
        return loss

    assert same_bits(one, one, one.grads, ids, ids)
    assert not same_bits(one, other, one.grads, ids, ids)


@pytest.mark.parametrize("vocab_size", [500, 512])
def test_the_loss_of_a_gpu_is_that_of_a_cpu(vocab_size: int, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, requires_grad=True) for n in (40, 512))
    targets = torch.randint(0, vocab_size, (40,), generator=generator)
    on_cpu = output_loss(hidden, weight, targets, vocab_size)
    expected = torch.autograd.grad(on_cpu, (hidden, weight))
    monkeypatch.setattr(Tensor, "is_cpu", False)
    on_gpu = output_loss(hidden, weight, targets, vocab_size)
    torch.testing.assert_close(on_gpu, on_cpu)
    torch.testing.assert_close(torch.autograd.grad(on_gpu, (hidden, weight)), expected)


@pytest.fixture
def deterministic() -> Any:
    prepare_process(threads=1)
    yield
    torch.use_deterministic_algorithms(False)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
def test_a_gpus_logits_are_a_cpus():
    model, tokens = GPT(SPEC.model, 500, 32), torch.randint(0, 500, (4, 32))
    initialize(model, seed=0)
    with torch.no_grad():
        expected, found = model.logits(tokens), model.cuda().logits(tokens.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", curves.PRECISIONS)
@pytest.mark.usefixtures("deterministic")
def test_a_gpus_curve_is_the_recorded_one(precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curves, "place", lambda _, precision: place("cuda", precision))
    recorded = json.loads(curves.path("accumulated", precision).read_text())
    tolerance = {"fp32": 1e-4, "bf16": 5e-3}[precision]  # other kernels, and 40 steps for rounding to grow
    found = curves.train("accumulated", precision)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in recorded], rel=tolerance)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_a_gpus_curve_is_the_same_bitwise_again_late_or_at_once_captured_or_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    trainer = make_trainer("cuda")
    expected = curve(trainer)
    assert "CUDA graph" not in caplog.text, "nothing was captured"
    assert all(math.isfinite(record.loss) for record in expected)
    assert curve(trainer) == expected
    assert curve(make_trainer("cuda")) == expected
    read_steps_late(monkeypatch, 0)
    assert curve(trainer) == expected
    monkeypatch.setattr(Placement, "captures", property(lambda _: False))
    assert curve(make_trainer("cuda")) == expected
