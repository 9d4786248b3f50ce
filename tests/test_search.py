from __future__ import annotations

import itertools
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState, create_trial

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, RunResult
from hpstudy.search import Search, TrialView, objective_values
from hpstudy.search.pruning import Judge
from hpstudy.search.space import decode, distributions, encode
from hpstudy.spec import PRESETS, TrainerSpec
from hpstudy.study import Budget, Choices, Confirm, FloatRange, Objective, Pruner, Sampler, Study

VOCAB = 50257
LOSS = Objective(metric="val/loss", direction="minimize")
SPEED = Objective(metric="train/tok_per_sec", direction="maximize")
NO_PRUNER = Pruner(name="none", startup=5, from_fraction=0.3, reduction=4)
MEDIAN = Pruner(name="median", startup=3, from_fraction=0.5, reduction=4)
HALVING = Pruner(name="successive_halving", startup=0, from_fraction=0.25, reduction=2)
STARTUP = 3
SAMPLERS = ("tpe", "gp", "random", "qmc", "grid")
SPACE = {
    "lr": FloatRange(low=1e-4, high=6e-3, scale="log"),
    "beta1": FloatRange(low=0.8, high=0.98, scale="log1m"),
    "weight_decay": FloatRange(low=0.0, high=0.5, scale="linear"),
    "clip_mode": Choices(values=("per_tensor", "global", "none")),
}
GRID = {
    "micro_batch": Choices(values=(2, 4, 8)),
    "eps": Choices(values=(1e-6, 1e-8)),
    "clip_mode": Choices(values=("none", "global")),
}
BASELINE = {"lr": 6e-4, "beta1": 0.9, "weight_decay": 0.1, "clip_mode": "global"}
GRID_BASELINE = {"micro_batch": 4, "eps": 1e-8, "clip_mode": "global"}


def toy_study(
    sampler="tpe", *, parallel=1, trials=12, evals=3, pruner=NO_PRUNER, objectives=(LOSS,), seed=0, space=None
):
    return Study(
        name="toy",
        path=Path("studies/toy.toml"),
        question="Does the search hold?",
        baseline_name="gpt3",
        overrides={"micro_batch": 4},
        hparams={"batch_tokens": 4096} | ({} if sampler == "grid" else {"micro_batch": 4}),
        spec=TrainerSpec(
            model=PRESETS["gpt-2x64"],
            corpus="asv",
            tokenizer="gpt2",
            context=128,
            tokens=1_000_000,
            seconds=None,
            evals=evals,
            val_tokens=4096,
            seed=0,
            threads=1,
            precision="fp32",
            ramp_multiple=8,
        ),
        space=space or (GRID if sampler == "grid" else SPACE),
        objectives=objectives,
        budget=Budget(
            trials=trials,
            parallel=parallel,
            pack=1,
            sampler=Sampler(name=sampler, startup=STARTUP, seed=seed),
            pruner=pruner,
        ),
        confirm=Confirm(seeds=(101, 102), top=1, margin=0.01, design="paired"),
        vocab_size=VOCAB,
        project="hpstudy",
        entity=None,
        warnings=(),
    )


def result(outcome=Outcome.COMPLETE, val_loss: float | None = 3.0, tok_per_sec: float | None = 1000.0) -> RunResult:
    return RunResult(
        outcome=outcome,
        steps=100,
        tokens=100_000,
        val_loss=val_loss,
        best_val_loss=val_loss,
        train_loss=val_loss,
        tok_per_sec=tok_per_sec,
        train_seconds=1.0,
        clipped_share=0.0,
    )


def toy_result(values) -> RunResult:
    """A bowl with every way a run can end: a high lr diverges, a high weight decay fails."""
    if values.get("lr", 0) > 4e-3:
        return result(Outcome.DIVERGED, math.nan)
    if values.get("weight_decay", 0) > 0.45:
        return result(Outcome.FAILED, None)
    loss = 3 + math.log(values.get("lr", 1e-3) / 1e-3) ** 2 + (values.get("beta1", 0.95) - 0.95) ** 2
    loss += values.get("weight_decay", 0) + len(values["clip_mode"]) / 10 + values.get("micro_batch", 0) / 100
    return result(val_loss=loss, tok_per_sec=1000 * len(values["clip_mode"]) + values.get("lr", 0))


