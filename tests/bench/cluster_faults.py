"""Faults of a cluster: `python -m tests.bench.faults --cluster` strikes real studies on real Ray clusters.

Each study runs on three machines, each a network namespace with an address of its own, with a checkpoint after every
step. A machine that is lost is replaced by a new one, a head by a new cluster, a driver by the same command. Then the
study is compared with one that ran on this machine alone without a fault. Needs root.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hpstudy.tracking.store import RunStore
from tests.bench.faults import OUTPUT, REFUSED, Losses, losses, num_steps, send, write_study
from tests.helpers.cluster import QUICK, Cluster
from tests.helpers.keeper import descendants

SIZES = {"tokens = 5120": "tokens = 51_200", "parallel = 2": "parallel = 3"}  # 5 runs of 200 steps
WORKERS = 3
SECONDS = 180.0  # in which a study must record its next step
SESSIONS = 30


@dataclass
class Scene:
    """A study on a cluster, and what a fault may strike."""

    cluster: Cluster
    study: Path
    rng: random.Random
    driver: subprocess.Popen[str] | None = None
    joined: int = 0
    waits: list[float] = field(default_factory=list)  # seconds from a fault to the next new step

    @property
    def store(self) -> Path:
        """The study's run folder."""
        return self.study.with_suffix("")

    def join(self) -> str:
        """A new machine joins."""
        self.joined += 1
        self.cluster.add(name := f"n{self.joined}", cpus=1)
        return name

    def busy(self) -> str:
        """A machine besides the head, if any, whose worker trains."""
        names = [name for name in self.cluster.nodes if name != "head" and self.trainers(name)]
        return self.rng.choice(names or ["head"])

    def trainers(self, name: str) -> list[int]:
        """The worker processes of a machine."""
        return [pid for pid in self.cluster.nodes[name].pids() if _is_worker(pid)]

    def begin(self) -> None:
        """Starts a driver in the head's network."""
        command = ["-m", "tests.bench.faults", "--drive", str(self.study), "--workers", str(WORKERS), "--join", "auto"]
        self.driver = self.cluster.start([sys.executable, *command], output=self.study.parent / OUTPUT)


def _is_worker(pid: int) -> bool:
    try:
        return b"worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_trainer(scene: Scene) -> None:
    for pid in scene.trainers(scene.busy())[:1]:
        send(pid, signal.SIGKILL)


def kill_agent(scene: Scene) -> None:
    for pid in scene.trainers(scene.busy())[:1]:
        send(_parent(pid), signal.SIGKILL)


def lose_machine(scene: Scene, strike: Callable[[str], None]) -> None:
    """Strikes a machine that trains, if there is one besides the head, and lets another join."""
    if (name := scene.busy()) == "head":
        name = next(other for other in scene.cluster.nodes if other != "head")
    strike(name)
    scene.join()


def kill_driver(scene: Scene, number: signal.Signals = signal.SIGKILL) -> None:
    assert scene.driver is not None
    driver = next((pid for pid in [scene.driver.pid, *descendants(scene.driver.pid)] if _is_driver(pid)), None)
    send(driver or scene.driver.pid, number)
    scene.driver.wait()


def _is_driver(pid: int) -> bool:
    return b"--drive" in Path(f"/proc/{pid}/cmdline").read_bytes()


def kill_head(scene: Scene) -> None:
    """Kills the head's GCS. Its driver ends; a new cluster takes over."""
    assert scene.driver is not None
    scene.cluster.kill("head", "gcs_server")
    scene.driver.wait(timeout=SECONDS)
    for name in list(scene.cluster.nodes):
        scene.cluster.remove(name)
    scene.cluster.add(cpus=1)
    scene.join()
    scene.join()


def cut_for(scene: Scene, seconds: float) -> None:
    if (name := scene.busy()) != "head":
        scene.cluster.cut(name)
        time.sleep(seconds)
        scene.cluster.heal(name)


def slow(scene: Scene) -> None:
    if (name := scene.busy()) != "head":
        scene.cluster.slow(name)


def second_driver(scene: Scene) -> None:
    first = scene.driver
    scene.begin()
    assert scene.driver is not None
    assert scene.driver.wait() in REFUSED, "two drivers wrote one study"
    scene.driver = first


