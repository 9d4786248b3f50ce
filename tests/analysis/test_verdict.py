"""The verdict follows from the fresh seeds alone, by the rule that the study file fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference

from hpstudy.analysis import stats
from hpstudy.analysis.verdict import noise, verdict
from hpstudy.records import Outcome
from hpstudy.statistics.levels import nominal, overall
from hpstudy.statistics.race import Answer
from hpstudy.study import FloatRange, Study
from hpstudy.study.schema import other_seed
from tests.helpers.stores import BASELINE, LOWER, NOISY, SEEDS, Ends, ends, fresh_runs, on_seeds, repeated

MakeStudy = Callable[..., Study]
OTHERS = tuple(map(other_seed, SEEDS))
# higher than the baseline's by 1.35 s.d. of a seed's difference: neither decided nor futile after three or five seeds
CLOSE = tuple(loss + gap for loss, gap in zip(BASELINE, (0.0235, 0.0035, 0.0135, 0.0235, 0.0035), strict=True))

SPEED = "train/tok_per_sec"


def test_lower_loss_on_paired_seeds_is_better_with_scipys_interval(study: MakeStudy, tmp_path: Path) -> None:
    runs = {"search-0000": 3.2, **ends({"search-0003": LOWER})}
    [c] = verdict(fresh_runs(tmp_path, runs, study())).contrasts
    expected = reference.ttest_rel(LOWER, BASELINE)
    low, high = expected.confidence_interval()
    assert (c.candidate, c.phase, c.answer, c.n, c.baseline_n) == ("search-0003", "search", Answer.BETTER, 5, 5)
    assert [c.low, c.high, c.p] == pytest.approx([low, high, expected.pvalue], abs=1e-10)
    assert c.se == pytest.approx(reference.sem(LOWER), abs=1e-10)
    assert c.optimism == pytest.approx((2.9 - 3.2) - np.mean(np.subtract(LOWER, BASELINE)))
    assert [c.sd, c.margin, c.looks] == pytest.approx([reference.tstd(np.subtract(LOWER, BASELINE)), 0.01, 5])
    assert c.correlation == pytest.approx(reference.pearsonr(LOWER, BASELINE).statistic, abs=1e-10)


def test_higher_loss_is_worse(study: MakeStudy, tmp_path: Path) -> None:
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": BASELINE}, baseline=LOWER), study()))
    assert found.contrasts[0].answer is Answer.WORSE
    assert found.contrasts[0].difference == pytest.approx(0.3)


def test_a_candidate_whose_trial_is_gone_is_judged_without_the_loss_of_its_search(
    study: MakeStudy, tmp_path: Path
) -> None:
    runs = ends({"search-0003": LOWER})
    del runs["search-0003"]
    [c] = verdict(fresh_runs(tmp_path, runs, study())).contrasts
    assert (c.candidate, c.phase, c.answer) == ("search-0003", "search", Answer.BETTER)
    assert math.isnan(c.search_loss)
    worse = ends({"search-0003": BASELINE}, baseline=LOWER)
    del worse["search-0003"]
    assert verdict(fresh_runs(tmp_path / "worse", worse, study())).contrasts[0].answer is Answer.WORSE


def test_a_measurable_difference_inside_the_margin_is_equivalent(study: MakeStudy, tmp_path: Path) -> None:
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": LOWER}), study(margin=0.4)))
    assert found.contrasts[0].answer is Answer.EQUIVALENT
    assert found.contrasts[0].p < 0.05


def test_a_difference_that_noise_hides_is_undecided(study: MakeStudy, tmp_path: Path) -> None:
    [c] = verdict(fresh_runs(tmp_path, ends({"search-0003": NOISY}), study())).contrasts
    assert (c.answer, c.futile) == (Answer.UNDECIDED, False)
    assert min(c.p, c.p_equivalent) > 0.05
    assert c.low < 0 < c.high


def test_a_paired_contrast_has_the_seeds_that_unpaired_runs_would_have_needed(study: MakeStudy, tmp_path: Path) -> None:
    [c] = verdict(fresh_runs(tmp_path, ends({"search-0003": LOWER}), study())).contrasts
    apart = math.hypot(reference.tstd(LOWER), reference.tstd(BASELINE))
    widths = {n: reference.t.ppf(0.975, 2 * (n - 1)) * apart / math.sqrt(n) for n in range(2, 40)}
    assert c.other_design_seeds == min(n for n, width in widths.items() if width <= (c.high - c.low) / 2)


def test_an_independent_design_is_judged_by_welchs_test_over_other_seeds(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE, OTHERS), **repeated("search-0003", LOWER, SEEDS)}
    [c] = verdict(fresh_runs(tmp_path, runs, study(design="independent"))).contrasts
    assert c.p == pytest.approx(reference.ttest_ind(LOWER, BASELINE, equal_var=False).pvalue, abs=1e-10)
    assert (c.correlation, c.other_design_seeds, c.left_out) == (None, None, ())


def test_a_later_selection_changes_the_sentence_and_nothing_else(study: MakeStudy, tmp_path: Path) -> None:
    runs = {"search-0000": 3.2, **ends({"search-0003": LOWER, "search-0004": LOWER})}
    fresh = fresh_runs(tmp_path, runs, study())
    first, second = verdict(fresh), verdict(fresh, selections=2)
    assert second.sentence != first.sentence
    assert replace(second, sentence=first.sentence) == first


def test_before_every_fresh_run_has_ended_there_is_the_noise_but_no_verdict(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**ends(), **repeated("search-0003", LOWER[:3], SEEDS[:3]), "confirm-0003-s104": None}
    found = verdict(fresh_runs(tmp_path, runs, study()))
    assert found.contrasts == ()
    assert found.noise is not None


def test_a_pair_of_which_one_run_measured_nothing_does_not_count(study: MakeStudy, tmp_path: Path) -> None:
    failed = {"confirm-0003-s102": Outcome.FAILED, "baseline-s103": Outcome.OUT_OF_MEMORY}
    [c] = verdict(fresh_runs(tmp_path, ends({"search-0003": LOWER}) | failed, study())).contrasts
    assert c.n == c.baseline_n == 3
    assert set(c.left_out) == {"confirm-0003-s102 (failed)", "baseline-s103 (out_of_memory)"}


def test_a_diverged_run_counts_as_a_uniform_guess(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {"confirm-0003-s105": Outcome.DIVERGED}
    [c] = verdict(fresh_runs(tmp_path, runs, study())).contrasts
    assert c.mean == pytest.approx((sum(LOWER[:4]) + math.log(256)) / 5)
    assert c.diverged == ("confirm-0003-s105",)


def test_several_candidates_share_one_error_rate_and_tuned_lr_comes_last(study: MakeStudy, tmp_path: Path) -> None:
    # each of the three alone has p = 0.03, which is not rare enough among three
    gaps = np.array([-0.0445, -0.0145, -0.0295, -0.0045, -0.055])
    alone = reference.ttest_1samp(gaps, 0).pvalue
    assert 0.017 < alone < 0.05
    shifts = {"search-0003": 0.0, "search-0001": 0.0001, "tuned-lr-0004": -0.0001}
    runs = ends({name: np.add(BASELINE, gaps + shift) for name, shift in shifts.items()})
    contrasts = verdict(fresh_runs(tmp_path, runs, study())).contrasts
    assert [c.candidate for c in contrasts] == ["search-0003", "search-0001", "tuned-lr-0004"]
    assert [c.phase for c in contrasts] == ["search", "search", "tuned-lr"]
    assert {c.answer for c in contrasts} == {Answer.UNDECIDED}
    assert all(c.p > alone for c in contrasts)


def test_shorter_runs_and_the_baseline_of_the_search_do_not_count(study: MakeStudy, tmp_path: Path) -> None:
    runs = {"search-0000": 3.2, **ends({"search-0003": LOWER})}
    more: Ends = {"baseline-s0": 9.0, "confirm-0003-s101-t50": 9.0, "confirm-0003-s101-t75": 9.0}
    with_more, without = (
        verdict(fresh_runs(tmp_path / name, found, study())) for name, found in (("more", runs | more), ("plain", runs))
    )
    assert with_more == without


def test_noise_is_the_baselines_spread_over_fresh_seeds(study: MakeStudy, tmp_path: Path) -> None:
    found = noise(fresh_runs(tmp_path, ends() | {"baseline-s0": 9.0}, study()))
    assert found is not None
    assert found.sd == pytest.approx(np.std(BASELINE, ddof=1))
    assert found.n == 5
    assert 0.01 in found.seeds_for
    assert all((difference >= found.detectable) == (seeds <= found.n) for difference, seeds in found.seeds_for.items())


def test_the_reply_is_what_the_study_file_says_the_answer_means(study: MakeStudy, tmp_path: Path) -> None:
    asked = study()
    better = fresh_runs(tmp_path / "a", ends({"search-0003": LOWER}), asked)
    unclear = fresh_runs(tmp_path / "b", ends({"search-0003": NOISY}), asked)
    cases = ((better, ("better",)), (better, ("equivalent", "worse")), (better, ()), (unclear, ("better",)))
    replies = []
    for fresh, yes in cases:
        found = verdict(replace(fresh, study=replace(asked, yes=yes)))
        replies.append((found.reply, found.sentence.split()[0]))
    assert replies == [("yes", "Yes:"), ("no", "No:"), (None, "search-0003"), ("undecided", "Undecided:")]


def test_if_speed_is_the_only_objective_it_decides_by_a_test_of_logarithms(study: MakeStudy, tmp_path: Path) -> None:
    slow, fast = (1000.0, 1010.0, 990.0, 1005.0, 995.0), (1300.0, 1320.0, 1290.0, 1300.0, 1310.0)
    speed = {**on_seeds("baseline", slow, SEEDS), **on_seeds("confirm-0003", fast, SEEDS)}
    asked = replace(study(), metrics=(SPEED,), yes=("faster",))
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": BASELINE}), asked, speed=speed))
    [c] = found.contrasts
    expected = reference.ttest_rel(np.log(fast), np.log(slow))
    interval = np.exp(expected.confidence_interval())
    assert c.speed is not None
    assert [c.speed.low, c.speed.high, c.speed.p] == pytest.approx([*interval, expected.pvalue], rel=1e-9)
    assert (c.pace, c.answer, found.reply) == (Answer.FASTER, Answer.EQUIVALENT, "yes")


def test_speeds_that_one_seed_measured_decide_nothing(study: MakeStudy, tmp_path: Path) -> None:
    runs = ends({"search-0003": LOWER}) | {f"confirm-0003-s{seed}": Outcome.DIVERGED for seed in SEEDS[1:]}
    found = verdict(fresh_runs(tmp_path, runs, replace(study(), metrics=(SPEED,), yes=("faster",))))
    assert found.contrasts[0].speed is None
    assert found.reply == "undecided"


@pytest.mark.parametrize("opponent", ["tuned-lr-0004", "batch-0003"])
def test_what_the_winner_adds_to_another_opponent_is_a_paired_test_in_one_family_with_the_others(
    study: MakeStudy, tmp_path: Path, opponent: str
) -> None:
    tuned = np.subtract(BASELINE, [0.19, 0.21, 0.2, 0.22, 0.18])
    found = verdict(fresh_runs(tmp_path, ends({"search-0003": LOWER, opponent: tuned}), study()))
    [added] = found.additions
    expected = [reference.ttest_rel(*sides) for sides in ((LOWER, BASELINE), (tuned, BASELINE), (LOWER, tuned))]
    assert (added.candidate, added.opponent) == ("search-0003", opponent)
    assert (added.answer, added.n) == (Answer.BETTER, 5)
    interval = expected[2].confidence_interval(1 - 0.05 / 3)
    assert [added.low, added.high] == pytest.approx([*interval], abs=1e-10)
    ps = [*(c.p for c in found.contrasts), added.p]
    assert ps == pytest.approx([min(1, len(ps) * test.pvalue) for test in expected], abs=1e-12)


def test_the_first_contrast_is_the_best_that_is_proven(study: MakeStudy, tmp_path: Path) -> None:
    unproven = np.add(BASELINE, [-0.6, 0.3, -0.5, 0.4, -0.3])  # lower on average, which may be chance
    runs = ends({"search-0003": np.subtract(BASELINE, 0.05), "search-0001": unproven})
    found = verdict(fresh_runs(tmp_path, runs, replace(study(), yes=("better",))))
    assert [c.candidate for c in found.contrasts] == ["search-0003", "search-0001"]
    assert found.contrasts[1].difference < found.contrasts[0].difference
    assert found.reply == "yes"


def test_runs_that_count_as_a_uniform_guess_are_never_equivalent_and_no_noise(study: MakeStudy, tmp_path: Path) -> None:
    diverged = {f"{name}-s{seed}": Outcome.DIVERGED for name in ("baseline", "confirm-0003") for seed in SEEDS}
    found = verdict(fresh_runs(tmp_path / "a", {"search-0003": 2.9, **diverged}, study()))
    assert (found.contrasts[0].answer, found.noise) == (Answer.UNDECIDED, None)
    one = ends({"search-0003": LOWER}) | {"baseline-s105": Outcome.DIVERGED}
    measured = noise(fresh_runs(tmp_path / "b", one, study()))
    assert measured is not None
    assert (measured.n, measured.sd) == (4, pytest.approx(np.std(BASELINE[:4], ddof=1)))


def test_updates_are_compared_if_only_clipping_is_searched(study: MakeStudy, tmp_path: Path) -> None:
    clipping = {"grad_clip": FloatRange(low=0.1, high=10.0, scale="log")}
    fresh = fresh_runs(tmp_path, ends({"search-0003": LOWER}), study())
    found = verdict(replace(fresh, study=replace(fresh.study, space=clipping)))
    assert found.contrasts[0].updates is not None
    assert found.contrasts[0].updates.ratio == pytest.approx(1)  # the made-up runs all update alike
    assert verdict(fresh).contrasts[0].updates is None


# Races


def first_seeds(count: int, *, baseline: Sequence[float] = BASELINE, **losses: Sequence[float]) -> Ends:
    """The ends of the baseline's first runs and of those of search-0003."""
    runs = {"search-0000": 3.2, **on_seeds("baseline", baseline[:count], SEEDS[:count])}
    return runs | repeated("search-0003", losses["ours"][:count], SEEDS[:count])


