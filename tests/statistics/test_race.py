"""A race stops a comparison once it is decided, and decides it by the rules that were fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpstudy.statistics.levels import nominal, overall
from hpstudy.statistics.race import (
    BASELINE,
    TAIL_SEEDS,
    Answer,
    Finding,
    Fresh,
    Race,
    Rules,
    Runs,
    comparisons,
    decide,
)
from hpstudy.study.schema import LOOKS
from tests.helpers.study_files import parse, text

RULES = Rules(looks=LOOKS, design="paired", margin=None)
A, B, C = (("a", BASELINE), ("b", BASELINE), ("c", BASELINE))
MOST = LOOKS[-1]
THEIRS = 3.2 + np.random.default_rng(1).normal(0, 0.01, MOST)
NOISE = 0.01 * np.resize([1.0, -1.0, 0.0], MOST)  # of the pairs: s.d. 0.01 over 3 and 5 seeds, then somewhat less
FAR = THEIRS - 0.5 + NOISE  # decided by the first look
NEAR = THEIRS + 0.007 + NOISE  # by the last one


def runs(**sides: Sequence[float | Fresh | None] | np.ndarray) -> Runs:
    """Each side's runs: a loss, or a run that ended otherwise, or None for one that has not ended."""
    made = {"baseline": THEIRS} | sides
    return {name: [Fresh(loss=run) if isinstance(run, float) else run for run in side] for name, side in made.items()}


def rules(*looks: int, margin: float | None = None) -> Rules:
    return Rules(looks=looks, design="paired", margin=margin)


def only(race: Race) -> Finding:
    """The finding of a race with one comparison."""
    (found,) = race.findings.values()
    return found


# The looks


def test_a_decided_candidate_stops_and_an_open_one_trains_on_to_the_next_look() -> None:
    race = RULES.race([A, B], runs(a=FAR[:3], b=NEAR[:3], baseline=THEIRS[:3]))
    assert (race.findings[A].answer, race.findings[B].answer) == (Answer.BETTER, Answer.UNDECIDED)
    assert (race.open, race.seeds) == ([B], 5)


def test_a_decided_race_has_nothing_open() -> None:
    race = RULES.race([A], runs(a=FAR[:3], baseline=THEIRS[:3]))
    assert (only(race).answer, only(race).seeds) == (Answer.BETTER, 3)
    assert (list(race.open), race.seeds) == ([], 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, MOST))
def test_more_runs_never_change_what_an_earlier_look_has_decided(seed: int, effect: float, known: int) -> None:
    rng = np.random.default_rng(seed)
    sides = {name: rng.normal(shift, 1, MOST) for name, shift in (("a", effect), ("b", 0.0), (BASELINE, 0.0))}
    early = RULES.race([A, B], runs(**{name: side[:known] for name, side in sides.items()}))
    late = RULES.race([A, B], runs(**sides))
    for pair, found in early.findings.items():
        if pair in early.open:
            assert late.findings[pair].seeds >= found.seeds
        else:
            assert (late.findings[pair].answer, late.findings[pair].seeds) == (found.answer, found.seeds)


def test_the_last_look_ends_the_race_undecided_or_not() -> None:
    assert only(RULES.race([A], runs(a=NEAR))).answer is Answer.WORSE
    race = rules(3, 8).race([A], runs(a=NEAR[:8], baseline=THEIRS[:8]))
    assert (only(race).answer, only(race).seeds, list(race.open)) == (Answer.UNDECIDED, 8, [])


def test_missing_runs_keep_the_race_waiting_for_the_seeds_of_its_look() -> None:
    assert RULES.race([A], runs(a=[], baseline=[])) == Race(findings={}, open=[A], seeds=3, most=20)
    for ours, theirs in ((FAR[:2], THEIRS), (FAR, THEIRS[:2]), ([FAR[0], None, FAR[2]], THEIRS)):
        race = RULES.race([A], runs(a=ours, baseline=theirs))
        assert (race.findings, race.open, race.seeds) == ({}, [A], 3)


def test_a_look_waits_for_the_runs_of_every_open_comparison_and_of_no_other() -> None:
    waiting = RULES.race([A, B], runs(a=FAR, b=NEAR[:2]))
    assert (waiting.findings, waiting.seeds) == ({}, 3)
    later = RULES.race([A, B], runs(a=FAR[:3], b=NEAR[:5]))  # a is decided, and has no further runs
    assert later.findings[B].seeds == 5


