"""Studies that run once, without interruption, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpstudy.records import StepRecord
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.bench.faults import run_without_faults
from tests.helpers.cluster import QUICK, Cluster, need_namespaces
from tests.helpers.running import Watch, curves, run_here, trials

CONFIRM = '[baseline]\nalso = "tuned-lr"\n[confirm]\nspeedup = true\nseeds = {}\n'


@pytest.fixture(scope="session")
def run_once() -> dict[str, Any]:
    """What the studies that run once gave, filled by the first test that needs them."""
    return {}


@pytest.fixture
def uninterrupted(tiny, tmp_path: Path, run_once: dict[str, Any]) -> tuple[list[Any], dict[str, list[StepRecord]]]:
    """The trials and the curves of the tiny study, run without interruption."""
    if "uninterrupted" not in run_once:
        study = tiny()
        store = run_here(study, tmp_path / "uninterrupted")
        run_once["uninterrupted"] = trials(study, store), curves(store)
    return run_once["uninterrupted"]


@pytest.fixture
def confirmable(tiny) -> Callable[..., Study]:
    """The tiny study with three trials, a tuned-lr opponent and runs on fresh seeds."""
    return lambda seeds=(7, 8, 9): tiny(replace={"trials = 5": "trials = 3"}, more=CONFIRM.format(list(seeds)))


@pytest.fixture
def confirmed_runs(
    confirmable: Callable[..., Study], run_once: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of runs of a study that ran to its verdict without interruption."""
    if "confirmed" not in run_once:
        runs = tmp_path_factory.mktemp("confirmed")
        run_here(confirmable(), runs)
        run_once["confirmed"] = runs
    return run_once["confirmed"]


@pytest.fixture
def raceable(tiny) -> Callable[[], Study]:
    """The tiny study with three trials and a race of three looks. The winner's larger lr is far better than GPT-3's."""
    changes = {"trials = 5": "trials = 3", "format = 1": "format = 2"}
    return lambda: tiny(replace=changes, more="[confirm]\nlooks = [3, 5, 8]")


@pytest.fixture
def raced_runs(
    raceable: Callable[[], Study], run_once: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of runs of that study after its verdict, and the lines that its driver said."""
    if "raced" not in run_once:
        runs, watch = tmp_path_factory.mktemp("raced"), Watch()
        run_here(raceable(), runs, watch=watch)
        run_once["raced"] = runs, watch.lines
    return run_once["raced"]


@pytest.fixture
def whole(run_once: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """The tiny study of tests.bench.faults, run without a fault."""
    if "whole" not in run_once:
        run_once["whole"] = run_without_faults(tmp_path_factory.mktemp("whole"))
    return run_once["whole"]


@pytest.fixture
def ray_cluster() -> Iterator[Cluster]:
    """A Ray cluster on loopback, without nodes yet."""
    pytest.importorskip("ray", reason="ray is not installed")
    with Cluster(settings=QUICK) as cluster:
        yield cluster


@pytest.fixture
def ray_machines() -> Iterator[Cluster]:
    """A Ray cluster of machines with a network that can be cut, without nodes yet."""
    pytest.importorskip("ray", reason="ray is not installed")
    need_namespaces()
    with Cluster(namespaces=True, settings=QUICK) as cluster:
        yield cluster
