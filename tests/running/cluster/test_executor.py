"""A driver on a real Ray cluster: what it prints, says of its workers, and does when the head is lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.running.worker_states import read_workers
from hpstudy.tracking.lease import holder
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import Cluster
from tests.helpers.command_line import hpstudy, run_python
from tests.helpers.running import CLI, curves, run_here, slow_workers, trials, wait_for_step

WITHOUT_RAY = "import sys; sys.modules['ray'] = None\n"
HASTY = "import hpstudy.running.cluster.joining as engine; engine.HEAD_SECONDS = 3.0\n"
LONG = {"tokens = 5120": "tokens = 768_000", "trials = 5": "trials = 2"}  # 3000 steps a run


def start(cluster: Cluster, path: Path, runs: Path, *flags: str, code: str = "") -> subprocess.Popen[str]:
    """`hpstudy run --cluster` in another process."""
    command = ["run", str(path), "--runs", str(runs), "--wandb", "disabled", "--cluster", cluster.address, *flags]
    return cluster.start([sys.executable, "-c", code + CLI, *command])


def poll(find: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 60) -> Any:
    """What `find` returns once that is true. Fails if the process ends before."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_stdout_is_the_result_alone_although_a_node_dies(ray_cluster: Cluster, tiny_file, tmp_path: Path) -> None:
    ray_cluster.add(cpus=1)
    ray_cluster.add("b", cpus=1)
    path = tiny_file(replace=LONG)
    process = start(ray_cluster, path, tmp_path / "runs", "--json")
    wait_for_step(tmp_path / "runs", "search-0001", process)
    ray_cluster.kill("b")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert json.loads(out)["trials"]["ended"] == 2
    assert out.count("\n") == 1
    assert "(raylet)" not in err
    assert "has been marked dead" in (tmp_path / "runs" / "tiny" / "ray.log").read_text()
    assert not (tmp_path / "runs" / "tiny" / "workers.json").exists()


def test_status_shows_the_workers_of_a_running_study_alone(ray_cluster: Cluster, tiny_file, tmp_path: Path) -> None:
    ray_cluster.add(cpus=1)
    ray_cluster.add("b", cpus=1)
    store = RunStore(tmp_path / "runs" / "tiny")
    longer = LONG | {"tokens = 5120": "tokens = 7_680_000"}  # it is stopped, but must not end before
    process = start(ray_cluster, tiny_file(replace=longer), store.root.parent, "--workers", "3")

    def all_placed() -> Any:
        found = read_workers(store, holder(store.root)) if store.root.exists() else None
        return found if found and [worker.run for worker in found.workers].count(None) == 0 else None

    found = poll(all_placed, process)
    assert [(w.number, str(w.state), w.run) for w in found.workers] == [
        (0, "trains", "search-0000"), (1, "trains", "search-0001")
    ]  # fmt: skip
    text = hpstudy("status", "tiny", "--runs", store.root.parent)
    shown = json.loads(hpstudy("status", "tiny", "--runs", store.root.parent, "--json").out)
    assert "workers  2 train" in text.out
    assert [(w["number"], w["state"], w["run"]) for w in shown["workers"]] == [
        (0, "trains", "search-0000"), (1, "trains", "search-0001")
    ]  # fmt: skip
    assert shown["waits"] is None
    process.terminate()
    assert process.wait(30) == 130
    assert json.loads(hpstudy("status", "tiny", "--runs", store.root.parent, "--json").out)["workers"] is None


def test_a_cluster_without_a_place_says_what_is_needed_and_what_there_is(
    ray_cluster: Cluster, tiny_file, tmp_path: Path
) -> None:
    ray_cluster.add(cpus=1)
    store = RunStore(tmp_path / "runs" / "tiny")
    path = tiny_file(replace={'precision = "fp32"': 'precision = "fp32"\nthreads = 4'})
    process = start(ray_cluster, path, store.root.parent)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "wait" in line)
    assert "1 worker waits for a place: each needs 4 CPU; the cluster has, free or not, " in line
    assert line.endswith(" 1 CPU\n")
    found = poll(lambda: read_workers(store, holder(store.root)), process)
    assert (str(found.workers[0].state), found.workers[0].node) == ("waits for a place", "")
    assert found.room == line.strip().partition("place: ")[2]
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not store.root.exists()


