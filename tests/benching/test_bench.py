"""The bench's arithmetic, the peer's maths against the trainer's, and small races between real processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from hpstudy.benching.notebook import NotebookGPT, train
from hpstudy.benching.race import SETTINGS, Built, Race, Result, Setting, Turn, race, taking_turns
from hpstudy.benching.trials import bouts, outside_training
from hpstudy.cli import app
from hpstudy.errors import UserError
from hpstudy.hparams import GPT3
from hpstudy.records import Run, StepRecord
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.corpus import load_corpus
from hpstudy.training.device import place
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.trainer import Trainer

TINY = Setting(
    name="tiny",
    model=ModelShape(layers=1, heads=2, width=16),
    tokenizer="bytes",
    context=16,
    sequences={"cpu": 4, "cuda": 4},
    micro_batch={"cpu": 2, "cuda": 2},
)


CRAMPED = """
import torch


def cramped(*_, **__):
    raise torch.OutOfMemoryError


torch.nn.utils.clip_grad_norm_ = cramped  # which the peers' loops call
"""


def record(step: int, seconds: float) -> StepRecord:
    return StepRecord(
        step=step,
        tokens=step,
        loss=1.0,
        grad_norm=1.0,
        clipped=False,
        lr=1.0,
        update_to_weight=1.0,
        batch_tokens=1,
        micro_batch=1,
        accumulation=1,
        step_seconds=seconds,
        tok_per_sec=1.0,
        **({"val_loss": 1.0, "eval_index": 1, "eval_seconds": 1.0} if step == 2 else {}),
    )


def result(*turns: tuple[float, ...], tokens: int = 0, flops: int = 0) -> Result:
    built = Built(device="here", precision="fp32", tokens_per_step=tokens, flops_per_step=flops)
    return Result(built=built, turns=tuple(Turn(seconds=seconds, peak_memory_gib=0.0) for seconds in turns))


def test_a_token_of_gpt_125m_needs_854_million_flops():
    # 12 * 12 * 768² = 84,934,656 weights in the layers and 50257 * 768 = 38,597,376 in the output; six for each
    # makes 741,192,192; attention 12 * 12 * 768 * 1024 = 113,246,208
    assert SETTINGS[-1].name == "gpt-125m"
    assert SETTINGS[-1].flops_per_token == 854_438_400


def test_mfu_is_the_median_rate_over_the_fastest_matrix_product():
    gemm = result((0.02, 0.01), (0.04,), flops=1_000_000_000)  # 100 GFLOP/s at best
    # 2, 1 and 4 steps a second; a step of 10 GFLOP and 500 tokens
    ours = result((0.5, 0.5), (1.0,), (0.25,), tokens=500, flops=10_000_000_000)
    done = Race(setting=TINY, gemm=gemm, results={"hpstudy": ours})
    assert done.limit == pytest.approx(100e9)
    assert done.mfu("hpstudy") == pytest.approx(0.2)
    assert ours.tok_per_sec == pytest.approx(1000)


def test_speedup_compares_the_turns_of_one_round():
    # the machine halves its speed in the second round: both suffer, and the ratio does not
    ours, theirs = result((1.0,), (2.0,), (1.0,)), result((2.0,), (4.0,), (3.0,))
    done = Race(setting=TINY, gemm=result((1.0,)), results={"hpstudy": ours, "notebook": theirs})
    assert done.speedup("notebook") == pytest.approx((2.0, 2.0, 3.0))


def test_contenders_take_turns():
    order = [name for _, name, _ in taking_turns({"gemm": 0, "hpstudy": 1, "notebook": 2}, 2)]
    assert order == ["gemm", "hpstudy", "notebook"] * 2


def test_the_notebooks_losses_are_the_trainers():
    torch.set_num_threads(1)
    context, vocab = TINY.context, 256
    spec = TrainerSpec(
        model=ModelShape(layers=2, heads=2, width=32),
        corpus="asv",
        tokenizer=TINY.tokenizer,
        context=context,
        tokens=6400,
        seconds=None,
        evals=2,
        val_tokens=512,
        seed=0,
        threads=1,
        precision="fp32",
        ramp_multiple=4,
    )
    # two micro-batches a step, a rate at which the loss falls, and a norm at which most steps are clipped
    hparams = replace(
        GPT3, lr=3e-3, batch_tokens=8 * context, micro_batch=4, grad_clip=0.5, warmup_fraction=0.1, weight_decay=1.0
    )
    run = Run(run_id="bench", phase="search", trial=None, seed=5, tokens=6400, hparams=hparams)
    corpus, placement = load_corpus("asv", TINY.tokenizer, 512), place("cpu", "fp32")
    records = [record for _, record in Trainer(spec, corpus, placement).train([run])]

    start = GPT(spec.model, vocab, context)
    initialize(start, run.seed)
    model = NotebookGPT(spec.model, vocab, context)
    model.load_state_dict(start.state_dict(), strict=False)
    theirs = [(step.step, step.eval_index, loss) for step, loss in train(model, model, spec, run, corpus, placement)]

    assert records[-1].loss < records[0].loss - 0.5
    assert any(record.clipped for record in records)
    assert [(step, point) for step, point, _ in theirs] == [(record.step, record.eval_index) for record in records]
    assert [loss for *_, loss in theirs] == pytest.approx([record.loss for record in records], abs=1e-5)


def test_a_race_times_every_contender_in_every_round():
    said: list[str] = []
    done = race(TINY, ["hpstudy", "notebook", "build-nanogpt"], rounds=2, turn_seconds=0.02, say=said.append)
    assert list(done.results) == ["hpstudy", "notebook", "build-nanogpt"]
    assert done.results["hpstudy"].built.repeats
    for each in (done.gemm, *done.results.values()):
        assert [len(turn.seconds) > 0 for turn in each.turns] == [True, True]
        assert each.peak_memory_gib > 0.05  # torch alone takes more
    assert done.results["hpstudy"].built.tokens_per_step == 4 * 16
    assert 0 < done.mfu("hpstudy") < 1
    low, high = done.speedup("notebook").low, done.speedup("notebook").high
    assert 0 < low <= done.speedup("notebook").median <= high
    assert said == ["tiny: warming up", "tiny: round 1 of 2", "tiny: round 2 of 2"]


def test_a_peer_that_does_not_fit_is_said_and_ends_no_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sitecustomize.py").write_text(CRAMPED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    said: list[str] = []
    done = race(TINY, ["hpstudy", "notebook"], rounds=1, turn_seconds=0.02, say=said.append)
    assert list(done.results) == ["hpstudy"]
    assert said[-1] == "tiny: notebook does not fit into the memory beside the others and is left out"


def test_a_device_that_is_not_there_is_the_users_error():
    with pytest.raises(UserError, match="--device cuda:99: "):
        race(TINY, ["hpstudy"], device="cuda:99", say=lambda _: None)


def test_time_outside_training_counts_a_packed_step_once(tmp_path: Path):
    packed, alone = ([record(step, first + step) for step in (1, 2)] for first in (0.25, 0.5))
    views = []
    for run_id, records in {"a": packed, "b": packed, "c": alone}.items():
        (tmp_path / run_id).mkdir()
        for name, moment in (("header.json", 100), ("result.json", 120)):
            (tmp_path / run_id / name).touch()
            os.utime(tmp_path / run_id / name, (moment, moment))
        views.append(SimpleNamespace(folder=tmp_path / run_id, records=lambda records=records: records))
    (tmp_path / "worker-0.log").touch()
    seconds = (1.25 + 2.25 + 1.0) + (1.5 + 2.5 + 1.0)  # two steps and an evaluation of one second
    store = SimpleNamespace(root=tmp_path, runs=lambda: views)
    assert outside_training(store) == pytest.approx(1 - seconds / 20)


def test_bench_takes_the_trials_of_its_study(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, int] = {}
    monkeypatch.setattr("hpstudy.cli.bench_command.bouts", lambda _, **given: asked.update(given) or [])
    monkeypatch.setattr("hpstudy.cli.bench_command.bout_table", lambda _: "")
    CliRunner().invoke(app, ["bench", "--study", "--trials", "16", "--tokens", "1300000"], catch_exceptions=False)
    assert (asked["trials"], asked["tokens"]) == (16, 1_300_000)


@pytest.mark.slow
def test_every_way_trains_the_same_trials(tmp_path: Path):
    (bout,) = bouts(tmp_path, rounds=1, trials=2, tokens=20_000, say=lambda _: None)
    # nine steps from the same weights on the same tokens, evaluated alike: bf16 rounds differently by now, no more
    assert list(bout.agents) == ["one agent, torch's threads", "2 agents, own threads"]
    for way, side in bout.agents.items():
        assert side.val_losses == pytest.approx(bout.hpstudy.val_losses, abs=0.02)
        assert bout.speedup(way) == pytest.approx(side.seconds / bout.hpstudy.seconds)
    assert len(list(tmp_path.glob("round-1/wandb/offline-run-*/*.wandb"))) == 4


@pytest.mark.slow
def test_transformers_races_too():
    done = race(TINY, ["hpstudy", "transformers"], rounds=1, turn_seconds=0.02, say=lambda _: None)
    assert done.results["transformers"].tok_per_sec > 0


@pytest.mark.slow
def test_bench_prints_a_row_per_model():
    ran = CliRunner().invoke(app, ["bench", "--quick"])
    assert ran.exit_code == 0, ran.stderr
    rows = ran.stdout.splitlines()
    assert [row.split()[0] for row in rows[2:-1]] == ["gpt-2x64", "gpt-4x128", "gpt-6x256"]
    assert all("%" in row for row in rows[2:-1])
    assert rows[-1] == "the same numbers, to the last bit, when trained again: yes"


def test_an_unknown_preset_is_the_users_error():
    ran = CliRunner().invoke(app, ["bench", "--preset", "gpt-4"])
    assert isinstance(ran.exception, UserError)
    assert "--preset gpt-4: must be one of gpt-2x64, " in str(ran.exception)