def drive(study: Study, journal: Path, chance: Random, ends=toy_result) -> list[TrialView]:
    """A whole search whose workers report and end in an order left to chance; resumes what is there."""
    search = Search(study, journal)
    evals: dict[int, int] = {}
    results: dict[int, RunResult] = {}
    while True:
        if chance.random() < 0.5:
            search.ask()
        pending = search.pending()
        if not pending and search.ask() is None:
            return search.trials()
        if pending and pending[0].number in results and chance.random() < 0.5:
            search.tell(pending[0].number, results[pending[0].number])
        elif pending:
            proposal = chance.choice(pending)
            if proposal.number in results:
                continue
            end = ends(proposal.values)
            evals[proposal.number] = done = evals.get(proposal.number, 0) + 1
            search.report(proposal.number, done, (end.val_loss or 9.0) + 1 - done / study.spec.evals)
            if search.should_stop(proposal.number, done):
                results[proposal.number] = replace(end, outcome=Outcome.PRUNED)
            elif done == study.spec.evals:
                results[proposal.number] = end


def tight_result(values) -> RunResult:
    """On a device whose memory does not hold the two largest micro-batches, or what a high lr stands for here."""
    if values.get("micro_batch", 0) >= 16 or values.get("lr", 0) > 2e-3:
        return result(Outcome.OUT_OF_MEMORY, None, None)
    return toy_result({"clip_mode": "none"} | values)


def tell_all(search: Search, losses) -> None:
    for loss in losses:
        proposal = search.ask()
        search.tell(proposal.number, result(val_loss=loss))


# -- what every sampler does ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_begins_with_the_baseline_and_stays_in_range(sampler, tmp_path):
    study = toy_study(sampler, parallel=2, trials=6)
    trials = drive(study, tmp_path / "journal", Random(0))
    assert [trial.number for trial in trials] == list(range(6))
    assert trials[0].values == (GRID_BASELINE if sampler == "grid" else BASELINE)
    for trial in trials:
        assert list(trial.values) == list(study.space)
        assert all(study.space[key].contains(value) for key, value in trial.values.items())
    assert len({tuple(trial.values.items()) for trial in trials}) == 6


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_do_not_depend_on_timing(sampler, parallel, tmp_path):
    study = toy_study(sampler, parallel=parallel, trials=8)
    runs = [drive(study, tmp_path / f"journal-{order}", Random(order)) for order in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("pruner", [MEDIAN, HALVING], ids=lambda pruner: pruner.name)
def test_pruned_trials_do_not_depend_on_timing(pruner, tmp_path):
    study = toy_study("tpe", parallel=3, evals=6, pruner=pruner)
    runs = [drive(study, tmp_path / f"journal-{order}", Random(order)) for order in range(4)]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert {trial.state for trial in runs[0]} >= {"complete", "pruned"}


class Killed(BaseException):
    pass


def kill_writes(monkeypatch, journal: Path) -> None:
    """Lets each process write one event and dies at the second: unwritten, cut short, or written; its lock stays."""
    append, calls = JournalFileBackend.append_logs, itertools.count(1)

    def append_or_die(backend, logs):
        call = next(calls)
        if call % 2 == 1:
            append(backend, logs)
            return
        if call % 3 == 0:
            append(backend, logs)
        elif call % 3 == 1:
            with journal.open("ab") as file:
                file.write(b'{"op_code": 4, "worker_i')
        journal.with_name(f"{journal.name}.lock").symlink_to(journal)
        raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_or_die)


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_killed_at_every_write_has_the_trials_of_an_uninterrupted_one(
    sampler, parallel, tmp_path, monkeypatch
):
    study = toy_study(sampler, parallel=parallel, trials=8, evals=2, pruner=replace(MEDIAN, startup=2))
    expected = drive(study, tmp_path / "uninterrupted", Random(0))
    journal = tmp_path / "journal"
    kill_writes(monkeypatch, journal)
    kills = 0
    while True:
        try:
            resumed = drive(study, journal, Random(kills))
            break
        except Killed:
            kills += 1
    assert resumed == expected
    assert kills >= 16


