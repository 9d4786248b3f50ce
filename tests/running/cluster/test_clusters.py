"""The Ray clusters of the tests: nodes join and die, networks are cut and heal, and nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.helpers.cluster import ROOT, Cluster
from tests.helpers.running import any_alive

NODES = """
import ray
ray.init(log_to_driver=False)
for node in ray.nodes():
    print(node["NodeManagerHostname"], node["NodeManagerAddress"], node["Alive"], node["Labels"].get("kind"))
"""


def test_ray_shows_the_nodes_that_joined_and_one_that_was_killed(ray_cluster: Cluster) -> None:
    ray_cluster.add()
    node = ray_cluster.add("b", cpus=1, labels={"kind": "small"})
    assert f"{node.ip} True small" in ray_cluster.run(NODES)
    ray_cluster.kill("b")
    ray_cluster.await_nodes(1, seconds=20)
    assert f"{node.ip} False small" in ray_cluster.run(NODES)
    assert node.pids() == []


@pytest.mark.slow
def test_each_machine_has_its_own_name_and_address(ray_machines: Cluster) -> None:
    ray_machines.add()
    ray_machines.add("b")
    lines = sorted(ray_machines.run(NODES).splitlines())
    assert lines == ["b 10.0.0.2 True None", "head 10.0.0.1 True None"]


@pytest.mark.slow
def test_a_short_cut_or_pause_loses_no_node_and_a_long_one_does(ray_machines: Cluster) -> None:
    ray_machines.add()
    for name in ("b", "c"):
        ray_machines.add(name)
    ray_machines.cut("b")
    ray_machines.pause("c")
    time.sleep(2)
    ray_machines.heal("b")
    ray_machines.go_on("c")
    time.sleep(5)
    assert ray_machines.alive() == {"10.0.0.1": True, "10.0.0.2": True, "10.0.0.3": True}
    ray_machines.cut("b")
    ray_machines.await_nodes(2, seconds=20)
    assert ray_machines.alive()["10.0.0.2"] is False


@pytest.mark.slow
def test_a_slow_network_is_slow(ray_machines: Cluster) -> None:
    ray_machines.add()
    ray_machines.slow("head", "1mbit")
    ray_machines.add("b")
    receive = "import socket; s = socket.create_server(('', 5000)).accept()[0]\nwhile s.recv(65536): pass"
    receiver = ray_machines.start([sys.executable, "-c", receive], "b")
    time.sleep(0.5)
    began = time.monotonic()
    ray_machines.run("import socket; socket.create_connection(('10.0.0.2', 5000)).sendall(bytes(500_000))")
    receiver.wait()
    assert 3 < time.monotonic() - began < 10  # 4 megabits at one a second


def test_a_cluster_leaves_nothing_behind_when_its_test_is_killed() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    code = """
    import time
    from tests.helpers.cluster import Cluster
    with Cluster() as cluster:
        print(cluster.folder, *cluster.add().pids(), flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as test:
        assert test.stdout is not None
        folder, *words = test.stdout.readline().split()
        pids = [int(word) for word in words]
        assert len(pids) > 3  # GCS, raylet, monitor, agents
        test.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any_alive(pids) or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
