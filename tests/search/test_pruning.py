"""When a trial is stopped early: the rules of both pruners, and which other trials a decision may use."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpstudy.records import Outcome
from hpstudy.search import Search
from hpstudy.search.pruning import TrialPruner
from hpstudy.study import Pruner
from tests.helpers.search import HALVING, LOSS, MEDIAN, SPEED, VOCAB, result, toy_study

PRUNERS = pytest.mark.parametrize("pruner", [MEDIAN, HALVING], ids=lambda pruner: pruner.name)


def reported(losses: Sequence[float], *, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    """A trial with these losses at evaluations 1, 2, ..."""
    value = losses[-1] if state is TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=dict(enumerate(losses, start=1)))


def stopped_at(pruner: Pruner, evals: int, finished: Sequence[FrozenTrial], losses: Sequence[float]) -> int | None:
    """The evaluation after which a trial of these losses is stopped, or None if it never is."""
    trial_pruner = TrialPruner(pruner, evals)
    for done in range(1, len(losses) + 1):
        if trial_pruner.stops(finished, dict(enumerate(losses[:done], start=1))):
            return done
    return None


# The rules


@given(
    past=st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), max_size=6),
    losses=st.lists(st.floats(0, 10), min_size=4, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_median_stops_a_trial_that_was_never_as_good_as_the_median(past, losses):
    def by_hand() -> int | None:
        for done in (2, 3):  # from half of 4 evaluations on, and never at the last
            if len(past) >= 3 and min(losses[:done]) > np.median([other[done - 1] for other in past]):
                return done
        return None

    assert stopped_at(MEDIAN, 4, [reported(other) for other in past], losses) == by_hand()


@given(st.lists(st.lists(st.integers(0, 10), min_size=8, max_size=8), min_size=1, max_size=7))
@settings(max_examples=50, deadline=None)
def test_successive_halving_lets_the_better_half_pass_each_rung(curves):
    finished: list[FrozenTrial] = []
    for losses in curves:
        expected = None
        for rung in (2, 4):  # a quarter of 8 evaluations, then twice that; the rung at 8 is the end
            rivals = sorted([*(t.intermediate_values[rung] for t in finished if t.last_step >= rung), losses[rung - 1]])
            if losses[rung - 1] > rivals[max(1, len(rivals) // 2) - 1]:
                expected = rung
                break
        stopped = stopped_at(HALVING, 8, finished, losses)
        assert stopped == expected
        finished.append(reported(losses[:stopped], state=TrialState.PRUNED) if stopped else reported(losses))


@PRUNERS
@pytest.mark.parametrize(("fraction", "evals", "first"), [(0.3, 20, 6), (0.55, 20, 11), (0.3, 3, 1), (0.0, 4, 1)])
def test_no_trial_is_stopped_before_its_share_of_the_evaluations(
    pruner: Pruner, fraction: float, evals: int, first: int
):
    finished = [reported([1.0] * evals) for _ in range(3)]
    late = pruner.model_copy(update={"from_fraction": fraction})
    assert stopped_at(late, evals, finished, [9.0] * evals) == first


@PRUNERS
def test_a_trial_is_never_stopped_at_its_last_evaluation(pruner: Pruner):
    finished = [reported([1.0] * 4) for _ in range(3)]
    trial_pruner = TrialPruner(pruner, 4)
    assert trial_pruner.stops(finished, {1: 9.0, 2: 9.0})
    assert not trial_pruner.stops(finished, {1: 9.0, 2: 9.0, 3: 9.0, 4: 9.0})


def test_the_startup_trials_of_median_are_never_stopped():
    startup = [stopped_at(MEDIAN, 4, [reported([1.0] * 4)] * count, [9.0] * 4) for count in range(5)]
    assert startup == [None, None, None, 2, 2]


@pytest.mark.parametrize("parallel", [1, 7])
@pytest.mark.parametrize(
    ("pruner", "theirs", "first"),
    [
        (MEDIAN, optuna.pruners.MedianPruner(n_startup_trials=3), 5),
        (HALVING, optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=2), 3),
    ],
    ids=["median", "halving"],
)
def test_150_trials_are_stopped_where_optuna_stops_them(
    pruner: Pruner, theirs: optuna.pruners.BasePruner, first: int, parallel: int
):
    chance, evals = np.random.default_rng(0), 9
    ours, told, ended = TrialPruner(pruner, evals), optuna.create_study(pruner=theirs), list[list[float]]()
    stops: list[int] = []
    for number in range(150):
        if number >= parallel:  # one more trial is known, which Optuna's study runs itself
            told.tell(*run_by_optuna(told, ended[number - parallel], first), state=TrialState.COMPLETE)
        known = [reported(losses) for losses in ended[: max(0, number - parallel + 1)]]
        view = optuna.create_study(pruner=theirs)
        view.add_trials(told.trials)
        losses = (3 + chance.random() + chance.normal(0, 0.2, evals)).tolist()
        trial, done = view.ask(), 0
        for done, loss in enumerate(losses[:-1], start=1):
            trial.report(loss, done)
            stopped = done >= first and trial.should_prune()
            assert ours.stops(known, dict(enumerate(losses[:done], start=1))) == stopped
            if stopped:
                stops.append(done)
                break
        ended.append(losses)
    assert 25 < len(stops) < 125
    assert len(set(stops)) > 1


def run_by_optuna(study: optuna.Study, losses: Sequence[float], first: int) -> tuple[optuna.Trial, float]:
    """A trial with these losses, of which Optuna notes the rungs that it passed."""
    trial = study.ask()
    for done, loss in enumerate(losses, start=1):
        trial.report(loss, done)
        if done >= first:
            trial.should_prune()
    return trial, losses[-1]


def test_a_decision_takes_milliseconds_after_many_trials():
    # 2,000 finished trials took 26 ms a decision with each added to a new study, and take 1 ms; at 20,000 280 and 10.
    finished = [reported([5.0, 4.0, 3.0, number / 1000]) for number in range(2000)]
    pruner = TrialPruner(MEDIAN, 4)
    pruner.stops(finished, {2: 3.5})
    before = time.process_time()
    for _ in range(20):
        pruner.stops(finished, {2: 3.5})
    assert time.process_time() - before < 20 * 0.010


# Which trials and reports a decision uses


def test_the_pruner_ignores_trials_that_had_not_ended_when_the_trial_was_asked(tmp_path: Path):
    study = toy_study(parallel=3, evals=4, pruner=MEDIAN.model_copy(update={"startup": 1}))
    search = Search(study, tmp_path / "journal")
    for number, loss in enumerate((3.0, 8.0, 8.0)):
        search.ask()
        for eval_index in (1, 2, 3, 4):
            search.report(number, eval_index, loss)
    search.tell(0, result(val_loss=3.0))
    search.ask()
    search.report(3, 1, 5.0)
    search.report(3, 2, 5.0)
    assert search.should_stop(3, 2)  # worse than trial 0, the only one that had ended
    search.tell(1, result(val_loss=8.0))
    search.tell(2, result(val_loss=8.0))
    assert search.should_stop(3, 2)  # although the median of all trials is now 8
    assert not search.should_stop(2, 2)  # asked before any trial had ended


def test_reports_of_an_interrupted_attempt_do_not_count_before_they_are_reached_again(tmp_path: Path):
    study = toy_study(parallel=1, evals=4, pruner=MEDIAN.model_copy(update={"startup": 1, "from_fraction": 0.25}))
    search = Search(study, tmp_path / "journal")
    search.ask()
    for eval_index in (1, 2, 3, 4):
        search.report(0, eval_index, 5.0)
    search.tell(0, result(val_loss=5.0))
    search.ask()
    for eval_index, loss in ((1, 9.0), (2, 4.0)):
        search.report(1, eval_index, loss)
    assert search.should_stop(1, 1)  # 9 is worse than 5, although the loss fell later
    assert not search.should_stop(1, 2)  # the best so far is 4


def test_a_trial_that_ran_out_of_memory_is_no_rival_of_a_later_one(tmp_path: Path):
    pruner = MEDIAN.model_copy(update={"startup": 1})
    search = Search(toy_study(parallel=1, evals=4, pruner=pruner), tmp_path / "journal")
    for end in (Outcome.OUT_OF_MEMORY, Outcome.COMPLETE):
        number = search.ask().number
        for eval_index in (1, 2, 3):
            search.report(number, eval_index, 3.0 + number)
        assert not search.should_stop(number, 3)
        search.tell(number, result(end, 4.0))
    search.ask()
    search.report(2, 3, 4.5)
    assert search.should_stop(2, 3)  # worse than trial 1


def test_a_reported_loss_is_bounded_and_only_its_first_report_counts(tmp_path: Path):
    search = Search(toy_study(pruner=MEDIAN), tmp_path / "journal")
    search.ask()
    search.report(0, 1, math.inf)
    search.report(0, 2, 4.0)
    search.report(0, 2, 5.0)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    (trial,) = optuna.load_study(study_name="toy", storage=storage).trials
    assert trial.intermediate_values == {1: math.log(VOCAB), 2: 4.0}


def test_a_pruner_needs_the_loss_as_the_only_objective(tmp_path: Path):
    with pytest.raises(AssertionError, match="a pruner needs val/loss as the only objective"):
        Search(toy_study(pruner=MEDIAN, metrics=(LOSS, SPEED)), tmp_path / "journal")
