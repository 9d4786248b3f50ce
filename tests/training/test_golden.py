"""Losses are what they were: every curve against its record in tests/golden."""

import json

import pytest

from hpstudy.errors import UserError
from hpstudy.training.device import place
from tests.golden.curves import KEYS, PRECISIONS, RUNS, path, train

# Rounding differs between CPUs and between kernels, and 40 steps let it grow; a change of the maths is far larger.
TOLERANCE = {"fp32": 2e-4, "bf16": 1e-2}
NORM_TOLERANCE = {"fp32": 2e-3, "bf16": 6e-2}


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
