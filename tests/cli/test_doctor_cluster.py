"""`doctor --cluster`: a row per node of a real Ray cluster, the kinds of nodes, and why one cannot train."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from hpstudy import __version__
from tests.helpers.cluster import QUICK, Cluster
from tests.helpers.command_line import Result
from tests.helpers.running import CLI

HASTY = "import hpstudy.running.survey as survey; survey.PLACE_SECONDS = 6.0\n"
HOG = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_cpus=2)
class Hog:
    def answer(self): return "full"
hog = Hog.remote()
print(ray.get(hog.answer.remote()), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without places; b with two; c, whose processor knows less, at Ray's default niceness."""
    pytest.importorskip("ray", reason="ray is not installed")
    with Cluster(settings=QUICK) as cluster:
        cluster.add(cpus=0)
        cluster.add("b", cpus=2)
        cluster.add("c", cpus=1, settings={"RAY_worker_niceness": "15", "ATEN_CPU_CAPABILITY": "default"})
        yield cluster


def doctor(cluster: Cluster, *flags: str, code: str = "") -> Result:
    process = cluster.start([sys.executable, "-c", code + CLI, "doctor", "--cluster", cluster.address, *flags])
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def test_doctor_shows_every_node_its_kind_and_what_slows_or_endangers_it(nodes: Cluster, tmp_path) -> None:
    result = doctor(nodes, "--runs", str(tmp_path / "runs"))
    assert (result.code, result.err) == (0, "starting a worker on each node\n")
    header, head, b, c, *lines = result.out.splitlines()
    assert header.split()[:4] == ["node", "workers", "CPUs", "GPUs"]
    assert [row.split()[1:5] for row in (head, b, c)] == [
        [nodes.nodes["head"].ip, "none", "0", "0"],
        [nodes.nodes["b"].ip, "ok", "2", "0"],
        [nodes.nodes["c"].ip, "ok", "1", "0"],
    ]
    assert f" {__version__} " in b
    assert [row.split()[-3:-1] for row in (b, c)] == [["0", "yes"], ["15", "yes"]]  # niceness, sees the runs folder
    text = "\n".join(lines)
    b_name, c_name = (" ".join(row.split()[:2]) for row in (b, c))
    assert f"kind 1   {b_name}: " in text
    assert f"kind 2   {c_name}: " in text
    assert "refused for a study that began on kind 1: cpu_capability was " in text
    assert " takes no workers: a worker needs 1 CPU, but has 0 CPU" in text
    assert f"niceness {c_name} lets every other program go first" in text
    assert "RAY_worker_niceness=0" in text
    assert "tokens   not required" in text
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_with_the_reason_of_each_node_that_cannot_train_and_does_not_try_a_busy_one(
    nodes: Cluster,
) -> None:
    hog = nodes.start([sys.executable, "-c", HOG])
    assert hog.stdout is not None
    assert hog.stdout.readline() == "full\n"
    busy = doctor(nodes, code=HASTY)
    assert (busy.code, busy.err) == (0, "starting a worker on each node\n")
    assert [line.split()[2] for line in busy.out.splitlines()[1:4]] == ["none", "busy", "ok"]
    (note,) = (line for line in busy.out.splitlines() if line.startswith("busy "))
    assert f" {nodes.nodes['b'].ip}; no place became free there in 6 s" in note
    nodes.add("d", cpus=1, settings={"HPSTUDY_CACHE": "/dev/null/cache"})
    result = doctor(nodes, code=HASTY)
    assert result.code == 1
    (cannot,) = (line for line in result.err.splitlines() if ": cannot train: " in line)
    assert f" {nodes.nodes['d'].ip}: cannot train: " in cannot
    assert "/dev/null/cache" in cannot
    rows = [line.split() for line in result.out.splitlines()[1:5]]
    assert [row[2] for row in rows] == ["none", "busy", "ok", "no"]
