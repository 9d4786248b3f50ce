"""The sentences of a verdict say what was measured, what would decide it, and what was left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.verdict import noise, verdict
from hpstudy.records import Outcome
from hpstudy.study import Choices, FloatRange, Sampler, Study, run_command
from hpstudy.study.schema import other_seed
from tests.helpers.stores import BASELINE, LOWER, NOISY, SEEDS, Ends, ends, fresh_runs, on_seeds, repeated

MakeStudy = Callable[..., Study]
OTHERS = tuple(map(other_seed, SEEDS))
SAME_TEXT = "The search chose it on the same validation text."
FEW = "No fresh run went badly wrong; of 5 seeds, up to 45% of either side's further runs may still do."
OPPONENT = "the baseline (GPT-3's values except for warmup_fraction and batch_tokens)"

SPEED = "train/tok_per_sec"
LOSS = "val/loss"


def resume(root: Path) -> str:
    return run_command(root / "runs" / "tiny")


def sentence(root: Path, runs: Ends, asked: Study, *, selections: int = 1) -> str:
    return verdict(fresh_runs(root, runs, asked), selections=selections).sentence


def test_a_better_winner_is_named_with_its_difference_interval_and_seeds(study: MakeStudy, tmp_path: Path) -> None:
    assert sentence(tmp_path, ends({"search-0003": LOWER}), study()) == (
        f"search-0003 is better than {OPPONENT}: val loss lower by 0.3000 nats (95% interval 0.2912 to 0.3088, "
        f"5 paired seeds, p < 0.0001). {SAME_TEXT} {FEW}"
    )


def test_a_worse_winner_is_no_proof_that_nothing_is_better(study: MakeStudy, tmp_path: Path) -> None:
    assert sentence(tmp_path, ends({"search-0003": BASELINE}, baseline=LOWER), study()) == (
        f"No better values were found in 1 trial: search-0003 is worse than {OPPONENT}: val loss higher by 0.3000 nats "
        "(95% interval 0.2912 to 0.3088, 5 paired seeds, p < 0.0001). So many trials, drawn at random, miss the best "
        f"95% of the space in one search of twenty: better values may exist. {SAME_TEXT} {FEW}"
    )


def test_the_trials_of_a_search_that_found_nothing_are_counted_without_the_baselines(
    study: MakeStudy, tmp_path: Path
) -> None:
    trials: Ends = {f"search-{number:04d}": 3.5 for number in range(17)}
    found = sentence(tmp_path, trials | ends({"search-0003": BASELINE}, baseline=LOWER), study())
    assert found.startswith("No better values were found in 16 trials: ")
    assert "miss the best 17% of the space in one search of twenty" in found  # 1 - 0.05^(1/16)


def test_a_search_that_found_nothing_better_says_so_whatever_the_question_calls_it(
    study: MakeStudy, tmp_path: Path
) -> None:
    runs = ends({"search-0003": BASELINE}, baseline=LOWER)
    for yes in (("equivalent", "worse"), ("better",)):
        found = verdict(fresh_runs(tmp_path / yes[0], runs, replace(study(), yes=yes)))
        assert found.reply == "nothing better found"
        assert found.headline.startswith("No better values were found in 1 trial: ")


def grid(study: Study, **changes: Any) -> Study:
    """The study as one whose question is about two points of a grid, of which one is the baseline's."""
    space = {"lr": Choices(values=changes.pop("values", (6e-4, 1e-3)))}
    budget = study.budget.model_copy(update={"sampler": Sampler(name="grid"), "trials": 2})
    confirm = study.confirm.model_copy(update={"top": 1})
    return replace(study, space=space, budget=budget, confirm=confirm, yes=("equivalent", "worse"))