@pytest.mark.slow
def test_a_lost_head_ends_the_study_with_checkpoints_and_it_resumes_on_a_new_cluster(
    tiny, tiny_file, tmp_path: Path, ray_cluster: Cluster
) -> None:
    with slow_workers():  # the study must not end before it misses the head
        ray_cluster.add(cpus=1)
        ray_cluster.add("b", cpus=1)
    path, runs = tiny_file(replace=LONG), tmp_path / "runs"
    process = start(ray_cluster, path, runs, code=HASTY)
    wait_for_step(runs, "search-0001", process)
    began = time.monotonic()
    ray_cluster.kill("head", "gcs_server")
    out, err = process.communicate(timeout=50)
    assert time.monotonic() - began < 20
    assert (process.returncode, out) == (1, "")
    assert "the cluster's head has given no answer for 3 s" in err
    assert "run the same command" in err
    assert list(runs.glob("tiny/search-*/checkpoint.pt"))
    with Cluster() as another:
        another.add(cpus=2)
        process = start(another, path, runs)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert ": resumes after step " in err
    study = tiny(replace=LONG)
    local = run_here(study, tmp_path / "local", workers=2)
    resumed = RunStore(runs / "tiny")
    assert curves(resumed) == curves(local)
    assert trials(study, resumed) == trials(study, local)


def test_an_address_where_nobody_answers_is_refused_within_seconds(tiny_file, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    began = time.monotonic()
    silent = "127.0.0.1:1: no Ray cluster answers ([Errno 111] Connection refused); start one with `ray start --head`"
    for address, problem in (("127.0.0.1:1", silent), ("nonsense", "nonsense: must be auto, or HOST:PORT")):
        result = hpstudy("run", tiny_file(), "--runs", tmp_path / "runs", "--wandb", "disabled", "--cluster", address)
        assert (result.code, result.out) == (2, "")
        assert f"--cluster {problem}" in result.err
    assert time.monotonic() - began < 10
    assert not (tmp_path / "runs" / "tiny").exists()


def test_an_address_of_another_program_is_refused_within_seconds(tiny_file, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code = f"import hpstudy.running.cluster.joining as engine; engine.JOIN_SECONDS = 1.0\n{CLI}"
        arguments = ["hpstudy", "run", str(tiny_file()), "--runs", str(tmp_path), "--wandb", "disabled"]
        done = run_python(f"import sys\nsys.argv = {[*arguments, '--cluster', address]}\n{code}", timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert "(a program listens there, but gives no answer as a head of Ray in 1 s)" in done.stderr


def test_a_cluster_with_a_token_refuses_a_driver_with_another_and_says_so() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with Cluster(settings={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 64}) as cluster:
        cluster.add(cpus=1)
        arguments = ["doctor", "--cluster", cluster.address]
        tokens = ({"RAY_AUTH_TOKEN": "2" * 64}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": ""})
        for token in tokens:
            process = cluster.start([sys.executable, "-c", CLI, *arguments], **token)
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (2, "")
            assert "the cluster requires its token, which is missing here or another" in err


def test_without_ray_the_flag_names_the_remedy(tiny_file, tmp_path: Path) -> None:
    arguments = ["hpstudy", "run", str(tiny_file()), "--runs", str(tmp_path), "--wandb", "disabled"]
    code = f"{WITHOUT_RAY}sys.argv = {[*arguments, '--cluster', 'auto']}\n{CLI}"
    done = run_python(code)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'needs Ray, which is not installed here; `pip install "hpstudy[cluster]"`' in done.stderr


def test_a_run_on_this_machine_imports_no_ray(tiny_file, tmp_path: Path) -> None:
    arguments = ["hpstudy", "run", str(tiny_file()), "--runs", str(tmp_path), "--wandb", "disabled", "--trials", "2"]
    code = f"import atexit, sys\natexit.register(lambda: print('ray' in sys.modules))\nsys.argv = {arguments}\n{CLI}"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_a_numbered_gpu_is_refused_on_a_cluster(ray_cluster: Cluster, tiny_file, tmp_path: Path) -> None:
    ray_cluster.add(cpus=1)
    process = start(ray_cluster, tiny_file(), tmp_path / "runs", "--device", "cuda:1")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "--device cuda:1: on a cluster Ray chooses the GPU; use --device cuda" in err
    assert not (tmp_path / "runs" / "tiny").exists()