FAULTS: dict[str, Callable[[Scene], object]] = {
    "kill -9 of a trainer": kill_trainer,
    "kill -9 of an agent": kill_agent,
    "kill -9 of a raylet": lambda scene: lose_machine(scene, lambda name: scene.cluster.kill(name, "raylet")),
    "a machine loses its power": lambda scene: lose_machine(scene, scene.cluster.kill),
    "SIGTERM of a machine": lambda scene: lose_machine(scene, scene.cluster.terminate),
    "a machine hangs (SIGSTOP)": lambda scene: lose_machine(scene, scene.cluster.pause),
    "network cut for ever": lambda scene: lose_machine(scene, scene.cluster.cut),
    "network cut for 2 s": lambda scene: cut_for(scene, 2),
    "network of 1 Mbit/s": slow,
    "a machine joins": Scene.join,
    "kill -9 of the driver": kill_driver,
    "SIGTERM of the driver": lambda scene: kill_driver(scene, signal.SIGTERM),
    "kill -9 of the head": kill_head,
    "a second driver": second_driver,
}


def strike_study(fault: Callable[[Scene], object], folder: Path, seed: int, most: int) -> tuple[int, list[float]]:
    """Runs a study to its end and strikes it up to `most` times: (how often, seconds until it went on)."""
    scene_study = write_study(folder, replace=SIZES)
    with Cluster(namespaces=True, settings=QUICK) as cluster:
        scene = Scene(cluster=cluster, study=scene_study, rng=random.Random(seed))
        cluster.add(cpus=1)
        scene.join()
        scene.join()
        times = 0
        for _ in range(SESSIONS):
            scene.begin()
            while times < most and _await_steps(scene, scene.rng.randint(20, 200)):
                struck, active = time.monotonic(), active_runs(scene.store)
                fault(scene)
                times += 1
                if scene.driver is None or scene.driver.poll() is not None:
                    scene.begin()
                if _await(scene, lambda active=active: all(map(has_gone_on, active.items()))):
                    scene.waits.append(time.monotonic() - struck)
            assert scene.driver is not None
            if scene.driver.wait() == 0:
                return times, scene.waits
    raise AssertionError(f"{scene_study}: has not ended after {SESSIONS} sessions")


def active_runs(store: Path) -> dict[Path, int]:
    """{folder: steps} of the runs that have begun and not ended."""
    folders = [path for path in store.glob("search-*") if not (path / "result.json").exists()]
    return {path: steps for path in folders if (steps := run_steps(path))}


def run_steps(folder: Path) -> int:
    """Lines in the step file of a run."""
    return (folder / "steps.jsonl").read_bytes().count(b"\n") if (folder / "steps.jsonl").exists() else 0


def has_gone_on(run: tuple[Path, int]) -> bool:
    """Whether a run has more steps than it had, or a result."""
    folder, steps = run
    return run_steps(folder) > steps or (folder / "result.json").exists()


def _await_steps(scene: Scene, more: int) -> bool:
    target = num_steps(scene.store) + more
    return _await(scene, lambda: num_steps(scene.store) >= target)


def _await(scene: Scene, done: Callable[[], bool]) -> bool:
    """Waits until something is so; False if the session ends before."""
    until = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < until, f"{scene.study}: nothing new in {SECONDS:.0f} s"
        assert scene.driver is not None
        if scene.driver.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def strikes(name: str, folder: Path, reference: RunStore, times: int) -> tuple[int, float, Losses]:
    """Strikes studies until it was done so often: (how often, the longest wait in seconds, what they have lost)."""
    done, lost, waits, seed = 0, Losses(), [0.0], 0
    while done < times:
        (here := folder / f"{len(list(folder.iterdir()))}").mkdir()
        more, waited = strike_study(FAULTS[name], here, seed, times - done)
        done, seed, waits = done + more, seed + 1, waits + waited
        lost += losses(RunStore(here / "tiny"), reference)
    return done, max(waits), lost


@contextmanager
def all_faults(only: str, folder: Path, times: int) -> Iterator[Iterator[tuple[str, int, float, Losses]]]:
    """The faults whose name has the words `only`, each with what `strikes` gives."""
    from tests.bench.faults import session

    (alone := folder / "alone").mkdir()
    with session(write_study(alone, replace=SIZES), 3) as driver:
        assert driver.wait() == 0, (alone / OUTPUT).read_text()
    reference = RunStore(alone / "tiny")
    yield ((name, *strikes(name, folder, reference, times)) for name in FAULTS if only in name)
