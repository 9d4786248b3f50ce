"""The report's tables say what was measured, and how surely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.foreseen import foreseen
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.results import StudyResults
from hpstudy.report.tables import (
    Table,
    audit,
    certainty,
    command,
    cost,
    forecast_errors,
    rules_table,
    sides,
    speedups,
    statistics,
    trials_table,
)
from hpstudy.study import Study, run_command
from tests.helpers.stores import Ends, results_of, stored

Build, Tiny = Callable[[Study], StudyResults], Callable[..., Study]
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
SEEDS = (101, 102, 103)
WOBBLE = (0.001, -0.001, 0.0)


@pytest.fixture
def shorter(tiny: Tiny, tmp_path: Path) -> Callable[..., StudyResults]:
    """Three seeds of a baseline that ends at a loss, and of a candidate at t50, t75 and full."""

    def build(baseline: float, **losses: float) -> StudyResults:
        ends: Ends = {"search-0003": losses["full"]}
        for seed, wobble in zip(SEEDS, WOBBLE, strict=True):
            ends[f"baseline-s{seed}"] = baseline
            for name, loss in losses.items():
                ends[f"confirm-0003-s{seed}" + ("" if name == "full" else f"-{name}")] = loss + wobble
        return results_of(tiny(more=CONFIRM), stored(tmp_path, ends), tmp_path)

    return build


def cells(table: Table) -> dict[str, list[str]]:
    return {name: row for name, *row in table.rows}


def test_a_speed_up_is_a_ratio_with_its_interval(shorter) -> None:
    table = speedups(shorter(3.2, t50=3.3, t75=3.2, full=3.1))
    assert table.header == ("", "search-0003")
    assert cells(table)["in tokens [95%]"] == ["1.33x [1.32x, 1.35x]"]


def test_a_speed_up_beyond_the_shortest_run_is_at_least_the_largest_that_it_can_show(shorter) -> None:
    assert cells(speedups(shorter(3.4, t50=3.3, t75=3.2, full=3.1)))["in tokens [95%]"] == ["≥ 2.00x"]


def test_a_loss_that_is_never_reached_is_a_dash(shorter) -> None:
    assert cells(speedups(shorter(3.0, t50=3.3, t75=3.2, full=3.1)))["in tokens [95%]"] == ["- [-, -]"]


def test_a_speed_up_without_shorter_runs_has_no_table(shorter) -> None:
    assert speedups(shorter(3.5, full=3.0)) is None


def test_the_summary_has_a_column_for_the_baseline_and_each_candidate(tiny: Tiny, confirmed: Build) -> None:
    results = confirmed(tiny(more=CONFIRM))
    table = sides(results)
    assert table.header == ("", "baseline", "search-0001")
    c = results.verdict().contrasts[0]
    assert cells(table)["val loss (nats)"] == ["4.0100 ± 0.0058 (3)", "3.6111 ± 0.0064 (3)"]
    assert cells(table)["answer"] == ["-", f"better (p = {c.level:.2g})"]
    assert "lr" not in cells(table)  # of two sides the first screen shows the values


def test_the_summary_without_fresh_seeds_is_the_one_run_of_the_baseline(tiny: Tiny, searched: Build) -> None:
    table = sides(searched(tiny()))
    assert table.header == ("", "baseline")
    assert cells(table)["val loss (nats)"] == ["4.000 (one seed)"]
    assert table.note == "One seed, that of the search: a reference point and no result."


def test_trials_that_a_published_rule_proposed_are_named(tiny: Tiny, searched: Build) -> None:
    results = searched(tiny(replace={"format = 1": "format = 4"}))
    table = trials_table(results)
    place = table.header.index("rule")
    names = {row[0]: row[place] for row in table.rows}
    assert {run: rule for run, rule in names.items() if rule} == {
        "search-0001": "combined",
        "search-0005": "step-law",
        "search-0009": "half-life",
    }
    rules = rules_table(results)
    assert [row[:4] for row in rules.rows] == [
        ("combined", "search-0001", "0.000", "1 of 10"),
        ("step-law", "search-0005", "0.400", "6 of 10"),
        ("half-life", "search-0009", "0.800", "9 of 10"),
    ]


def test_trials_are_listed_best_first_and_those_that_are_not_complete_last(tiny: Tiny, searched: Build) -> None:
    table = trials_table(searched(tiny()))
    assert table.header == ("trial", "val loss", "difference", "lr", "beta2", "tokens/s", "ended")
    assert [row[:3] for row in table.rows[:2]] == [
        ("search-0001", "3.600", "−0.400"),
        ("search-0002", "3.700", "−0.300"),
    ]
    assert next(row[2] for row in table.rows if row[0] == "search-0000") == "baseline"
    assert [(row[0], row[1], row[-1]) for row in table.rows[-1:]] == [("search-0007", "-", "diverged at step 20")]


def test_how_each_answer_was_reached_has_a_row_for_each_statistic(tiny: Tiny, confirmed: Build) -> None:
    verdict = confirmed(tiny(more=CONFIRM)).verdict()
    (noise,), reached = certainty(verdict), statistics(verdict)
    assert noise.title == "Seeds per arm to see a difference"
    assert cells(reached)["answer on the loss"] == ["better"]
    assert cells(reached)["design"] == ["paired"]
    assert cells(reached)["s.d. of a seed's difference"] == ["0.0011"]
    assert cells(reached)["margin (nats)"] == ["0.01"]
    # 3.6 - 4.0 in the search, 3.6111 - 4.0100 on fresh seeds
    assert cells(reached)["optimism of the search"] == ["−0.0011"]


def test_what_the_winner_adds_has_a_table_for_each_other_opponent(tiny: Tiny, tmp_path: Path) -> None:
    ends: Ends = {}
    for trial, loss in {"search-0003": 3.0, "tuned-lr-0004": 3.1, "batch-0003": 3.2, "baseline": 3.3}.items():
        ends |= {trial: loss} if trial != "baseline" else {}
        repeat = trial if trial == "baseline" else f"confirm-{trial.removeprefix('search-')}"
        ends |= {f"{repeat}-s{seed}": loss + wobble for seed, wobble in zip(SEEDS, WOBBLE, strict=True)}
    _, *added = certainty(results_of(tiny(more=CONFIRM), stored(tmp_path, ends), tmp_path).verdict())
    assert [(table.title, table.header[1]) for table in added] == [
        ("What search-0003 adds to batch-0003", "search-0003"),
        ("What search-0003 adds to tuned-lr-0004", "search-0003"),
    ]
    assert all(cells(table)["paired seeds"] == ["3"] for table in added)
    assert {table.note for table in added} == {"Adjusted together with the verdict's own comparisons."}


def test_values_that_all_failed_trials_share_are_named(tiny: Tiny, searched: Build, tmp_path: Path) -> None:
    results = searched(tiny())
    high = 2 * float(results.trials["lr"].max())
    diverged = results.trials["run_id"].isin(["search-0004", "search-0005", "search-0007"])
    trials = results.trials.assign(
        outcome=results.trials["outcome"].where(~diverged, "diverged"), lr=results.trials["lr"].where(~diverged, high)
    )
    frames = StudyFrames(name=results.name, trials=trials, read_steps=results.frames.read_steps)
    table = trials_table(results_of(results.study, frames, tmp_path))
    assert f"All lost ones have lr of {high:.4g} or more; no complete trial reaches that." in table.note


def test_a_search_without_failures_has_no_column_of_endings(tiny: Tiny, tmp_path: Path) -> None:
    assert "ended" not in trials_table(results_of(tiny(), stored(tmp_path, {"search-0000": 3.0}), tmp_path)).header


def test_cost_counts_runs_tokens_and_hours_by_phase(tiny: Tiny, confirmed: Build) -> None:
    table = cells(cost(confirmed(tiny(more=CONFIRM)).trials))
    assert table["all"] == ["16", "15 complete, 1 diverged", "81.9k", "3s"]
    assert table["confirm"][:2] == ["3", "3 complete"]


def test_the_command_has_as_many_trials_as_the_search(tiny: Tiny, searched: Build) -> None:
    results = searched(tiny())
    assert command(results) == f"{run_command(results.store.root)} --trials 10"
    more = searched(tiny("more", replace={"trials = 5": "trials = 12"}))
    assert command(more) == run_command(more.store.root)


def test_the_audit_has_a_row_for_each_trial_that_would_have_been_stopped(gallery) -> None:
    found = foreseen(gallery("foresight"))
    rows = cells(audit(found))
    assert list(rows) == [each.run_id for each in found.audited]
    for each in found.audited:
        share, forecast, loss, inside, best = rows[each.run_id]
        assert share == f"{each.share:.0%}"
        assert forecast == f"{each.forecast.loss:.4f} [{each.forecast.low:.4f}, {each.forecast.high:.4f}]"
        assert (loss, inside, best) == (f"{each.loss:.4f}", "yes" if each.held else "no", "no")


def test_the_errors_of_forecasts_stand_beside_what_does_not_know_the_schedule(gallery) -> None:
    found = foreseen(gallery("foresight"))
    rows = cells(forecast_errors(found))
    assert list(rows) == ["20%", "30%", "50%", "70%"]
    first = found.errors[0]
    assert rows["20%"][:3] == [f"{miss:.4f}" for miss in (first.forecast, first.current, first.blind)]
    assert rows["20%"][3] == f"{first.held} of {first.num_trials}"
