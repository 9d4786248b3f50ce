"""Losses are what they were: every curve against its record in tests/golden."""

from __future__ import annotations

import json

import pytest

from hpstudy.errors import UserError
from hpstudy.training.device import place
from tests.golden.curves import KEYS, PRECISIONS, RUNS, path, train

# Rounding differs between CPUs and between kernels, and grows over 40 steps; a change of the maths is far larger.
# Measured between kernels on one CPU: 2e-7 of the loss in fp32 and 3e-5 in bf16, 2e-3 of a norm.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-4}
NORM_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RUNS)
def test_curve_is_the_recorded_one(name: str, precision: str):
    try:
        place("cpu", precision)
    except UserError:
        pytest.skip("this CPU has no bf16 arithmetic")
    recorded, now = json.loads(path(name, precision).read_text()), train(name, precision)
    assert len(now) == len(recorded)
    for key in KEYS:
        tolerance = TOLERANCE if key.endswith("loss") else NORM_TOLERANCE
        old, new = ([row[key] for row in rows if row[key] is not None] for rows in (recorded, now))
        assert new == pytest.approx(old, rel=tolerance[precision])