def test_a_search_killed_by_the_system_has_the_trials_of_an_uninterrupted_one(tmp_path):
    journal, chance, survivors = tmp_path / "journal", Random(0), 0
    for target in (1, 9, 20, 33, 50):
        process = subprocess.Popen([sys.executable, __file__, journal, str(target)])
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < target):
            time.sleep(0.001)
        time.sleep(chance.random() / 200)
        survivors += process.poll() is not None
        process.kill()
        process.wait()
    assert survivors < 3  # most of them died at work
    started = time.monotonic()
    last = subprocess.run([sys.executable, __file__, journal, "0"], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 15  # a dead process's lock holds nobody up for Optuna's 30 seconds
    assert last.stdout + last.stderr == ""  # Optuna's own words stay out of the user's terminal
    resumed = Search(toy_study("tpe", parallel=4), journal).trials()
    assert resumed == drive(toy_study("tpe", parallel=4), tmp_path / "uninterrupted", Random(7))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_sequential_search_proposes_what_optuna_alone_would(sampler, tmp_path):
    study = toy_study(sampler, trials=6)
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


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_another_sampler_seed_gives_other_trials(sampler, tmp_path):
    one, other = (drive(toy_study(sampler, trials=6, seed=s), tmp_path / f"{s}", Random(0)) for s in (0, 1))
    assert one[0].values == other[0].values
    assert all(mine.values != yours.values for mine, yours in zip(one[1:], other[1:], strict=True))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_two_objectives_are_searched_and_resumed(sampler, tmp_path):
    study = toy_study(sampler, parallel=2, trials=6, objectives=(LOSS, SPEED))
    trials = drive(study, tmp_path / "journal", Random(0))
    assert trials == drive(study, tmp_path / "other", Random(1))
    assert all(len(trial.objectives) == 2 for trial in trials if trial.state == "complete")


def test_tpe_learns_where_the_losses_are_low(tmp_path):
    # the mean loss of the last 12 of 30 trials, over 3 sampler seeds: deterministic, so there is no false alarm
    def late_loss(sampler):
        late = []
        for seed in range(3):
            search = Search(toy_study(sampler, trials=30, seed=seed), tmp_path / f"{sampler}-{seed}")
            while (proposal := search.ask()) is not None:
                search.tell(proposal.number, toy_result(proposal.values))
            late += [trial.objectives[0] for trial in search.trials()[18:] if trial.objectives]
        return np.mean(late)

    assert late_loss("tpe") < late_loss("random") - 1


# -- asking and telling -----------------------------------------------------------------------------------------------


def test_a_trial_is_asked_only_when_the_one_parallel_before_it_is_told(tmp_path):
    search = Search(toy_study(parallel=3, trials=5), tmp_path / "journal")
    assert [search.ask().number for _ in range(3)] == [0, 1, 2]
    assert search.ask() is None
    search.tell(0, result())
    assert search.ask().number == 3
    assert search.ask() is None
    search.tell(1, result())
    search.tell(2, result())
    assert search.ask().number == 4
    assert search.ask() is None  # the budget is spent
    assert [proposal.number for proposal in search.pending()] == [3, 4]
    assert search.num_asked == search.num_trials == 5


def test_results_are_told_in_order_and_once(tmp_path):
    search = Search(toy_study(parallel=3), tmp_path / "journal")
    for _ in range(3):
        search.ask()
    with pytest.raises(AssertionError, match="trial 0 must be told next, but got 1"):
        search.tell(1, result())
    search.tell(0, result())
    with pytest.raises(AssertionError, match="trial 1 must be told next, but got 0"):
        search.tell(0, result())


def test_a_pending_trial_keeps_its_number_and_its_values(tmp_path):
    search = Search(toy_study(parallel=2), tmp_path / "journal")
    asked = [search.ask(), search.ask()]
    assert Search(toy_study(parallel=2), tmp_path / "journal").pending() == asked


def test_more_trials_extend_a_finished_search_as_if_it_had_asked_for_them_at_once(tmp_path):
    study = toy_study(trials=6)
    drive(study, tmp_path / "journal", Random(0))
    extended = Search(study, tmp_path / "journal", trials=8)
    while (proposal := extended.ask()) is not None:
        extended.tell(proposal.number, toy_result(proposal.values))
    assert extended.trials() == drive(toy_study(trials=8), tmp_path / "at-once", Random(0))


def test_a_grid_visits_every_point_once_and_then_ends(tmp_path):
    search = Search(toy_study("grid", trials=100), tmp_path / "journal")
    tell_all(search, range(12))
    assert search.ask() is None
    assert search.num_trials == 12
    visited = [tuple(trial.values.values()) for trial in search.trials()]
    points = list(itertools.product(*(dimension.values for dimension in GRID.values())))
    assert visited == [(4, 1e-8, "global")] + [point for point in points if point != (4, 1e-8, "global")]
    assert [type(value) for value in visited[0]] == [int, float, str]


def test_a_baseline_outside_the_space_is_no_trial(tmp_path):
    space = {"lr": FloatRange(low=1e-3, high=6e-3, scale="log")}
    proposal = Search(toy_study("random", space=space), tmp_path / "journal").ask()
    assert 1e-3 <= proposal.values["lr"] <= 6e-3


def test_an_empty_space_has_one_trial(tmp_path):
    study = replace(toy_study(trials=1), space={})
    search = Search(study, tmp_path / "journal", trials=5)
    assert search.ask().values == {}
    search.tell(0, result())
    assert search.ask() is None


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (result(), (3.0,)),
        (result(val_loss=40.0), (math.log(VOCAB),)),
        (result(Outcome.DIVERGED, math.nan), (math.log(VOCAB),)),
        (result(Outcome.DIVERGED, 5.0), (math.log(VOCAB),)),  # fell apart after its last evaluation
        (result(Outcome.DIVERGED, None, None), (math.log(VOCAB),)),
        (result(Outcome.PRUNED), None),
        (result(Outcome.FAILED), None),
        (result(Outcome.OUT_OF_MEMORY, None, None), (math.log(VOCAB),)),
        (result(Outcome.OUT_OF_MEMORY, 5.0), (math.log(VOCAB),)),
    ],
)
def test_what_did_not_end_well_is_told_as_a_uniform_guess_and_no_loss_above_it(end, told):
    assert objective_values(toy_study(), end) == told