def test_a_fixed_number_of_seeds_is_a_race_with_one_look_and_scipys_test() -> None:
    gaps = 0.3 * NOISE[:5] - 0.01
    found = only(rules(5, margin=0.001).race([A], runs(a=THEIRS[:5] + gaps)))
    expected = stats.ttest_1samp(gaps, 0)
    low, high = expected.confidence_interval()
    assert [found.p, found.low, found.high] == pytest.approx([expected.pvalue, low, high], abs=1e-10)
    assert found.answer is Answer.BETTER


# The tests of a look


def test_a_look_tests_at_the_level_of_the_whole_race_and_its_interval_too() -> None:
    found = only(RULES.race([A], runs(a=NEAR[:3], baseline=THEIRS[:3])))
    expected = stats.ttest_rel(NEAR[:3], THEIRS[:3])
    assert found.p == overall(float(expected.pvalue), LOOKS) > expected.pvalue
    interval = expected.confidence_interval(1 - nominal(0.05, LOOKS))
    assert [found.low, found.high] == pytest.approx([*interval], abs=1e-10)


@pytest.mark.parametrize("margin", [None, 0.02])
def test_a_comparison_is_decided_at_a_look_if_and_only_if_its_own_p_value_is_at_most_the_nominal_level(
    margin: float | None,
) -> None:
    """200 differences at the first look; seed 4. A p value may be for the difference or for equivalence."""
    rng, level = np.random.default_rng(4), nominal(0.05, LOOKS)
    answers = set()
    for gaps in rng.normal(rng.uniform(-0.1, 0.1, 200), rng.choice([0.0005, 0.01], 200), (3, 200)).T:
        found = only(rules(*LOOKS, margin=margin).race([A], runs(a=THEIRS[:3] + gaps, baseline=THEIRS[:3])))
        answers.add(found.answer)
        assert not found.uneven
        decided = found.test.p <= level or found.test.p_equivalent <= level
        assert (found.answer is not Answer.UNDECIDED) == decided
    assert answers == {Answer.BETTER, Answer.WORSE, Answer.UNDECIDED} | ({Answer.EQUIVALENT} if margin else set())


def test_equal_noise_with_a_margin_of_one_sd_is_found_equivalent_by_many_seeds() -> None:
    flat = NOISE - NOISE.mean()
    found = only(rules(20).race([A], runs(a=THEIRS + flat)))
    assert found.answer is Answer.EQUIVALENT
    assert found.test.margin == pytest.approx(flat.std(ddof=1))


def test_the_level_is_divided_by_the_number_of_comparisons_for_claims_and_intervals_alike() -> None:
    gaps = {"a": -0.004 + 0.3 * NOISE[:5], "b": 0.3 * NOISE[:5], "c": 0.003 - 0.3 * NOISE[:5]}
    race = rules(5, margin=0.001).race([A, B, C], runs(**{name: THEIRS[:5] + gap for name, gap in gaps.items()}))
    alone = [min(1, 3 * stats.ttest_1samp(gap, 0).pvalue) for gap in gaps.values()]
    assert [race.findings[pair].p for pair in (A, B, C)] == pytest.approx(alone, abs=1e-10)
    low, high = stats.ttest_1samp(gaps["b"], 0).confidence_interval(1 - 0.05 / 3)
    assert [race.findings[B].low, race.findings[B].high] == pytest.approx([low, high], abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), effects=st.lists(st.floats(-0.03, 0.03), min_size=1, max_size=3))
def test_what_is_better_or_worse_has_an_interval_without_zero(seed: int, effects: list[float]) -> None:
    rng = np.random.default_rng(seed)
    sides = {name: THEIRS + effect + rng.normal(0, 0.01, len(THEIRS)) for name, effect in zip("abc", effects)}  # noqa: B905
    race = RULES.race([(name, BASELINE) for name in sides], runs(**sides))
    for found in race.findings.values():
        if found.answer in (Answer.BETTER, Answer.WORSE):
            assert not found.low <= 0 <= found.high
            assert (found.answer is Answer.BETTER) == (found.high < 0)


