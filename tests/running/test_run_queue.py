"""Which run a queue hands out next, and which runs its phase waits for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpstudy.records import Run
from hpstudy.running.run_queue import RunList, TrialQueue
from hpstudy.search import Search
from tests.helpers.search import HALVING, result, toy_study


def test_runs_of_later_phases_are_handed_out_while_the_last_trials_train_and_each_once(tmp_path: Path) -> None:
    study = toy_study("random", parallel=2, trials=3, pruner=HALVING, evals=4)
    later: list[Run] = []
    queue = TrialQueue(study, Search(study, tmp_path / "journal"), lambda _: 1000, later=lambda: later)
    first, second = queue.next(), queue.next()
    assert first
    assert second
    ahead = replace(first, run_id="baseline-s7", phase="baseline", trial=None, seed=7)
    later += [ahead, replace(ahead, run_id="baseline-s8", seed=8)]
    assert queue.next() is None  # another trial comes once one of these has ended
    queue.on_result(first, result())
    last = queue.next()
    assert last
    assert (last.trial, queue.next(), queue.belongs(last), queue.belongs(ahead)) == (2, ahead, True, False)
    assert (queue.awaits_decision(last), queue.awaits_decision(ahead)) == (True, False)
    queue.on_result(ahead, result())  # which is no result of the search
    queue.on_result(second, result())
    queue.on_result(last, result())
    assert queue.next() is None  # the search has ended, and its phase with it


def test_a_list_waits_for_its_own_runs_alone(tmp_path: Path) -> None:
    study = toy_study("random", trials=3)
    run = TrialQueue(study, Search(study, tmp_path / "journal"), lambda _: 1000).next()
    assert run
    queue = RunList([run])
    assert (queue.next(), queue.next()) == (run, None)
    assert (queue.belongs(run), queue.belongs(replace(run, run_id="baseline-s7"))) == (True, False)
