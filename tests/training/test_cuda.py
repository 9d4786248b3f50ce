"""What the path of a GPU adds: steps read late, captured, compiled. A CPU tests what it can, a GPU the rest."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hpstudy.data.corpus import WindowSampler, corpus_of
from hpstudy.hparams import GPT3
from hpstudy.records import StepRecord
from hpstudy.running.local import worker_environment
from hpstudy.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hpstudy.training.cuda import Reading, agree, captured, captured_step, outcome, same_gradients
from hpstudy.training.device import place, prepare_process
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.kernels import attention, fastest_attention, output_loss, prepare_attention
from hpstudy.training.ranks import join, open_store
from hpstudy.training.trainer import Trainer
from tests.golden import curves
from tests.helpers.ranks import curves_of
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
LONG = replace(RAMPED, context=128, ramp_multiple=1)
LONG_HPARAMS = replace(RUN.hparams, batch_tokens=1024, micro_batch=4, batch_ramp_fraction=0.0)
LONG_RUN = replace(RUN, tokens=20 * 1024, hparams=LONG_HPARAMS)


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

    assert same_gradients(one, one, one.grads, ids, ids, exact=True)
    assert not same_gradients(one, other, one.grads, ids, ids, exact=True)
    assert same_gradients(one, other, one.grads, ids, ids, exact=False)


def test_results_agree_to_the_last_bit_or_about():
    numbers = torch.tensor([1.0, -2.0, math.nan, 0.0])
    near = numbers * (1 + 2**-23)
    assert agree(numbers, numbers.clone(), exact=True)
    assert not agree(numbers, near, exact=True)
    assert agree(numbers, near, exact=False)
    assert not agree(numbers, 2 * numbers, exact=False)


def test_the_outcome_of_a_step_leaves_its_state_as_it_was():
    weights = torch.ones(3)

    def step(windows_2BT: Tensor) -> Tensor:
        return weights.add_(1).sum() * windows_2BT.sum()

    figures, after = outcome(step, torch.ones(2), [weights])
    assert (figures.item(), after.tolist(), weights.tolist()) == (12.0, [2.0] * 3, [1.0] * 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests machines without a GPU")
def test_without_a_capture_steps_run_as_they_are_and_it_is_tried_once(caplog: pytest.LogCaptureFixture):
    weights = torch.ones(3)
    options = {"backward": lambda: None, "state": [weights], "exact": True}
    with caplog.at_level(logging.WARNING):
        assert captured_step(lambda _: weights.mul_(2).sum(), torch.ones(2), **options) is None
    assert weights.tolist() == [1.0] * 3
    caplog.clear()
    plain = replace(RUN, hparams=replace(RUN.hparams, batch_ramp_fraction=0.0))
    expected = curve(make_trainer(RAMPED), plain)
    trainer = make_trainer(RAMPED, capture="step")
    with caplog.at_level(logging.WARNING):
        assert [curve(trainer, plain) for _ in range(2)] == [expected, expected]
    assert len([line for line in caplog.messages if line.startswith("steps are launched in parts")]) == 1


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
    assert curve(make_trainer(RAMPED, "cuda", capture="micro-batch"), RUN) == expected
    assert curve(make_trainer(RAMPED, "cuda", steps_ahead=0, capture="nothing"), RUN) == expected


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("clip_mode", ["global", "per_tensor", "none"])
@pytest.mark.usefixtures("deterministic")
def test_a_step_as_one_graph_has_the_bits_of_its_kernels_one_by_one(
    clip_mode: str, compile: bool, caplog: pytest.LogCaptureFixture
):
    trainer = make_trainer(RAMPED, "cuda", compile=compile)
    for lr, beta2 in ((3e-3, 0.95), (1e-2, 0.99)):  # the second run must not take the graph of the first
        hparams = replace(RUN.hparams, lr=lr, beta2=beta2, clip_mode=clip_mode, grad_clip=0.5, batch_ramp_fraction=0.0)
        plain = replace(RUN, hparams=hparams)
        found = curve(trainer, plain)
        assert trainer._step_graph is not None, caplog.text
        kernels = make_trainer(RAMPED, "cuda", steps_ahead=0, capture="nothing", compile=compile)
        assert found == curve(kernels, plain)
    assert len({record.loss for record in found}) == len(found)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_a_run_resumed_from_a_checkpoint_goes_on_as_a_graph_with_the_same_bits(tmp_path: Path):
    plain = replace(RUN, hparams=replace(RUN.hparams, batch_ramp_fraction=0.0))
    expected = curve(make_trainer(RAMPED, "cuda"), plain)
    stopped = make_trainer(RAMPED, "cuda")
    for _ in stopped.train(plain):
        if (state := stopped.state()) is not None and state.step >= 7:
            break
    assert state is not None
    save_checkpoint(tmp_path / "state", Checkpoint(fingerprint="", bad_steps=0, state=state))
    resumed = make_trainer(RAMPED, "cuda")
    assert curve(resumed, plain, load_checkpoint(tmp_path / "state", "")) == expected[state.step :]
    assert resumed._step_graph is not None


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.usefixtures("deterministic")
def test_a_curve_that_need_not_repeat_is_that_of_one_that_must(compile: bool):
    expected = curve(make_trainer(LONG, "cuda", compile=compile), LONG_RUN)
    placement = place("cuda", "auto", deterministic=False)
    assert placement.environment()["deterministic"] is False
    found = curve(Trainer(LONG, corpus_of(LONG), placement, compile=compile), LONG_RUN)
    assert [r.loss for r in found] == pytest.approx([r.loss for r in expected], rel=5e-3)
    with fastest_attention(torch.device("cuda")), torch.profiler.profile() as profiled:
        qkv = torch.randn(3, 4, 2, 128, 64, device="cuda", dtype=torch.bfloat16)
        F.scaled_dot_product_attention(*qkv, is_causal=True)
        torch.cuda.synchronize()
    assert any("cudnn" in event.name for event in profiled.events())


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_a_curve_with_compiled_attention_repeats_and_is_that_of_fp32():
    expected = curve(make_trainer(LONG, "cuda", compile=True), LONG_RUN)
    assert curve(make_trainer(LONG, "cuda", compile=True), LONG_RUN) == expected
    exact = curve(make_trainer(replace(LONG, precision="fp32"), "cuda"), LONG_RUN)
    assert [r.loss for r in expected] == pytest.approx([r.loss for r in exact], rel=5e-3)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.usefixtures("deterministic")
def test_a_sum_over_one_rank_by_nccl_changes_no_bit(monkeypatch: pytest.MonkeyPatch, compile: bool):
    for name, value in worker_environment(1).items():
        if name.startswith("NCCL_"):
            monkeypatch.setenv(name, value)
    expected = curve(make_trainer(LONG, "cuda", compile=compile), LONG_RUN)
    ranks = join(open_store(), 0, 1, "cuda:0")
    try:
        assert ranks.gather(0.1, 7) == [[0.1, 7]]
        assert curve(make_trainer(LONG, "cuda", compile=compile, ranks=ranks), LONG_RUN) == expected
    finally:
        dist.destroy_process_group()


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("deterministic")
def test_two_ranks_on_one_gpu_have_the_losses_of_one_and_the_same_bits_every_time():
    spec = replace(LONG, precision="fp32")
    alone = curve(make_trainer(spec, "cuda"), LONG_RUN)
    first, second = curves_of(2, LONG_RUN, spec, device="cuda", capture="nothing", compile=False)
    assert first == second == curves_of(2, LONG_RUN, spec, device="cuda", capture="nothing", compile=False)[0]
    assert [r.loss for r in first] == pytest.approx([r.loss for r in alone], rel=1e-5)
