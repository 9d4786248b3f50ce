"""The one JSON object of a study, its values against those that were written into the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hpstudy.analysis.overview import OVERVIEW, finite, overview, unknown
from hpstudy.analysis.results import StudyResults, load
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
BASELINE, WINNER = 4 + np.arange(3) / 100, 3.6 + np.arange(3) / 90
Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_decided_study_holds_its_losses_its_test_and_its_next_step(tiny: Tiny, confirmed: Build) -> None:
    study = tiny(more=CONFIRM, replace={"trials = 5": "trials = 10", "format = 1": 'format = 1\nyes = "better"'})
    found = overview(confirmed(study))
    assert list(found) == list(OVERVIEW)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    test = stats.ttest_rel(WINNER, BASELINE)
    low, high = test.confidence_interval()
    assert (found["stage"], found["holder"], found["reply"], found["answer"]) == ("done", None, "yes", "better")
    assert found["difference"] == pytest.approx(
        {"value": (WINNER - BASELINE).mean(), "low": low, "high": high, "p": test.pvalue, "margin": 0.01}
    )
    sides = {"baseline": ("search-0000", BASELINE), "tuned": ("search-0001", WINNER)}
    for side, (run_id, losses) in sides.items():
        assert found[side]["run_id"] == run_id
        assert found[side]["val_loss"] == pytest.approx(losses.mean())
        assert found[side]["se"] == pytest.approx(stats.sem(losses))
        assert (found[side]["seeds"], found[side]["tok_per_sec"]) == (3, 25_600.0)
    assert found["tuned"]["confirmed"]
    assert found["speed"] is None
    assert found["trials"] == {
        "ended": 10, "planned": 10, "complete": 9, "pruned": 0, "diverged": 1, "out_of_memory": 0, "failed": 0,
    }  # fmt: skip
    assert (found["runs"], found["tokens"]) == (16, 16 * 20 * 256)
    assert found["train_seconds"] == pytest.approx(16 * 0.2)
    assert found["sentence"].startswith(found["headline"])
    assert found["next"] == {
        "step": "more trials",
        "advice": "a longer search may find still better values",
        "command": f"hpstudy run tiny.toml --runs {Path.cwd() / 'runs'} --trials 20",
    }
    assert found["report"] is None
    assert [change["key"] for change in found["values"]] == ["lr", "beta2"]


def test_a_running_study_names_its_holder(tiny: Tiny, searched: Build) -> None:
    results = searched(tiny())
    with RunStore(Path("runs/tiny")).locked():
        found = overview(results)
    assert found["stage"] == "running"
    assert set(found["holder"]) == {"host", "pid", "since"}


def test_a_study_without_a_verdict_has_no_answer_and_the_losses_of_one_seed(tiny: Tiny, searched: Build) -> None:
    found = overview(searched(tiny(replace={"trials = 5": "trials = 10"})))
    assert (found["answer"], found["reply"], found["difference"]) == (None, None, None)
    assert found["baseline"] == {
        "run_id": "search-0000", "val_loss": 4.0, "se": None, "seeds": 1, "diverged": False, "tok_per_sec": 25_600.0,
    }  # fmt: skip
    assert (found["tuned"]["val_loss"], found["tuned"]["confirmed"]) == (3.6, False)


def test_a_study_whose_runs_diverged_has_null_for_what_is_not_a_number(tiny: Tiny, write_run) -> None:
    write_run(tiny(), "search-0000", "search", float("nan"), trial=0)
    found = overview(load("tiny", "runs"))
    assert (found["baseline"]["val_loss"], found["baseline"]["seeds"], found["tuned"]) == (None, 0, None)
    json.dumps(found, allow_nan=False)


def test_numbers_that_json_has_not_become_null_at_any_depth() -> None:
    assert finite({"a": [1.0, float("nan")], "b": {"c": (float("inf"), "NaN", None)}}) == {
        "a": [1.0, None],
        "b": {"c": [None, "NaN", None]},
    }


def test_a_study_that_has_not_begun_has_the_same_keys() -> None:
    found = unknown("new", question="Is it?", stage="not begun")
    assert list(found) == list(OVERVIEW)
    assert (found["study"], found["question"], found["problems"], found["baseline"]) == ("new", "Is it?", [], None)
