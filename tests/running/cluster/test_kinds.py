"""Nodes of another kind are refused for a study, or admitted by its file and named in its report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpstudy.analysis.results import load
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import Cluster
from tests.helpers.running import CLI, curves, interrupt, run_here

OTHER_KIND = {"ATEN_CPU_CAPABILITY": "default"}  # a processor without vector instructions, as far as torch knows
TWO = ("--workers", "2")
LONG = {"tokens = 5120": "tokens = 256_000", "trials = 5": "trials = 4"}  # than the second worker takes to start


def run_on(cluster: Cluster, study: Study, runs: Path, *flags: str) -> tuple[int, str, str]:
    """`hpstudy run` on a cluster: its exit code, stdout and stderr."""
    command = ["run", str(study.path), "--runs", str(runs), "--wandb", "disabled", "--cluster", "auto", *flags]
    driver = cluster.start([sys.executable, "-c", CLI, *command])
    out, err = driver.communicate(timeout=180)
    return driver.returncode, out, err


def test_a_node_of_another_kind_is_not_used(ray_cluster: Cluster, tiny, tmp_path: Path):
    study = tiny(replace=LONG)
    alone = curves(run_here(study, tmp_path / "alone"))
    interrupt(study, tmp_path, "search-0000", 2)  # on this machine, whose kind the study has from now on
    ray_cluster.add(cpus=1)
    ray_cluster.add("other", cpus=1, settings=OTHER_KIND)
    code, _, err = run_on(ray_cluster, study, tmp_path, *TWO)
    assert code == 0, err
    assert "not used" in err
    assert "cpu_capability was" in err
    store = RunStore(tmp_path / "tiny")
    assert curves(store) == alone
    assert len({view.header.kind for view in store.runs()}) == 1


def test_a_study_whose_kind_the_cluster_lacks_is_refused(ray_cluster: Cluster, tiny, tmp_path: Path):
    study = tiny()
    interrupt(study, tmp_path, "search-0000", 2)
    ray_cluster.add(cpus=1, settings=OTHER_KIND)
    code, _, err = run_on(ray_cluster, study, tmp_path)
    assert code == 2
    assert "the study began in another environment: cpu_capability was" in err


@pytest.mark.slow
def test_a_study_that_admits_several_kinds_names_them_in_its_report(ray_cluster: Cluster, tiny, tmp_path: Path):
    study = tiny(replace=LONG, more="[cluster]\nmixed = true\n[confirm]\nseeds = [7, 8, 9]\n")
    ray_cluster.add(cpus=1)
    ray_cluster.add("other", cpus=1, settings=OTHER_KIND)
    code, out, err = run_on(ray_cluster, study, tmp_path, *TWO)
    assert code == 0, err
    results = load("tiny", tmp_path)
    ((kind, changes),) = results.other_kinds.items()
    assert any(change.startswith("cpu_capability was") for change in changes)
    assert kind in {view.header.kind for view in results.store.runs()}
    assert "several kinds of machines" in out
    assert f"trained on {kind} too: cpu" in (tmp_path / "tiny/report/report.md").read_text()