def test_a_race_is_decided_at_its_first_look_by_scipys_test_at_the_level_of_the_race(
    race: MakeStudy, tmp_path: Path
) -> None:
    found = verdict(fresh_runs(tmp_path, first_seeds(3, ours=LOWER), race()))
    [c] = found.contrasts
    expected = reference.ttest_rel(LOWER[:3], BASELINE[:3])
    assert (c.answer, c.n, c.looks) == (Answer.BETTER, 3, 5)
    assert c.p == pytest.approx(overall(float(expected.pvalue), (3, 5)), abs=1e-10)
    assert c.p > expected.pvalue
    interval = expected.confidence_interval(1 - nominal(0.05, (3, 5)))
    assert [c.low, c.high] == pytest.approx([*interval], abs=1e-10)
    sd = reference.tstd(np.subtract(LOWER, BASELINE)[:3])
    assert [c.margin, found.margin] == pytest.approx([sd, sd])


def test_runs_that_trained_ahead_of_a_look_change_nothing(race: MakeStudy, tmp_path: Path) -> None:
    runs = first_seeds(3, ours=LOWER)
    ahead: Ends = {"baseline-s104": 4.9, "confirm-0003-s104": 4.0, "confirm-0003-s105": Outcome.DIVERGED}
    unfinished: Ends = {"baseline-s104": None, "confirm-0003-s104": 4.0}
    plain, *others = (
        verdict(fresh_runs(tmp_path / str(len(more)), runs | more, race())) for more in ({}, ahead, unfinished)
    )
    assert others == [plain, plain]
    assert plain.noise is not None
    assert plain.noise.n == 3