def test_two_objectives_are_told_in_the_order_of_the_study():
    assert objective_values(toy_study(objectives=(SPEED, LOSS)), result()) == (1000.0, 3.0)
    assert objective_values(toy_study(objectives=(LOSS, SPEED)), result(tok_per_sec=None)) is None
    out_of_memory = result(Outcome.OUT_OF_MEMORY)  # after some steps
    assert objective_values(toy_study(objectives=(SPEED, LOSS)), out_of_memory) == (0.0, math.log(VOCAB))


def test_how_a_run_ended_is_how_its_trial_ended(tmp_path):
    search = Search(toy_study(), tmp_path / "journal")
    for outcome in Outcome:
        search.tell(search.ask().number, result(outcome))
    assert {outcome: trial.state for outcome, trial in zip(Outcome, search.trials(), strict=True)} == {
        Outcome.COMPLETE: "complete",
        Outcome.PRUNED: "pruned",
        Outcome.DIVERGED: "complete",
        Outcome.OUT_OF_MEMORY: "infeasible",
        Outcome.FAILED: "failed",
    }
    assert [trial.objectives for trial in search.trials()] == [(3.0,), None, (math.log(VOCAB),), None, None]


def test_the_best_is_the_lowest_loss_and_the_earliest_of_equals(tmp_path):
    search = Search(toy_study(), tmp_path / "journal")
    assert search.best() is None
    tell_all(search, [4.0, 2.0, 3.0, 2.0])
    assert search.best().number == 1


def test_the_front_is_what_no_trial_beats_in_both_objectives(tmp_path):
    search = Search(toy_study("random", objectives=(LOSS, SPEED)), tmp_path / "journal")
    chance = Random(0)
    points = [(chance.randint(1, 6), chance.randint(1, 6)) for _ in range(12)]
    for loss, speed in points:
        search.tell(search.ask().number, result(val_loss=loss, tok_per_sec=speed))
    beaten = {(x, y) for x, y in points if any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)}
    assert [trial.number for trial in search.front()] == [n for n, point in enumerate(points) if point not in beaten]


# -- out of memory ----------------------------------------------------------------------------------------------------

MICRO_BATCHES = {
    "micro_batch": Choices(values=(2, 4, 8, 16, 32)),
    "weight_decay": FloatRange(low=0.0, high=0.4, scale="linear"),
}


@pytest.mark.parametrize("objectives", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])
def test_tpe_keeps_away_from_micro_batches_that_do_not_fit(objectives, tmp_path):
    # proposals of 16 and 32 among the last 16 of 32, over 3 sampler seeds: deterministic, so there is no false alarm
    def too_large(told_as):
        count = 0
        for seed in range(3):
            study = toy_study(trials=32, seed=seed, space=MICRO_BATCHES, objectives=objectives)
            search = Search(study, tmp_path / f"{told_as}-{seed}")
            while (proposal := search.ask()) is not None:
                fits = tight_result(proposal.values).outcome is not Outcome.OUT_OF_MEMORY
                count += not fits and proposal.number >= 16
                search.tell(proposal.number, tight_result(proposal.values) if fits else result(told_as, None, None))
        return count

    infeasible, failed = too_large(Outcome.OUT_OF_MEMORY), too_large(Outcome.FAILED)
    assert infeasible < failed / 2


@pytest.mark.parametrize("objectives", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])
def test_a_search_out_of_memory_and_killed_has_the_trials_of_an_uninterrupted_one(objectives, tmp_path, monkeypatch):
    study = toy_study(parallel=2, trials=8, evals=1, objectives=objectives)
    expected = drive(study, tmp_path / "uninterrupted", Random(0), tight_result)
    assert {trial.state for trial in expected} >= {"complete", "infeasible"}
    kill_writes(monkeypatch, tmp_path / "journal")
    for life in itertools.count(1):
        try:
            assert drive(study, tmp_path / "journal", Random(life), tight_result) == expected
            break
        except Killed:
            continue
    assert life > 8


@pytest.mark.parametrize("objectives", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])
def test_gp_models_the_constraint_and_its_trials_do_not_depend_on_timing(objectives, tmp_path):
    study = toy_study("gp", parallel=2, trials=6, evals=1, objectives=objectives)
    trials = drive(study, tmp_path / "one", Random(0), tight_result)
    assert {trial.state for trial in trials[:4]} >= {"complete", "infeasible"}  # known to the last proposals
    assert drive(study, tmp_path / "other", Random(1), tight_result) == trials