def test_a_decision_of_another_comparison_changes_no_level() -> None:
    both = {"b": NEAR, "a": FAR}
    race = rules(3, 12).race([A, B], runs(**both))
    assert (race.findings[A].seeds, race.findings[B].seeds) == (3, 12)
    alone = rules(3, 12).race([B], runs(**both)).findings[B]
    assert race.findings[B].p == pytest.approx(2 * alone.p)


def test_equal_runs_are_equivalent_at_the_first_look() -> None:
    found = only(RULES.race([A], runs(a=THEIRS)))
    assert (found.answer, found.seeds, found.low, found.high) == (Answer.EQUIVALENT, 3, 0, 0)


def test_a_margin_made_of_noise_finds_no_equality_among_stray_runs() -> None:
    stray = THEIRS + 0.05 * NOISE + np.array([0.0, 1.0] + [0.0] * (len(THEIRS) - 2))
    found = only(RULES.race([A], runs(a=stray)))
    assert found.uneven
    assert (found.answer, found.p_equivalent) == (Answer.UNDECIDED, 1.0)


def test_candidates_are_compared_in_pairs_whatever_the_design() -> None:
    welch = Rules(looks=(5,), design="independent", margin=0.001)
    found = welch.race([("a", "b")], runs(a=FAR, b=NEAR)).findings["a", "b"]
    assert found.test.df == 4


def test_an_answer_is_equivalence_first_then_a_difference_then_none() -> None:
    cases = [(-1.0, 0.05, 0.05), (-1.0, 0.05, 0.051), (1.0, 0.01, 0.5), (1.0, 0.051, 0.051)]
    found = [decide(difference=d, p=p, p_equivalent=q) for d, p, q in cases]
    assert found == [Answer.EQUIVALENT, Answer.BETTER, Answer.WORSE, Answer.UNDECIDED]


