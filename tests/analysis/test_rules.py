"""Which published rule came closest to the best of a search, by how much, and outside which sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import RuleRecord, closest, closest_notes, rule_names, rule_records, rule_results
from hpstudy.records import Outcome
from hpstudy.report.tables import rules_table
from hpstudy.study import Study
from tests.helpers.stores import Ends, results_of, stored

FORMAT_4 = {"format = 1": "format = 4", "trials = 5": "trials = 12"}
BEST = {"search-0000": 4.0, "search-0002": 3.5}
RULES = BEST | {"search-0001": 3.6, "search-0005": 3.75, "search-0009": Outcome.DIVERGED}


@pytest.fixture
def build(tiny: Callable[..., Study], tmp_path: Path) -> Callable[..., StudyResults]:
    """The smallest study in format 4, with trials that ended so."""

    def results(ends: Ends) -> StudyResults:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        return results_of(tiny(replace=FORMAT_4), stored(root, ends), root)

    return results


def test_each_trial_of_a_rule_has_its_rank_and_what_it_lost_to_the_best(build) -> None:
    found = rule_results(build(RULES))
    assert [(each.rule, each.run_id, each.rank, each.trials) for each in found] == [
        ("combined", "search-0001", 2, 5), ("step-law", "search-0005", 3, 5), ("half-life", "search-0009", 5, 5),
    ]  # fmt: skip
    assert [each.regret for each in found] == [pytest.approx(0.1), pytest.approx(0.25), None]
    assert found[0].sources == ("arXiv:2503.04715", "arXiv:2507.07101")


def test_the_closest_rule_is_named_with_its_distance_and_the_sizes_that_it_was_fitted_to(build) -> None:
    results = build(RULES)
    assert (
        closest(results)
        == "Of 2 rules trained to the end combined came closest: it lost 0.100 nats to the best trial, "
        "as number 2 of 5."
    )
    assert closest_notes(results)[:2] == (
        "step-law was fitted to 60M to 1B weights and 2B to 100B tokens; here are 3.31k weights and 5.12k tokens.",
        "half-life was fitted to 30M to 1.3B weights; here are 3.31k weights.",
    )


def test_a_rule_that_is_the_best_trial_is_said_to_be(build) -> None:
    assert closest(build(BEST | {"search-0001": 3.4})) == "combined proposed the best of 3 trials."


def test_a_value_that_was_moved_into_the_range_is_told_with_the_rules_own(build) -> None:
    """Step Law: 1.79 * 3,312^-0.713 * 5,120^0.307 = 0.0762, above the range of the smallest study."""
    results = build(RULES)
    assert closest_notes(results)[2] == "lr is 0.03, the end of the range: the rule says 0.07617."


def test_before_a_rules_trial_is_complete_there_is_nothing_to_say(build) -> None:
    for ends in (BEST, BEST | {"search-0001": Outcome.DIVERGED}, BEST | {"search-0001": None}):
        results = build(ends)
        assert (closest(results), closest_notes(results)) == ("", ())


def test_a_study_without_rules_names_none(tiny: Callable[..., Study], searched) -> None:
    results = searched(tiny())
    assert (rule_names(results.study), rule_results(results), closest(results)) == ({}, [], "")
    assert rules_table(results) is None


def test_the_record_of_a_rule_is_its_median_over_studies(build) -> None:
    first = build(RULES)
    second = build(RULES | {"search-0001": 3.8, "search-0003": 3.55, "search-0004": 3.6})
    assert rule_records([first]) == [
        RuleRecord(rule="combined", studies=1, rank=2, trials=5, regret=pytest.approx(0.1), lost=0),
        RuleRecord(rule="step-law", studies=1, rank=3, trials=5, regret=pytest.approx(0.25), lost=0),
        RuleRecord(rule="half-life", studies=1, rank=5, trials=5, regret=None, lost=1),
    ]
    combined = next(record for record in rule_records([first, second]) if record.rule == "combined")
    assert (combined.studies, combined.rank, combined.trials, combined.lost) == (2, 3.5, 6, 0)
    assert combined.regret == pytest.approx(0.2)  # of 0.1 and 0.3