@pytest.mark.parametrize("objectives", [(LOSS,), (SPEED,), (LOSS, SPEED)], ids=["loss", "speed", "both"])
def test_a_trial_that_ran_out_of_memory_is_never_ranked(objectives, tmp_path):
    search = Search(toy_study("random", objectives=objectives), tmp_path / "journal")
    for end in (Outcome.OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
        search.tell(search.ask().number, result(end, None, 0.0))  # no worse in its values than a diverged one
        assert [trial.number for trial in search.front()] == ([1] if search.num_asked > 1 else [])
    if len(objectives) == 1:
        assert search.best().number == 1


def test_a_trial_that_ran_out_of_memory_is_no_rival_of_a_later_one(tmp_path):
    search = Search(toy_study(parallel=1, evals=4, pruner=replace(MEDIAN, startup=1)), tmp_path / "journal")
    for end in (Outcome.OUT_OF_MEMORY, Outcome.COMPLETE):
        number = search.ask().number
        for eval_index in (1, 2, 3):
            search.report(number, eval_index, 3.0 + number)
        assert not search.should_stop(number, 3)
        search.tell(number, result(end, 4.0))
    search.ask()
    search.report(2, 3, 4.5)
    assert search.should_stop(2, 3)  # worse than trial 1


# -- pruning ----------------------------------------------------------------------------------------------------------


def reported(losses, *, state=TrialState.COMPLETE):
    value = losses[-1] if state is TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=dict(enumerate(losses, start=1)))


def stopped_at(pruner, evals, told, losses) -> int | None:
    """The evaluation at which a trial of these losses is given up, asked after each of them."""
    running = [reported(losses[:done], state=TrialState.RUNNING) for done in range(1, len(losses) + 1)]
    judge = Judge(pruner, evals)
    return next((t.last_step for t in running if judge.stops(told, t.intermediate_values)), None)


