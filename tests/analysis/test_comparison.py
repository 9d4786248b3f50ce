"""The comparison ranks what may be ranked, and fits a terminal."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hpstudy.analysis.comparison import comparison, comparison_table
from hpstudy.analysis.frames import TRIALS_COLUMNS, StudyFrames
from hpstudy.hparams import GPT3, derived
from hpstudy.spec import PRESETS, TrainerSpec
from hpstudy.study import Budget, Choices, Confirm, FloatRange, MetricName, Objective, Pruner, Sampler, Study

OBJECTIVES: dict[MetricName, Objective] = {
    "val/loss": Objective(metric="val/loss", direction="minimize"),
    "train/tok_per_sec": Objective(metric="train/tok_per_sec", direction="maximize"),
}
LOG = FloatRange(low=1e-4, high=1e-2, scale="log")
SPEC = TrainerSpec(
    model=PRESETS["gpt-2x64"],
    corpus="asv",
    tokenizer="bytes",
    context=128,
    tokens=2**20,
    seconds=None,
    evals=10,
    val_tokens=2**14,
    seed=0,
    threads=1,
    precision="fp32",
    ramp_multiple=1,
)


def study(*metrics: MetricName, keys: tuple[str, ...] = ("lr",)) -> Study:
    return Study(
        name="small",
        path=Path("studies/small.toml"),
        question="?",
        baseline_name="gpt3",
        overrides={},
        hparams={},
        spec=SPEC,
        space={key: Choices(values=("a", "b")) if key == "clip_mode" else LOG for key in keys},
        objectives=tuple(OBJECTIVES[metric] for metric in metrics),
        budget=Budget(
            trials=10,
            parallel=1,
            pack=1,
            sampler=Sampler(name="tpe", startup=5, seed=0),
            pruner=Pruner(name="none", startup=5, from_fraction=0.3, reduction=3),
        ),
        confirm=Confirm(seeds=(101,), top=1, margin=0.01, design="paired"),
        vocab_size=256,
        project="hpstudy",
        entity=None,
        warnings=(),
    )


def trial(number: int, val_loss: float | None, tok_per_sec: float | None, **changes: Any) -> dict[str, Any]:
    hparams = replace(GPT3, batch_tokens=4096)
    row = {
        "run_id": f"search-{number:04d}",
        "phase": "search",
        "trial": number,
        "outcome": "complete",
        "val_loss": val_loss,
        "tok_per_sec": tok_per_sec,
        **asdict(hparams),
        **derived(hparams),
    }
    return row | changes


def frames(*rows: dict[str, Any]) -> StudyFrames:
    trials = pd.DataFrame(list(rows), columns=list(TRIALS_COLUMNS)).astype(
        {"val_loss": "float64", "tok_per_sec": "float64"}
    )
    return StudyFrames(name="small", trials=trials, read_steps=pd.DataFrame)


FIVE = frames(
    trial(0, 4.0, 1000.0),
    trial(1, 3.9, 500.0, lr=1e-3),
    trial(2, math.nan, 9000.0, outcome="diverged"),
    trial(3, 3.5, 8000.0, outcome="pruned"),
    trial(4, 3.95, 2000.0),
    trial(5, 4.5, 3000.0),
    trial(6, None, None, outcome=None),
    trial(7, 4.6, 2500.0),
    trial(8, 3.0, 9500.0, outcome="out_of_memory"),
)


def printed(frame: pd.DataFrame) -> list[str]:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    console.print(comparison_table(frame))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_baseline_is_first_and_completed_trials_follow_by_loss() -> None:
    table = comparison(FIVE, study("val/loss"), baseline_run_id="search-0000")
    assert list(table["run"]) == ["search-0000", "search-0001", "search-0004", "search-0005", "search-0007"]
    assert list(table["baseline"]) == [True, False, False, False, False]
    assert table["difference"].tolist() == pytest.approx([0, -0.1, -0.05, 0.5, 0.6])


def test_a_throughput_study_ranks_by_speed_and_tells_the_ratio() -> None:
    table = comparison(FIVE, study("train/tok_per_sec"), baseline_run_id="search-0000", best=2)
    assert list(table["run"]) == ["search-0000", "search-0005", "search-0007"]
    assert table["speedup"].tolist() == [1.0, 3.0, 2.5]


def test_two_objectives_show_the_pareto_front_by_loss() -> None:
    table = comparison(FIVE, study("val/loss", "train/tok_per_sec"), baseline_run_id="search-0000")
    assert list(table["run"]) == ["search-0000", "search-0001", "search-0004", "search-0005"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12, unique=True))
def test_the_front_is_exactly_the_trials_that_none_beats(points: list[tuple[int, int]]) -> None:
    rows = [trial(number, float(loss), float(speed)) for number, (loss, speed) in enumerate(points, start=1)]
    table = comparison(frames(*rows), study("val/loss", "train/tok_per_sec"), baseline_run_id="none", best=12)
    unbeaten = [
        (loss, speed)
        for loss, speed in points
        if not any(a <= loss and b >= speed and (a, b) != (loss, speed) for a, b in points)
    ]
    assert list(zip(table["val_loss"], table["tok_per_sec"], strict=True)) == sorted(unbeaten)


@pytest.mark.parametrize("baseline", [trial(8, None, None, outcome=None, run_id="baseline-s0", phase="baseline"), None])
def test_without_a_finished_baseline_there_are_no_differences(baseline: dict[str, Any] | None) -> None:
    rows = [trial(1, 3.9, 500.0), *([baseline] if baseline else [])]
    table = comparison(frames(*rows), study("val/loss"), baseline_run_id="baseline-s0")
    assert list(table["run"]) == [*(["baseline-s0"] if baseline else []), "search-0001"]
    assert table["difference"].isna().all()
    assert any("3.9000" in line for line in printed(table))


def test_a_search_without_completed_trials_leaves_the_baseline_alone() -> None:
    table = comparison(frames(trial(0, 4.0, 1000.0)), None, baseline_run_id="search-0000")
    assert list(table["run"]) == ["search-0000"]
    assert comparison(frames(), None, baseline_run_id="search-0000").empty


def test_the_printed_table_reads_in_human_units() -> None:
    lines = printed(comparison(FIVE, study("val/loss"), baseline_run_id="search-0000"))
    row = next(line for line in lines if "search-0001" in line).split()
    assert row == ["search-0001", "3.9000", "-0.1000", "500", "0.001", "0.9", "26.9k", "0.95", "55.4k", "0.1", "16"]
    assert "baseline" in next(line for line in lines if "search-0000" in line)
    assert any("selection" in line for line in lines)


@pytest.mark.parametrize("keys", [("lr",), ("lr", "eps"), tuple(asdict(GPT3))])
@pytest.mark.parametrize("metrics", [("val/loss",), ("val/loss", "train/tok_per_sec")])
def test_the_printed_table_fits_100_columns_however_many_keys_are_searched(
    keys: tuple[str, ...], metrics: tuple[MetricName, ...]
) -> None:
    odd = replace(GPT3, lr=1.2345e-4, beta1=0.98765, beta2=0.998765, batch_tokens=524_288, warmup_fraction=0.012345)
    many = [trial(n, 3 + 1 / n, 1e6 + n**3, **asdict(odd), **derived(odd)) for n in range(1, 9)]
    table = comparison(frames(trial(0, 4.0, 1e6), *many), study(*metrics, keys=keys), baseline_run_id="search-0000")
    lines = printed(table)
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    for key in keys:
        assert all(word in " ".join(lines) for word in key.split("_"))
