"""The verdict says what the fresh seeds say, by the rule it was given beforehand, and names what it left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fresh_runs import stored
from scipy import stats as reference

from hpstudy.analysis.answers import Answer
from hpstudy.analysis.verdict import noise, verdict
from hpstudy.records import Outcome
from hpstudy.study import FloatRange, Objective, Study
from hpstudy.study.study import other_seed

Tiny = Callable[..., Study]
SEEDS = (101, 102, 103, 104, 105)
BASELINE = (3.215, 3.219, 3.209, 3.230, 3.206)
LOWER = tuple(loss - drop for loss, drop in zip(BASELINE, (0.30, 0.31, 0.29, 0.30, 0.30), strict=True))


OPPONENT = "the baseline (GPT-3's values but for batch_tokens)"
SPEED = Objective(metric="train/tok_per_sec", direction="maximize")
LOSS = Objective(metric="val/loss", direction="minimize")


def study(tiny: Tiny, *, seeds: Sequence[int] = SEEDS, margin: float = 0.01, design: str = "paired") -> Study:
    return tiny(more=f'\n[confirm]\nseeds = {list(seeds)}\ntop = 3\nmargin = {margin}\ndesign = "{design}"\n')


def runs(prefix: str, losses: Sequence[float], seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    return {f"{prefix}-s{seed}": float(loss) for seed, loss in zip(seeds, losses, strict=True)}


def test_lower_loss_on_paired_seeds_is_better_with_scipys_interval(tiny: Tiny, tmp_path: Path) -> None:
    ends = {"search-0003": 2.9, **runs("baseline", BASELINE), **runs("confirm-0003", LOWER)}
    told = verdict(stored(tmp_path, ends), study(tiny))
    [c] = told.contrasts
    expected = reference.ttest_rel(LOWER, BASELINE)
    low, high = expected.confidence_interval()
    assert (c.candidate, c.answer, c.n, c.baseline_n) == ("search-0003", Answer.BETTER, 5, 5)
    assert [c.low, c.high, c.p] == pytest.approx([low, high, expected.pvalue], abs=1e-10)
    assert c.se == pytest.approx(reference.sem(LOWER), abs=1e-10)
    assert c.optimism == pytest.approx(2.9 - np.mean(LOWER))
    assert c.correlation == pytest.approx(reference.pearsonr(LOWER, BASELINE).statistic, abs=1e-10)
    assert told.sentence == (
        f"search-0003 is better than {OPPONENT}: val loss lower by 0.3000 nats (95% interval 0.2912 to 0.3088, "
        "5 paired seeds, p < 0.0001)."
    )


def test_higher_loss_is_worse(tiny: Tiny, tmp_path: Path) -> None:
    told = verdict(stored(tmp_path, {**runs("baseline", LOWER), **runs("confirm-0003", BASELINE)}), study(tiny))
    assert told.contrasts[0].answer is Answer.WORSE
    assert f"worse than {OPPONENT}: val loss higher by 0.3000 nats (95% interval 0.2912 to 0.3088" in told.sentence
    assert math.isnan(told.contrasts[0].search_loss)


def test_measurable_difference_inside_the_margin_is_equivalent_and_said_to_be_measurable(
    tiny: Tiny, tmp_path: Path
) -> None:
    told = verdict(
        stored(tmp_path, {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER)}), study(tiny, margin=0.4)
    )
    assert told.contrasts[0].answer is Answer.EQUIVALENT
    assert told.contrasts[0].p < 0.05
    assert "equivalent within the margin of 0.4 nats" in told.sentence
    assert told.sentence.endswith("measurable, but too little to matter.")


def test_undecided_says_how_many_seeds_would_decide(tiny: Tiny, tmp_path: Path) -> None:
    noisy = (3.22, 3.18, 3.24, 3.19, 3.23)
    told = verdict(stored(tmp_path, {**runs("baseline", BASELINE), **runs("confirm-0003", noisy)}), study(tiny))
    [c] = told.contrasts
    assert c.answer is Answer.UNDECIDED
    assert c.more_seeds is not None
    assert c.other_design_seeds is not None
    assert told.sentence.startswith(f"Undecided: search-0003 differs from {OPPONENT} by -0.004 nats (95% interval -0.0")
    assert f"{c.more_seeds} more seeds would decide it at this noise" in told.sentence


def test_independent_design_is_welchs_test_over_other_seeds(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE, [*map(other_seed, SEEDS)]), **runs("confirm-0003", LOWER)}
    told = verdict(stored(tmp_path, ends), study(tiny, design="independent"))
    [c] = told.contrasts
    assert c.p == pytest.approx(reference.ttest_ind(LOWER, BASELINE, equal_var=False).pvalue, abs=1e-10)
    assert (c.correlation, c.other_design_seeds, c.left_out) == (None, None, ())
    assert "5 and 5 independent seeds" in told.sentence


def test_no_fresh_runs_make_no_verdict_and_say_what_would(tiny: Tiny, tmp_path: Path) -> None:
    told = verdict(stored(tmp_path, {"search-0000": 3.2, "search-0001": 3.1, "baseline-s0": 3.2}), study(tiny))
    assert (told.contrasts, told.noise) == ((), None)
    assert "nothing has been run on fresh seeds" in told.sentence
    assert "`hpstudy run tiny`" in told.sentence


def test_a_study_without_fresh_seeds_or_search_has_no_verdict_and_says_why(tiny: Tiny, tmp_path: Path) -> None:
    frames = stored(tmp_path, {"search-0000": 3.2, **runs("baseline", BASELINE)})
    assert "[confirm] seeds states fewer" in verdict(frames, study(tiny, seeds=[])).sentence
    alone = verdict(frames, replace(study(tiny), space={}))
    assert "Nothing is searched" in alone.sentence
    assert alone.noise is not None


def test_a_later_look_and_a_winner_of_a_longer_search_are_named(tiny: Tiny, tmp_path: Path) -> None:
    searched = {"search-0003": 2.9, "search-0004": 2.9}
    ends = {**searched, **runs("baseline", BASELINE), **runs("confirm-0003", LOWER), **runs("confirm-0004", LOWER)}
    frames, one = stored(tmp_path, ends), study(tiny)
    first, second = verdict(frames, one), verdict(frames, one, looks=2)
    assert "This is look 2 at fresh seeds" in second.sentence
    assert replace(second, sentence=first.sentence) == first
    assert second.headline == first.headline
    assert "extended" not in first.sentence
    assert "extended" in verdict(frames, replace(one, confirm=replace(one.confirm, top=1))).sentence


def test_noise_is_worded_with_what_it_detects_and_what_more_seeds_would(tiny: Tiny, tmp_path: Path) -> None:
    found = noise(stored(tmp_path, runs("baseline", BASELINE)), study(tiny))
    assert found is not None
    sd, more = np.std(BASELINE, ddof=1), found.seeds_for[0.02]
    assert str(found) == (
        f"s.d. {sd:.2g} nats over 5 seeds: 5 seeds detect {found.detectable:.2g}, {more} would detect 0.02"
    )


def test_before_every_fresh_run_has_ended_there_is_no_verdict_but_the_noise(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER[:3], SEEDS[:3])}
    ends["confirm-0003-s104"] = None
    told = verdict(stored(tmp_path, ends), study(tiny))
    assert told.contrasts == ()
    assert told.noise is not None
    assert told.sentence == (
        "No verdict yet: 2 runs on fresh seeds have not ended, confirm-0003-s104, confirm-0003-s105; "
        "`hpstudy run tiny` runs them."
    )


def test_where_the_runs_failed_they_are_named_and_no_command_is_promised_to_help(tiny: Tiny, tmp_path: Path) -> None:
    failed = {f"confirm-0003-s{seed}": Outcome.FAILED for seed in SEEDS}
    told = verdict(stored(tmp_path, {**runs("baseline", BASELINE), **failed}), study(tiny))
    assert "confirm-0003-s101 (failed), confirm-0003-s102 (failed)" in told.sentence
    assert "and 2 more" in told.sentence
    assert "hpstudy run" not in told.sentence


def test_a_search_without_a_candidate_says_so(tiny: Tiny, tmp_path: Path) -> None:
    told = verdict(stored(tmp_path, {"search-0001": Outcome.DIVERGED, **runs("baseline", BASELINE)}), study(tiny))
    assert told.sentence == "No verdict: the search found no candidate; no other trial is complete."


def test_runs_that_measured_nothing_leave_their_pair_out_and_are_named(tiny: Tiny, tmp_path: Path) -> None:
    ends = {
        **runs("baseline", BASELINE),
        **runs("confirm-0003", LOWER),
        "confirm-0003-s102": Outcome.FAILED,
        "baseline-s103": Outcome.OUT_OF_MEMORY,
    }
    told = verdict(stored(tmp_path, ends), study(tiny))
    [c] = told.contrasts
    assert c.n == c.baseline_n == 3
    assert set(c.left_out) == {
        "confirm-0003-s102 (failed)",
        "baseline-s103 (out_of_memory)",
    }
    assert all(run in told.sentence for run in c.left_out)


def test_diverged_run_counts_as_a_uniform_guess_and_is_named(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER), "confirm-0003-s105": Outcome.DIVERGED}
    told = verdict(stored(tmp_path, ends), study(tiny))
    [c] = told.contrasts
    assert c.mean == pytest.approx((sum(LOWER[:4]) + math.log(256)) / 5)
    assert c.diverged == ("confirm-0003-s105",)
    assert "counted as a uniform guess of 5.55 nats: confirm-0003-s105" in told.sentence


def test_several_candidates_share_one_error_rate_and_tuned_lr_comes_last(tiny: Tiny, tmp_path: Path) -> None:
    # each of the three alone has p = 0.03, which is not rare enough among three
    gaps = np.array([-0.0445, -0.0145, -0.0295, -0.0045, -0.055])
    alone = reference.ttest_1samp(gaps, 0).pvalue
    assert 0.017 < alone < 0.05
    ends = runs("baseline", BASELINE)
    for name, shift in (("confirm-0003", 0.0), ("confirm-0001", 0.0001), ("confirm-tuned-lr-0004", -0.0001)):
        ends |= runs(name, np.add(BASELINE, gaps + shift))
    told = verdict(stored(tmp_path, ends), study(tiny))
    assert [c.candidate for c in told.contrasts] == ["search-0003", "search-0001", "tuned-lr-0004"]
    assert {c.answer for c in told.contrasts} == {Answer.UNDECIDED}
    assert all(c.p > alone for c in told.contrasts)


def test_speedup_runs_and_the_search_seeds_baseline_do_not_count(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER), "search-0003": 2.9}
    more = {"baseline-s0": 9.0, "confirm-0003-s101-t50": 9.0, "confirm-0003-s101-t75": 9.0}
    assert verdict(stored(tmp_path / "a", ends | more), study(tiny)) == verdict(
        stored(tmp_path / "b", ends), study(tiny)
    )


def test_noise_is_the_baselines_spread_over_fresh_seeds(tiny: Tiny, tmp_path: Path) -> None:
    found = noise(stored(tmp_path, {"baseline-s0": 9.0, **runs("baseline", BASELINE)}), study(tiny))
    assert found is not None
    assert found.sd == pytest.approx(np.std(BASELINE, ddof=1))
    assert found.n == 5
    assert 0.01 in found.seeds_for
    assert all((difference >= found.detectable) == (seeds <= found.n) for difference, seeds in found.seeds_for.items())


def test_the_reply_is_what_the_study_file_says_the_answer_means(tiny: Tiny, tmp_path: Path) -> None:
    asked = study(tiny)
    better = stored(tmp_path / "a", {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER)})
    unclear = stored(
        tmp_path / "b", {**runs("baseline", BASELINE), **runs("confirm-0003", (3.22, 3.18, 3.24, 3.19, 3.23))}
    )
    replies = [
        (verdict(frames, replace(asked, yes=yes)).reply, verdict(frames, replace(asked, yes=yes)).sentence.split()[0])
        for frames, yes in (
            (better, ("better",)),
            (better, ("equivalent", "worse")),
            (better, ()),
            (unclear, ("better",)),
        )
    ]
    assert replies == [("yes", "Yes:"), ("no", "No:"), (None, "search-0003"), ("undecided", "Undecided:")]


def test_where_speed_is_the_only_objective_it_decides_by_a_test_of_logarithms(tiny: Tiny, tmp_path: Path) -> None:
    slow, fast = (1000.0, 1010.0, 990.0, 1005.0, 995.0), (1300.0, 1320.0, 1290.0, 1300.0, 1310.0)
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", BASELINE)}
    frames = stored(tmp_path, ends, speed={**runs("baseline", slow), **runs("confirm-0003", fast)})
    told = verdict(frames, replace(study(tiny), objectives=(SPEED,), yes=("faster",)))
    [c] = told.contrasts
    expected = reference.ttest_rel(np.log(fast), np.log(slow))
    interval = np.exp(expected.confidence_interval())
    assert c.speed is not None
    assert [c.speed.low, c.speed.high, c.speed.p] == pytest.approx([*interval, expected.pvalue], rel=1e-9)
    assert (c.pace, c.answer, told.reply) == (Answer.FASTER, Answer.EQUIVALENT, "yes")
    assert told.sentence.startswith(f"Yes: search-0003 is faster than {OPPONENT}: 1.30 times the tokens per second (")
    both = verdict(frames, replace(study(tiny), objectives=(LOSS, SPEED)))
    assert both.sentence.endswith("It trains at 1.30 times the tokens per second (95% interval 1.29 to 1.31).")


def test_speeds_that_one_seed_measured_decide_nothing(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER)}
    ends |= {f"confirm-0003-s{seed}": Outcome.DIVERGED for seed in SEEDS[1:]}
    told = verdict(stored(tmp_path, ends), replace(study(tiny), objectives=(SPEED,), yes=("faster",)))
    assert told.contrasts[0].speed is None
    assert told.reply == "undecided"
    assert told.headline.startswith("Undecided: fewer than two seeds measured the speed of search-0003")


def test_what_tuning_more_than_lr_adds_is_a_paired_test_of_winner_and_tuned_lr(tiny: Tiny, tmp_path: Path) -> None:
    tuned = np.subtract(BASELINE, 0.2)
    ends = {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER), **runs("confirm-tuned-lr-0004", tuned)}
    told = verdict(stored(tmp_path, ends), study(tiny))
    expected = reference.ttest_rel(LOWER, tuned)
    added = told.addition
    assert added is not None
    assert (added.candidate, added.opponent, added.answer, added.n) == (
        "search-0003",
        "tuned-lr-0004",
        Answer.BETTER,
        5,
    )
    assert [added.low, added.high] == pytest.approx([*expected.confidence_interval()], abs=1e-10)
    assert added.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert "search-0003 is better than tuned-lr-0004, where only lr was tuned: -0.1000 nats" in told.sentence


def test_without_a_search_the_baselines_loss_is_the_answer(tiny: Tiny, tmp_path: Path) -> None:
    frames = stored(tmp_path, {"search-0000": 3.2, **runs("baseline", BASELINE)})
    told = verdict(frames, replace(study(tiny), space={}))
    assert told.sentence == (
        f"Nothing is searched, so there is nothing to judge: the val loss of {OPPONENT} is 3.2158 ± 0.0042 nats "
        "(mean and standard error, 5 seeds)."
    )


def test_the_first_contrast_is_the_best_that_is_proven(tiny: Tiny, tmp_path: Path) -> None:
    noisy = np.add(BASELINE, [-0.6, 0.3, -0.5, 0.4, -0.3])  # lower on average, and nobody knows
    ends = {
        **runs("baseline", BASELINE),
        **runs("confirm-0003", np.subtract(BASELINE, 0.05)),
        **runs("confirm-0001", noisy),
    }
    told = verdict(stored(tmp_path, ends), replace(study(tiny), yes=("better",)))
    assert [c.candidate for c in told.contrasts] == ["search-0003", "search-0001"]
    assert told.contrasts[1].difference < told.contrasts[0].difference
    assert told.reply == "yes"


def test_runs_that_count_as_a_uniform_guess_are_never_equivalent_and_no_noise(tiny: Tiny, tmp_path: Path) -> None:
    lost = {f"{who}-s{seed}": Outcome.DIVERGED for who in ("baseline", "confirm-0003") for seed in SEEDS}
    told = verdict(stored(tmp_path / "a", lost), study(tiny))
    assert (told.contrasts[0].answer, told.noise) == (Answer.UNDECIDED, None)
    one = {**runs("baseline", BASELINE), "baseline-s105": Outcome.DIVERGED, **runs("confirm-0003", LOWER)}
    found = noise(stored(tmp_path / "b", one), study(tiny))
    assert found is not None
    assert (found.n, found.sd) == (4, pytest.approx(np.std(BASELINE[:4], ddof=1)))


def test_baseline_runs_that_an_independent_design_lacks_are_missing_too(tiny: Tiny, tmp_path: Path) -> None:
    ends = {**runs("baseline", BASELINE[:3], [*map(other_seed, SEEDS)][:3]), **runs("confirm-0003", LOWER)}
    told = verdict(stored(tmp_path, ends | {"baseline-s1000104": Outcome.FAILED}), study(tiny, design="independent"))
    assert "1 runs on fresh seeds have not ended, baseline-s1000105" in told.sentence


def test_updates_are_compared_where_clipping_is_searched(tiny: Tiny, tmp_path: Path) -> None:
    clipping = {"grad_clip": FloatRange(low=0.1, high=10.0, scale="log")}
    frames = stored(tmp_path, {**runs("baseline", BASELINE), **runs("confirm-0003", LOWER)})
    told = verdict(frames, replace(study(tiny), space=clipping))
    assert told.contrasts[0].updates is not None
    assert told.contrasts[0].updates.ratio == pytest.approx(1)  # the made-up runs all update alike
    assert "Its updates are 1.000 times the baseline's" in told.sentence
    assert verdict(frames, study(tiny)).contrasts[0].updates is None


def test_seeds_that_a_real_difference_takes_allow_for_every_candidate(tiny: Tiny, tmp_path: Path) -> None:
    gaps = np.add(BASELINE, [-0.06, 0.02, -0.05, 0.01, -0.04])
    alone = stored(tmp_path / "a", {**runs("baseline", BASELINE), **runs("confirm-0003", gaps)})
    three = {**runs("baseline", BASELINE), **{k: v for n in "123" for k, v in runs(f"confirm-000{n}", gaps).items()}}
    one, many = (verdict(f, study(tiny)).contrasts[0] for f in (alone, stored(tmp_path / "b", three)))
    assert one.answer is many.answer is Answer.UNDECIDED
    assert one.more_seeds_if_real is not None
    assert many.more_seeds_if_real is not None
    assert many.more_seeds_if_real > one.more_seeds_if_real