@given(
    past=st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), max_size=6),
    losses=st.lists(st.floats(0, 10), min_size=4, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_median_gives_up_what_was_never_as_good_as_the_median(past, losses):
    def by_hand():
        for done in (2, 3):  # from half of 4 evaluations on, and never at the last
            if len(past) >= 3 and min(losses[:done]) > np.median([other[done - 1] for other in past]):
                return done
        return None

    assert stopped_at(MEDIAN, 4, [reported(other) for other in past], losses) == by_hand()


@given(st.lists(st.lists(st.integers(0, 10), min_size=8, max_size=8), min_size=1, max_size=7))
@settings(max_examples=50, deadline=None)
def test_successive_halving_lets_the_better_half_pass_each_rung(curves):
    told = []
    for losses in curves:
        expected = None
        for rung in (2, 4):  # a quarter of 8 evaluations, then doubled; the rung at 8 is the end
            rivals = sorted([*(t.intermediate_values[rung] for t in told if t.last_step >= rung), losses[rung - 1]])
            if losses[rung - 1] > rivals[max(1, len(rivals) // 2) - 1]:
                expected = rung
                break
        stopped = stopped_at(HALVING, 8, told, losses)
        assert stopped == expected
        told.append(reported(losses[:stopped], state=TrialState.PRUNED) if stopped else reported(losses))


@pytest.mark.parametrize("pruner", [MEDIAN, HALVING], ids=lambda pruner: pruner.name)
@pytest.mark.parametrize(("fraction", "evals", "first"), [(0.3, 20, 6), (0.55, 20, 11), (0.3, 3, 1), (0.0, 4, 1)])
def test_no_trial_is_given_up_before_its_fraction_of_the_evaluations(pruner, fraction, evals, first):
    told = [reported([1.0] * evals) for _ in range(3)]
    assert stopped_at(replace(pruner, from_fraction=fraction), evals, told, [9.0] * evals) == first


def test_the_pruner_does_not_see_trials_that_were_not_told_when_the_trial_was_asked(tmp_path):
    study = toy_study(parallel=3, evals=4, pruner=replace(MEDIAN, startup=1))
    search = Search(study, tmp_path / "journal")
    for number, loss in enumerate((3.0, 8.0, 8.0)):
        search.ask()
        for eval_index in (1, 2, 3, 4):
            search.report(number, eval_index, loss)
    search.tell(0, result(val_loss=3.0))
    search.ask()
    search.report(3, 1, 5.0)
    search.report(3, 2, 5.0)
    assert search.should_stop(3, 2)  # worse than trial 0, the only one told before it was asked
    search.tell(1, result(val_loss=8.0))
    search.tell(2, result(val_loss=8.0))
    assert search.should_stop(3, 2)  # the live study's median is now 8
    assert not search.should_stop(2, 2)  # asked before anything was told


def test_a_resumed_trial_is_not_judged_by_the_reports_of_its_earlier_life(tmp_path):
    study = toy_study(parallel=1, evals=4, pruner=replace(MEDIAN, startup=1, from_fraction=0.25))
    search = Search(study, tmp_path / "journal")
    search.ask()
    for eval_index in (1, 2, 3, 4):
        search.report(0, eval_index, 5.0)
    search.tell(0, result(val_loss=5.0))
    search.ask()
    for eval_index, loss in ((1, 9.0), (2, 4.0)):
        search.report(1, eval_index, loss)
    assert search.should_stop(1, 1)  # 9 is worse than 5, whatever came after
    assert not search.should_stop(1, 2)  # the best so far is 4


def test_a_reported_loss_is_bounded_and_its_first_report_counts(tmp_path):
    study = toy_study(pruner=MEDIAN)
    search = Search(study, tmp_path / "journal")
    search.ask()
    search.report(0, 1, math.inf)
    search.report(0, 2, 4.0)
    search.report(0, 2, 5.0)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    (trial,) = optuna.load_study(study_name="toy", storage=storage).trials
    assert trial.intermediate_values == {1: math.log(VOCAB), 2: 4.0}


def test_a_pruner_without_a_single_loss_is_our_own_mistake(tmp_path):
    with pytest.raises(AssertionError, match="only objective"):
        Search(toy_study(pruner=MEDIAN, objectives=(LOSS, SPEED)), tmp_path / "journal")


# -- load -------------------------------------------------------------------------------------------------------------


def cpu_seconds_of_asking(sampler, trials: int, journal: Path) -> list[float]:
    """What each proposal took of a processor, all trials of a search being told at once."""
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


def test_a_proposal_takes_no_longer_for_the_trials_before_it(tmp_path):
    # random search learns nothing, so what grows would be ours; the ratio was 1.2, and 6 with a view made anew
    seconds = cpu_seconds_of_asking("random", 200, tmp_path / "journal")
    assert np.median(seconds[-40:]) < 3 * np.median(seconds[4:44])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_of_2000_trials_stays_bounded(sampler, tmp_path):
    # measured on two shared cores: 3, 62 and 10 ms of CPU at trial 2,000; 2.2 MB of journal; 0.6 s to open it again
    journal, before = tmp_path / "journal", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = cpu_seconds_of_asking(sampler, 2000, journal)
    assert np.median(seconds[-40:]) < 0.3
    assert sum(seconds) < 200
    assert journal.stat().st_size < 4e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    started = time.process_time()
    assert Search(toy_study(sampler, parallel=4, trials=2000), journal).num_asked == 2000
    assert time.process_time() - started < 10


# -- the space --------------------------------------------------------------------------------------------------------

ENDS = {
    "linear": st.tuples(st.floats(-10, 10), st.floats(1e-3, 10)).map(lambda t: (t[0], t[0] + t[1])),
    "log": st.tuples(st.floats(1e-9, 1), st.floats(1.01, 1e4)).map(lambda t: (t[0], t[0] * t[1])),
    "log1m": st.tuples(st.floats(1e-6, 0.5), st.floats(1e-5, 0.49)).map(lambda t: (1 - t[0] - t[1], 1 - t[0])),
}


@given(data=st.data(), scale=st.sampled_from(list(ENDS)))
@settings(deadline=None)
def test_a_value_survives_optunas_encoding(data, scale):
    low, high = data.draw(ENDS[scale])
    space = {"lr": FloatRange(low=low, high=high, scale=scale), "clip_mode": Choices(values=("global", "none"))}
    value = data.draw(st.floats(low, high))
    params = encode(space, {"lr": value, "clip_mode": "none"})
    for name, distribution in distributions(space).items():
        assert distribution._contains(distribution.to_internal_repr(params[name]))
    decoded = decode(space, params)
    assert low <= decoded["lr"] <= high
    assert decoded["lr"] == pytest.approx(value, rel=0, abs=2**-53 if scale == "log1m" else 0)
    assert scale != "log1m" or value < 0.5 or decoded["lr"] == value


@given(low=st.floats(0.5, 0.9), width=st.floats(0.01, 0.09), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_what_optuna_samples_lies_within_the_range(low, width, seed):
    space = {"beta1": FloatRange(low=low, high=low + width, scale="log1m")}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    assert low <= decode(space, study.ask(distributions(space)).params)["beta1"] <= low + width


def test_betas_are_drawn_log_uniform_in_one_minus_beta(tmp_path):
    # 1-beta in [2e-4, 2e-2]: half of its logarithms lie below 2e-3, where a uniform beta has 9%; a Sobol sequence
    # splits its first 64 points evenly. Trial 0 is no point of it.
    space = {"beta2": FloatRange(low=0.98, high=0.9998, scale="log1m")}
    search = Search(toy_study("qmc", trials=65, space=space), tmp_path / "journal")
    tell_all(search, [3.0] * 65)
    high = sum(trial.values["beta2"] > 0.998 for trial in search.trials()[1:])
    assert high == 32


# -- the journal ------------------------------------------------------------------------------------------------------


def test_a_search_is_not_resumed_in_another_space(tmp_path):
    tell_all(Search(toy_study(), tmp_path / "journal"), [3.0])
    wider = SPACE | {"lr": FloatRange(low=1e-5, high=6e-3, scale="log")}
    with pytest.raises(UserError) as caught:
        Search(toy_study(space=wider), tmp_path / "journal")
    assert len(caught.value.problems) == 1
    assert "[search] lr: must stay as it was" in str(caught.value)
    assert str(tmp_path / "journal") in str(caught.value)


def test_a_reader_makes_nothing_mends_nothing_and_sees_every_trial(tmp_path):
    journal = tmp_path / "journal"
    assert Search(toy_study(), journal, read_only=True).trials() == []
    assert list(tmp_path.iterdir()) == []
    writer = Search(toy_study(), journal)
    tell_all(writer, [3.0, 2.0])
    journal.with_name("journal.lock").symlink_to(journal)
    with journal.open("ab") as file:
        file.write(b'{"half')  # the writer is about to write the rest
    before = journal.read_bytes()
    reader = Search(toy_study(), journal, read_only=True)
    assert reader.trials() == writer.trials()
    assert reader.best().number == 1
    assert journal.read_bytes() == before
    assert journal.with_name("journal.lock").is_symlink()


def study_with_every_event(tmp_path) -> tuple[Study, list[bytes], list[TrialView]]:
    """A study, the lines of its journal, and its trials."""
    study = toy_study("random", parallel=2, trials=3, evals=1)
    trials = drive(study, tmp_path / "whole", Random(1))
    return study, (tmp_path / "whole").read_bytes().splitlines(keepends=True), trials


def last_of_each_kind(lines: list[bytes]) -> list[list[bytes]]:
    """The journal cut after the last event of each kind: a tell, a report, an ask."""
    last = {json.loads(line)["op_code"]: number for number, line in enumerate(lines, start=1)}
    return [lines[:number] for op_code, number in last.items() if op_code > 0]


def test_a_last_event_cut_short_at_any_byte_is_worked_out_again(tmp_path):
    study, whole, trials = study_with_every_event(tmp_path)
    journal = tmp_path / "journal"
    for lines in last_of_each_kind(whole):
        head, last = b"".join(lines[:-1]), lines[-1]
        journal.write_bytes(head)
        sound = Search(study, journal, read_only=True).trials()
        for length in range(len(last)):
            journal.write_bytes(head + last[:length])
            reader = Search(study, journal, read_only=True)
            assert reader.trials() == sound
        for length in (0, 1, len(last) // 2, len(last) - 1):
            journal.write_bytes(head + last[:length])
            search = Search(study, journal)
            assert journal.read_bytes() == head
            assert (search.mended is None) is (length == 0)
        assert f"{journal}: its last event, line {len(lines)}, was damaged" in search.mended
        assert drive(study, journal, Random(2)) == trials


def test_a_last_event_garbled_at_any_byte_is_worked_out_again_or_means_the_same(tmp_path):
    study, whole, trials = study_with_every_event(tmp_path)
    journal = tmp_path / "journal"
    for lines in last_of_each_kind(whole):
        head, last = b"".join(lines[:-1]), lines[-1]
        journal.write_bytes(head)
        before = Search(study, journal, read_only=True).trials()
        journal.write_bytes(head + last)
        after = Search(study, journal, read_only=True).trials()
        assert before != after or b"intermediate" in last
        for at in range(len(last)):
            journal.write_bytes(head + last[:at] + (b"\xff" if at % 8 == 0 else b"#") + last[at + 1 :])
            assert Search(study, journal, read_only=True).trials() in (before, after)
            if at % 64 == 0:
                assert Search(study, journal).mended
                assert journal.read_bytes() == head
                assert drive(study, journal, Random(2)) == trials


def test_a_garbled_event_among_sound_ones_is_named_and_left_alone(tmp_path):
    study, whole, _ = study_with_every_event(tmp_path)
    journal = tmp_path / "journal"
    for number in (1, 2, len(whole) - 1):
        for spoilt in (b"\n", b'{"op_code":4}\n', whole[number - 1][:-9] + b"\n", b"\xff" + whole[number - 1]):
            garbled = b"".join([*whole[: number - 1], spoilt, *whole[number:]])
            journal.write_bytes(garbled)
            for read_only in (False, True):
                with pytest.raises(
                    MachineError, match=rf"^{journal}: line {number}: must be an event of the study toy"
                ):
                    Search(study, journal, read_only=read_only)
            assert journal.read_bytes() == garbled


def test_a_reader_looks_past_a_damaged_last_event_and_writes_nothing(tmp_path):
    study, whole, _ = study_with_every_event(tmp_path)
    journal = tmp_path / "journal"
    journal.write_bytes(b"".join(whole[:-1]))
    sound = Search(study, journal, read_only=True).trials()
    for tail in (whole[-1][:30], b"\xff" * 30 + b"\n", b"\0" * 30):
        journal.write_bytes(b"".join(whole[:-1]) + tail)
        assert Search(study, journal, read_only=True).trials() == sound
        assert journal.read_bytes() == b"".join(whole[:-1]) + tail
    journal.write_bytes(b"")
    assert Search(study, journal, read_only=True).trials() == []
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "journal"}


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
@pytest.mark.parametrize("lines_left", [0, 3, 9])
def test_a_journal_that_lost_events_is_made_again_from_the_results_of_the_runs(sampler, lines_left, tmp_path):
    study, journal = toy_study(sampler, parallel=3, trials=7, evals=1), tmp_path / "journal"
    trials = drive(study, journal, Random(0))
    hparams = [study.trial_hparams(trial.values, study.spec.tokens) for trial in trials]
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines_left]))
    search = Search(study, journal)
    for number in range(7):
        while search.ask():
            pass
        search.check(number, hparams[number], toy_result(trials[number].values))
        if number == search.pending()[0].number:
            search.tell(number, toy_result(trials[number].values))
        search.check(number, hparams[number], toy_result(trials[number].values))
    assert search.trials() == trials


def test_a_trial_that_is_not_what_its_run_was_is_named(tmp_path):
    study, journal = toy_study(parallel=2), tmp_path / "journal"
    search = Search(study, journal)
    asked = [search.ask(), search.ask()]
    search.tell(0, result(val_loss=3.25))
    hparams = study.trial_hparams(asked[1].values, study.spec.tokens)
    search.check(1, hparams, None)
    with pytest.raises(MachineError, match=rf"{journal}: trial 1: must be what its run .* lr is .* and 0\.5 there"):
        search.check(1, replace(hparams, lr=0.5), None)
    baseline = study.baseline_hparams(study.spec.tokens)
    search.check(0, baseline, result(val_loss=3.25))
    for other in (None, result(val_loss=3.5), result(Outcome.FAILED), result(Outcome.OUT_OF_MEMORY)):
        with pytest.raises(MachineError, match=r"trial 0: .* it ended as complete \[3\.25\] in it"):
            search.check(0, baseline, other)
    for garbled, name in ((b'"values":[3.75]', "ended as complete"), (b'"values":[8.25]', "ended as complete")):
        journal.write_bytes(journal.read_bytes().replace(b'"values":[3.25]', garbled))
        with pytest.raises(MachineError, match=name):
            Search(study, journal).check(0, baseline, result(val_loss=3.25))


def test_a_trial_told_as_failed_by_an_earlier_version_is_still_out_of_memory(tmp_path):
    study, journal = toy_study(), tmp_path / "journal"
    search = Search(study, journal)
    search.ask()
    search.tell(0, result(Outcome.FAILED, None))
    search.check(0, study.baseline_hparams(study.spec.tokens), result(Outcome.OUT_OF_MEMORY, None))


@contextmanager
def full_disk(room: int):
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_the_search_goes_on_once_there_is_room(tmp_path):
    study, journal = toy_study(trials=4), tmp_path / "journal"
    expected = drive(study, tmp_path / "uninterrupted", Random(0))
    search = Search(study, journal)
    tell_all(search, [toy_result(trial.values).val_loss for trial in expected[:1]])
    for room in (0, 60):
        with full_disk(journal.stat().st_size + room), pytest.raises(MachineError, match=f"{journal}: .*too large"):
            search.ask()
        search = Search(study, journal)
        assert (search.mended is not None) is (room > 0)
    proposal = search.ask()
    with full_disk(journal.stat().st_size + 20), pytest.raises(MachineError, match="what was recorded before is safe"):
        search.tell(1, toy_result(proposal.values))
    assert drive(study, journal, Random(0)) == expected


def test_a_journal_is_found_again_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    tell_all(Search(toy_study(), Path("runs/journal")), [3.0])
    assert len(Search(toy_study(), Path("runs/journal")).trials()) == 1


def test_importing_us_leaves_optunas_verbosity_alone():
    code = "import optuna; before = optuna.logging.get_verbosity(); import hpstudy.search; "
    code += "assert optuna.logging.get_verbosity() == before == optuna.logging.INFO"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    drive(toy_study("tpe", parallel=4), Path(sys.argv[1]), Random(int(sys.argv[2])))
