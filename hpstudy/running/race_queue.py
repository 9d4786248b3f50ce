"""The runs on fresh seeds, look by look. A decided candidate trains no further seed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from hpstudy.records import Outcome, Run, RunResult, counted_loss
from hpstudy.running.confirm import Selection, fresh_run, shorter_runs, sides, winners
from hpstudy.running.run_queue import RunList
from hpstudy.statistics.race import BASELINE, Answer, Finding, Fresh, Race, Rules, comparisons
from hpstudy.study import Study
from hpstudy.tracking.store import RunView


class RaceQueue(RunList):
    """Hands out each look's runs, seed by seed, so that a stopped study has whole pairs.

    The sides of a seed train one after the other, at half of the seeds in reverse, so that neither a machine that warms
    up nor one of several GPUs favours the speed of one side.

    While a look's last runs train, idle workers get runs of the next look. Its decisions are functions of the results
    alone, so timing changes which of these runs exist, never a verdict.
    """

    def __init__(
        self,
        study: Study,
        selections: Sequence[Selection],
        views: Sequence[RunView],
        on_look: Callable[[Race, Sequence[Run], int], None],
    ) -> None:
        """`on_look` is called at the start and after each look.

        It gets the race, the runs of its looks so far, and how many these become if the race goes to its last look.
        """
        begun = {view.run_id: view.header.run for view in views}
        repeated = sides(study, selections, begun)
        results = {view.run_id: view.result for view in views if view.result is not None}
        self._ended = {run_id: fresh(study, result) for run_id, result in results.items()}
        losses = {name: self._ended[name].loss for name in repeated if name != BASELINE}
        self._comparisons = comparisons({name: math.nan if loss is None else loss for name, loss in losses.items()})
        self._study, self._rules, self._on_look = study, Rules.of(study), on_look
        self._runs = {
            side: [fresh_run(study, side, run, place) for place in range(self._rules.looks[-1])]
            for side, run in repeated.items()
        }
        self._winners = winners(study, selections, begun)
        self._given = set(results)
        self._told: object = None
        super().__init__(self._next_runs())

    def belongs(self, run: Run) -> bool:
        """Always: this is the last phase."""
        return True

    def next(self) -> Run | None:
        """The next run of this look, or of the next one if all of this one are being trained."""
        if run := super().next():
            self._given.add(run.run_id)
        return run

    def on_result(self, run: Run, result: RunResult) -> None:
        """Judges, and drops the waiting runs of candidates that are decided."""
        if run.fraction == 1:
            self._ended[run.run_id] = fresh(self._study, result)
            self._runs_left = deque(self._next_runs())

    def _next_runs(self) -> list[Run]:
        """The runs that no worker has had: of the looks so far, then of the one after."""
        race = self._rules.race(
            self._comparisons,
            {side: [self._ended.get(run.run_id) for run in runs] for side, runs in self._runs.items()},
        )
        seeds = {side: self._rules.looks[0] if side == BASELINE else 0 for side in self._runs}
        for pair in self._comparisons:
            seeds |= {side: max(seeds[side], race.needed(pair)) for side in pair}
        wanted = self._in_order(seeds)
        if (race.seeds, race.open) != self._told:
            self._told = race.seeds, race.open
            most = seeds | {side: self._rules.looks[-1] for pair in race.open for side in pair}
            self._on_look(race, wanted, len(self._in_order(most)))
        later = next((look for look in self._rules.looks if look > race.seeds), 0) if race.open else 0
        ahead = {side: max(seeds[side], later) for pair in race.open for side in pair}
        runs = {run.run_id: run for run in [*wanted, *self._in_order(ahead)]}
        return [run for run_id, run in runs.items() if run_id not in self._given]

    def _in_order(self, seeds: Mapping[str, int]) -> list[Run]:
        """Seed by seed the runs of each side, the baseline first, with the shorter runs of a winner.

        Reversed at the places whose binary digits have an odd sum (the Thue-Morse sequence): A B, B A, B A, A B. Over
        four seeds the mean time of both sides is the same, and over as many seeds as there are workers, 2, 4 or 8, each
        worker trains both sides equally often.
        """
        found = list[Run]()
        for place in range(max(seeds.values(), default=0)):
            pair = list[Run]()
            for side, runs in self._runs.items():
                if place < seeds.get(side, 0):
                    pair += [runs[place]]
                    pair += shorter_runs(self._study, runs[place]) if side in self._winners else []
            found += reversed(pair) if place.bit_count() % 2 else pair
        return found


def fresh(study: Study, result: RunResult) -> Fresh:
    """How a run on a fresh seed counts in the race."""
    loss = counted_loss(result.outcome, result.val_loss, study.vocab_size)
    return Fresh(loss=loss, diverged=result.outcome is Outcome.DIVERGED)


def described(found: Finding) -> str:
    """One look at one comparison: `search-0003 is better after 5 seeds`."""
    candidate, opponent = found.comparison
    against = f" against {opponent}" if opponent != BASELINE else ""
    why = f" ({found.uneven})" if found.uneven and found.answer is Answer.UNDECIDED else ""
    return f"{candidate}{against}: {found.answer} after {found.seeds} seeds{why}"
