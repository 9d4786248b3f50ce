"""Faults of a Ray cluster lose no step and no trial of a study, double none and change none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import Cluster
from tests.helpers.running import CLI, curves, run_here, trials, wait_for_step

LONGER = {"tokens = 5120": "tokens = 51200"}  # 200 steps a run
Fault = Callable[[Cluster, subprocess.Popen[str]], None]

pytestmark = pytest.mark.slow


@pytest.fixture
def longer(tiny, run_once: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Any]:
    """The tiny study with more steps, and its trials and curves without a fault."""
    study = tiny(replace=LONGER)
    if "longer" not in run_once:
        store = run_here(study, tmp_path_factory.mktemp("longer"), workers=2)
        run_once["longer"] = trials(study, store), curves(store)
    return study, run_once["longer"]


def drive(cluster: Cluster, study: Study, runs: Path) -> subprocess.Popen[str]:
    """`hpstudy run --cluster auto` on the head."""
    flags = ["--runs", str(runs), "--wandb", "disabled", "--workers", "2", "--cluster", "auto"]
    return cluster.start([sys.executable, "-c", CLI, "run", str(study.path), *flags])


def found(study: Study, runs: Path) -> Any:
    """The trials and the curves that a study left."""
    store = RunStore(runs / study.name)
    return trials(study, store), curves(store)


def kill(cluster: Cluster, part: bytes) -> None:
    """kill -9 of one process whose command line has this part, on the first node that has one."""
    for name in ("b", "c"):
        for pid in cluster.nodes[name].pids():
            if part in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError(f"no process with {part!r}")


def cut_for_five_seconds(cluster: Cluster, _driver: subprocess.Popen[str]) -> None:
    cluster.cut("b")
    time.sleep(5)
    cluster.heal("b")


def pause_for_five_seconds(cluster: Cluster, _driver: subprocess.Popen[str]) -> None:
    cluster.pause("b")
    time.sleep(5)
    cluster.go_on("b")


FAULTS: dict[str, Fault] = {
    "trainer killed": lambda cluster, _: kill(cluster, b"worker_main"),
    "agent killed": lambda cluster, _: kill(cluster, b"ray::_AgentOnNode"),
    "raylet killed": lambda cluster, _: cluster.kill("b", "raylet"),
    "node terminated": lambda cluster, _: cluster.terminate("b"),
    "node paused": pause_for_five_seconds,
    "a node joins": lambda cluster, _: (cluster.add("d"), None)[1],
}


def check(cluster: Cluster, fault: Fault, longer: tuple[Study, Any], runs: Path) -> str:
    """Runs the study on two nodes with a fault once it trains and compares what it left. Returns its stdout."""
    study, expected = longer
    cluster.add(cpus=0)
    for name in ("b", "c"):
        cluster.add(name)
    driver = drive(cluster, study, runs)
    wait_for_step(runs, "search-0000", driver)
    fault(cluster, driver)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    assert found(study, runs) == expected
    return out


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_node_changes_no_trial_and_no_curve(name: str, ray_cluster: Cluster, longer, tmp_path: Path):
    check(ray_cluster, FAULTS[name], longer, tmp_path / "runs")


@pytest.mark.parametrize("fault", [cut_for_five_seconds, lambda cluster, _: cluster.cut("b")], ids=["5 s", "for ever"])
def test_a_cut_network_changes_no_trial_and_no_curve(fault: Fault, ray_machines: Cluster, longer, tmp_path: Path):
    check(ray_machines, fault, longer, tmp_path / "runs")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_was_ended_resumes_from_the_same_command(
    number: signal.Signals, ray_cluster: Cluster, longer, tmp_path: Path
):
    study, expected = longer
    runs = tmp_path / "runs"
    ray_cluster.add(cpus=0)
    ray_cluster.add("b", cpus=4)
    driver = drive(ray_cluster, study, runs)
    wait_for_step(runs, "search-0001", driver)
    driver.send_signal(number)
    driver.communicate(timeout=30)
    assert driver.returncode == (130 if number == signal.SIGTERM else -number)
    again = drive(ray_cluster, study, runs)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert found(study, runs) == expected


def test_a_killed_node_changes_nothing_and_prints_nothing_into_the_result(ray_cluster: Cluster, longer, tmp_path: Path):
    out = check(ray_cluster, lambda cluster, _: cluster.kill("b"), longer, tmp_path / "runs")
    assert "(raylet)" not in out