def test_a_grid_whose_every_point_is_confirmed_answers_yes_or_no(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0001": BASELINE}, baseline=LOWER)
    assert sentence(tmp_path, runs, grid(study())).startswith(f"Yes: search-0001 is worse than {OPPONENT}: ")


def test_a_grid_of_which_only_the_best_point_is_confirmed_has_found_nothing_better(
    study: MakeStudy, tmp_path: Path
) -> None:
    """Neither point is the baseline's, so one of them was never trained on fresh seeds."""
    runs = {"search-0000": 3.3, "baseline-s0": 3.2, **ends({"search-0001": BASELINE}, baseline=LOWER)}
    asked = grid(study(), values=(1e-3, 2e-3))
    assert asked.baseline_outside()
    assert sentence(tmp_path, runs, asked).startswith("No better values were found in 2 trials: ")


def test_an_equivalent_winner_may_be_measurably_different(study: MakeStudy, tmp_path: Path) -> None:
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": LOWER}), study(margin=0.4)))
    sds = 0.4 / np.std(np.subtract(LOWER, BASELINE), ddof=1)
    assert found.headline.startswith(
        f"search-0003 and {OPPONENT} are equivalent within the margin of 0.4 nats, {sds:.2g} standard deviations of a "
        "seed's difference: val loss differs by -0.3000 nats"
    )
    assert found.headline.endswith("measurable, but too little to matter.")


def test_a_margin_that_was_measured_is_in_nats_and_named_as_the_noise(race: MakeStudy, tmp_path: Path) -> None:
    gaps = 0.01 * np.array([1.0, -1.0, 0.01])
    runs = {**on_seeds("baseline", BASELINE[:3], SEEDS[:3]), **repeated("search-0003", BASELINE[:3] + gaps, SEEDS[:3])}
    found = verdict(fresh_runs(tmp_path, runs, race()))
    assert found.headline.startswith(
        f"search-0003 and {OPPONENT} are equivalent relative to the noise, as they differ by less than one standard "
        "deviation of a seed's difference (measured: 0.01 nats): "
    )


def test_an_undecided_verdict_gives_no_advice_to_add_seeds(study: MakeStudy, tmp_path: Path) -> None:
    """Whoever adds seeds until it is decided errs in up to 19% of studies."""
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": NOISY}), study()))
    assert found.sentence.startswith(
        f"Undecided: search-0003 differs from {OPPONENT} by -0.004 nats (95% interval -0.0"
    )
    assert found.sentence == found.headline


def test_a_race_names_the_seeds_that_it_could_have_trained(race: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE[:3], SEEDS[:3]), **repeated("search-0003", LOWER[:3], SEEDS[:3])}
    assert ", 3 paired seeds of at most 5, p = " in sentence(tmp_path / "better", runs, race())
    runs |= repeated("search-0003", NOISY[:3], SEEDS[:3])
    assert "More seeds, up to 5, would hardly have decided it." in sentence(
        tmp_path / "futile", runs, race(margin=0.001)
    )


def test_an_open_race_names_the_runs_of_its_next_look(race: MakeStudy, tmp_path: Path) -> None:
    ours = np.add(BASELINE[:3], [0.0235, 0.0035, 0.0135])
    runs = {**on_seeds("baseline", BASELINE[:3], SEEDS[:3]), **repeated("search-0003", ours, SEEDS[:3])}
    assert sentence(tmp_path, runs, race()) == (
        "No verdict yet: 4 runs on fresh seeds have not ended, confirm-0003-s104, confirm-0003-s105, baseline-s104 and "
        f"1 more; `{resume(tmp_path)}` resumes the study."
    )