def test_an_open_race_has_no_verdict_until_the_runs_of_its_look_have_ended(race: MakeStudy, tmp_path: Path) -> None:
    for count in (2, 3, 4):
        fresh = fresh_runs(tmp_path / str(count), first_seeds(count, ours=CLOSE), race(margin=0.009))
        assert verdict(fresh).contrasts == ()
    [c] = verdict(fresh_runs(tmp_path / "all", first_seeds(5, ours=CLOSE), race(margin=0.009))).contrasts
    assert (c.answer, c.n) == (Answer.UNDECIDED, 5)


def test_a_race_that_more_seeds_would_hardly_decide_has_its_verdict(race: MakeStudy, tmp_path: Path) -> None:
    [c] = verdict(fresh_runs(tmp_path, first_seeds(3, ours=NOISY), race(margin=0.001))).contrasts
    assert (c.answer, c.futile, c.n) == (Answer.UNDECIDED, True, 3)


def test_a_decided_candidate_is_judged_at_its_own_look_beside_one_that_needs_more(
    race: MakeStudy, tmp_path: Path
) -> None:
    runs = {**ends({"search-0004": CLOSE}), **repeated("search-0003", LOWER[:3], SEEDS[:3])}
    contrasts = {c.candidate: c for c in verdict(fresh_runs(tmp_path, runs, race(margin=0.009))).contrasts}
    assert {name: (c.answer, c.n) for name, c in contrasts.items()} == {
        "search-0003": (Answer.BETTER, 3),
        "search-0004": (Answer.UNDECIDED, 5),
    }
    assert contrasts["search-0003"].baseline_mean == pytest.approx(np.mean(BASELINE[:3]))


