"""`doctor --cluster`: a row per node of a real Ray cluster, the kinds of nodes, and why one cannot train."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpstudy import __version__
from hpstudy.cli.doctor_cluster import _print
from hpstudy.running.survey import Facts, Place, Surveyed
from tests.helpers.cluster import QUICK, Cluster
from tests.helpers.command_line import Result, at_eighty_columns
from tests.helpers.running import CLI

GPU = {
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "cpu_capability": "AVX512 (made up)",
    "precision": "bfloat16",
    "torch": "2.13.0+cu130",
    "code_sha256": "0a1b2c3d4e5f",
}
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


@pytest.mark.parametrize("name", ["gpu-node-17", "raycluster-hpstudy-gpus-worker-7xk2p.training.svc.cluster.local"])
def test_no_number_is_cut_and_no_word_broken_at_eighty_columns(name: str) -> None:
    place = Place(node_id="1", name=name, cpus=192, gpus=8, lacks="")
    facts = Facts(
        python="3.12.11",
        torch="2.13.0+cu130",
        hpstudy="10.11.12",
        niceness=15,
        sees_folder=False,
        cache_free_gib=5812.3,
    )
    head = Place(node_id="0", name="head", cpus=0, gpus=0, lacks="1 GPU and 1 CPU, but has 0 GPU and 0 CPU")
    nodes = [Surveyed(place=head), Surveyed(place=place, facts=facts, environment=GPU)]
    lines = at_eighty_columns(_print, nodes, Path("runs"), False)
    words = "\n".join(lines).split()
    headings = "workers CPUs GPUs torch Python hpstudy nice sees runs cache GiB"
    cells = "192 8 2.13.0+cu130 3.12.11 10.11.12 0a1b2c 15 5812 RAY_worker_niceness=0 carried"
    assert {*headings.split(), *cells.split(), name} <= set(words)
    assert not any("…" in word for word in words)
    assert lines[-1].split()[-1] == "run)"
