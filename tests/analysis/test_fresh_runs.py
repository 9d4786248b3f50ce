"""Which runs count as fresh, for which candidate, and at which budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hpstudy.analysis.frames import load
from hpstudy.analysis.fresh_runs import FreshRuns, shared
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Run
from hpstudy.study import Study
from hpstudy.study.schema import other_seed
from tests.helpers.stores import BASELINE, BUDGET, LOWER, SEEDS, begun, ends, fresh_runs, keep_ended, on_seeds, repeated

MakeStudy = Callable[..., Study]
REPEAT = Run(
    run_id="confirm-0003-s101", phase="confirm", trial=3, seed=101, tokens=BUDGET, hparams=GPT3, of="search-0003"
)


def kept(root: Path, study: Study, *runs: Run) -> FreshRuns:
    """The fresh runs of a store with these runs, all of which end at 3 nats."""
    store = begun(root)
    for run in runs:
        keep_ended(store, run, 3.0)
    return FreshRuns(frames=load("tiny", root / "runs"), study=study)


def test_a_run_counts_for_the_trial_that_it_says_it_repeats_whatever_its_id(study: MakeStudy, tmp_path: Path) -> None:
    fresh = kept(
        tmp_path,
        study(),
        replace(REPEAT, run_id="odd-name", seed=101),
        replace(REPEAT, run_id="confirm-0009-s102", seed=102),  # its id names another trial
        replace(REPEAT, run_id="confirm-0003-s103", seed=103, of="search-0007"),
    )
    assert fresh.candidates == ["search-0003", "search-0007"]
    assert set(fresh.full("search-0003")["run"]) == {"odd-name", "confirm-0009-s102"}
    assert set(fresh.full("search-0007")["run"]) == {"confirm-0003-s103"}


def test_a_run_that_repeats_no_trial_counts_for_none(study: MakeStudy, tmp_path: Path) -> None:
    fresh = kept(tmp_path, study(), REPEAT, replace(REPEAT, run_id="confirm-0003-s102", seed=102, of=None))
    assert list(fresh.table["run"]) == ["confirm-0003-s101"]


def test_the_share_of_the_budget_comes_from_the_run_and_not_from_its_id(study: MakeStudy, tmp_path: Path) -> None:
    fresh = kept(
        tmp_path,
        study(),
        replace(REPEAT, fraction=0.5, tokens=BUDGET // 2),
        replace(REPEAT, run_id="confirm-0003-s102-t50", seed=102),
    )
    assert list(fresh.full("search-0003")["run"]) == ["confirm-0003-s102-t50"]


def test_trials_and_the_baseline_on_the_seed_of_the_search_are_not_fresh(study: MakeStudy, tmp_path: Path) -> None:
    runs = {"baseline-s0": 3.2, "search-0003": 3.1, "tuned-lr-0004": 3.1, "baseline-s101": 3.2}
    fresh = fresh_runs(tmp_path, runs, study())
    assert list(fresh.table["run"]) == ["baseline-s101"]
    assert fresh.candidates == []


def test_shorter_runs_are_in_the_table_but_not_among_the_full_ones(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**ends({"search-0003": LOWER}), "confirm-0003-s101-t50": 9.0, "confirm-0003-s101-t75": 9.0}
    fresh = fresh_runs(tmp_path, runs, study())
    assert sorted(fresh.table["fraction"].unique()) == [0.5, 0.75, 1.0]
    assert set(fresh.full("search-0003")["run"]) == {f"confirm-0003-s{seed}" for seed in SEEDS}
    assert fresh.losses("search-0003").to_dict() == pytest.approx(dict(zip(SEEDS, LOWER, strict=True)))


def test_a_trial_of_the_tuned_learning_rate_is_a_candidate_of_its_phase(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER, "tuned-lr-0004": LOWER}), study())
    assert {name: fresh.phase(name) for name in fresh.candidates} == {
        "search-0003": "search",
        "tuned-lr-0004": "tuned-lr",
    }


def test_only_runs_that_measured_a_loss_have_one(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {
        "confirm-0003-s101": Outcome.DIVERGED,
        "confirm-0003-s102": Outcome.FAILED,
        "confirm-0003-s103": None,
        "confirm-0003-s104": 9.9,  # above the loss of a uniform guess
    }
    fresh = fresh_runs(tmp_path, runs, study())
    guess = math.log(256)
    assert fresh.losses("search-0003").to_dict() == pytest.approx({101: guess, 104: guess, 105: LOWER[4]})
    assert fresh.complete_losses("search-0003").to_dict() == pytest.approx({104: guess, 105: LOWER[4]})


def test_speeds_and_updates_are_those_of_complete_runs(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s101": Outcome.DIVERGED}
    speed = {f"confirm-0003-s{seed}": 1000.0 + seed for seed in SEEDS}
    fresh = fresh_runs(tmp_path, runs, study(), speed=speed)
    assert fresh.speeds("search-0003").to_dict() == {seed: 1000.0 + seed for seed in SEEDS[1:]}
    assert fresh.updates("search-0003").to_dict() == dict.fromkeys(SEEDS[1:], 1e-3)


def test_a_paired_design_takes_the_seeds_that_both_sides_have(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s102": Outcome.FAILED, "baseline-s103": Outcome.FAILED}
    ours, theirs = fresh_runs(tmp_path, runs, study()).sides("search-0003")
    assert list(ours.index) == list(theirs.index) == [101, 104, 105]


def test_an_independent_design_takes_all_seeds_of_both_sides(study: MakeStudy, tmp_path: Path) -> None:
    others = tuple(map(other_seed, SEEDS))
    runs = {**on_seeds("baseline", BASELINE, others), **repeated("search-0003", LOWER[:3], SEEDS[:3])}
    ours, theirs = fresh_runs(tmp_path, runs, study(design="independent")).sides("search-0003")
    assert (list(ours.index), list(theirs.index)) == (list(SEEDS[:3]), list(others))


def test_shared_seeds_are_those_of_both() -> None:
    ours, theirs = pd.Series({1: 0.1, 2: 0.2, 3: 0.3}), pd.Series({2: 2.0, 3: 3.0, 4: 4.0})
    assert [side.to_dict() for side in shared(ours, theirs)] == [{2: 0.2, 3: 0.3}, {2: 2.0, 3: 3.0}]


def test_runs_that_have_not_ended_or_not_begun_are_unfinished(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s104": None}
    del runs["baseline-s105"]
    assert fresh_runs(tmp_path, runs, study()).unfinished == ["confirm-0003-s104", "baseline-s105"]


def test_exceptions_name_the_diverged_runs_and_those_without_a_loss(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {
        "confirm-0003-s101": Outcome.DIVERGED,
        "confirm-0003-s102": Outcome.FAILED,
        "confirm-0003-s103": None,
    }
    del runs["baseline-s105"]
    assert fresh_runs(tmp_path, runs, study()).exceptions("search-0003") == (
        ("confirm-0003-s101",),
        ("confirm-0003-s102 (failed)", "confirm-0003-s103 (unfinished)", "baseline-s105 (not run)"),
    )


# Races


def test_runs_that_trained_ahead_of_a_decided_look_do_not_count(race: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE, SEEDS), **repeated("search-0003", LOWER[:4], SEEDS[:4])}
    runs |= {"confirm-0003-s101-t50": 3.1, "confirm-0003-s105-t50": 3.1}
    fresh = fresh_runs(tmp_path, runs, race())
    assert set(fresh.table["seed"]) == set(SEEDS[:3])
    assert list(fresh.losses("search-0003")) == pytest.approx(LOWER[:3])
    assert list(fresh.complete_losses("baseline")) == pytest.approx(BASELINE[:3])
    assert fresh.unfinished == []
    both = ("baseline-s104", "baseline-s105", "confirm-0003-s104", "confirm-0003-s105-t50")
    assert fresh.ahead == set(both)  # and none of the shorter runs on a seed that counts


def test_all_runs_of_a_fixed_number_of_seeds_count(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER}), study())
    assert set(fresh.table["seed"]) == set(SEEDS)


def test_each_side_of_a_race_counts_with_the_seeds_of_its_last_look(race: MakeStudy, tmp_path: Path) -> None:
    """search-0003 is decided after three seeds, search-0004 is still open."""
    close = [loss + gap for loss, gap in zip(BASELINE, (0.0235, 0.0035, 0.0135, 0.0235, 0.0035), strict=True)]
    runs = {**ends({"search-0003": LOWER}), **repeated("search-0004", close[:4], SEEDS[:4]), "confirm-0004-s105": None}
    fresh = fresh_runs(tmp_path, runs, race())
    seeds = {name: list(fresh.full(name)["seed"]) for name in ("baseline", "search-0003", "search-0004")}
    assert seeds == {"baseline": list(SEEDS), "search-0003": list(SEEDS[:3]), "search-0004": list(SEEDS)}
    assert fresh.unfinished == ["confirm-0004-s105"]


def test_before_its_first_look_a_race_waits_for_that_looks_runs_alone(race: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE[:2], SEEDS[:2]), **repeated("search-0003", LOWER[:2], SEEDS[:2])}
    assert fresh_runs(tmp_path, runs, race()).unfinished == ["confirm-0003-s103", "baseline-s103"]


def test_exceptions_of_a_race_are_those_of_the_seeds_at_which_it_was_judged(race: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s104": Outcome.FAILED, "baseline-s105": Outcome.DIVERGED}
    assert fresh_runs(tmp_path, runs, race()).exceptions("search-0003") == ((), ())
    failed = {"confirm-0003-s102": Outcome.FAILED}
    assert fresh_runs(tmp_path / "failed", runs | failed, race()).exceptions("search-0003") == (
        ("baseline-s105",),
        ("confirm-0003-s102 (failed)", "confirm-0003-s104 (failed)"),
    )


def test_the_best_of_the_search_is_that_of_the_search_and_not_of_the_fresh_seeds(
    study: MakeStudy, tmp_path: Path
) -> None:
    """It alone is compared with the tuned learning rate."""
    runs = {
        **ends({"tuned-lr-0004": BASELINE}),
        **repeated("search-0003", LOWER, SEEDS, searched=3.0),
        **repeated("search-0001", BASELINE, SEEDS, searched=2.8),
    }
    found = fresh_runs(tmp_path, runs, study()).race.findings
    assert set(found) == {
        ("search-0003", "baseline"),
        ("search-0001", "baseline"),
        ("tuned-lr-0004", "baseline"),
        ("search-0001", "tuned-lr-0004"),
    }


def test_a_candidate_whose_trial_is_gone_is_not_taken_for_the_best_of_the_search(
    study: MakeStudy, tmp_path: Path
) -> None:
    runs = ends({"search-0001": LOWER, "search-0003": LOWER, "tuned-lr-0004": BASELINE})
    del runs["search-0001"]
    assert ("search-0003", "tuned-lr-0004") in fresh_runs(tmp_path, runs, study()).race.findings
