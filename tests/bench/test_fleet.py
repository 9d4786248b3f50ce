"""A fleet of made-up workers trains a whole search with the driver's own pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.records import Outcome
from hpstudy.search import JOURNAL, Search
from hpstudy.tracking.store import RunStore
from tests.bench.fleet import PARTS, described, fleet_study, run_fleet


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_fleet_trains_each_trial_once_and_every_second_is_of_one_part(pruner: str, tmp_path: Path) -> None:
    study, store = fleet_study(tmp_path, workers=5, sampler="random", pruner=pruner), RunStore(tmp_path / "fleet")
    figures, seconds = run_fleet(study, store, workers=5, trials=40, steps=8)
    views = store.runs()
    assert [view.header.run.trial for view in views] == list(range(40))
    assert all(len(list(view.records())) == view.result.steps for view in views if view.result)
    assert figures.records == sum(view.result.steps for view in views if view.result)
    outcomes = {view.result.outcome for view in views if view.result}
    assert outcomes == ({Outcome.COMPLETE} if pruner == "none" else {Outcome.COMPLETE, Outcome.PRUNED})
    assert len(Search(study, store.root / JOURNAL, read_only=True).trials()) == len(figures.asks) == 40
    assert len(figures.memory) == 41
    assert 0 < sum(figures.seconds[part] for part in PARTS) < seconds
    assert next(described(figures, seconds, store)).startswith(f"40 trials, {figures.records} records in")


def test_a_fleet_of_any_size_has_the_curves_of_a_single_worker(tmp_path: Path) -> None:
    """The trials depend on `parallel`, which is the same here."""
    curves = []
    for workers in (1, 5):
        folder = tmp_path / str(workers)
        folder.mkdir()
        study, store = fleet_study(folder, workers=5), RunStore(folder / "fleet")
        run_fleet(study, store, workers=workers, trials=20, steps=4)
        curves.append([(view.header.run, list(view.records()), view.result) for view in store.runs()])
    assert curves[0] == curves[1]
