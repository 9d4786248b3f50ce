"""What each sampler proposes: the baseline first, in range, independent of timing, as Optuna alone would."""

from __future__ import annotations

import itertools
import math
import resource
import time
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.stats import qmc

from hpstudy.records import Outcome
from hpstudy.search import Search, objective_values, sampling
from hpstudy.search.space import decode, distributions, encode
from hpstudy.study import Choices, FloatRange, OrderedChoices, Pruner, Value
from hpstudy.study.schema import MetricName, SamplerName
from tests.helpers.search import (
    BASELINE,
    GRID,
    GRID_BASELINE,
    HALVING,
    LOSS,
    MEDIAN,
    NO_PRUNER,
    SPACE,
    SPEED,
    STARTUP,
    End,
    drive,
    result,
    tell_all,
    tight_result,
    toy_result,
    toy_study,
)

SAMPLERS = pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "grid"])
WITHOUT_GRID = pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
OBJECTIVES = pytest.mark.parametrize("metrics", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])

# What every sampler does


@SAMPLERS
@OBJECTIVES
def test_a_rehearsed_proposal_changes_none(sampler: SamplerName, metrics: tuple[MetricName, ...], tmp_path: Path):
    study = toy_study(sampler, parallel=2, trials=7, metrics=metrics)
    expected = drive(study, tmp_path / "expected", Random(0))
    search = Search(study, tmp_path / "rehearsed")
    sampling.rehearse(study)
    assert search.num_asked == 0
    assert drive(study, tmp_path / "rehearsed", Random(0)) == expected


@SAMPLERS
def test_every_sampler_begins_with_the_baseline_and_stays_in_range(sampler: SamplerName, tmp_path: Path):
    study = toy_study(sampler, parallel=2, trials=6)
    trials = drive(study, tmp_path / "journal", Random(0))
    assert [trial.number for trial in trials] == list(range(6))
    assert trials[0].values == (GRID_BASELINE if sampler == "grid" else BASELINE)
    for trial in trials:
        assert list(trial.values) == list(study.space)
        assert all(study.space[key].contains(value) for key, value in trial.values.items())
    assert len({tuple(trial.values.items()) for trial in trials}) == 6


@pytest.mark.parametrize("parallel", [1, 4])
@SAMPLERS
def test_trials_do_not_depend_on_timing(sampler: SamplerName, parallel: int, tmp_path: Path):
    study = toy_study(sampler, parallel=parallel, trials=8)
    searches = [drive(study, tmp_path / f"journal-{order}", Random(order)) for order in range(2)]
    assert searches[0] == searches[1]


@pytest.mark.parametrize("pruner", [MEDIAN, HALVING], ids=lambda pruner: pruner.name)
def test_pruned_trials_do_not_depend_on_timing(pruner, tmp_path: Path):
    study = toy_study("tpe", parallel=3, evals=6, pruner=pruner)
    searches = [drive(study, tmp_path / f"journal-{order}", Random(order)) for order in range(4)]
    assert searches[0] == searches[1] == searches[2] == searches[3]
    assert {trial.state for trial in searches[0]} >= {"complete", "pruned"}


@WITHOUT_GRID
def test_a_sequential_search_proposes_what_optuna_alone_would(sampler: SamplerName, tmp_path: Path):
    study = replace(toy_study(sampler, trials=6), format=3)
    reference = optuna.create_study(directions=["minimize"])
    reference.enqueue_trial(encode(SPACE, BASELINE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sobol = optuna.samplers.QMCSampler(scramble=True, seed=0)
    for number in range(6):
        seed = int(np.random.SeedSequence([0, number]).generate_state(1)[0])
        reference.sampler = {
            "tpe": lambda seed: optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed),
            "gp": lambda seed: optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=seed),
            "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
            "qmc": lambda _: sobol,
        }[sampler](seed)
        trial = reference.ask(distributions(SPACE))
        values = objective_values(study, toy_result(decode(SPACE, trial.params)))
        reference.tell(trial, values, state=None if values else TrialState.FAIL)
    trials = drive(study, tmp_path / "journal", Random(0))
    assert [trial.values for trial in trials] == [decode(SPACE, trial.params) for trial in reference.trials]


