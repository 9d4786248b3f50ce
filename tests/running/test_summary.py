"""A run's speed is that of its full batches once they have settled, whatever its first steps compile or capture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.records import Outcome
from hpstudy.running.summary import RunSummary
from tests.helpers.stores import step_record

SLOW, RAMP = 10.0, 400.0  # tokens/s of a step that compiles, and of one with a smaller batch


def speed(*steps: tuple[float, int]) -> float | None:
    """The speed of a run whose steps have these tokens per second and batches."""
    summary = RunSummary()
    for number, (tok_per_sec, batch) in enumerate(steps, start=1):
        summary.add(replace(step_record(number, 3.0, steps=40, tok_per_sec=tok_per_sec), batch_tokens=batch))
    return summary.result(Outcome.COMPLETE).tok_per_sec


SETTLES = [(SLOW, 256)] * 5


def test_the_first_five_steps_are_left_out_even_if_most_steps_are_among_them() -> None:
    assert speed(*SETTLES, (1000.0, 256), (1002.0, 256), (1010.0, 256)) == 1002.0


def test_after_a_ramp_the_first_five_full_batches_are_left_out_and_the_ramp_with_them() -> None:
    ramp = [(RAMP, 64), (RAMP, 64), (RAMP, 128), (RAMP, 192), (RAMP, 192), (RAMP, 192), (RAMP, 192)]
    assert speed(*ramp, *SETTLES, (1000.0, 256), (1002.0, 256)) == 1001.0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(RAMP, 64)] * 5 + [(500.0, 128)] * 3 + [(900.0, 256)] * 2, 500.0),  # too few full batches: after the first 5
        ([(SLOW, 256), (900.0, 256), (902.0, 256)], 900.0),  # too few steps: all
        ([], None),
    ],
)
def test_a_run_too_short_to_settle_has_the_speed_of_the_steps_that_it_has(
    steps: list[tuple[float, int]], expected: float | None
) -> None:
    assert speed(*steps) == expected
