"""A run that is not complete says how, when and why it ended."""

from __future__ import annotations

import pandas as pd
import pytest

from hpstudy.report.endings import MOST_CHARACTERS, ending, not_complete


@pytest.mark.parametrize(
    ("outcome", "steps", "message", "said"),
    [
        ("complete", 146, "", "complete"),
        ("pruned", 1460, "", "pruned at step 1,460"),
        ("diverged", 7, "loss is nan", "diverged at step 7"),
        ("failed", 0, "Traceback\n  File x\nOSError: no space left", "failed at step 0: OSError: no space left"),
        ("out_of_memory", pd.NA, "needs 4 GiB", "out of memory: needs 4 GiB"),
        (pd.NA, pd.NA, float("nan"), "unfinished"),
    ],
)
def test_an_ending_has_its_step_and_a_failure_its_reason(outcome, steps, message, said) -> None:
    assert ending({"outcome": outcome, "steps": steps, "message": message}) == said


def test_a_long_message_is_cut() -> None:
    said = ending({"outcome": "failed", "steps": 3, "message": "x" * 500})
    assert said == "failed at step 3: " + "x" * MOST_CHARACTERS


def test_what_is_not_complete_is_every_ended_trial_without_a_rank(gallery) -> None:
    assert set(not_complete(gallery("failures"))["outcome"]) == {"diverged", "failed", "out_of_memory"}
    assert set(not_complete(gallery("pruned"))["outcome"]) == {"pruned"}
    assert not_complete(gallery("decided")).empty
