"""The runs on fresh seeds come look by look: seed by seed, and none of a candidate that is decided."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpstudy.records import Outcome, Run, RunResult
from hpstudy.running.confirm import Selection
from hpstudy.running.race_queue import RaceQueue, described
from hpstudy.statistics.race import BASELINE, Answer, Race
from hpstudy.study import Study
from hpstudy.tracking.store import RunView
from tests.helpers.stores import header_of, result_of

SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
GAPS = (0.01, -0.01, 0.0, 0.01, -0.01, 0.0, 0.01, -0.01)
NOISE = (0.02, -0.01, 0.0, 0.01, -0.02, 0.01, -0.01, 0.02)
FAR = [3.2 - 0.5 + noise + gap for noise, gap in zip(NOISE, GAPS, strict=True)]  # decided by three seeds
NEAR = [3.2 + 0.012 + noise + gap for noise, gap in zip(NOISE, GAPS, strict=True)]  # by none
LOSSES = {BASELINE: [3.2 + noise for noise in NOISE], "search-0001": FAR, "search-0002": NEAR}
Make = Callable[..., Study]


@pytest.fixture
def raced(tiny: Make) -> Make:
    """Loads the smallest study with a race over SEEDS."""

    def make(looks: Sequence[int] = (3, 5, 8), more: str = "", format: int = 2) -> Study:
        stated = f"looks = {list(looks)}\n" if looks else ""
        return tiny(
            more=f"[confirm]\n{stated}seeds = {list(SEEDS)}\nmargin = 0.001\n{more}",
            replace={"format = 1": f"format = {format}"},
        )

    return make


def trial(study: Study, name: str) -> Run:
    """search-0000 is the baseline; each other one has its own lr."""
    phase, _, number = name.rpartition("-")
    values = study.baseline_hparams(study.spec.tokens)
    if int(number):
        values = replace(values, lr=1e-3 * int(number))
    return Run(run_id=name, phase=phase, trial=int(number), seed=0, tokens=5120, hparams=values)  # type: ignore[arg-type]


def ended(loss: float | Outcome) -> RunResult:
    if isinstance(loss, Outcome):
        return result_of(loss, steps=20, val_loss=None)
    return result_of(Outcome.COMPLETE, steps=20, val_loss=loss)


def view(run: Run, loss: float | Outcome | None) -> RunView:
    """A run of the store; without a loss it is unfinished."""
    return RunView(folder=Path(run.run_id), header=header_of(run), result=None if loss is None else ended(loss))


def loss_of(run: Run, losses: Mapping[str, Sequence[float | Outcome]]) -> float | Outcome:
    return losses[run.of or BASELINE][SEEDS.index(run.seed)]


class Looks:
    """A queue of these candidates, which keeps the looks that it is told."""

    def __init__(self, study: Study, candidates: Sequence[str], views: Sequence[RunView] = ()) -> None:
        self.study, self.races, self.runs, self.most = study, list[Race](), list[list[str]](), list[int]()
        searched = [view(trial(study, name), 3.0 + place / 10) for place, name in enumerate(candidates)]
        known = [view(trial(study, "search-0000"), 3.2), *searched, *views]
        selection = Selection(trials=5, seeds=study.seeds, candidates=tuple(candidates))
        self.queue = RaceQueue(study, [selection], known, self._on_look)

    def _on_look(self, race: Race, runs: Sequence[Run], most: int) -> None:
        self.races.append(race)
        self.runs.append([run.run_id for run in runs])
        self.most.append(most)

    def waiting(self) -> list[str]:
        """The runs that the queue gives before any of them has ended."""
        given = []
        while run := self.queue.next():
            given.append(run.run_id)
        return given

    def train(
        self, losses: Mapping[str, Sequence[float | Outcome]] = LOSSES, *, workers: int = 1, seed: int = 0
    ) -> list[str]:
        """Trains to the end with so many workers, whose runs end in a random order. Returns the runs as they began."""
        order, begun, active = random.Random(seed), [], list[Run]()
        while True:
            while len(active) < workers and (run := self.queue.next()):
                active.append(run)
                begun.append(run.run_id)
            if not active:
                return begun
            run = active.pop(order.randrange(len(active)))
            self.queue.on_result(run, ended(loss_of(run, losses)))


def names(seeds: Sequence[int], *sides: str) -> list[str]:
    """Run ids, seed by seed, at half of SEEDS in reverse. A side "confirm-0001-s{}-t50" has shorter runs."""
    in_order = [reversed(sides) if seed in (2, 3, 5, 8) else sides for seed in seeds]
    named = (side if "{}" in side else f"{side}-s{{}}" for pair in in_order for side in pair)
    every = (seed for seed in seeds for _ in sides)
    return [name.format(seed) for name, seed in zip(named, every, strict=True)]


def test_a_fixed_number_of_seeds_gives_every_run_seed_by_seed_the_sides_in_turns(raced: Make) -> None:
    looks = Looks(raced(looks=()), ["search-0001", "search-0002"])
    every = names(SEEDS, "baseline", "confirm-0001", "confirm-0002")
    assert looks.waiting() == every
    assert looks.runs == [every]


def test_over_four_seeds_both_sides_train_at_the_same_mean_time_and_each_of_two_or_four_workers_trains_both_equally(
    raced: Make,
) -> None:
    looks = Looks(raced(looks=()), ["search-0001"])
    is_baseline = [run.startswith("baseline") for run in looks.waiting()]
    first = "".join("A" if is_one else "B" for is_one in is_baseline[:8])
    assert first == "ABBABAAB"
    for degree in (1, 2):  # a steady and a quadratic drift
        assert sum(k**degree * (1 if side == "A" else -1) for k, side in enumerate(first)) == 0
    for workers in (2, 4, 8):  # each trains as many runs of the one side as of the other, over all eight seeds
        assert all(sum(is_baseline[worker::workers]) == 8 // workers for worker in range(workers))


def test_runs_of_the_next_look_are_given_after_those_of_this_one_and_none_of_the_look_after(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001", "search-0002"])
    sides = ("baseline", "confirm-0001", "confirm-0002")
    assert looks.runs == [names((1, 2, 3), *sides)]  # without those ahead
    assert looks.waiting() == [*names((1, 2, 3), *sides), *names((4, 5), *sides)]


def test_one_worker_trains_no_seed_more_than_the_race_needs(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001"])
    assert looks.train() == names((1, 2, 3), "baseline", "confirm-0001")
    assert looks.races[-1].findings["search-0001", BASELINE].answer is Answer.BETTER
    assert looks.waiting() == []


def test_a_decided_candidate_trains_no_further_seed_beside_one_that_is_open(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001", "search-0002"])
    assert looks.train() == [
        *names((1, 2, 3), "baseline", "confirm-0001", "confirm-0002"),
        *names((4, 5, 6, 7, 8), "baseline", "confirm-0002"),
    ]
    assert [race.seeds for race in looks.races] == [3, 5, 8, 0]
    assert [len(runs) for runs in looks.runs] == [9, 13, 19, 19]


def test_waiting_runs_of_a_candidate_are_dropped_once_it_is_decided(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001"])
    given = [looks.queue.next() for _ in range(7)]
    assert given[-1] is not None
    assert given[-1].run_id == "baseline-s4"  # ahead
    for run in given[:6]:
        assert run is not None
        looks.queue.on_result(run, ended(loss_of(run, LOSSES)))
    assert looks.waiting() == []


def test_a_look_is_told_once_at_its_beginning_and_not_with_each_result(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001"])
    looks.train()
    assert [(race.open, race.seeds) for race in looks.races] == [([("search-0001", BASELINE)], 3), ((), 0)]


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENDS = st.floats(3, 3.4) | st.sampled_from([Outcome.DIVERGED, Outcome.FAILED])
SIDES = (BASELINE, "search-0001", "search-0002", "tuned-lr-0003")


@QUICK
@given(
    losses=st.fixed_dictionaries({side: st.lists(ENDS, min_size=8, max_size=8) for side in SIDES}),
    workers=st.integers(2, 7),
    seed=st.integers(0, 99),
)
def test_workers_and_their_timing_change_neither_the_findings_nor_the_runs_that_count(
    raced: Make, losses: dict[str, list[float | Outcome]], workers: int, seed: int
) -> None:
    study = raced()
    one, several = (Looks(study, SIDES[1:]) for _ in range(2))
    alone, together = one.train(losses), several.train(losses, workers=workers, seed=seed)
    answers = [{pair: found.answer for pair, found in looks.races[-1].findings.items()} for looks in (one, several)]
    assert answers[0] == answers[1]
    assert one.runs[-1] == several.runs[-1]
    assert set(alone) <= set(together)
    assert len(set(together)) == len(together)


def test_the_winner_trains_at_shorter_budgets_too_on_the_seeds_at_which_it_is_judged(raced: Make) -> None:
    looks = Looks(raced(more="speedup = true\n"), ["search-0001", "search-0002"])
    sides = ("baseline", "confirm-0001", "confirm-0001-s{}-t50", "confirm-0001-s{}-t75", "confirm-0002")
    first = names((1, 2, 3), *sides)  # also those whose full run decides the race
    assert looks.train() == [*first, *names((4, 5, 6, 7, 8), "baseline", "confirm-0002")]


def test_a_shorter_run_decides_nothing(raced: Make) -> None:
    looks = Looks(raced(more="speedup = true\n"), ["search-0001"])
    while run := looks.queue.next():
        if run.fraction < 1:
            looks.queue.on_result(run, ended(9.0))
    assert len(looks.races) == 1


def test_a_resumed_queue_gives_what_is_left_and_an_unfinished_run_again(raced: Make) -> None:
    study = raced()
    whole = Looks(study, ["search-0001", "search-0002"])
    given = []
    while run := whole.queue.next():
        given.append(run)
        whole.queue.on_result(run, ended(loss_of(run, LOSSES)))
    for done in range(len(given) + 1):
        views = [view(run, loss_of(run, LOSSES)) for run in given[:done]]
        views += [view(run, None) for run in given[done : done + 1]]
        resumed = Looks(study, ["search-0001", "search-0002"], views)
        assert resumed.train() == [run.run_id for run in given[done:]]
        assert resumed.races[-1].findings.keys() == whole.races[-1].findings.keys()
        assert resumed.runs[-1] == whole.runs[-1]


def test_runs_that_trained_ahead_in_an_earlier_session_are_not_given_again(raced: Make) -> None:
    study = raced()
    ahead = Looks(study, ["search-0002"])
    given = [run for _ in range(8) if (run := ahead.queue.next())]
    views = [view(run, loss_of(run, LOSSES)) for run in given]
    left = Looks(study, ["search-0002"], views).train()
    assert left == names((5, 6, 7, 8), "baseline", "confirm-0002")


def test_a_run_that_measured_nothing_has_ended(raced: Make) -> None:
    failed = LOSSES | {"search-0001": [FAR[0], Outcome.FAILED, *FAR[2:]]}
    looks = Looks(raced(), ["search-0001"])
    assert looks.train(failed) == names((1, 2, 3, 4, 5), "baseline", "confirm-0001")
    assert looks.races[-1].findings["search-0001", BASELINE].answer is Answer.BETTER


def test_a_candidate_that_measures_nothing_has_had_every_run(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001"])
    every = names(SEEDS, "baseline", "confirm-0001")
    assert looks.train(LOSSES | {"search-0001": [Outcome.FAILED] * 8}) == every
    assert looks.races[-1].findings == {}
    assert looks.runs[-1] == every


def test_two_seeds_train_every_run_though_they_give_no_verdict(tiny: Make) -> None:
    looks = Looks(tiny(more="[confirm]\nseeds = [1, 2]\nspeedup = true\n"), ["search-0001"])
    sides = ("baseline-s{}", "confirm-0001-s{}", "confirm-0001-s{}-t50", "confirm-0001-s{}-t75")
    every = names((1, 2), *sides)
    assert looks.train() == every
    assert looks.runs[-1] == every


def test_winner_and_tuned_lr_train_on_while_the_difference_between_them_is_open(raced: Make) -> None:
    """Both are decided against the baseline, which trains no more."""
    beside = LOSSES | {"tuned-lr-0003": [loss + 0.012 + gap for loss, gap in zip(FAR, GAPS, strict=True)]}
    looks = Looks(raced(), ["search-0001", "tuned-lr-0003"])
    assert looks.train(beside) == [
        *names((1, 2, 3), "baseline", "confirm-0001", "confirm-tuned-lr-0003"),
        *names((4, 5, 6, 7, 8), "confirm-0001", "confirm-tuned-lr-0003"),
    ]
    assert looks.races[1].open == [("search-0001", "tuned-lr-0003")]


def test_a_search_without_a_candidate_trains_the_baseline_for_the_first_look_alone(raced: Make) -> None:
    looks = Looks(raced(), [])
    assert looks.train() == names((1, 2, 3), "baseline")
    assert looks.most == [3]


def test_without_a_selection_there_is_nothing_to_train(raced: Make) -> None:
    study = raced()
    told: list[Any] = []
    queue = RaceQueue(study, [], [view(trial(study, "search-0000"), 3.2)], lambda *look: told.append(look))
    assert queue.next() is None
    assert [(runs, most) for _, runs, most in told] == [([], 0)]


def test_the_winner_of_an_extended_search_joins_the_race_of_the_first(raced: Make) -> None:
    study = raced()
    first = Looks(study, ["search-0001"])
    views = []
    while run := first.queue.next():
        views.append(view(run, loss_of(run, LOSSES)))
        first.queue.on_result(run, ended(loss_of(run, LOSSES)))
    both = Looks(study, ["search-0001", "search-0002"], views)
    assert both.train() == [
        *names((1, 2, 3), "confirm-0002"),
        *names((4, 5, 6, 7, 8), "baseline", "confirm-0002"),
    ]


def test_a_look_is_described_in_one_line(raced: Make) -> None:
    looks = Looks(raced(), ["search-0001"])
    looks.train()
    [found] = looks.races[-1].findings.values()
    assert described(found) == "search-0001: better after 3 seeds"
    against = replace(found, comparison=("search-0001", "tuned-lr-0003"), answer=Answer.UNDECIDED)
    assert described(against) == "search-0001 against tuned-lr-0003: undecided after 3 seeds"
    assert described(replace(against, uneven="a run diverged")).endswith("after 3 seeds (a run diverged)")