def test_a_diverged_run_of_a_race_postpones_its_verdict(race: MakeStudy, tmp_path: Path) -> None:
    far = tuple(loss - 2 for loss in LOWER)
    runs = first_seeds(3, ours=far) | {"baseline-s102": Outcome.DIVERGED}
    assert verdict(fresh_runs(tmp_path / "three", runs, race())).contrasts == ()
    runs = first_seeds(5, ours=far) | {"baseline-s102": Outcome.DIVERGED}
    [c] = verdict(fresh_runs(tmp_path / "five", runs, race())).contrasts
    assert (c.answer, c.uneven, c.diverged) == (Answer.BETTER, "a run diverged", ("baseline-s102",))


# Noise of pairs


def test_powers_take_the_noise_of_the_pairs_that_were_tested(study: MakeStudy, tmp_path: Path) -> None:
    alone = noise(fresh_runs(tmp_path / "alone", ends(), study()))
    pairs = noise(fresh_runs(tmp_path / "pairs", ends({"search-0003": LOWER}), study()))
    assert alone is not None
    assert pairs is not None
    assert [alone.difference_sd, alone.pairs] == pytest.approx([math.sqrt(2) * alone.sd, 0])
    sd = reference.tstd(np.subtract(LOWER, BASELINE))
    assert [pairs.difference_sd, pairs.pairs, pairs.sd] == pytest.approx([sd, 5, alone.sd])
    assert pairs.detectable == stats.detectable(sd, 5, sd_df=4)
    assert pairs.seeds_for[0.01] == stats.seeds_to_detect(0.01, sd, sd_df=4)
    assert pairs.one_seed == pytest.approx(reference.t.ppf(0.975, 4) * math.sqrt(2) * alone.sd)  # any two seeds


def test_an_independent_design_has_no_pairs(study: MakeStudy, tmp_path: Path) -> None:
    runs = {**on_seeds("baseline", BASELINE, OTHERS), **repeated("search-0003", LOWER, SEEDS)}
    found = noise(fresh_runs(tmp_path, runs, study(design="independent")))
    assert found is not None
    assert [found.pairs, found.difference_sd] == pytest.approx([0, math.sqrt(2) * reference.tstd(BASELINE)])
