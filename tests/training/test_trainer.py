"""The trainer against a plain torch loop, and its promises of determinism."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from hpstudy.data.corpus import WindowSampler, corpus_of, val_windows
from hpstudy.study import load_study
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.trainer import Trainer, compiling_pays
from tests.helpers.training import BATCH, CONTEXT, HPARAMS, SPEC, curve, make_trainer, run


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return make_trainer()


def test_twenty_steps_equal_a_plain_torch_loop(trainer: Trainer):
    """The loop as a textbook writes it: torch.optim.AdamW with groups, clip_grad_norm_, the same batches."""
    corpus = corpus_of(SPEC)
    model = GPT(SPEC.model, corpus.vocab_size, CONTEXT)
    initialize(model, seed=0)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False,
    )  # fmt: skip
    sampler = WindowSampler(corpus, CONTEXT, seed=0)
    losses, norms = [], []
    for it in range(20):
        if it < 5:
            lr = 3e-3 * (it + 1) / 5
        else:
            ratio = min(1.0, (it - 5) / (20 * 260 / 300 - 5))
            lr = 3e-4 + 0.5 * (1 + math.cos(math.pi * ratio)) * (3e-3 - 3e-4)
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = (torch.from_numpy(w) for w in sampler.windows(it * 8, 8))
        loss = nn.functional.cross_entropy(model.logits(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())

    records = curve(trainer, run())
    assert [r.loss for r in records] == pytest.approx(losses, rel=1e-5)
    assert [r.grad_norm for r in records] == pytest.approx(norms, rel=1e-5)
    assert [r.clipped for r in records] == [n > 0.5 for n in norms]
    x, y = (torch.from_numpy(w) for w in val_windows(corpus, CONTEXT))
    with torch.no_grad():
        assert records[-1].val_loss == pytest.approx(model(x, y).item(), rel=1e-5)


def test_a_run_on_a_fresh_seed_validates_on_the_second_slice():
    spec = replace(SPEC, confirm_val=True)
    trainer = make_trainer(spec)
    for seed, confirm in ((spec.seed, False), (spec.seed + 1, True), (spec.seed, False)):
        last = curve(trainer, run(seed=seed))[-1]
        x, y = (torch.from_numpy(w) for w in val_windows(corpus_of(spec), CONTEXT, confirm=confirm))
        with torch.no_grad():
            assert last.val_loss == pytest.approx(trainer._model(x, y).item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_loss_curve_does_not_depend_on_micro_batch(trainer: Trainer, micro_batch: int):
    whole = curve(trainer, run())
    split = curve(trainer, run(replace(HPARAMS, micro_batch=micro_batch)))
    assert [r.accumulation for r in split] == [8 // micro_batch] * 20
    assert [r.loss for r in split] == pytest.approx([r.loss for r in whole], rel=1e-5)
    assert [r.grad_norm for r in split] == pytest.approx([r.grad_norm for r in whole], rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_one_seed_gives_one_curve_bitwise_whatever_ran_before(precision: str):
    warm = make_trainer(replace(SPEC, precision=precision))
    first = curve(warm, run())
    list(warm.train(run(replace(HPARAMS, lr=1.0, beta1=0.5), seed=7)))
    assert curve(warm, run()) == first
    assert curve(make_trainer(replace(SPEC, precision=precision)), run()) == first


def test_another_seed_gives_another_curve(trainer: Trainer):
    assert [r.loss for r in curve(trainer, run())] != [r.loss for r in curve(trainer, run(seed=1))]


def test_a_run_that_is_stopped_early_leaves_no_trace_in_the_next(trainer: Trainer):
    expected = curve(trainer, run())
    stopped = trainer.train(run(seed=3))
    next(stopped)
    stopped.close()
    assert curve(trainer, run()) == expected


def test_training_learns_and_evaluates_on_the_grid(trainer: Trainer):
    records = curve(trainer, run(tokens=100 * BATCH))
    evaluated = [r for r in records if r.evaluated]
    assert [r.eval_index for r in evaluated] == [1, 2, 3, 4]
    assert [r.step for r in evaluated] == [25, 50, 75, 100]
    assert records[0].loss == pytest.approx(math.log(512), abs=0.1)  # a new model guesses uniformly
    assert evaluated[-1].val_loss < evaluated[0].val_loss < math.log(512)
    assert all(0 < r.update_to_weight < 1 for r in records)
    assert all(0 < r.bf16_lost < 1 for r in evaluated)


def test_update_to_weight_is_the_relative_change_of_all_weights(trainer: Trainer):
    weights, ratios = [], []
    for record in trainer.train(run()):
        state = trainer.state()
        assert state is not None
        weights.append(state.weights.double().clone())
        ratios.append(record.update_to_weight)
    before, after = weights[-2:]
    assert ratios[-1] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-5)


def test_a_ramp_trains_the_same_tokens_in_smaller_first_batches():
    spec = replace(SPEC, ramp_multiple=2)
    ramped = replace(HPARAMS, micro_batch=2, batch_ramp_fraction=0.5, batch_ramp_start=0.25)
    records = curve(make_trainer(spec), run(ramped))
    assert records[0].batch_tokens == 64
    assert records[-1].batch_tokens == BATCH
    assert [r.tokens for r in records] == [sum(q.batch_tokens for q in records[: i + 1]) for i in range(len(records))]
    assert all(r.accumulation * r.micro_batch * CONTEXT == r.batch_tokens for r in records)


def test_a_micro_batch_larger_than_a_ramp_changes_none_of_its_tokens():
    spec = replace(SPEC, ramp_multiple=2)
    small = replace(HPARAMS, micro_batch=2, batch_ramp_fraction=0.5, batch_ramp_start=0.25)
    expected, found = (curve(make_trainer(spec), run(replace(small, micro_batch=size))) for size in (2, 8))
    assert (found[0].micro_batch, found[-1].micro_batch) == (found[0].batch_tokens // CONTEXT, 8)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert [r.loss for r in found] == pytest.approx([r.loss for r in expected], rel=1e-5)
    assert all(r.accumulation * r.micro_batch * CONTEXT == r.batch_tokens for r in found)


def test_weights_and_moments_stay_fp32_under_autocast():
    trainer = make_trainer(replace(SPEC, precision="auto"))
    if trainer.placement.precision != "bf16":
        pytest.skip("this CPU has no bf16 arithmetic")
    next(trainer.train(run()))
    state = trainer.state()
    assert state is not None
    moments = [group[name] for group in state.optimizer["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == 4
    assert {tensor.dtype for tensor in (*moments, state.weights)} == {torch.float32}


def test_a_rate_that_diverges_is_recorded_to_the_last_step(trainer: Trainer):
    records = curve(trainer, run(replace(HPARAMS, lr=1e6, clip_mode="none", warmup_fraction=0.0)))
    assert len(records) == 20
    assert not all(math.isfinite(r.loss) and r.loss < math.log(512) + 1 for r in records)


def test_measured_speed_is_positive_and_changes_nothing(trainer: Trainer):
    expected = curve(trainer, run())
    assert len(seconds := trainer.time_steps(HPARAMS, 3)) == 3
    assert min(seconds) > 0
    assert trainer.time_evaluation() > 0
    assert curve(trainer, run()) == expected


WITHOUT_THE_COMPILER = """
import sys
from hpstudy.training.device import prepare_process
from tests.helpers.training import curve, make_trainer, run
prepare_process(threads=1)
print(len(curve(make_trainer(), run())), [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_a_cpu_trains_without_importing_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", WITHOUT_THE_COMPILER], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["20", "[]\n"]


def test_compiling_pays_in_long_runs_of_large_models_only():
    quickstart, large = load_study("quickstart").spec, load_study("gpt3-125m").spec
    assert not compiling_pays(quickstart)
    assert compiling_pays(large)
    assert compiling_pays(replace(quickstart, tokens=10**9))
    assert compiling_pays(replace(quickstart, tokens=None, seconds=60.0))
    assert not compiling_pays(replace(quickstart, tokens=None, seconds=5.0))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_has_the_same_curve(trainer: Trainer):
    """The blocks of a GPU's model are compiled; here the CPU's compiler does it."""
    expected = curve(trainer, run())
    found = curve(make_trainer(compile=True), run())
    assert [r.loss for r in found] == pytest.approx([r.loss for r in expected], rel=1e-5)
    assert [r.grad_norm for r in found] == pytest.approx([r.grad_norm for r in expected], rel=1e-4)