@pytest.mark.parametrize("ends", [toy_result, tight_result])
@pytest.mark.parametrize(("metrics", "pruner"), [((LOSS,), MEDIAN), ((LOSS, SPEED), NO_PRUNER)], ids=["loss", "front"])
def test_250_proposals_of_tpe_are_bitwise_those_of_optunas_own(
    metrics: tuple[MetricName, ...], pruner: Pruner, ends: End, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = replace(toy_study("tpe", parallel=4, trials=250, metrics=metrics, pruner=pruner), format=3)
    trials = drive(study, tmp_path / "ours", Random(0), ends)
    monkeypatch.setattr(sampling, "_Tpe", optuna.samplers.TPESampler)
    assert drive(study, tmp_path / "theirs", Random(1), ends) == trials
    assert len({trial.state for trial in trials}) > 1


@WITHOUT_GRID
def test_another_sampler_seed_gives_other_trials(sampler: SamplerName, tmp_path: Path):
    one, other = (drive(toy_study(sampler, trials=6, seed=s), tmp_path / f"{s}", Random(0)) for s in (0, 1))
    assert one[0].values == other[0].values
    assert all(mine.values != yours.values for mine, yours in zip(one[1:], other[1:], strict=True))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_search_of_two_objectives_does_not_depend_on_timing(sampler: SamplerName, tmp_path: Path):
    study = toy_study(sampler, parallel=2, trials=6, metrics=(LOSS, SPEED))
    trials = drive(study, tmp_path / "journal", Random(0))
    assert trials == drive(study, tmp_path / "other", Random(1))
    assert all(len(trial.objectives) == 2 for trial in trials if trial.state == "complete")


def test_tpe_learns_where_losses_are_low(tmp_path: Path):
    # The mean loss of the last 12 of 60 trials, over 3 sampler seeds. It is deterministic, so it cannot fail by chance.
    def late_loss(sampler: SamplerName) -> float:
        late: list[float] = []
        for seed in range(3):
            study = toy_study(sampler, trials=60, seed=seed)
            search = Search(study, tmp_path / f"{sampler}-{seed}")
            while (proposal := search.ask()) is not None:
                search.tell(proposal.number, toy_result(proposal.values))
            late += [trial.objectives[0] for trial in search.trials()[48:] if trial.objectives]
        return float(np.mean(late))

    assert late_loss("tpe") < late_loss("random") - 1


# Proposals without a sampler


def test_a_grid_visits_every_point_once_and_then_ends(tmp_path: Path):
    search = Search(toy_study("grid", trials=100), tmp_path / "journal")
    tell_all(search, range(12))
    assert search.ask() is None
    assert search.num_trials == 12
    visited = [tuple(trial.values.values()) for trial in search.trials()]
    points = list(itertools.product(*(dimension.values for dimension in GRID.values())))
    assert visited == [(4, 1e-8, "global")] + [point for point in points if point != (4, 1e-8, "global")]
    assert [type(value) for value in visited[0]] == [int, float, str]


def test_a_baseline_outside_the_space_is_no_trial(tmp_path: Path):
    space = {"lr": FloatRange(low=1e-3, high=6e-3, scale="log")}
    proposal = Search(toy_study("random", space=space), tmp_path / "journal").ask()
    assert 1e-3 <= proposal.values["lr"] <= 6e-3


def test_an_empty_space_has_one_trial(tmp_path: Path):
    study = replace(toy_study(trials=1), space={})
    search = Search(study, tmp_path / "journal", trials=5)
    assert search.ask().values == {}
    search.tell(0, result())
    assert search.ask() is None


# Since format 4


def test_the_first_trials_after_the_baseline_are_a_sobol_sequence(tmp_path: Path):
    # startup = 3 results, of which the baseline has one; with parallel = 2, trial 4 is the first that knows three.
    study = toy_study("tpe", parallel=2, trials=5, space={"lr": SPACE["lr"], "weight_decay": SPACE["weight_decay"]})
    search = Search(study, tmp_path / "journal")
    proposals = [search.ask(), search.ask()]
    for number in range(3):
        search.tell(number, result())
        proposals.append(search.ask())
    points = qmc.Sobol(2, scramble=True, seed=0).random(4)[1:]
    for point, proposal in zip(points, proposals[1:4], strict=True):
        lr = math.exp(math.log(1e-4) + point[0] * math.log(60))  # 1e-4 to 6e-3
        assert list(proposal.values.values()) == pytest.approx([lr, point[1] / 2])


@OBJECTIVES
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_trials_have_the_values_that_are_best_in_a_list_of_numbers(
    sampler: SamplerName, metrics: tuple[MetricName, ...], tmp_path: Path
):
    space = {"eps": OrderedChoices(values=(1e-5, 1e-6, 1e-7, 1e-8, 1e-9)), "micro_batch": OrderedChoices(values=(2, 4))}
    study = toy_study(sampler, parallel=2, trials=10, metrics=metrics, space=space)
    trials = drive(study, tmp_path / "journal", Random(0), tight_result)
    assert trials == drive(study, tmp_path / "other", Random(1), tight_result)
    assert trials[0].values == {"eps": 1e-8, "micro_batch": 4}
    assert {type(trial.values["micro_batch"]) for trial in trials} == {int}
    assert {trial.values["eps"] for trial in trials} <= {1e-5, 1e-6, 1e-7, 1e-8, 1e-9}


@pytest.mark.parametrize("metrics", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])
def test_tpe_that_remembers_all_trials_proposes_what_optunas_own_would(metrics: tuple[MetricName, ...], tmp_path: Path):
    study = toy_study("tpe", trials=40, metrics=metrics)
    reference = optuna.create_study(directions=study.directions)
    trials = drive(study, tmp_path / "journal", Random(0), tight_result)
    for trial in trials:
        if trial.number > 9:
            seed = int(np.random.SeedSequence([0, trial.number]).generate_state(1)[0])
            reference.sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=seed)
            assert decode(SPACE, reference.ask(distributions(SPACE)).params) == trial.values
        else:
            reference.enqueue_trial(encode(SPACE, trial.values))
            reference.ask(distributions(SPACE))
        end, again = tight_result(trial.values), optuna.Trial(reference, trial.number)
        if end.outcome is Outcome.OUT_OF_MEMORY:
            again.set_constraint(sampling.MEMORY, sampling.EXCEEDS)
        values = objective_values(study, end)
        reference.tell(again, values, state=None if values else TrialState.FAIL)
    assert {trial.state for trial in trials} >= {"complete", "infeasible"}


