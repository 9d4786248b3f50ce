"""What a ladder has found: laws, predictions, ranges and regrets, on a made-up ladder whose laws are known."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.analysis.ladder import GPT3_SIDE, SEARCH, LadderResults, Regret
from hpstudy.analysis.ladders import (
    begun_ladder,
    load_ladder_results,
    optima_table,
    parts,
    refuse_too_few,
    regrets_table,
)
from hpstudy.analysis.rungs import Estimate, position, value_at
from hpstudy.coordinates import step_law_lr
from hpstudy.errors import UserError
from hpstudy.study import FloatRange
from hpstudy.study.ladder import COPIED, PREDICTED, Size, parse_ladder
from hpstudy.tracking.store import RunStore, begun_ladders
from tests.helpers.made_up_ladder import (
    BEST,
    NAME,
    SEEDS,
    SLOPES,
    STABLE_SLOPE,
    TEXT,
    best_value,
    made_up_ladder,
    stable_lr,
)

LR = "lr_over_rule"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LadderResults:
    """The finished ladder, for tests that only read it."""
    return made_up_ladder(tmp_path_factory.mktemp("ladder") / "runs")


@pytest.fixture
def copied(made: LadderResults, tmp_path: Path) -> Path:
    """A copy of the ladder's runs folder that a test may change."""
    return Path(shutil.copytree(made.runs, tmp_path / "runs"))


def sizes(found: LadderResults) -> tuple[Size, Size]:
    """Check and target."""
    assert found.ladder.check is not None
    assert found.ladder.target is not None
    return found.ladder.check, found.ladder.target


def with_margin(found: LadderResults, margin: float) -> LadderResults:
    table = found.ladder.table.model_copy(update={"check_margin": margin})
    return replace(found, ladder=replace(found.ladder, table=table))


# one ladder of each: intervals of 90% may miss, but this seed's do not


def test_each_rungs_optimum_is_near_the_best_values(made) -> None:
    for rung in made.rungs:
        assert rung.finished
        assert rung.optimum is not None
        for place, key in enumerate(rung.keys):
            away = rung.optimum.centre[place] - math.log(best_value(key, rung.size.weights))
            assert abs(away) < 3 * rung.optimum.error[place]


def test_the_laws_slopes_hold_the_known_ones(made) -> None:
    assert list(made.laws) == list(BEST)
    for key, found in made.laws.items():
        (low,), (high,) = found.slope_interval()
        assert low < SLOPES[key] < high
        assert not found.bent


def test_predictions_hold_the_known_values_at_the_check_and_at_the_target(made) -> None:
    for size in sizes(made):
        lr = best_value(LR, size.weights) * step_law_lr(size.weights, size.tokens)
        assert made.estimate(LR, size).holds(lr)
        for key in BEST:
            _, low, high = made.interval(key, size)
            least, most = (
                math.log(end) for end in (made.rungs[0].study.space[key].low, made.rungs[0].study.space[key].high)
            )
            assert low <= min(max(math.log(best_value(key, size.weights)), least), most) <= high


def test_a_predicted_value_is_the_law_at_the_size(made) -> None:
    check, _ = sizes(made)
    law = made.laws[LR]
    by_hand = law.coefficients[0] + law.slope[0] * (math.log(check.weights) - law.centre[0])
    assert made.interval(LR, check)[0] == pytest.approx(by_hand)
    assert made.point(check)[LR] == float(f"{math.exp(by_hand):.4g}")
    rule = step_law_lr(check.weights, check.tokens)
    assert made.predicted(check).lr == pytest.approx(made.point(check)[LR] * rule)
    assert made.estimate(LR, check).value == pytest.approx(math.exp(by_hand) * rule)


def test_the_boundary_falls_as_the_largest_stable_lr_does(made) -> None:
    assert made.boundary is not None
    (low,), (high,) = made.boundary.slope_interval()
    assert low < STABLE_SLOPE < high
    for rung in made.rungs:
        at = rung.stable_lr
        if at is not None and at.bounded:
            assert abs(at.value - math.log(stable_lr(rung.size.weights))) < 3 * at.error


