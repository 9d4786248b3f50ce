"""PED-ANOVA, by the keys of the study."""

from __future__ import annotations

import numpy as np
import pytest

from hpstudy.search import TrialView
from hpstudy.search.importance import importances


def trials(count: int, *, failed: int = 0) -> list[TrialView]:
    """The loss is (log lr + 2.5)^2, and the first trials failed: beta2 does nothing."""
    draw = np.random.default_rng(0)
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
    shares = importances(tiny(), trials(100, failed=10))
    assert list(shares) == ["lr", "beta2"]
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_a_few_trials_have_no_importances(tiny) -> None:
    assert importances(tiny(), trials(3)) == {}
    assert importances(tiny(), trials(12, failed=10)) == {}
