"""PED-ANOVA, by the keys of the study."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest

from hpstudy.search import TrialView
from hpstudy.search.importance import MIN_TRIALS, importances


def trials(count: int, *, failed: int = 0, seed: int = 0) -> list[TrialView]:
    """The loss is (log lr + 2.5)^2, and the first trials failed: beta2 does nothing."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        log_lr, beta2 = float(draw.uniform(-4, -1.6)), float(draw.uniform(0.9, 0.999))
        loss = None if number < failed else ((log_lr + 2.5) ** 2,)
        values = {"lr": 10**log_lr, "beta2": beta2}
        found.append(
            TrialView(number=number, values=values, state="failed" if loss is None else "complete", objectives=loss)
        )
    return found


def test_the_key_that_matters_comes_first_and_shares_add_to_one(tiny) -> None:
    found = importances(tiny(), trials(100, failed=10))
    assert list(found) == ["lr", "beta2"]
    assert found["lr"].share > 0.8
    assert sum(importance.share for importance in found.values()) == pytest.approx(1)
    assert all(0 <= importance.low <= importance.high <= 1 for importance in found.values())


def test_more_trials_narrow_the_range(tiny) -> None:
    widths = [(found := importances(tiny(), trials(count))["lr"]).high - found.low for count in (MIN_TRIALS, 1000)]
    assert widths[1] < widths[0] / 2


def test_the_range_holds_what_other_trials_of_the_same_study_give(tiny) -> None:
    """Two of 10 draws of 100 trials differ by more than both ranges in at most a fifth of the pairs."""
    found = [importances(tiny(), trials(100, seed=seed))["lr"] for seed in range(10)]
    apart = [one for one, other in combinations(found, 2) if one.high < other.low or other.high < one.low]
    assert len(apart) <= 9


def test_the_same_trials_have_the_same_importances(tiny) -> None:
    assert importances(tiny(), trials(40)) == importances(tiny(), trials(40))


def test_fewer_than_thirty_complete_trials_have_no_importances(tiny) -> None:
    assert importances(tiny(), trials(MIN_TRIALS - 1)) == {}
    assert importances(tiny(), trials(MIN_TRIALS + 9, failed=10)) == {}
    assert importances(tiny(), trials(MIN_TRIALS + 10, failed=10)) != {}


def test_a_thousand_trials_take_about_a_second(tiny) -> None:
    study, many = tiny(), trials(1000)
    began = time.process_time()
    importances(study, many)
    assert time.process_time() - began < 3  # 0.6 s on a quiet core