def test_the_best_and_the_latest_trials_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "REMEMBERED", 3)
    seen: list[list[int]] = []
    propose = sampling._View.ask

    def ask(view, space):
        seen.append([trial.number - 1 for trial in view._shown if trial.state is not TrialState.RUNNING])
        return propose(view, space)

    monkeypatch.setattr(sampling._View, "ask", ask)
    losses = [5.0, 2.0, 9.0, 1.0, 8.0, 3.0, 7.0, 6.0, 4.0]
    search = Search(toy_study("tpe", trials=10), tmp_path / "journal")
    tell_all(search, losses)
    search.ask()
    assert seen[-1] == [1, 3, 5, 6, 7, 8]  # losses 2, 1 and 3, and the last three
    reopened = Search(toy_study("tpe", trials=11), tmp_path / "journal")
    reopened.tell(9, result(val_loss=5.5))
    reopened.ask()
    assert seen[-1] == [1, 3, 5, 7, 8, 9]


def test_gp_is_tpe_after_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "GP_TRIALS", 6)
    by_gp, by_tpe = (drive(toy_study(name, trials=7), tmp_path / name, Random(0)) for name in ("gp", "tpe"))
    known = Search(toy_study("tpe", trials=7), tmp_path / "known")
    for trial in by_gp[:6]:
        monkeypatch.setattr(known, "_first", dict(enumerate(trial.values for trial in by_gp[:6])))
        proposal = known.ask()
        known.tell(proposal.number, toy_result(proposal.values))
    assert known.ask().values == by_gp[6].values != by_tpe[6].values


# Out of memory


