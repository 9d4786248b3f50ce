"""A Ray cluster on this machine whose nodes can be killed, stopped, cut off and slowed.

Two forms. On loopback, each node has an address of 127.0.0.0/8 (Linux). In network namespaces, each node is a
machine with a host name and a network of its own, joined to the others by a bridge; this needs root.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import keeper

ROOT = Path(__file__).parents[2]
PORT = 6379
# A Ray of one's own: no home folder, login or notice of the user's, workers at the usual niceness.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
# A lost node is noticed after some 2 s of refused connections or 6 s of silence, not 14 s and 64 s.
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}
HEAD = ("--include-dashboard=false",)
ALIVE = """
import json, os
from ray._raylet import GcsClient
nodes = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info()
print(json.dumps({node.node_manager_address: node.state == 0 for node in nodes.values()}))
"""
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster."""

    name: str
    ip: str
    keeper: subprocess.Popen[str]  # all processes of the node are its descendants
    enter: tuple[str, ...]  # comes before a command that runs on this node

    def pids(self, program: str | None = None) -> list[int]:
        """All processes of the node, or those of one program: "raylet", "gcs_server"."""
        found = keeper.descendants(self.keeper.pid)
        return [pid for pid in found if program is None or _program(pid) == program]


class Cluster:
    """A Ray cluster: a head, then further nodes. `with Cluster() as cluster` leaves nothing behind.

    `settings` are environment variables of the nodes, such as RAY_health_check_period_ms.
    """

    def __init__(self, *, namespaces: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.namespaces = namespaces
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path has at most 107 characters
        self.nodes: dict[str, Node] = {}
        self._label = f"{os.getpid()}-{next(_numbers)}"
        self._settings = {**SETTINGS, "HOME": str(self.folder), **(settings or {})}
        self._spaces: list[str] = []
        self._drivers: list[subprocess.Popen[str]] = []
        self._addresses = itertools.count(1)
        self._port = PORT if namespaces else _free_port()

    def __enter__(self) -> Cluster:
        if self.namespaces:
            self._add_space(self._hub)
            _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._hub, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self._drivers:
            keeper.signal_all(driver.pid, signal.SIGKILL)
            driver.kill()
            driver.communicate()
        for name in list(self.nodes):
            self.remove(name)
        for space in self._spaces:
            _ip("netns", "del", space)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """What a driver joins: HOST:PORT of the head."""
        return f"{self.nodes['head'].ip}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of every process on a node, and of every driver."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, **self._settings}

    def add(
        self,
        name: str = "head",
        *,
        cpus: int = 2,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Node:
        """Starts a node and waits until it has joined. The first is the head. `settings` hold for this node alone."""
        number = next(self._addresses)
        ip = f"10.0.0.{number}" if self.namespaces else f"127.0.0.{1 + number}"  # Ray replaces 127.0.0.1
        folder = self.folder / str(number)
        folder.mkdir()
        enter = self._machine(name, ip) if self.namespaces else ()
        joins = [f"--address={self.address}"] if self.nodes else ["--head", f"--port={self._port}", *HEAD]
        flags = {
            "node-ip-address": ip,
            "num-cpus": cpus,
            "num-gpus": gpus,
            "temp-dir": folder,
            "object-store-memory": 100 * 2**20,
            "resources": json.dumps(resources or {}),
            "labels": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        }
        start = [Path(sys.executable).with_name("ray"), "start", *joins, *(f"--{key}={flags[key]}" for key in flags)]
        log = folder / "ray-start.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*enter, sys.executable, keeper.__file__, *map(str, (folder, *start))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**self.environment, **(settings or {})},
                cwd=ROOT,
            )
        self.nodes[name] = Node(name=name, ip=ip, keeper=process, enter=enter)
        assert process.stdout is not None
        code = process.stdout.readline()
        assert code == "0\n", f"{name} did not start: {log.read_text()}"
        return self.nodes[name]

    def start(
        self, command: Sequence[str], name: str = "head", *, output: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Starts a driver or another command on a node. Its output goes to a file, or is piped."""
        with contextlib.ExitStack() as stack:
            stream = subprocess.PIPE if output is None else stack.enter_context(output.open("a"))
            process = subprocess.Popen(
                [*self.nodes[name].enter, *command],
                stdout=stream,
                stderr=stream,
                text=True,
                env={**self.environment, "RAY_ADDRESS": self.address, **variables},
                cwd=ROOT,
            )
        self._drivers.append(process)
        return process

    def run(self, code: str, name: str = "head") -> str:
        """What a Python program prints that runs on a node. Fails if it does."""
        process = self.start([sys.executable, "-c", code], name)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    def alive(self) -> dict[str, bool]:
        """The nodes by address, and whether Ray counts each as alive. A node that comes back is a new one."""
        return json.loads(self.run(ALIVE).splitlines()[-1])

    def await_nodes(self, count: int, seconds: float = 60) -> float:
        """Waits until that many nodes are alive. Returns the seconds it took."""
        began = time.monotonic()
        while sum(self.alive().values()) != count:
            assert time.monotonic() - began < seconds, self.alive()
        return time.monotonic() - began

    # Faults

    def kill(self, name: str, program: str | None = None) -> None:
        """kill -9 of all processes of a node, as if its power failed, or of one program: "raylet", "gcs_server"."""
        pids = self.nodes[name].pids(program)
        assert pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """SIGTERM to all processes of a node, as Slurm and spot machines get it."""
        keeper.signal_all(self.nodes[name].keeper.pid, signal.SIGTERM)

    def pause(self, name: str) -> None:
        """SIGSTOP to all processes of a node: it hangs."""
        keeper.signal_all(self.nodes[name].keeper.pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Lets a paused node go on."""
        keeper.signal_all(self.nodes[name].keeper.pid, signal.SIGCONT)

    def remove(self, name: str) -> None:
        """Kills all processes of a node."""
        node = self.nodes.pop(name)
        assert node.keeper.stdin is not None
        node.keeper.stdin.close()
        node.keeper.wait()
        assert node.keeper.stdout is not None
        node.keeper.stdout.close()
        if self.namespaces:
            _ip("netns", "del", self._space(name))
            self._spaces.remove(self._space(name))

    def cut(self, name: str) -> None:
        """Takes a machine off the network; its links stay up and packets are lost without notice."""
        _ip("-n", self._hub, "link", "set", "dev", name, "nomaster")

    def heal(self, name: str) -> None:
        """Puts a machine back on the network."""
        _ip("-n", self._hub, "link", "set", "dev", name, "master", "bridge")

    def slow(self, name: str, rate: str = "1mbit") -> None:
        """Limits what a machine sends and receives, in the units of tc."""
        limit = ("root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        _run("tc", "-n", self._hub, "qdisc", "replace", "dev", name, *limit)
        _run("tc", "-n", self._space(name), "qdisc", "replace", "dev", "eth0", *limit)

    # Machines

    @property
    def _hub(self) -> str:
        return f"ray-{self._label}-hub"  # the namespace that holds the bridge

    def _add_space(self, space: str) -> None:
        _ip("netns", "add", space)
        self._spaces.append(space)

    def _space(self, name: str) -> str:
        return f"ray-{self._label}-{name}"

    def _machine(self, name: str, ip: str) -> tuple[str, ...]:
        """Makes a namespace with its own network, joined to the bridge. Returns what runs a command in it."""
        space = self._space(name)
        self._add_space(space)
        _ip("-n", self._hub, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", self._hub, "link", "set", "dev", name, "master", "bridge", "up")
        _ip("-n", space, "addr", "add", f"{ip}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", space, "link", "set", "dev", link, "up")
        _ip("-n", space, "route", "add", "default", "dev", "eth0")  # Ray asks for the address of its default route
        return "ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$0" "$@"'


def need_namespaces() -> None:
    """Skips the test if this process may not make network namespaces."""
    name = f"ray-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "unshare", "--uts", "true")
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and iproute2: {error}")


def _program(pid: int) -> str:
    """The name of a process's executable; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
