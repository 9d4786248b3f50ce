"""Which runs are confirmed, on which seeds, at which budgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, Run
from hpstudy.running.confirm import (
    Selection,
    eligible,
    fresh_run,
    planned,
    read_selections,
    select,
    shorter_runs,
    sides,
    update_selections,
    winners,
)
from hpstudy.study import Confirm, Study, parse_study
from hpstudy.tracking.store import RunStore, RunView
from tests.helpers.stores import header_of, result_of
from tests.helpers.tiny import TINY

BOTH = '[objective]\nmetric = ["val/loss", "train/tok_per_sec"]'
TWO_OBJECTIVES = parse_study(TINY.format(more=BOTH), name="tiny", path=Path("tiny.toml"))


def a_trial(study: Study, trial: int) -> Run:
    """Trial 0 is the baseline, each other one has its own lr."""
    values = study.baseline_hparams(study.spec.tokens)
    if trial:
        values = replace(values, lr=1e-3 * trial)
    return Run(run_id=f"search-{trial:04d}", phase="search", trial=trial, seed=0, tokens=5120, hparams=values)


def a_view(run: Run, loss: float, speed: float = 1000.0, outcome: Outcome = Outcome.COMPLETE) -> RunView:
    result = result_of(outcome, steps=20, val_loss=loss, tok_per_sec=speed)
    return RunView(folder=Path(run.run_id), header=header_of(run), result=result)


def views(study: Study, *points: tuple[float, float]) -> list[RunView]:
    """Trials 0, 1, 2… with these losses and speeds."""
    return [a_view(a_trial(study, trial), loss, speed) for trial, (loss, speed) in enumerate(points)]


def test_candidates_are_the_complete_trials_of_lowest_loss_each_values_once_and_never_the_baseline(tiny):
    study = tiny(more="[confirm]\ntop = 3")
    runs = [a_trial(study, trial) for trial in range(8)]
    runs[4] = replace(runs[4], hparams=runs[0].hparams)  # the sampler proposed the baseline again
    runs[5] = replace(runs[5], hparams=runs[3].hparams)  # and trial 3
    losses = [3.0, 2.5, 1.0, 2.1, 1.5, 2.2, 2.3, 2.9]
    found = [a_view(run, loss) for run, loss in zip(runs, losses, strict=True)]
    found[2] = a_view(runs[2], 1.0, outcome=Outcome.PRUNED)
    assert select(study, found).candidates == ("search-0003", "search-0006", "search-0001")


def test_the_fastest_is_confirmed_if_speed_is_the_objective(tiny):
    study = tiny(more='[objective]\nmetric = "train/tok_per_sec"')
    assert eligible(study, views(study, (3, 100), (2, 300), (1, 200)), "search") == ["search-0001", "search-0002"]


@given(points=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9))
def test_with_two_objectives_candidates_are_unbeaten_no_slower_than_the_baseline_and_by_loss(points):
    study = TWO_OBJECTIVES
    losses, speeds = zip(*points, strict=True)
    found = [int(name[-4:]) for name in eligible(study, views(study, *points), "search")]

    def beaten(n: int) -> bool:
        return any(loss <= losses[n] and speed >= speeds[n] and (loss, speed) != points[n] for loss, speed in points)

    wanted = {points[n] for n in range(len(points)) if not beaten(n) and speeds[n] >= speeds[0]} - {points[0]}
    assert {points[n] for n in found} == wanted
    assert [losses[n] for n in found] == sorted(losses[n] for n in found)


@given(seeds=st.lists(st.integers(1, 999_999), unique=True, min_size=1), more=st.integers(0, 9))
def test_an_independent_baseline_has_as_many_other_seeds_which_stay_when_seeds_are_added(seeds, more):
    def asked(**confirm) -> Study:
        return replace(TWO_OBJECTIVES, confirm=Confirm(**confirm))

    study = asked(seeds=tuple(seeds), design="independent")
    longer = asked(seeds=(*seeds, *range(2_500_000, 2_500_000 + more)), design="independent")
    assert len(set(study.baseline_seeds)) == len(seeds)
    assert not {0, *longer.seeds} & set(longer.baseline_seeds)
    assert longer.baseline_seeds[: len(seeds)] == study.baseline_seeds
    assert asked(seeds=tuple(seeds), design="paired").baseline_seeds == study.seeds


def test_the_sides_are_the_baseline_and_the_candidates_of_every_selection_each_once(tiny):
    study = tiny(more="[confirm]\nseeds = [7, 8, 9]\nspeedup = true")
    begun = {run.run_id: run for run in (a_trial(study, n) for n in range(5))}
    selections = [
        Selection(trials=3, seeds=(7, 8), candidates=("search-0003", "search-0001")),
        Selection(trials=5, seeds=(7, 8, 9), candidates=("search-0004", "search-0003")),
    ]
    found = sides(study, selections, begun)
    assert list(found) == ["baseline", "search-0003", "search-0001", "search-0004"]
    assert found["baseline"] == begun["search-0000"]
    assert all(found[name] == begun[name] for name in list(found)[1:])
    assert winners(study, selections, begun) == {"search-0003", "search-0004"}
    assert winners(tiny(more="[confirm]\nseeds = [7, 8, 9]"), selections, begun) == set()
    assert sides(study, [], begun) == {}


def test_a_candidate_that_the_study_has_not_run_is_refused_by_name(tiny):
    study = tiny(more="[confirm]\nseeds = [7, 8, 9]")
    begun = {"search-0000": a_trial(study, 0)}
    selection = Selection(trials=5, seeds=(7, 8, 9), candidates=("search-0009",))
    with pytest.raises(MachineError, match=r"^confirm\.json: names search-0009, which this study has not"):
        sides(study, [selection], begun)


def test_fresh_runs_repeat_the_trials_values_and_shorter_ones_have_their_own_full_schedule(tiny):
    study = tiny(more="[confirm]\nseeds = [7, 8]\nspeedup = true")
    first, repeated = a_trial(study, 0), a_trial(study, 3)
    baseline = fresh_run(study, "baseline", first, 0)
    full = fresh_run(study, "search-0003", repeated, 1)
    half, most = shorter_runs(study, full)
    assert baseline == replace(first, run_id="baseline-s7", phase="baseline", trial=None, seed=7)
    assert full == replace(repeated, run_id="confirm-0003-s8", phase="confirm", seed=8, of="search-0003", fraction=1.0)
    assert [run.run_id for run in (half, most)] == ["confirm-0003-s8-t50", "confirm-0003-s8-t75"]
    assert {run.seed for run in (half, most)} == {8}
    assert [(run.of, run.fraction) for run in (half, most)] == [("search-0003", 0.5), ("search-0003", 0.75)]
    assert [half.tokens, most.tokens] == [2560, 3840]
    # 10 steps of warm-up in 20, 15 and 10 steps, and never longer than the decay
    assert [full.hparams.warmup_fraction, most.hparams.warmup_fraction] == [0.5, 10 / 15]
    assert half.hparams.warmup_fraction == half.hparams.decay_fraction
    assert replace(half.hparams, warmup_fraction=0.5) == full.hparams


def test_an_extended_search_adds_its_winner_and_an_unchanged_one_adds_nothing(tiny, tmp_path: Path):
    study, store, lines = tiny(more="[confirm]\nseeds = [7, 8]"), RunStore(tmp_path), []
    found = views(study, (3.0, 1.0), (2.0, 1.0), (1.0, 1.0))
    for finished in (found[:2], [], found[2:], []):
        for view in finished:
            store.begin(view.header).finish(view.result)
        selections = update_selections(study, store, lines.append)
    assert [(selection.trials, selection.candidates) for selection in selections] == [
        (2, ("search-0001",)),
        (3, ("search-0002",)),
    ]
    assert lines == [
        "confirm: after 3 trials the choice is search-0002, after 2 it was search-0001; all are confirmed and "
        "tested together"
    ]
    begun = {view.run_id: view.header.run for view in found}
    assert list(sides(study, selections, begun)) == ["baseline", "search-0001", "search-0002"]


def test_the_plan_counts_every_run_that_a_study_may_need(tiny):
    study = tiny(more="[confirm]\nseeds = [7, 8, 9]\nspeedup = true\ntop = 2\n[baseline]\nalso = 'tuned-lr'")
    assert {phase: len(runs) for phase, runs in planned(study, None).items()} == {
        "search": 5,
        "baseline": 3,
        "tuned-lr": 5,
        "confirm": 3 * (2 + 2 + 1),
    }
    assert sum(planned(study, 9)["confirm"]) == 3 * (3 + 0.5 + 0.75)


def test_the_plan_of_a_race_counts_the_seeds_of_its_last_look(tiny):
    raced = {"format = 1": "format = 2"}
    plan = planned(tiny(more="[confirm]\ntop = 2", replace=raced), None)
    assert {phase: len(runs) for phase, runs in plan.items()} == {"search": 5, "baseline": 20, "confirm": 2 * 20}
    plan = planned(tiny(more="[confirm]\nlooks = [3, 4]\nseeds = [7, 8, 9, 10, 11]", replace=raced), None)
    assert {phase: len(runs) for phase, runs in plan.items()} == {"search": 5, "baseline": 4, "confirm": 4}


def test_the_plan_of_a_grid_counts_its_points(tiny):
    grid = {
        'lr = { low = 1e-4, high = 3e-2, scale = "log" }': "lr = { choices = [6e-4, 1e-3] }",
        'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': "beta2 = { choices = [0.9, 0.95] }",
        'sampler = { name = "tpe", startup = 2 }': 'sampler = "grid"',
    }
    study = tiny(replace=grid, more="[baseline]\nalso = 'tuned-lr'")
    assert {phase: len(runs) for phase, runs in planned(study, None).items()} == {"search": 4, "tuned-lr": 2}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            "[baseline]\nalso = 'tuned-beta'",
            """[baseline] also: must be 'tuned-lr' or 'batch', but got "tuned-beta"; did you mean "tuned-lr"?""",
        ),
        ("[confirm]\nspeedup = 1", "[confirm] speedup: must be a valid boolean, but got 1"),
    ],
)
def test_what_cannot_be_confirmed_is_refused(tiny, tmp_path: Path, more: str, problem: str):
    with pytest.raises(UserError) as refused:
        tiny(more=more)
    assert str(refused.value) == f"{tmp_path / 'tiny.toml'}: {problem}"


@pytest.mark.parametrize("text", ["", "null", '"x"', "[1]", '[{"trials": 3, "seedr": [101], "candidates": []}]'])
def test_damaged_selections_are_an_error_and_never_count_as_none(tmp_path: Path, text: str):
    (tmp_path / "confirm.json").write_text(text)
    with pytest.raises(MachineError, match=r"confirm\.json: must be a file that hpstudy wrote"):
        read_selections(RunStore(tmp_path))
