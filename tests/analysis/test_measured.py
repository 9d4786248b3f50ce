"""The losses of both sides of a study."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hpstudy.analysis.measured import Measured, measured
from hpstudy.analysis.results import StudyResults, load
from hpstudy.study import Study

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
NOTHING = {
    'lr = { low = 1e-4, high = 3e-2, scale = "log" }\n': "",
    'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n': "",
    "trials = 5\n": "trials = 1\n",
}
Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]


def test_a_decided_study_has_the_means_and_standard_errors_of_its_fresh_seeds(tiny: Tiny, confirmed: Build) -> None:
    baseline, best = measured(confirmed(tiny(more=CONFIRM)))
    for side, run_id, losses in (
        (baseline, "search-0000", 4 + np.arange(3) / 100),
        (best, "search-0001", 3.6 + np.arange(3) / 90),
    ):
        assert side is not None
        assert (side.run_id, side.seeds, side.tok_per_sec) == (run_id, 3, 25_600.0)
        assert side.val_loss == pytest.approx(losses.mean())
        assert side.se == pytest.approx(stats.sem(losses))
    assert [str(baseline), str(best)] == ["4.0100 ±0.0058", "3.6111 ±0.0064"]


def test_an_undecided_search_has_one_seed_and_no_error(tiny: Tiny, searched: Build) -> None:
    baseline, best = measured(searched(tiny()))
    assert best is not None
    assert (baseline.val_loss, baseline.se, baseline.seeds) == (4.0, None, 1)
    assert (best.run_id, best.val_loss, best.seeds) == ("search-0001", 3.6, 1)
    assert [str(baseline), str(best)] == ["4.000", "3.600"]


def test_a_baseline_alone_has_the_error_of_its_fresh_seeds(tiny: Tiny, write_run, tmp_path: Path) -> None:
    study = tiny(more=CONFIRM, replace=NOTHING)
    write_run(study, "search-0000", "search", 4.1, trial=0)
    losses = (4.0, 4.02, 4.04)
    for seed, loss in zip((101, 102, 103), losses, strict=True):
        write_run(study, f"baseline-s{seed}", "baseline", loss, seed=seed)
    baseline, best = measured(load("tiny", tmp_path / "runs"))
    assert best is None
    assert baseline.val_loss == pytest.approx(4.02)
    assert baseline.se == pytest.approx(0.02 / math.sqrt(3))
    assert (str(baseline), baseline.seeds) == ("4.020 ±0.012", 3)


def test_a_diverged_baseline_has_no_loss(tiny: Tiny, write_run, tmp_path: Path) -> None:
    write_run(tiny(), "search-0000", "search", math.nan, trial=0)
    baseline, best = measured(load("tiny", tmp_path / "runs"))
    assert (baseline.val_loss, baseline.seeds, str(baseline), best) == (None, 0, "-", None)


@pytest.mark.parametrize(("loss", "se", "text"), [(3.91512, 0.0082, "3.9151 ±0.0082"), (3.9, 0.34, "3.90 ±0.34")])
def test_a_loss_has_the_digits_that_its_error_shows(loss: float, se: float, text: str) -> None:
    assert str(Measured(run_id="x", val_loss=loss, se=se, seeds=3, tok_per_sec=None)) == text
