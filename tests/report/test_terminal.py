"""The comparison reads well in a terminal and fits its width."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from hpstudy.analysis.answers import Noise
from hpstudy.hparams import GPT3, derived
from hpstudy.report.leaderboard import leaderboard
from hpstudy.report.terminal import leaderboard_table
from tests.helpers.comparisons import BOTH, FIVE, LOSS, frames, trial
from tests.helpers.stores import results_of

Table = Callable[..., pd.DataFrame]
NOISE = Noise(sd=0.01, n=5, difference_sd=0.014, pairs=0, one_seed=0.06, detectable=0.02, seeds_for={})
EVERY_KEY = {  # a narrow range or two values for each
    "lr": "{ low = 1e-4, high = 1e-3 }",
    "beta1": "{ low = 0.8, high = 0.95 }",
    "beta2": "{ low = 0.9, high = 0.999 }",
    "eps": "{ low = 1e-9, high = 1e-7 }",
    "weight_decay": "{ low = 0.0, high = 0.2 }",
    "grad_clip": "{ low = 0.5, high = 2.0 }",
    "clip_mode": '{ choices = ["global", "none"] }',
    "warmup_fraction": "{ low = 0.1, high = 0.6 }",
    "decay_fraction": "{ low = 0.7, high = 1.0 }",
    "min_lr_fraction": "{ low = 0.0, high = 0.2 }",
    "batch_tokens": "{ choices = [256, 512] }",
    "micro_batch": "{ choices = [8, 16] }",
    "batch_ramp_fraction": "{ low = 0.0, high = 0.1 }",
    "batch_ramp_start": "{ low = 0.5, high = 1.0 }",
}
FIXED = {"batch_tokens": "batch_tokens = 256\n", "micro_batch": "micro_batch = 16\n"}


@pytest.fixture
def compared(tiny, tmp_path: Path) -> Table:
    """The comparison of a study of these metrics that searches these keys."""

    def build(*rows: dict[str, Any], metrics: str = LOSS, keys: tuple[str, ...] = ("lr", "beta2")) -> pd.DataFrame:
        space = "".join(f"{key} = {EVERY_KEY[key]}\n" for key in keys)
        fixed = {key: line for key, line in FIXED.items() if key not in keys}
        changes = {
            'lr = { low = 1e-4, high = 3e-2, scale = "log" }\n': space,
            'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n': "",
            "[hparams]\n" + "".join(FIXED.values()): "[hparams]\n" + "".join(fixed.values()),
            "[trainer]\n": "[baseline.overrides]\n" + "".join(FIXED.values()) + "\n[trainer]\n",
        }
        study = tiny(more=f"[objective]\nmetric = {metrics}\n", replace=changes)
        assert set(study.space) == set(keys)
        return leaderboard(results_of(study, frames(*rows), tmp_path))

    return build


def printed(frame: pd.DataFrame, noise: Noise | None = None) -> list[str]:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    console.print(leaderboard_table(frame, noise=noise))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def row_of(run: str, lines: list[str]) -> list[str]:
    return next(line for line in lines if run in line).split()


def in_one_line(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def test_the_printed_table_has_human_units(compared: Table) -> None:
    lines = printed(compared(*FIVE))
    assert row_of("search-0001", lines) == [
        *("search-0001", "3.9000", "-0.1000", "500", "0.001", "0.9", "26.9k", "0.95", "55.4k", "0.1", "16")
    ]
    assert "baseline" in row_of("search-0000", lines)
    assert "One seed each, and selection flatters the best of a search" in in_one_line(lines)


def test_a_missing_value_is_a_dash(compared: Table) -> None:
    lines = printed(compared(trial(1, 3.9, 500.0)))  # without a baseline
    assert row_of("search-0001", lines)[:3] == ["search-0001", "3.9000", "-"]


def test_differences_within_the_noise_are_marked_and_explained(compared: Table) -> None:
    lines = printed(compared(*FIVE), NOISE)
    assert [row_of(run, lines)[2] for run in ("search-0001", "search-0004")] == ["-0.1000", "~-0.0500"]
    assert "~ marks differences that two seeds of one setting show too, up to 0.06 nats." in in_one_line(lines)


def test_outcomes_are_shown_only_if_one_is_not_complete(compared: Table) -> None:
    assert "outcome" not in " ".join(printed(compared(*FIVE)))
    diverged = trial(0, None, 1000.0, outcome="diverged")
    assert "outcome" in " ".join(printed(compared(diverged, *FIVE[1:])))


@pytest.mark.parametrize("keys", [("lr",), ("lr", "eps"), tuple(asdict(GPT3))])
@pytest.mark.parametrize("metrics", [LOSS, BOTH])
def test_the_printed_table_fits_100_columns_however_many_keys_are_searched(
    compared: Table, keys: tuple[str, ...], metrics: str
) -> None:
    odd = replace(GPT3, lr=1.2345e-4, beta1=0.98765, beta2=0.998765, batch_tokens=524_288, warmup_fraction=0.012345)
    many = [trial(n, 3 + 1 / n, 1e6 + n**3, **asdict(odd), **derived(odd)) for n in range(1, 9)]
    lines = printed(compared(trial(0, 4.0, 1e6), *many, metrics=metrics, keys=keys))
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    for key in keys:
        assert all(word in " ".join(lines) for word in key.split("_"))
