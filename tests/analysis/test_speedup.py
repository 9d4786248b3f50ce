"""The speed-up is what shorter runs show, with an interval, and never more than they can show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.speedup import Ratio, crossing_tokens, speedup
from hpstudy.study import Study
from tests.helpers.stores import BUDGET, Ends, fresh_runs

MakeStudy = Callable[..., Study]
SEEDS = (101, 102, 103)
WOBBLE = (0.001, -0.001, 0.0)


@pytest.fixture
def measured(study: MakeStudy, tmp_path: Path) -> Callable[..., FreshRuns]:
    """The baseline's final loss on three seeds, and the candidate's losses at t50, t75 and full, at twice the speed."""

    def build(baseline: float, **losses: float) -> FreshRuns:
        ends: Ends = {}
        for seed, wobble in zip(SEEDS, WOBBLE, strict=True):
            ends[f"baseline-s{seed}"] = baseline
            for name, loss in losses.items():
                ends[f"confirm-0003-s{seed}" + ("" if name == "full" else f"-{name}")] = loss + wobble
        twice = {run_id: 2000.0 for run_id in ends if run_id.startswith("confirm")}
        return fresh_runs(tmp_path, ends, study(SEEDS), speed=twice)

    return build


def rounded(ratio: Ratio) -> tuple[float | None, ...]:
    return tuple(None if end is None else round(end, 2) for end in (ratio.value, ratio.low, ratio.high))


def test_the_speed_up_is_the_budget_over_the_one_that_reaches_the_baselines_loss(measured) -> None:
    found = speedup(measured(3.2, t50=3.3, t75=3.2, full=3.1), "search-0003")
    assert found is not None
    assert (found.candidate, found.n) == ("search-0003", 3)
    assert found.tokens.value == pytest.approx(4 / 3, rel=1e-3)
    assert found.tokens.low is not None
    assert found.tokens.high is not None
    assert found.tokens.low < 4 / 3 < found.tokens.high
    assert found.steps == found.tokens
    assert found.seconds.value == pytest.approx(8 / 3, rel=1e-3)
    # zero is in the interval while the gap is within t(2) * 0.001 / sqrt(3), 0.0025 nats
    assert rounded(found.tokens) == (1.33, 1.32, 1.35)


def test_a_speed_up_beyond_the_shortest_run_is_a_lower_bound(measured) -> None:
    found = speedup(measured(3.4, t50=3.3, t75=3.2, full=3.1), "search-0003")
    assert found is not None
    assert found.tokens.most == pytest.approx(2)
    assert found.tokens.value == found.tokens.low == found.tokens.high == found.tokens.most


def test_a_loss_that_is_never_reached_is_no_speed_up(measured) -> None:
    found = speedup(measured(3.0, t50=3.3, t75=3.2, full=3.1), "search-0003")
    assert found is not None
    assert rounded(found.tokens) == (None, None, None)


def test_a_speed_up_without_shorter_runs_is_not_measured(measured) -> None:
    assert speedup(measured(3.2, full=3.1), "search-0003") is None


def test_the_crossing_is_read_off_the_candidates_own_curve(measured) -> None:
    # a line from 5 nats at no tokens to 3 at the end
    assert crossing_tokens(measured(3.5, full=3.0), "search-0003") == pytest.approx(0.75 * BUDGET)


def test_a_loss_that_the_candidate_never_reaches_has_no_crossing(measured) -> None:
    assert crossing_tokens(measured(2.9, full=3.0), "search-0003") is None