def test_an_independent_design_is_judged_by_welchs_test_over_all_runs_of_both_sides() -> None:
    welch = Rules(looks=(5,), design="independent", margin=0.001)
    ours, theirs = [*FAR[:4], Fresh(loss=None)], THEIRS[:5]
    found = only(welch.race([A], runs(a=ours, baseline=theirs)))
    expected = stats.ttest_ind(FAR[:4], theirs, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert [found.low, found.high] == pytest.approx([*expected.confidence_interval()], abs=1e-10)
    assert [len(side) for side in found.sides] == [4, 5]


# Runs that are no draws like the others


def test_a_diverged_run_postpones_a_decision_to_twelve_seeds() -> None:
    """The rare bad run may be on either side: a few seeds do not show how rare it is."""
    guess = Fresh(loss=5.5, diverged=True)
    far = list(map(float, THEIRS - 2.3 + NOISE))
    ours = [guess, *far[1:]]
    race = RULES.race([A], runs(a=ours[:8]))
    assert race.findings[A].uneven == "a run diverged"
    assert (race.findings[A].answer, race.seeds) == (Answer.UNDECIDED, TAIL_SEEDS)
    decided = only(RULES.race([A], runs(a=ours)))
    assert (decided.answer, decided.seeds, decided.uneven) == (Answer.BETTER, TAIL_SEEDS, "a run diverged")
    theirs = [guess, *map(float, THEIRS[1:])]
    assert only(RULES.race([A], runs(a=[5.5 - 3.2, *map(float, THEIRS[1:] - 3.2)], baseline=theirs))).seeds == 12


def test_a_diverged_run_postpones_nothing_at_the_last_look() -> None:
    ours = [*map(float, THEIRS[:4] + 0.5), Fresh(loss=5.5, diverged=True)]
    found = only(rules(5, margin=0.01).race([A], runs(a=ours)))
    expected = stats.ttest_rel([run.loss if isinstance(run, Fresh) else run for run in ours], THEIRS[:5])
    assert found.uneven == "a run diverged"
    assert found.p == pytest.approx(expected.pvalue, abs=1e-10)
    worse = [Fresh(loss=5.5, diverged=True)] * 5
    assert only(rules(5).race([A], runs(a=worse))).answer is Answer.WORSE


def test_the_loss_of_a_uniform_guess_is_never_equivalent() -> None:
    guess = [Fresh(loss=5.5, diverged=True)] * MOST
    found = only(RULES.race([A], runs(a=guess, baseline=guess)))
    assert (found.answer, found.p_equivalent, found.seeds) == (Answer.UNDECIDED, 1, MOST)


def test_a_side_that_spreads_much_further_postpones_a_decision_and_says_why() -> None:
    wide = THEIRS - 0.9 + 20 * NOISE
    race = RULES.race([A], runs(a=wide[:5], baseline=THEIRS[:5]))
    ratio = wide[:5].std(ddof=1) / THEIRS[:5].std(ddof=1)
    assert race.findings[A].uneven == f"one side's losses spread {ratio:.2g} times as far as the other's"
    assert race.findings[A].test.p < nominal(0.05, LOOKS)
    assert (race.findings[A].answer, race.seeds) == (Answer.UNDECIDED, 8)
    assert only(RULES.race([A], runs(a=wide))).answer is Answer.BETTER


def test_sides_far_apart_are_decided_however_uneven_their_runs() -> None:
    """Five standard deviations of the wider side: it would have to be five times as uneven to turn the answer."""
    found = only(RULES.race([A], runs(a=THEIRS - 5 + 20 * NOISE)))
    assert (found.answer, found.seeds, found.uneven) == (Answer.BETTER, 3, "")


def test_one_loss_far_from_the_others_of_its_side_postpones_a_decision() -> None:
    """On both sides, so that neither spreads further than the other."""
    bump = np.where(np.arange(MOST) == 3, 0.4, 0)
    ours, theirs = FAR + bump + np.linspace(0, 0.2, MOST) * (np.arange(MOST) < 3), THEIRS + bump
    for known in (5, 8):
        found = rules(known, 20).race([A], runs(a=ours[:known], baseline=theirs[:known])).findings[A]
        assert found.uneven == "one loss lies far from the others of its side"
        assert (found.test.p < nominal(0.05, LOOKS), found.answer) == (True, Answer.UNDECIDED)
    assert only(rules(5, 12, 20).race([A], runs(a=ours, baseline=theirs))).seeds == TAIL_SEEDS


def test_of_three_losses_none_is_called_far_from_the_others() -> None:
    bump = np.array([0, 0.4, 0])
    found = only(RULES.race([A], runs(a=FAR[:3] + bump, baseline=THEIRS[:3] + bump)))
    assert (found.uneven, found.answer) == ("", Answer.BETTER)


def test_runs_that_are_called_uneven_are_so_by_scipys_tests_at_one_percent() -> None:
    """2,000 pairs of 8 equal sides; seed 6. The F test and two Grubbs tests err in up to 3%."""
    sides = np.random.default_rng(6).normal(0, 1, (2000, 2, 8))
    called = 0
    for ours, theirs in sides:
        uneven = only(rules(8).race([A], runs(a=ours, baseline=theirs))).uneven
        larger, smaller = sorted((ours.var(ddof=1), theirs.var(ddof=1)), reverse=True)
        spread = 2 * stats.f.sf(larger / smaller, 7, 7) <= 0.01
        t = stats.t.ppf(1 - 0.01 / 16, 6)
        grubbs = 7 / np.sqrt(8) * np.sqrt(t**2 / (6 + t**2))
        outlier = any(np.abs(stats.zscore(side, ddof=1)).max() > grubbs for side in (ours, theirs))
        assert bool(uneven) == (spread or outlier)
        called += bool(uneven)
    assert 0.015 < called / 2000 < 0.035


def test_runs_that_measured_nothing_are_left_out_with_their_pairs() -> None:
    nothing = Fresh(loss=None)
    ours = [float(FAR[0]), nothing, *map(float, FAR[2:5])]
    theirs = [*map(float, THEIRS[:3]), nothing, float(THEIRS[4])]
    found = only(rules(5, margin=0.01).race([A], runs(a=ours, baseline=theirs)))
    assert [list(side) for side in found.sides] == [list(FAR[[0, 2, 4]]), list(THEIRS[[0, 2, 4]])]
    assert found.seeds == 5


def test_fewer_than_three_measured_pairs_leave_no_finding_and_the_comparison_open() -> None:
    ours = [float(FAR[0]), Fresh(loss=None), *map(float, FAR[2:])]
    race = RULES.race([A], runs(a=ours[:3]))
    assert (race.findings, race.open, race.seeds) == ({}, [A], 5)
    assert only(RULES.race([A], runs(a=ours[:5]))).answer is Answer.BETTER
    never = rules(3, 5).race([A], runs(a=[*ours[:2], *[Fresh(loss=None)] * 3]))
    assert (never.findings, list(never.open), never.seeds) == ({}, [], 0)


# Futility


def futile(effect: float, margin: float | None) -> bool:
    """Whether twelve seeds that differ by `effect` standard deviations stop the race."""
    gaps = NOISE[:12] - NOISE[:12].mean()
    gaps = gaps / gaps.std(ddof=1) * 0.01 + effect * 0.01
    found = only(rules(12, 20, margin=margin).race([A], runs(a=THEIRS[:12] + gaps, baseline=THEIRS[:12])))
    assert found.answer is Answer.UNDECIDED
    return found.futile


def test_a_comparison_that_more_seeds_would_hardly_decide_stops_as_futile() -> None:
    assert futile(0.1, margin=0.001)
    assert not futile(0.1, margin=0.006)  # twenty seeds may show it to be within the margin
    assert not futile(0.5, margin=0.001)  # and this to be a difference


def test_a_futile_comparison_trains_no_more() -> None:
    gaps = NOISE[:12] - NOISE[:12].mean()
    race = rules(12, 20, margin=0.0).race([A], runs(a=THEIRS[:12] + gaps, baseline=THEIRS[:12]))
    assert (only(race).futile, list(race.open), race.seeds) == (True, [], 0)


def test_a_comparison_is_futile_if_even_the_luck_of_one_in_ten_leaves_it_undecided() -> None:
    """The last look's t of 20 seeds is about effect * sqrt(20) + 1.28 with luck; the critical one is scipy's."""
    level = nominal(0.05, (12, 20))
    least = (stats.t.ppf(1 - level / 2, 19) - stats.norm.ppf(0.9)) / np.sqrt(20)
    assert futile(float(least) - 0.01, margin=0.0)
    assert not futile(float(least) + 0.01, margin=0.0)


def test_nothing_is_futile_at_the_last_look_nor_while_runs_look_uneven() -> None:
    gaps = NOISE[:12] - NOISE[:12].mean()
    assert not only(rules(12, margin=0.0).race([A], runs(a=THEIRS[:12] + gaps))).futile
    ours = [Fresh(loss=5.5, diverged=True), *map(float, THEIRS[1:12] + gaps[1:])]
    assert not only(rules(12, 20, margin=0.0).race([A], runs(a=ours))).futile


# What a study compares, and how


def test_a_study_compares_its_candidates_with_the_baseline_and_its_best_with_the_tuned_lr() -> None:
    searched = {"search-0001": 3.1, "search-0002": 3.0}
    assert comparisons({**searched, "tuned-lr-0004": 3.05}) == [
        ("search-0001", BASELINE),
        ("search-0002", BASELINE),
        ("tuned-lr-0004", BASELINE),
        ("search-0002", "tuned-lr-0004"),
    ]
    assert comparisons({"tuned-lr-0004": 3.05}) == [("tuned-lr-0004", BASELINE)]
    assert comparisons({}) == []


def test_the_best_of_the_search_against_the_tuned_lr_is_of_one_family_with_the_others() -> None:
    searched, opponents = {"a": 3.0}, {"b": 3.1}
    tested = comparisons({**searched, **opponents})
    sides = {"a": THEIRS[:5] - 0.001 + 0.3 * NOISE[:5], "b": NEAR[:5], "baseline": THEIRS[:5]}
    race = rules(5, margin=0.001).race(tested, runs(**sides))
    alone = [stats.ttest_rel(sides[x], sides[y]).pvalue for x, y in tested]
    expected = [min(1, len(tested) * p) for p in alone]
    assert [race.findings[pair].p for pair in tested] == pytest.approx(expected, abs=1e-10)


def test_the_rules_of_a_study_are_those_of_its_file() -> None:
    assert Rules.of(parse(text())) == Rules(looks=(5,), design="paired", margin=0.01)
    assert Rules.of(parse(text(format=2))) == Rules(looks=LOOKS, design="paired", margin=None)
    assert Rules.of(parse(text(format=2, confirm__looks=[4, 9]))).looks == (4, 9)
    stated = parse(text(format=2, confirm__seeds=[7, 8, 9, 10], confirm__margin=0.002))
    assert Rules.of(stated) == Rules(looks=(4,), design="paired", margin=0.002)
