"""What the path of a GPU adds: steps read late, captured, compiled. A CPU tests what it can, a GPU the rest."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpstudy.data.corpus import WindowSampler
from hpstudy.hparams import GPT3
from hpstudy.records import StepRecord
from hpstudy.training.cuda import Reading, captured, same_bits
from hpstudy.training.device import place, prepare_process
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.kernels import attention, output_loss, prepare_attention
from hpstudy.training.trainer import Trainer
from tests.golden import curves
from tests.helpers.training import SPEC, curve, make_trainer, run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

RAMPED = replace(SPEC, tokenizer="gpt2:500", val_tokens=512, precision="auto", ramp_multiple=2)
RUN = run(
    replace(
        GPT3,
        lr=3e-3,
        batch_tokens=256,
        micro_batch=2,
        warmup_fraction=0.25,
        batch_ramp_fraction=0.5,
        batch_ramp_start=0.25,
    )
)


def launched_at_each_record(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepRecord, int]]:
    """Each record with the number of steps launched by then: every step draws its windows once."""
    launched = []
    windows = WindowSampler.windows
    with monkeypatch.context() as patch:
        patch.setattr(WindowSampler, "windows", lambda *args: launched.append(1) or windows(*args))
        return [(record, len(launched)) for record in trainer.train(RUN)]


def test_records_read_late_are_those_read_at_once():
    expected = curve(make_trainer(RAMPED), RUN)
    late = make_trainer(RAMPED, steps_ahead=1)
    assert curve(late, RUN) == expected
    broken = late.train(RUN)
    next(broken)
    broken.close()
    assert curve(late, RUN) == expected


def test_a_record_comes_one_step_late_but_at_once_after_an_evaluation(monkeypatch: pytest.MonkeyPatch):
    at_once = launched_at_each_record(make_trainer(RAMPED), monkeypatch)
    assert all(record.step == launched for record, launched in at_once)
    late = launched_at_each_record(make_trainer(RAMPED, steps_ahead=1), monkeypatch)
    assert [launched - record.step for record, launched in late] == [0 if r.evaluated else 1 for r, _ in late]
    assert [r.eval_index for r, _ in late if r.evaluated] == [1, 2, 3, 4]


def test_a_run_is_late_again_after_one_that_ended_while_it_caught_up(monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(RAMPED, steps_ahead=1)
    expected = launched_at_each_record(trainer, monkeypatch)
    broken = trainer.train(RUN)
    next(broken)
    assert trainer.state() is None
    broken.close()
    assert [launched for _, launched in launched_at_each_record(trainer, monkeypatch)] == [n for _, n in expected]


def test_a_step_that_is_read_late_has_the_same_seconds():
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests machines without a GPU")
def test_without_a_capture_the_micro_batch_runs_as_it_is(caplog: pytest.LogCaptureFixture):
    line, ids = Line(), torch.arange(6).view(2, 3)
    with caplog.at_level(logging.WARNING):
        assert captured(line, line.grads, ids, ids) is line
    assert len(caplog.records) == 1
    assert "no CUDA graph" in caplog.text


def test_a_graph_with_other_gradients_has_other_bits():
    one, ids = Line(), torch.arange(6).view(2, 3)

    def other(inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        loss = one(inputs_BT, targets_BT, share)
        one.grads.mul_(1 + 2**-23)
        return loss

    assert same_bits(one, one, one.grads, ids, ids)
    assert not same_bits(one, other, one.grads, ids, ids)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.usefixtures("deterministic")
def test_the_output_loss_of_a_gpu_is_torchs(precision: str, tolerance: float, triton: bool, monkeypatch):
    if not triton:
        monkeypatch.setattr("hpstudy.training.kernels.HAS_TRITON", False)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).cuda().requires_grad_() for n in (300, 512))
    targets = torch.randint(0, 500, (300,), generator=generator).cuda()
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double())[:, :500], targets)
    with place("cuda", precision).autocast():
        loss = output_loss(hidden, weight, targets, 500) / 3
    assert 3 * loss.item() == pytest.approx(exact.item(), rel=tolerance)
    found, expected = (torch.autograd.grad(value, (hidden, weight)) for value in (loss, exact / 3))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) < tolerance * torch.linalg.vector_norm(theirs)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_compiled_attention_is_exact_and_repeats():
    qkv = torch.randn(4, 256, 3, 2, 64, device="cuda", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4).requires_grad_()
    weights = torch.randn(4, 2, 256, 64, device="cuda")
    exact = F.scaled_dot_product_attention(*qkv.double(), is_causal=True)
    (expected,) = torch.autograd.grad((exact * weights).sum(), qkv)
    prepare_attention(256, "cuda")
    compiled = torch.compile(attention, dynamic=False)
    results = []
    for _ in range(2):
        out = compiled(*qkv.unbind(0))
        results.append((out, *torch.autograd.grad((out.float() * weights).sum(), qkv)))
    assert all(torch.equal(one, again) for one, again in zip(*results, strict=True))
    for ours, theirs in zip(results[0], (exact, expected), strict=True):
        assert torch.linalg.vector_norm(ours.double() - theirs) < 1e-2 * torch.linalg.vector_norm(theirs.double())


@pytest.fixture
def deterministic() -> Iterator[None]:
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
def test_a_gpus_curve_is_the_recorded_one(precision: str):
    recorded = json.loads(curves.path("accumulated", precision).read_text())
    tolerance = {"fp32": 1e-4, "bf16": 5e-3}[precision]  # other kernels, and 40 steps for rounding to grow
    found = curves.train("accumulated", precision, device="cuda")
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in recorded], rel=tolerance)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_a_gpus_curve_is_the_same_bitwise_again_late_or_at_once_captured_or_not(caplog: pytest.LogCaptureFixture):
    trainer = make_trainer(RAMPED, "cuda")
    expected = curve(trainer, RUN)
    assert "CUDA graph" not in caplog.text, "nothing was captured"
    assert all(math.isfinite(record.loss) for record in expected)
    assert curve(trainer, RUN) == expected
    assert curve(make_trainer(RAMPED, "cuda"), RUN) == expected
    assert curve(make_trainer(RAMPED, "cuda", steps_ahead=0), RUN) == expected
    assert curve(make_trainer(RAMPED, "cuda", steps_ahead=0, capture=False), RUN) == expected


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_a_curve_with_compiled_attention_repeats_and_is_that_of_fp32():
    long = replace(RAMPED, context=128, ramp_multiple=1)
    hparams = replace(RUN.hparams, batch_tokens=1024, micro_batch=4, batch_ramp_fraction=0.0)
    run = replace(RUN, tokens=20 * 1024, hparams=hparams)
    expected = curve(make_trainer(long, "cuda"), run)
    assert curve(make_trainer(long, "cuda"), run) == expected
    exact = curve(make_trainer(replace(long, precision="fp32"), "cuda"), run)
    assert [r.loss for r in expected] == pytest.approx([r.loss for r in exact], rel=5e-3)