def test_the_targets_ranges_hold_the_prediction_and_stay_within_boundary_and_searched_range(made) -> None:
    for size in sizes(made):
        study, point = made.study_at(size), made.point(size)
        for key in made.laws:
            found, searched = made.range_at(key, size), study.space[key]
            assert found is not None
            assert isinstance(searched, FloatRange)
            assert searched.low <= found["low"] < found["high"] <= searched.high
            assert found["low"] <= point[key] <= found["high"]
        stable = made.largest_lr(size)
        assert stable is not None
        top = study.trial_hparams({**point, LR: made.range_at(LR, size)["high"]}, size.tokens).lr
        assert top <= max(stable.value, made.predicted(size).lr) * 1.001  # of four digits


def test_a_range_beyond_the_boundary_ends_there(made) -> None:
    check, _ = sizes(made)
    point = made.predicted(check).lr
    assert made.boundary is not None
    for factor in (1.02, 1.2):  # times the predicted lr is the boundary
        moved = made.boundary.coefficients.copy()
        at = float(np.array([1.0, math.log(check.weights) - made.boundary.centre[0]]) @ moved)
        moved[0] += math.log(point * factor) - at
        found = replace(made)
        found.__dict__["boundary"] = replace(made.boundary, coefficients=moved)
        top = found.range_at(LR, check)["high"]
        lr = found.study_at(check).trial_hparams({**found.point(check), LR: top}, check.tokens).lr
        assert lr == pytest.approx(min(point * factor, lr), rel=1e-3)


def test_sides_are_trained_with_the_values_that_they_stand_for(made) -> None:
    check, _ = sizes(made)
    assert list(made.sides) == [PREDICTED, COPIED, "step-law"]
    assert made.hparams_of(PREDICTED).lr == pytest.approx(made.predicted(check).lr, rel=1e-5)
    smallest = made.rungs[0].results.tuned
    assert smallest is not None
    assert made.hparams_of(COPIED).lr == pytest.approx(smallest.hparams.lr, rel=1e-5)
    assert made.hparams_of("step-law").lr == pytest.approx(step_law_lr(check.weights, check.tokens), rel=1e-5)
    assert made.hparams_of(GPT3_SIDE).lr == 6e-4


def losses(store: RunStore, candidate: str) -> dict[int, float]:
    """The losses of a study's runs on fresh seeds, straight from its store."""
    runs = [(view.header.run, view.result) for view in store.runs()]
    return {
        run.seed: result.val_loss
        for run, result in runs
        if run.seed in SEEDS and (run.phase == "baseline") is (candidate == "baseline") and result is not None
    }


def test_a_regret_is_the_mean_difference_to_the_search_on_the_same_seeds_with_its_t_interval(made) -> None:
    searched = losses(RunStore(made.runs / f"{NAME}-check"), "search")
    assert sorted(searched) == sorted(SEEDS)
    for regret in made.regrets[1:]:
        part = "check" if regret.side == GPT3_SIDE else f"check-{regret.side}"
        ours = losses(RunStore(made.runs / f"{NAME}-{part}"), "baseline")
        differences = np.array([ours[seed] - searched[seed] for seed in SEEDS])
        half = 3.182446 * differences.std(ddof=1) / 2  # Student's t with 3 degrees of freedom; square root of 4 seeds
        assert regret.seeds == 4
        assert regret.loss == pytest.approx(np.mean([ours[seed] for seed in SEEDS]))
        assert regret.regret == pytest.approx(differences.mean())
        assert (regret.low, regret.high) == pytest.approx(
            (differences.mean() - half, differences.mean() + half), rel=1e-4
        )


def test_the_search_has_no_regret_and_gpt3_much(made) -> None:
    by_side = {each.side: each for each in made.regrets}
    assert list(by_side) == [SEARCH, PREDICTED, COPIED, "step-law", GPT3_SIDE]
    assert by_side[SEARCH].regret == 0
    assert by_side[GPT3_SIDE].low > 0.05
    assert by_side[PREDICTED].regret < by_side[GPT3_SIDE].regret
    assert made.between(GPT3_SIDE, COPIED).regret == pytest.approx(by_side[GPT3_SIDE].regret - by_side[COPIED].regret)


