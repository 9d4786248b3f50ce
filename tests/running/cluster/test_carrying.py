"""Nodes that do not see the driver's folders: the corpus and the checkpoints are carried."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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

LONG = {"tokens = 5120": "tokens = 256_000", "trials = 5": "trials = 2"}
WORDS = "one two three four five six seven eight nine ten\n"
# a driver that orders checkpoints as often as it can
EAGER = "from hpstudy.running.interface import Options; Options.__init__.__kwdefaults__['checkpoint_seconds'] = 0.0; "
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a node that sees other folders needs root")


@pytest.fixture
def far(ray_cluster: Cluster, tmp_path: Path) -> Node:
    """The only node with a CPU to train on. It sees none of the driver's files."""
    ray_cluster.add(cpus=0)
    return add_far(ray_cluster, tmp_path, "100m")


def add_far(cluster: Cluster, tmp_path: Path, size: str, cpus: int = 1) -> Node:
    return cluster.add("far", cpus=cpus, settings={"HPSTUDY_CACHE": str(tmp_path / "node")}, hidden={tmp_path: size})


def begin(cluster: Cluster, study: Study, tmp_path: Path, code: str = CLI) -> subprocess.Popen[str]:
    """Starts `hpstudy run` on a cluster."""
    command = ["run", str(study.path), "--runs", str(tmp_path / "runs"), "--wandb", "disabled", "--cluster", "auto"]
    return cluster.start([sys.executable, "-c", code, *command])


def end(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the stderr of a driver."""
    _, err = driver.communicate(timeout=180)
    return driver.returncode, err


def carried_to(node: Node, tmp_path: Path) -> list[tuple[str, int]]:
    """The names and the inodes of what was carried to a node."""
    return [(path.name, path.stat().st_ino) for path in inside(node, tmp_path / "node" / "carried").iterdir()]


def await_file(driver: subprocess.Popen[str], tmp_path: Path, name: str) -> None:
    """Waits until a run has a file on the driver's disk."""
    while not any(path.stat().st_size for path in (tmp_path / "runs").glob(f"tiny/*/{name}")):
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


def test_a_corpus_that_a_node_does_not_see_is_carried_there_once(ray_cluster: Cluster, tiny: Tiny, tmp_path: Path):
    ray_cluster.add(cpus=0)
    far = add_far(ray_cluster, tmp_path, "100m", cpus=2)
    study = on_text(tiny, tmp_path)
    alone = curves(run_here(study, tmp_path / "alone"))
    folders = [tmp_path / "first", tmp_path / "second"]
    at_once = [begin(ray_cluster, study, folder) for folder in folders]  # each may carry it before the other has
    for driver, folder in zip(at_once, folders, strict=True):
        code, err = end(driver)
        assert code == 0, err
        assert err.count("are carried there") == err.count("the corpus was carried in") <= 1
        assert curves(RunStore(folder / "runs" / "tiny")) == alone
    found = carried_to(far, tmp_path)
    assert [Path(name).suffix for name, _ in found] == [".bin"]
    code, err = end(begin(ray_cluster, study, tmp_path / "later"))
    assert code == 0, err
    assert "carried" not in err
    assert carried_to(far, tmp_path) == found


@pytest.mark.slow
@pytest.mark.usefixtures("far")
def test_a_stopped_study_resumes_from_a_checkpoint_that_was_carried_from_its_node(
    ray_cluster: Cluster, tiny: Tiny, tmp_path: Path
):
    study = tiny(replace=LONG)
    alone = curves(run_here(study, tmp_path / "alone"))
    driver = begin(ray_cluster, study, tmp_path)
    await_file(driver, tmp_path, "steps.jsonl")
    driver.send_signal(signal.SIGTERM)
    code, err = end(driver)
    assert code == 130, err
    assert "checkpoint written; resumes after step" in err
    assert not list((tmp_path / "runs").rglob("*.part"))
    code, err = end(begin(ray_cluster, study, tmp_path))
    assert code == 0, err
    assert "search-0000: resumes after step" in err
    assert curves(RunStore(tmp_path / "runs" / "tiny")) == alone


@pytest.mark.slow
def test_a_run_whose_trainer_is_killed_resumes_from_its_carried_checkpoint(
    ray_cluster: Cluster, far: Node, tiny: Tiny, tmp_path: Path
):
    study = tiny(replace=LONG)
    alone = curves(run_here(study, tmp_path / "alone"))
    driver = begin(ray_cluster, study, tmp_path, EAGER + CLI)
    await_file(driver, tmp_path, "checkpoint.pt")
    (trainer,) = [pid for pid in far.pids() if b"worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(trainer, signal.SIGKILL)
    code, err = end(driver)
    assert code == 0, err
    assert "(exit code -9" in err
    assert "search-0000: resumes after step" in err
    assert curves(RunStore(tmp_path / "runs" / "tiny")) == alone


@pytest.mark.slow
def test_a_node_whose_disk_fills_trains_on_without_checkpoints_and_says_so(
    ray_cluster: Cluster, far: Node, tiny: Tiny, tmp_path: Path
):
    study = tiny(replace=LONG)
    alone = curves(run_here(study, tmp_path / "alone"))
    driver = begin(ray_cluster, study, tmp_path, EAGER + CLI)
    await_file(driver, tmp_path, "steps.jsonl")
    with inside(far, tmp_path / "filler").open("wb", 0) as file:
        while driver.poll() is None:
            with contextlib.suppress(OSError):
                file.write(bytes(50_000))
            time.sleep(0.001)
    code, err = end(driver)
    assert code == 0, err
    assert f"no checkpoint could be written (on {socket.gethostname()}: " in err
    assert curves(RunStore(tmp_path / "runs" / "tiny")) == alone


def test_a_node_without_room_for_the_corpus_is_refused_with_its_folder(
    ray_cluster: Cluster, tiny: Tiny, tmp_path: Path
):
    ray_cluster.add(cpus=0)
    far = add_far(ray_cluster, tmp_path, "40k")
    code, err = end(begin(ray_cluster, on_text(tiny, tmp_path), tmp_path))
    assert code == 1, err
    assert f"the corpus cannot be carried to {tmp_path}/node/carried on {socket.gethostname()} (" in err
    assert "No space left on device); make room there, or point HPSTUDY_CACHE" in err
    assert carried_to(far, tmp_path) == []
    assert not (tmp_path / "runs" / "tiny").exists()
