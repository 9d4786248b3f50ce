"""The trainer against a plain torch loop, and its promises of determinism."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpstudy.hparams import GPT3, HParams
from hpstudy.records import Run, StepRecord
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.corpus import WindowSampler, load_corpus, val_windows
from hpstudy.training.device import Placement, place
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import make_adamw
from hpstudy.training.trainer import Trainer

CONTEXT, BATCH = 32, 256
SPEC = TrainerSpec(
    model=ModelShape(layers=2, heads=2, width=32),
    corpus="asv",
    tokenizer="gpt2:512",
    context=CONTEXT,
    tokens=20 * BATCH,
    seconds=None,
    evals=4,
    val_tokens=1024,
    seed=0,
    threads=1,
    precision="fp32",
    ramp_multiple=1,
)
HPARAMS = replace(
    GPT3, lr=3e-3, batch_tokens=BATCH, micro_batch=8, warmup_fraction=0.25, batch_ramp_fraction=0.0, grad_clip=0.5
)
TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return make_trainer(SPEC)


def make_trainer(spec: TrainerSpec) -> Trainer:
    corpus = load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens, base=Path())
    return Trainer(spec, corpus, place("cpu", spec.precision))


def run(hparams: HParams = HPARAMS, *, seed: int = 0, tokens: int = 20 * BATCH) -> Run:
    return Run(run_id="search-0000", phase="search", trial=0, seed=seed, tokens=tokens, hparams=hparams)


def curve(trainer: Trainer, of: Run) -> list[StepRecord]:
    """The records without their times."""
    return [replace(record, **TIMES) for _, record in trainer.train([of])]


def test_twenty_steps_equal_a_plain_torch_loop(trainer: Trainer):
    """The loop as a textbook writes it: torch.optim.AdamW with groups, clip_grad_norm_, the same batches."""
    corpus = load_corpus(SPEC.corpus, SPEC.tokenizer, SPEC.val_tokens)
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
    list(warm.train([run(replace(HPARAMS, lr=1.0, beta1=0.5), seed=7)]))
    assert curve(warm, run()) == first
    assert curve(make_trainer(replace(SPEC, precision=precision)), run()) == first


def test_another_seed_gives_another_curve(trainer: Trainer):
    assert [r.loss for r in curve(trainer, run())] != [r.loss for r in curve(trainer, run(seed=1))]


def test_a_run_that_is_broken_off_leaves_no_trace_in_the_next(trainer: Trainer):
    expected = curve(trainer, run())
    broken = trainer.train([run(seed=3)])
    next(broken)
    broken.close()
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
    *_, (_, last) = trainer.train([run()])
    after = trainer._flat.weights.double()
    before = trainer._before.double()
    assert last.update_to_weight == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-5)


def test_ramp_trains_the_same_tokens_in_smaller_first_batches():
    spec = replace(SPEC, ramp_multiple=2)
    ramped = replace(HPARAMS, micro_batch=2, batch_ramp_fraction=0.5, batch_ramp_start=0.25)
    records = curve(make_trainer(spec), run(ramped))
    assert records[0].batch_tokens == 64
    assert records[-1].batch_tokens == BATCH
    assert [r.tokens for r in records] == [sum(q.batch_tokens for q in records[: i + 1]) for i in range(len(records))]
    assert all(r.accumulation * r.micro_batch * CONTEXT == r.batch_tokens for r in records)


def test_weights_and_moments_stay_fp32_under_autocast(monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(replace(SPEC, precision="auto"))
    if trainer.placement.precision != "bf16":
        pytest.skip("this CPU has no bf16 arithmetic")
    made: list[torch.optim.AdamW] = []
    monkeypatch.setattr("hpstudy.training.trainer.make_adamw", lambda *args: made.append(make_adamw(*args)) or made[-1])
    next(trainer.train([run()]))
    moments = [state[name] for state in made[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == 4
    assert {tensor.dtype for tensor in (*moments, *trainer._model.parameters())} == {torch.float32}


def test_a_hopeless_rate_is_recorded_and_not_hidden(trainer: Trainer):
    records = curve(trainer, run(replace(HPARAMS, lr=1e6, clip_mode="none", warmup_fraction=0.0)))
    assert len(records) == 20
    assert not all(math.isfinite(r.loss) and r.loss < math.log(512) + 1 for r in records)


def test_measured_speed_is_positive_and_changes_nothing(trainer: Trainer):
    expected = curve(trainer, run())
    speed = trainer.measure(HPARAMS)
    assert speed.step_seconds > 0
    assert speed.eval_seconds > 0
    assert curve(trainer, run()) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_has_the_same_curve(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, where the model is compiled; here with the CPU's compiler, as far as that goes."""
    expected = curve(trainer, run())
    monkeypatch.setattr(Placement, "compiles", property(lambda _: True))
    compiled = curve(make_trainer(SPEC), run())
    assert [r.loss for r in compiled] == pytest.approx([r.loss for r in expected], rel=1e-5)
    assert [r.grad_norm for r in compiled] == pytest.approx([r.grad_norm for r in expected], rel=1e-4)