def test_the_prediction_holds_if_its_interval_ends_below_the_margin_and_fails_if_it_begins_above(made) -> None:
    predicted = made.regrets[1]
    low, high = predicted.low, predicted.high
    answers = {high + 1e-6: "holds", (low + high) / 2: "undecided", low - 1e-6: "fails"}
    for margin, answer in answers.items():
        assert with_margin(made, margin).answer == answer
    assert with_margin(made, high + 1e-6).verdict.startswith(
        "Yes: the prediction holds at 6x256: its loss less that of a search of 16 trials is "
    )
    assert with_margin(made, low - 1e-6).verdict.startswith("No: the prediction fails at 6x256")
    assert with_margin(made, (low + high) / 2).verdict.startswith("Undecided: the prediction at 6x256")


def test_a_sentence_for_each_key_says_whether_the_measured_optimum_lies_inside(made) -> None:
    _, likewise, less, *sentences = made.sentences()
    assert likewise.startswith("Likewise copied from ")
    assert less == f"Predicted less copied: {made.between(PREDICTED, COPIED)}."
    assert len(sentences) == 3
    for key, sentence in zip(made.keys, sentences, strict=True):
        measured = made.check.estimate(key)
        held = made.estimate(key, made.ladder.check).holds(measured.value)
        assert (" holds the measured optimum, " if held else " does not hold the measured optimum, ") in sentence
        assert str(measured) in sentence


def test_a_regret_that_was_not_measured_says_so() -> None:
    regret = Regret(side=COPIED, hparams=None, loss=None, regret=None, low=None, high=None, seeds=0)
    assert str(regret) == "not measured"
    assert str(replace(regret, regret=0.0123, low=-0.003, high=0.0276)) == "+0.012 [−0.003, +0.028]"


def test_what_bends_or_has_no_optimum_inside_did_not_transfer(made) -> None:
    said = list(made.not_transferred())
    assert not any("a line is not enough" in sentence for sentence in said)
    found = replace(made)
    found.__dict__["laws"] = {**made.laws, LR: replace(made.laws[LR], bend=0.012)}
    assert "lr: a line is not enough for these rungs (p = 0.012)." in list(found.not_transferred())
    rung = replace(made.rungs[1])
    flat = np.array([False, *made.rungs[1].optimum.bent[1:]])
    rung.__dict__["optimum"] = replace(made.rungs[1].optimum, bent=flat)
    found = replace(made, rungs=(made.rungs[0], rung, *made.rungs[2:]))
    assert any(sentence.startswith("lr: the trials of ") and "3x96" in sentence for sentence in found.not_transferred())


def test_tables_have_a_row_for_each_size_and_key_and_for_each_side(made) -> None:
    optima, regrets = optima_table(made), regrets_table(made)
    assert list(optima["part"].unique()) == ["rung", "check", "predicted check", "predicted target"]
    assert len(optima) == (4 + 1 + 2) * 3
    check = optima[(optima["part"] == "predicted check")].iloc[0]
    assert check["value"] == made.estimate(LR, made.ladder.check).value
    assert list(regrets["side"]) == [each.side for each in made.regrets]
    assert (optima["low"] <= optima["value"]).all()
    assert (optima["value"] <= optima["high"]).all()


def test_a_ladder_is_read_as_far_as_it_is(made, copied) -> None:
    shutil.rmtree(copied / f"{NAME}-check-copied")
    found = begun_ladder(NAME, copied)
    assert list(found.sides) == [PREDICTED, "step-law"]
    assert found.answer == made.answer
    shutil.rmtree(copied / f"{NAME}-check")
    found = begun_ladder(NAME, copied)
    assert (found.check, found.regrets, found.answer, found.sentences()) == (None, (), None, [])
    shutil.rmtree(copied / f"{NAME}-3x96")
    found = begun_ladder(NAME, copied)
    assert [rung.size.label for rung in found.rungs] == ["2x64"]
    assert found.laws[LR].slope == pytest.approx([0.0])
    assert found.point(found.rungs[0].size)[LR] == pytest.approx(math.exp(found.rungs[0].optimum.centre[0]), rel=1e-3)
    shutil.rmtree(copied / f"{NAME}-2x64")
    found = begun_ladder(NAME, copied)
    assert (found.rungs, found.laws, found.keys, found.boundary) == ((), {}, (), None)
    assert len(optima_table(found)) == 0


