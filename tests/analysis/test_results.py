"""All that a study found: one ranking, one verdict, and what tables from W&B lack."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import hpstudy
from hpstudy.analysis import results as results_module
from hpstudy.analysis.results import StudyResults, best_by_loss
from hpstudy.errors import UserError
from hpstudy.files import to_json
from hpstudy.records import Outcome
from hpstudy.study import Study
from hpstudy.study.ranking import Score, best_first, front
from tests.helpers.stores import Ends, results_of, stored

Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
LOSS, SPEED = '"val/loss"', '"train/tok_per_sec"'
ENDS: Ends = {
    "search-0000": 4.0,
    "search-0001": 3.9,
    "search-0002": Outcome.DIVERGED,
    "search-0003": Outcome.PRUNED,
    "search-0004": 3.95,
    "search-0005": 4.5,
    "search-0006": None,
    "search-0007": 4.6,
    "baseline-s101": 1.0,
    "tuned-lr-0003": 1.0,
}
SPEEDS = {"search-0000": 1000.0, "search-0001": 500.0, "search-0004": 2000.0, "search-0005": 3000.0}


@pytest.fixture
def ended(tiny: Tiny, tmp_path: Path) -> Callable[[str], StudyResults]:
    """The results of ENDS at SPEEDS for a study of these metrics."""

    def build(metrics: str) -> StudyResults:
        study = tiny(more=f"[objective]\nmetric = {metrics}\n")
        return results_of(study, stored(tmp_path, ENDS, speed=SPEEDS), tmp_path)

    return build


def scores(results: StudyResults) -> list[Score]:
    """The complete trials of the search, in order of their numbers."""
    rows = results.trials.set_index("run_id")
    complete = [run for run, end in ENDS.items() if run.startswith("search") and isinstance(end, float)]
    return [Score(run, rows.loc[run, "val_loss"], rows.loc[run, "tok_per_sec"]) for run in complete]


@pytest.mark.parametrize("metrics", [f"[{LOSS}]", f"[{SPEED}]", f"[{LOSS}, {SPEED}]"])
def test_ranked_is_the_ranking_of_the_study(ended, metrics: str) -> None:
    results = ended(metrics)
    expected = best_first(results.study.metrics, scores(results))
    ranked = results.ranked()
    assert list(ranked["run_id"]) == [score.run_id for score in expected]
    assert list(ranked["val_loss"]) == [score.val_loss for score in expected]
    on_front = front(results.study.metrics, expected)
    assert list(results.ranked(only_front=True)["run_id"]) == [score.run_id for score in on_front]


def test_only_complete_trials_of_the_search_are_ranked(ended) -> None:
    results = ended(f"[{LOSS}]")
    ranked = results.ranked()
    assert list(ranked["run_id"]) == ["search-0001", "search-0004", "search-0000", "search-0005", "search-0007"]
    assert list(ranked.columns) == list(results.trials.columns)


def test_the_front_of_two_objectives_leaves_out_trials_that_others_beat(ended) -> None:
    results = ended(f"[{LOSS}, {SPEED}]")
    assert list(results.ranked(only_front=True)["run_id"]) == ["search-0001", "search-0004", "search-0005"]
    assert len(results.ranked()) == 5


def test_the_front_of_one_objective_is_every_trial(ended) -> None:
    results = ended(f"[{SPEED}]")
    pd.testing.assert_frame_equal(results.ranked(only_front=True), results.ranked())
    assert results.ranked()["run_id"].iloc[0] == "search-0005"


def test_a_search_without_a_complete_trial_ranks_none(tiny: Tiny, tmp_path: Path) -> None:
    results = results_of(tiny(), stored(tmp_path, {"search-0000": None, "baseline-s0": 3.0}), tmp_path)
    assert results.ranked().empty
    assert results.ranked(only_front=True).empty


def test_the_best_by_loss_needs_no_study(ended) -> None:
    results = ended(f"[{SPEED}]")
    assert list(best_by_loss(results.trials)["run_id"])[:2] == ["search-0001", "search-0004"]


def counted(calls: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls of a function that the results use."""
    compute = getattr(results_module, name)
    monkeypatch.setattr(results_module, name, lambda *args, **more: calls.append(name) or compute(*args, **more))


def test_noise_and_verdict_are_computed_once(tiny: Tiny, confirmed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    results, calls = confirmed(tiny(more=CONFIRM)), []
    counted(calls, "noise", monkeypatch)
    counted(calls, "verdict", monkeypatch)
    assert results.verdict() is results.verdict()
    assert results.noise is results.noise
    assert results.noise == results.verdict().noise
    assert results.fresh is results.fresh
    assert results.confirmed is results.confirmed
    assert sorted(calls) == ["noise", "verdict"]


def test_the_verdict_counts_the_selections_of_the_store(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny(more=CONFIRM))
    assert results.store is not None
    later = "Candidates or seeds were chosen 2 times"
    assert later not in results.verdict().sentence
    selection = {"trials": 5, "seeds": [101, 102, 103], "candidates": ["search-0001"]}
    (results.store.root / "confirm.json").write_text(to_json([selection, selection | {"trials": 10}]))
    again = hpstudy.load(results.name, results.store.root.parent)
    assert later in again.verdict().sentence


def test_load_gives_the_study_as_it_began_and_its_tables(tiny: Tiny, confirmed: Build, tmp_path: Path) -> None:
    study = tiny(more=CONFIRM)
    confirmed(study)
    results = hpstudy.load("tiny", tmp_path / "runs")
    assert results.name == "tiny"
    assert results.study.resolved() == study.resolved()
    assert results.study is results.study
    assert results.environment == {}
    assert set(results.confirmed["candidate"]) == {"baseline", "search-0001"}
    assert len(results.steps) == 20 * len(results.trials)


def test_the_environment_is_that_of_the_store(tiny: Tiny, searched: Build) -> None:
    results = searched(tiny())
    assert results.store is not None
    results.store.write_json("environment.json", {"device": "cpu"})
    assert hpstudy.load(results.name, results.store.root.parent).environment == {"device": "cpu"}


def test_halflives_are_columns_of_the_trials(ended) -> None:
    results = ended(f"[{LOSS}]")
    row = results.halflives.set_index("run_id").loc["search-0000"]
    assert row["beta1_halflife_tokens"] == pytest.approx(row["batch_tokens"] * math.log(0.5) / math.log(row["beta1"]))
    assert row["beta2_halflife_tokens"] == pytest.approx(row["batch_tokens"] * math.log(0.5) / math.log(row["beta2"]))
    assert row["decay_timescale_steps"] == pytest.approx(1 / (row["lr"] * row["weight_decay"]))


@pytest.mark.parametrize("what", ["study", "verdict", "ranked", "noise", "confirmed"])
def test_tables_from_wandb_have_no_study(ended, what: str) -> None:
    online = StudyResults(frames=ended(f"[{LOSS}]").frames, store=None)
    assert online.environment == {}
    with pytest.raises(UserError) as caught:
        _ = value() if callable(value := getattr(online, what)) else value
    assert list(caught.value.problems) == ["tiny: W&B holds no study file; load it by name from its run store"]


def test_an_unknown_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no study "nothing" has begun in this folder'):
        hpstudy.load("nothing", tmp_path)