def test_uneven_runs_are_named_with_what_is_uneven(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s105": Outcome.DIVERGED}
    found = sentence(tmp_path, runs, study())
    assert "Its runs or the baseline's are uneven: a run diverged. A few of them say little about others." in found
    assert "went badly wrong" not in found


def with_steps(fresh: FreshRuns, **steps: int) -> FreshRuns:
    """The same runs, of which those whose names begin so took so many steps."""
    trials = fresh.frames.trials.copy()
    for name, count in steps.items():
        trials.loc[trials["run_id"].str.startswith(name), "steps"] = count
    return replace(fresh, frames=replace(fresh.frames, trials=trials))


def test_sides_that_differ_in_steps_at_equal_tokens_are_named_with_both(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER}), study())
    assert "steps, the baseline" not in verdict(fresh).sentence
    assert " At equal tokens it took 1,280 steps, the baseline 32." in verdict(with_steps(fresh, confirm=1280)).sentence
    in_seconds = replace(fresh, study=replace(fresh.study, spec=replace(fresh.study.spec, tokens=None, seconds=60.0)))
    assert "At equal tokens" not in verdict(with_steps(in_seconds, confirm=1280)).sentence


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DIVERGED])
def test_a_run_that_ended_early_is_no_difference_in_steps(study: MakeStudy, tmp_path: Path, outcome: Outcome) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s105": outcome}
    assert "At equal tokens" not in sentence(tmp_path, runs, study())


def test_a_winner_that_was_chosen_on_the_same_text_is_named_as_such(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER}), study())
    assert SAME_TEXT in verdict(fresh).sentence
    other = replace(fresh, study=replace(fresh.study, spec=replace(fresh.study.spec, confirm_val=True)))
    assert SAME_TEXT not in verdict(other).sentence


def test_an_independent_design_names_the_seeds_of_both_sides(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE, OTHERS), **repeated("search-0003", LOWER, SEEDS)}
    assert "5 and 5 independent seeds" in sentence(tmp_path, runs, study(design="independent"))


def test_without_fresh_runs_the_sentence_says_what_runs_them(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, {"search-0000": 3.2, "search-0001": 3.1, "baseline-s0": 3.2}, study())
    found = verdict(fresh)
    assert (found.contrasts, found.noise) == ((), None)
    assert found.sentence == (
        f"No verdict yet: winner and baseline have not run on fresh seeds; `{resume(tmp_path)}` resumes the study."
    )


def test_a_study_without_fresh_seeds_has_no_verdict_and_says_why(study: MakeStudy, tmp_path: Path) -> None:
    runs = {"search-0000": 3.2, **ends()}
    assert sentence(tmp_path, runs, study(seeds=[])) == (
        "No verdict: it takes 3 fresh seeds, and [confirm] seeds states fewer."
    )


def test_without_a_search_the_baselines_loss_is_the_answer(study: MakeStudy, tmp_path: Path) -> None:
    found = verdict(fresh_runs(tmp_path, {"search-0000": 3.2, **ends()}, replace(study(), space={})))
    assert found.noise is not None
    assert found.sentence == (
        f"Nothing is searched, so there is nothing to test: the val loss of {OPPONENT} is 3.2158 ± 0.0042 nats "
        "(mean and standard error, 5 seeds)."
    )


def test_without_a_search_or_fresh_runs_nothing_is_compared(study: MakeStudy, tmp_path: Path) -> None:
    assert sentence(tmp_path, {"search-0000": 3.2}, replace(study(), space={})) == (
        "No verdict: nothing is searched, so nothing is compared with the baseline."
    )


def test_a_later_selection_is_numbered(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER, "search-0004": LOWER}), study())
    first, second = verdict(fresh), verdict(fresh, selections=2)
    assert second.sentence == (
        f"{first.sentence} Candidates or seeds were chosen 2 times, each time with its own chance to err: in all up to "
        "10% where nothing differs."
    )
    assert second.headline == first.headline


def test_the_winner_of_a_longer_search_is_named(study: MakeStudy, tmp_path: Path) -> None:
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER, "search-0004": LOWER}), study())
    extended = "The search was extended after its winner was confirmed: the winners of both times are tested."
    assert extended not in verdict(fresh).sentence
    confirm = fresh.study.confirm.model_copy(update={"top": 1})
    assert extended in verdict(replace(fresh, study=replace(fresh.study, confirm=confirm))).sentence


