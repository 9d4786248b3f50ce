"""The speed-up is what shorter runs show, with an interval, and never more than they can show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_runs import BUDGET, stored

from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.speedup import crossing_tokens, speedup
from hpstudy.study import Study

Tiny = Callable[..., Study]
WOBBLE = (0.001, -0.001, 0.0)


def study(tiny: Tiny) -> Study:
    return tiny(more="\n[confirm]\nseeds = [101, 102, 103]\n")


def frames(root: Path, baseline: float, **losses: float) -> StudyFrames:
    """Three seeds; losses of the candidate at t50, t75 and full."""
    ends: dict[str, float | None] = {}
    for seed, wobble in zip((101, 102, 103), WOBBLE, strict=True):
        ends[f"baseline-s{seed}"] = baseline
        for name, loss in losses.items():
            ends[f"confirm-0003-s{seed}" + ("" if name == "full" else f"-{name}")] = loss + wobble
    twice = {run_id: 2000.0 for run_id in ends if run_id.startswith("confirm")}
    return stored(root, ends, speed=twice)


def test_speed_up_is_the_budget_over_the_one_that_reaches_the_baselines_loss(tiny: Tiny, tmp_path: Path) -> None:
    found = speedup(frames(tmp_path, 3.2, t50=3.3, t75=3.2, full=3.1), study(tiny), "search-0003")
    assert found is not None
    assert found.n == 3
    assert found.tokens.value == pytest.approx(4 / 3, rel=1e-3)
    assert found.tokens.low is not None
    assert found.tokens.high is not None
    assert found.tokens.low < 4 / 3 < found.tokens.high
    assert found.steps == found.tokens
    assert found.seconds.value == pytest.approx(8 / 3, rel=1e-3)
    # zero lies in the interval while the gap is within t(2) * 0.001 / sqrt(3), 0.0025 nats
    assert str(found.tokens) == "1.33x (95% interval 1.32x to 1.35x)"


def test_speed_up_beyond_the_shortest_run_is_a_lower_bound(tiny: Tiny, tmp_path: Path) -> None:
    found = speedup(frames(tmp_path, 3.4, t50=3.3, t75=3.2, full=3.1), study(tiny), "search-0003")
    assert found is not None
    assert str(found.tokens) == "≥ 2.00x (95% interval ≥ 2.00x to ≥ 2.00x)"


def test_loss_that_is_never_reached_is_no_speed_up(tiny: Tiny, tmp_path: Path) -> None:
    found = speedup(frames(tmp_path, 3.0, t50=3.3, t75=3.2, full=3.1), study(tiny), "search-0003")
    assert found is not None
    assert found.tokens.value is None
    assert str(found.tokens) == "none"


def test_speed_up_without_shorter_runs_is_not_measured(tiny: Tiny, tmp_path: Path) -> None:
    assert speedup(frames(tmp_path, 3.2, full=3.1), study(tiny), "search-0003") is None


def test_crossing_is_read_off_the_candidates_own_curve(tiny: Tiny, tmp_path: Path) -> None:
    known = frames(tmp_path, 3.5, full=3.0)  # a line from 5 nats at no tokens to 3 at the end
    assert crossing_tokens(known, study(tiny), "search-0003") == pytest.approx(0.75 * BUDGET)
    assert crossing_tokens(frames(tmp_path / "b", 2.9, full=3.0), study(tiny), "search-0003") is None
