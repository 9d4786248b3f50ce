"""Nodes that cannot train, die early or are lost while a worker measures end no study that others can train."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import Cluster
from tests.helpers.running import CLI, curves, run_here, slow_workers, wait_for_step

LONG = {"tokens = 5120": "tokens = 256_000", "trials = 5": "trials = 2"}
# 400 steps a run; by slow workers 20 seconds in all, in which another node starts workers or is refused
SLOW = {"tokens = 5120": "tokens = 102_400", "trials = 5": "trials = 2"}
WITHOUT_HPSTUDY = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "hpstudy":
            raise ModuleNotFoundError("No module named 'hpstudy'", name="hpstudy")

sys.meta_path.insert(0, Hide())
"""


def drive(cluster: Cluster, study: Study, runs: Path, output: Path, workers: int) -> subprocess.Popen[str]:
    flags = ["--runs", str(runs), "--wandb", "disabled", "--cluster", "auto", "--workers", str(workers)]
    return cluster.start([sys.executable, "-c", CLI, "run", str(study.path), *flags], output=output)


def await_line(output: Path, words: str, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while words not in output.read_text():
        assert driver.poll() is None and time.monotonic() < deadline, output.read_text()  # noqa: PT018
        time.sleep(0.02)


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:10001", "", "127.0.0.1", "nonsense"])
def test_an_address_that_names_no_running_cluster_is_refused(address: str, tmp_path: Path):
    pytest.importorskip("ray", reason="ray is not installed")
    from hpstudy.running.cluster.joining import join

    with pytest.raises(UserError, match="must be auto, or HOST:PORT"):
        join(address, tmp_path / "ray.log")


@pytest.mark.slow
def test_a_node_without_hpstudy_is_left_out(ray_cluster: Cluster, tiny, tmp_path: Path):
    study, runs, output = tiny(replace=SLOW), tmp_path / "runs", tmp_path / "output"
    expected = curves(run_here(study, tmp_path / "alone"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_HPSTUDY)
    ray_cluster.add(cpus=0)
    with slow_workers():
        ray_cluster.add("good", cpus=1)
    ray_cluster.add("bad", cpus=1, settings={"PYTHONPATH": str(tmp_path / "site")})
    driver = drive(ray_cluster, study, runs, output, 2)
    assert driver.wait(timeout=120) == 0, output.read_text()
    assert curves(RunStore(runs / "tiny")) == expected
    assert "not used, because the agent on " in output.read_text()
    assert "install the same hpstudy and Python there" in output.read_text()


@pytest.mark.slow
def test_a_node_that_dies_while_its_workers_start_ends_no_study(ray_cluster: Cluster, tiny, tmp_path: Path):
    study = tiny(replace=SLOW | {"parallel = 2": "parallel = 6"})
    runs, output = tmp_path / "runs", tmp_path / "output"
    ray_cluster.add(cpus=0)
    with slow_workers():
        ray_cluster.add("good", cpus=1)
    driver = drive(ray_cluster, study, runs, output, 5)
    wait_for_step(runs, "search-0000", driver)
    ray_cluster.add("b", cpus=4)
    deadline = time.monotonic() + 30
    while not any(
        b"_AgentOnNode" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in ray_cluster.nodes["b"].pids()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ray_cluster.kill("b")
    assert driver.wait(timeout=120) == 0, output.read_text()
    assert curves(RunStore(runs / "tiny")) == curves(run_here(study, tmp_path / "alone"))


@pytest.mark.slow
def test_a_node_that_is_lost_while_it_measures_a_micro_batch_is_measured_on_another(
    ray_cluster: Cluster, tiny, tmp_path: Path
):
    study = tiny(replace={"micro_batch = 16": 'micro_batch = "auto"', "batch_tokens = 256": "batch_tokens = 4096"})
    runs, output = tmp_path / "runs", tmp_path / "output"
    ray_cluster.add(cpus=0)
    for name in ("b", "c"):
        ray_cluster.add(name, cpus=1, settings={"HPSTUDY_CACHE": str(tmp_path / "cache")})
    driver = drive(ray_cluster, study, runs, output, 1)
    await_line(output, "training on", driver)
    busy = next(
        name
        for name in ("b", "c")
        for pid in ray_cluster.nodes[name].pids()
        if b"worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    ray_cluster.kill(busy)
    assert driver.wait(timeout=120) == 0, output.read_text()
    assert RunStore(runs / "tiny").read_json("calibration.json")["micro_batch"] >= 64


@pytest.mark.slow
def test_a_run_that_moves_to_another_kind_of_machine_begins_anew_and_names_it(
    ray_cluster: Cluster, tiny, tmp_path: Path
):
    study = tiny(replace=LONG, more="[cluster]\nmixed = true")
    runs, output = tmp_path / "runs", tmp_path / "output"
    ray_cluster.add(cpus=0)
    ray_cluster.add("b", cpus=1)
    driver = drive(ray_cluster, study, runs, output, 1)
    wait_for_step(runs, "search-0000", driver)
    first = RunStore(runs / "tiny").header("search-0000").kind
    ray_cluster.kill("b")  # before the other is there, which takes longer than a fast machine trains
    ray_cluster.add("other", cpus=1, settings={"ATEN_CPU_CAPABILITY": "default"})
    assert driver.wait(timeout=120) == 0, output.read_text()
    store = RunStore(runs / "tiny")
    assert store.header("search-0000").kind not in (None, first)
    assert [record.step for record in store.view("search-0000").records()] == list(range(1, 1001))