@OBJECTIVES
def test_tpe_avoids_micro_batches_that_run_out_of_memory(metrics: tuple[MetricName, ...], tmp_path: Path):
    # Proposals of 16 and 32 among the last 16 of 32, over 3 sampler seeds. It is deterministic: no chance failures.
    space = {
        "micro_batch": Choices(values=(2, 4, 8, 16, 32)),
        "weight_decay": FloatRange(low=0.0, high=0.4, scale="linear"),
    }

    def num_too_large(outcome: Outcome) -> int:
        """How many late proposals do not fit, if those that do not fit end with this outcome."""
        count = 0
        for seed in range(3):
            study = toy_study(trials=32, seed=seed, space=space, metrics=metrics)
            search = Search(study, tmp_path / f"{outcome}-{seed}")
            while (proposal := search.ask()) is not None:
                fits = tight_result(proposal.values).outcome is not Outcome.OUT_OF_MEMORY
                count += not fits and proposal.number >= 16
                search.tell(proposal.number, tight_result(proposal.values) if fits else result(outcome, None, None))
        return count

    assert num_too_large(Outcome.OUT_OF_MEMORY) < num_too_large(Outcome.FAILED) / 2


@OBJECTIVES
def test_gp_models_out_of_memory_and_its_trials_do_not_depend_on_timing(
    metrics: tuple[MetricName, ...], tmp_path: Path
):
    study = toy_study("gp", parallel=2, trials=8, evals=1, metrics=metrics)
    trials = drive(study, tmp_path / "one", Random(0), tight_result)
    assert {trial.state for trial in trials[:6]} >= {"complete", "infeasible"}  # the last proposals depend on both
    assert drive(study, tmp_path / "other", Random(1), tight_result) == trials


# Load


def cpu_seconds_of_asking(sampler: SamplerName, trials: int, journal: Path) -> list[float]:
    """The processor time of each proposal in a search whose trials end at once."""
    search, seconds = Search(toy_study(sampler, parallel=4, trials=trials), journal), []
    while search.num_asked < trials:
        before = time.process_time()
        proposal = search.ask()
        if proposal is None:
            oldest = search.pending()[0]
            search.tell(oldest.number, toy_result(oldest.values))
        else:
            seconds.append(time.process_time() - before)
    return seconds


def test_a_proposal_takes_no_longer_after_many_trials(tmp_path: Path):
    # Random search learns nothing, so any growth is in hpstudy. The ratio was 1.2, and 6 with a new view each time.
    seconds = cpu_seconds_of_asking("random", 200, tmp_path / "journal")
    assert np.median(seconds[-40:]) < 3 * np.median(seconds[4:44])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_of_1000_trials_stays_small_and_fast(sampler: SamplerName, tmp_path: Path):
    # Measured on two shared cores: 3, 9 and 10 ms of CPU at trial 2,000; a journal of 2.2 MB; 0.6 s to open it again.
    journal, before = tmp_path / "journal", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = cpu_seconds_of_asking(sampler, 1000, journal)
    assert np.median(seconds[-40:]) < 0.1
    assert sum(seconds) < 100
    assert journal.stat().st_size < 2e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    started = time.process_time()
    assert Search(toy_study(sampler, parallel=4, trials=1000), journal).num_asked == 1000
    assert time.process_time() - started < 10


def test_no_point_of_a_small_space_is_tried_twice_before_all_are_tried(tmp_path: Path):
    space = {"lr": OrderedChoices(values=(1e-3, 2e-3, 4e-3)), "clip_mode": Choices(values=("global", "none"))}
    search = Search(toy_study("gp", trials=8, space=space), tmp_path / "journal")
    tried = []
    while (proposal := search.ask()) is not None or search.pending():
        if proposal is None:
            oldest = search.pending()[0]
            search.tell(oldest.number, result(val_loss=3.0 + oldest.values["lr"]))
        else:
            tried.append(tuple(proposal.values.values()))
    assert len(tried) == 8
    assert len(set(tried[:6])) == 6


def test_the_sampler_sees_a_stopped_trial_by_its_last_loss(tmp_path: Path):
    """GP reads complete trials only, so that a stopped one would be proposed again and again."""

    def after(loss: float) -> dict[str, Value]:
        search = Search(toy_study("gp", trials=12), tmp_path / f"{loss}")
        for number in range(10):
            proposal = search.ask()
            if number == 8:
                search.report(number, 1, loss)
                search.tell(number, result(Outcome.PRUNED, loss))
            else:
                search.tell(number, toy_result(proposal.values))
        return search.ask().values

    assert after(2.0) != after(8.0)