def test_noise_is_worded_with_what_it_detects_and_what_more_seeds_would(study: MakeStudy, tmp_path: Path) -> None:
    found = noise(fresh_runs(tmp_path, ends(), study()))
    assert found is not None
    sd, more = np.std(BASELINE, ddof=1), found.seeds_for[0.02]
    assert str(found) == (
        f"s.d. {sd:.2g} nats over 5 seeds: 5 seeds detect {found.detectable:.2g}, {more} would detect 0.02"
    )


def test_noise_of_pairs_is_worded_beside_the_baselines(study: MakeStudy, tmp_path: Path) -> None:
    found = noise(fresh_runs(tmp_path, ends({"search-0003": LOWER}), study()))
    assert str(found).startswith("s.d. 0.0094 nats over 5 seeds, 0.0071 between 5 pairs: 5 seeds detect ")


def test_unfinished_fresh_runs_are_named(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**ends(), **repeated("search-0003", LOWER[:3], SEEDS[:3]), "confirm-0003-s104": None}
    assert sentence(tmp_path, runs, study()) == (
        "No verdict yet: 2 runs on fresh seeds have not ended, confirm-0003-s104, confirm-0003-s105; "
        f"`{resume(tmp_path)}` resumes the study."
    )


def test_missing_runs_of_the_baseline_of_an_independent_design_are_named_too(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE[:3], OTHERS[:3]), **repeated("search-0003", LOWER, SEEDS)}
    runs |= {"baseline-s1000104": Outcome.FAILED}
    assert sentence(tmp_path, runs, study(design="independent")) == (
        f"No verdict yet: one run on a fresh seed has not ended, baseline-s1000105; `{resume(tmp_path)}` "
        "resumes the study."
    )


def test_failed_fresh_runs_are_named_without_a_command_that_could_not_help(study: MakeStudy, tmp_path: Path) -> None:
    failed = {f"confirm-0003-s{seed}": Outcome.FAILED for seed in SEEDS}
    assert sentence(tmp_path, {**ends(), "search-0003": 2.9, **failed}, study()) == (
        "No verdict: fewer than 3 seeds measured both sides; these have no loss: confirm-0003-s101 (failed), "
        "confirm-0003-s102 (failed), confirm-0003-s103 (failed) and 2 more."
    )


def test_failed_fresh_runs_of_a_race_are_named_too(race: MakeStudy, tmp_path: Path) -> None:
    failed = {f"confirm-0003-s{seed}": Outcome.FAILED for seed in SEEDS}
    assert sentence(tmp_path, {**ends(), "search-0003": 2.9, **failed}, race()) == (
        "No verdict: fewer than 3 seeds measured both sides; these have no loss: confirm-0003-s101 (failed), "
        "confirm-0003-s102 (failed), confirm-0003-s103 (failed) and 2 more."
    )


def test_a_search_without_a_candidate_says_so(study: MakeStudy, tmp_path: Path) -> None:
    assert sentence(tmp_path, {"search-0001": Outcome.DIVERGED, **ends()}, study()) == (
        "No verdict: the search found no candidate; no other trial is complete."
    )


def test_baselines_that_trained_ahead_of_the_search_s_end_say_nothing_of_its_candidates(
    study: MakeStudy, tmp_path: Path
):
    found = sentence(tmp_path, {"search-0001": LOWER, **ends()}, study(), selections=0)
    assert found.startswith("No verdict yet: winner and baseline have not run on fresh seeds; ")


def test_runs_that_measured_nothing_are_named(study: MakeStudy, tmp_path: Path) -> None:
    failed = {"confirm-0003-s102": Outcome.FAILED, "baseline-s103": Outcome.OUT_OF_MEMORY}
    found = sentence(tmp_path, ends({"search-0003": LOWER}) | failed, study())
    assert found.endswith(" Left out: baseline-s103 (out_of_memory), confirm-0003-s102 (failed).")