def test_a_rung_whose_search_goes_on_is_left_out(copied) -> None:
    for result in (copied / f"{NAME}-4x128").glob("search-0023/result.json"):
        result.unlink()
    assert [rung.size.label for rung in begun_ladder(NAME, copied).rungs] == ["2x64", "3x96"]


def test_names_of_begun_ladders_and_of_their_parts(made) -> None:
    assert begun_ladders(made.runs) == [NAME]
    assert parts(NAME, made.runs) == [
        *(f"{NAME}-{label}" for label in ("2x64", "3x96", "4x128", "6x192")),
        *(f"{NAME}-check{side}" for side in ("", "-predicted", "-copied", "-step-law")),
    ]
    assert parts(f"{NAME}-2x64", made.runs) == [f"{NAME}-2x64"]
    with pytest.raises(UserError, match="no ladder has begun there; start it with `hpstudy run other"):
        begun_ladder("other", made.runs)


def test_results_follow_from_the_stores_alone(made) -> None:
    again = load_ladder_results(made.ladder, made.runs)
    assert again.regrets == made.regrets
    for key, law in again.laws.items():
        assert law.at(np.array([20.0])) == made.laws[key].at(np.array([20.0]))


@pytest.mark.parametrize(
    ("scale", "value", "place"), [("log", math.e, 1.0), ("log1m", 0.9, math.log(0.1)), ("linear", 0.0, 0.0)]
)
def test_a_value_has_a_place_on_its_scale(scale, value, place) -> None:
    dimension = FloatRange(low=0.0, high=3.0, scale=scale)
    assert position(dimension, value) == pytest.approx(place)
    assert value_at(dimension, place) == pytest.approx(value)


def test_a_ladder_without_rungs_enough_for_a_fit_predicts_the_best_trial(tmp_path) -> None:
    text = TEXT.replace("[32, 28, 24, 20]", "3").replace("check_trials         = 16", "check_trials = 3")
    found = made_up_ladder(tmp_path / "runs", text=text)
    check, _ = sizes(found)
    assert found.laws == {}
    assert found.point(check) == found.rungs[-1].best
    assert found.answer in ("holds", "fails", "undecided")
    assert found.sentences()[0] == found.verdict
    assert len(found.sentences()) == 3  # the check's other sides, and no key


def test_too_few_trials_for_an_optimum_are_refused_with_the_least(tmp_path) -> None:
    text = TEXT.replace("[32, 28, 24, 20]", "[32, 28, 24, 8]").replace("check_trials         = 16", "check_trials = 3")
    with pytest.raises(UserError) as refused:
        refuse_too_few(parse_ladder(text, name="few", path=tmp_path / "few.toml"))
    assert [problem.partition("[ladder] ")[2] for problem in refused.value.problems] == [
        "trials: the optimum of 3 searched keys takes at least 9 trials, but 6x192 has 8",
        "check_trials: the optimum of 3 searched keys takes at least 9 trials, but 6x256 has 3",
    ]


def test_a_rungs_noise_is_never_below_what_its_winner_lost_on_fresh_seeds(made) -> None:
    for rung in made.rungs:
        found = rung.results.tuned
        fresh = rung.results.fresh.complete_losses(found.run_id)
        lost = abs(float(fresh.mean()) - rung.results.one_seed_loss(found.run_id))
        assert rung.noise == max(rung.results.noise.sd, float(fresh.std(ddof=1)), lost)


def test_an_end_of_the_searched_range_is_shown_as_open() -> None:
    assert str(Estimate(value=0.3, low=0.1, high=0.5)) == "0.3 [0.1, 0.5]"
    assert str(Estimate(value=0.3, low=0.1, high=0.5, open_high=True)) == "0.3 [0.1, ≥ 0.5]"
    assert Estimate(value=0.3, low=0.1, high=0.5, open_low=True, open_high=True).is_open


def test_a_size_with_other_tokens_than_the_rungs_course_is_said_to_be_off_it(made) -> None:
    check, target = sizes(made)
    assert made.off_course(check) == ""
    far = replace(target, tokens=4 * target.tokens)
    assert made.off_course(far).startswith("125m trains on 4 times the tokens that the rungs' own course gives")
