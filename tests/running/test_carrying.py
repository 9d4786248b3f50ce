"""Nodes that do not see the driver's folders: the corpus and the checkpoints are carried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import Cluster, Node
from tests.helpers.running import CLI, curves, run_here

Tiny = Callable[..., Study]

LONG = {"tokens = 5120": "tokens = 512_000", "trials = 5": "trials = 2"}
WORDS = "one two three four five six seven eight nine ten\n"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a node that sees other folders needs root")


@pytest.fixture
def far(ray_cluster: Cluster, tmp_path: Path) -> Node:
    """A node with a worker, which sees none of the driver's files; the head has no CPU to train on."""
    ray_cluster.add(cpus=0)
    return add_far(ray_cluster, tmp_path)


def add_far(cluster: Cluster, tmp_path: Path, size: str = "100m", cpus: int = 1, name: str = "far") -> Node:
    cache = {"HPSTUDY_CACHE": str(tmp_path / "node")}
    return cluster.add(name, cpus=cpus, settings=cache, hidden={tmp_path: size})


def begin(cluster: Cluster, study: Study, tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts `hpstudy run` on a cluster."""
    command = ["run", str(study.path), "--runs", str(tmp_path / "runs"), "--wandb", "disabled", "--cluster", "auto"]
    return cluster.start([sys.executable, "-c", CLI, *command, *flags])


def run_on(cluster: Cluster, study: Study, tmp_path: Path, *flags: str) -> tuple[int, str]:
    """The exit code of `hpstudy run` on a cluster, and its stderr."""
    driver = begin(cluster, study, tmp_path, *flags)
    _, err = driver.communicate(timeout=180)
    return driver.returncode, err


def await_checkpoint(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    """Waits until a run has a checkpoint on the driver's disk."""
    while not list((tmp_path / "runs").glob("tiny/*/checkpoint.pt")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)


def inside(node: Node, path: Path) -> Path:
    """A file as the processes of a node see it."""
    raylet = node.pids("raylet")[0]
    return Path(f"/proc/{raylet}/root") / path.relative_to("/")


def on_text(tiny: Tiny, tmp_path: Path, **changes: str) -> Study:
    """The tiny study on a text of its own."""
    (tmp_path / "words.txt").write_text(WORDS * 4000)
    return tiny(replace={'"asv"': f'"text:{tmp_path}/words.txt"', **changes})


def test_a_corpus_that_a_node_does_not_see_is_carried_there_once(
    ray_cluster: Cluster, far: Node, tiny: Tiny, tmp_path: Path
):
    study = on_text(tiny, tmp_path)
    alone = curves(run_here(study, tmp_path / "alone"))
    code, err = run_on(ray_cluster, study, tmp_path)
    assert code == 0, err
    assert curves(RunStore(tmp_path / "runs" / "tiny")) == alone
    assert err.count("are carried there") == err.count("the corpus was carried in") == 1
    (carried,) = inside(far, tmp_path / "node" / "carried").iterdir()
    number = carried.stat().st_ino
    later = on_text(tiny, tmp_path, **{"trials = 5": "trials = 1"})
    code, err = run_on(ray_cluster, later, tmp_path / "later")
    assert code == 0, err
    assert "carried" not in err
    assert carried.stat().st_ino == number


def test_a_study_resumes_from_a_checkpoint_that_was_carried_from_its_node(
    ray_cluster: Cluster, far: Node, tiny: Tiny, tmp_path: Path
):
    study = tiny(replace=LONG)
    alone = curves(run_here(study, tmp_path / "alone"))
    driver = begin(ray_cluster, study, tmp_path)
    while not list((tmp_path / "runs").glob("tiny/*/steps.jsonl")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "checkpoint written; resumes after step" in err
    assert not list((tmp_path / "runs").rglob("*.part"))
    code, err = run_on(ray_cluster, study, tmp_path)
    assert code == 0, err
    assert "search-0000: resumes after step" in err
    assert curves(RunStore(tmp_path / "runs" / "tiny")) == alone