def test_diverged_runs_are_named_with_the_loss_that_they_count_as(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s105": Outcome.DIVERGED}
    found = sentence(tmp_path, runs, study())
    assert "Diverged, and counted as a uniform guess of 5.55 nats: confirm-0003-s105." in found


def test_a_faster_winner_is_named_with_its_ratio(study: MakeStudy, tmp_path: Path) -> None:
    slow, fast = (1000.0, 1010.0, 990.0, 1005.0, 995.0), (1300.0, 1320.0, 1290.0, 1300.0, 1310.0)
    speed = {**on_seeds("baseline", slow, SEEDS), **on_seeds("confirm-0003", fast, SEEDS)}
    fresh = fresh_runs(tmp_path, ends({"search-0003": BASELINE}), study(), speed=speed)
    alone = verdict(replace(fresh, study=replace(fresh.study, metrics=(SPEED,), yes=("faster",))))
    assert alone.sentence.startswith(
        f"Yes: search-0003 is faster than {OPPONENT}: 1.30 times the tokens per second (95% interval 1.29 to 1.31"
    )
    both = verdict(replace(fresh, study=replace(fresh.study, metrics=(LOSS, SPEED))))
    assert both.headline.endswith("It trains at 1.30 times the tokens per second (95% interval 1.29 to 1.31).")


def test_a_speed_that_one_seed_measured_is_undecided(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {f"confirm-0003-s{seed}": Outcome.DIVERGED for seed in SEEDS[1:]}
    found = verdict(fresh_runs(tmp_path, runs, replace(study(), metrics=(SPEED,), yes=("faster",))))
    assert found.headline.startswith(
        f"Undecided: fewer than 3 seeds measured the speed of search-0003 and of {OPPONENT}. Its val loss differs by "
    )


def test_what_tuning_more_than_lr_adds_is_in_the_sentence(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER, "tuned-lr-0004": np.subtract(BASELINE, 0.2)})
    found = sentence(tmp_path, runs, study())
    assert "search-0003 is better than tuned-lr-0004, which tunes only lr: -0.100 nats (95% interval " in found
    assert ", p < 0.0001, adjusted for 3 comparisons)." in found


def test_what_the_winner_adds_at_its_own_batch_is_in_the_sentence(study: MakeStudy, tmp_path: Path) -> None:
    near = np.subtract(LOWER, [0.001, 0.002, 0.0, 0.001, 0.001])
    more = {"better": np.subtract(BASELINE, 0.2), "undecided": np.add(LOWER, NOISY) - 3.212, "equivalent": near}
    found = {
        answer: sentence(tmp_path / answer, ends({"search-0003": LOWER, "batch-0003": control}), study())
        for answer, control in more.items()
    }
    assert "search-0003 is better than batch-0003, which has GPT-3's values at its batch: -0.100" in found["better"]
    assert (
        "Whether search-0003 gains from tuning more than the batch is undecided: it differs from batch-0003, "
        in found["undecided"]
    )
    assert (
        "What search-0003 tunes besides the batch adds nothing that matters over batch-0003, which has "
        in found["equivalent"]
    )


def test_updates_are_in_the_sentence_if_only_clipping_is_searched(study: MakeStudy, tmp_path: Path) -> None:
    clipping = {"grad_clip": FloatRange(low=0.1, high=10.0, scale="log")}
    found = sentence(tmp_path, ends({"search-0003": LOWER}), replace(study(), space=clipping))
    assert (
        "Its updates are 1.000 times the baseline's (95% interval 1.000 to 1.000), measured as the median step's "
        in (found)
    )


def test_other_candidates_are_listed_in_short(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER, "search-0001": np.subtract(BASELINE, 0.2 + np.arange(5) / 1000)})
    assert "Also: search-0001 better (-0.2020)." in sentence(tmp_path, runs, study())
