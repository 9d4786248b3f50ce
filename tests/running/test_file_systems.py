"""Studies on file systems that lack something: locks, folders that sync, symbolic links, mapped files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.tracking.lease import LEASE
from hpstudy.tracking.store import RunStore
from tests.helpers.command_line import PROGRAM
from tests.helpers.lacking import lacking_calls
from tests.helpers.running import curves, trials, wait_for_step

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tiny_file: Callable[..., Path], tmp_path: Path) -> Start:
    """Starts a study whose run folder and cache are on such a file system."""
    (tmp_path / "there" / "cache").mkdir(parents=True)

    def begin(study: dict[str, str] | None = None, host: str = "", **lacking: int) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            **lacking_calls(tmp_path / "there", **lacking),
            "HPSTUDY_CACHE": str(tmp_path / "there" / "cache"),
        }
        command = [
            PROGRAM,
            "run",
            tiny_file(replace=study),
            "--runs",
            tmp_path / "there" / "runs",
            "--wandb",
            "offline",
            "--workers",
            "1",
        ]
        if host:  # with a name, a network and processes of its own
            script = f'hostname {host}; ip link set lo up; exec "$@"'
            unshare = ["unshare", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command = [*unshare, "sh", "-c", script, "sh", *command]
        return subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return begin


NOTES = {
    "flock": "files cannot be locked here",
    "fsync_folder": "renames cannot be made durable here",
    "mmap": "files here cannot be mapped into memory",
}


@pytest.mark.parametrize(
    "lacking",
    [
        {"flock": errno.EIO},
        {"mmap": errno.ENODEV},
        {"flock": errno.ENOSYS, "fsync_folder": errno.EINVAL, "symlink": errno.EPERM, "mmap": errno.ENODEV},
    ],
    ids=lambda lacking: " ".join(f"{call}:{errno.errorcode[number]}" for call, number in lacking.items()),
)
def test_a_study_trains_the_same_there_and_says_once_what_is_lacking(
    start: Start, tiny, tmp_path: Path, uninterrupted, lacking: dict[str, int]
) -> None:
    process = start(**lacking)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    store = RunStore(tmp_path / "there" / "runs" / "tiny")
    assert (trials(tiny(), store), curves(store)) == uninterrupted
    assert not (store.root / LEASE).exists()
    for call, said in NOTES.items():
        assert stderr.count(said) == (call in lacking), stderr


def test_a_second_driver_is_refused_without_locks(start: Start, tmp_path: Path) -> None:
    first = start(study={"tokens = 5120": "tokens = 1280000"}, flock=errno.ENOSYS)  # 5,000 steps
    wait_for_step(tmp_path / "there" / "runs", "search-0000", first)
    second = start(study={"tokens = 5120": "tokens = 1280000"}, flock=errno.ENOSYS)
    _, refused = second.communicate(timeout=60)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (130, 2), refused
    assert f"another hpstudy (pid {first.pid} on " in refused


def test_a_study_killed_without_locks_resumes_at_once(start: Start, tiny, tmp_path: Path, uninterrupted) -> None:
    first = start(flock=errno.ENOLCK)
    wait_for_step(tmp_path / "there" / "runs", "search-0001", first)
    first.kill()
    first.communicate()
    assert (tmp_path / "there" / "runs" / "tiny" / LEASE).exists()
    again = start(flock=errno.ENOLCK)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0, stderr
    store = RunStore(tmp_path / "there" / "runs" / "tiny")
    assert (trials(tiny(), store), curves(store)) == uninterrupted


@pytest.fixture
def hosts() -> None:
    """Skips where this user may not make namespaces."""
    made = subprocess.run(["unshare", "--uts", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    if made.returncode:
        pytest.skip(f"no hosts can be made here: {made.stderr.decode().strip()}")


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("names", [("node-1", "node-2"), ("node", "node")], ids=["two names", "one name"])
def test_two_hosts_without_locks_cannot_write_one_study(start: Start, tmp_path: Path, names: tuple[str, str]) -> None:
    long = {"tokens = 5120": "tokens = 1280000"}  # 5,000 steps
    first = start(study=long, host=names[0], flock=errno.ENOSYS)
    wait_for_step(tmp_path / "there" / "runs", "search-0000", first)
    for second in [start(study=long, host=names[1], flock=errno.ENOSYS) for _ in range(2)]:
        _, said = second.communicate(timeout=60)
        assert second.returncode == 2, said
        assert re.search(rf"another hpstudy \(pid \d+ on {names[0]}\) runs this study; wait for it, or end it", said)
    assert first.poll() is None
    first.kill()
    first.communicate()


@pytest.mark.usefixtures("hosts")
def test_a_study_whose_host_is_lost_goes_on_at_another(start: Start, tiny, tmp_path: Path, uninterrupted) -> None:
    first = start(host="node-1", flock=errno.ENOSYS)
    runs = tmp_path / "there" / "runs"
    wait_for_step(runs, "search-0001", first)
    first.kill()  # and all of the host's processes with it
    first.communicate()
    second = start(host="node-2", flock=errno.ENOSYS)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    store = RunStore(runs / "tiny")
    assert (trials(tiny(), store), curves(store)) == uninterrupted


def test_a_driver_that_wakes_up_after_its_study_was_finished_by_another_changes_nothing(
    start: Start, tmp_path: Path
) -> None:
    long = {"tokens = 5120": "tokens = 102400", "trials = 5": "trials = 2"}  # 400 steps
    first = start(study=long, flock=errno.ENOSYS)
    runs = tmp_path / "there" / "runs"
    wait_for_step(runs, "search-0000", first)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(study=long, flock=errno.ENOSYS)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file() and path.suffix != ".log"}
    os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1, said
    assert f"{runs / 'tiny'}: another hpstudy has taken over this study" in said
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file() and path.suffix != ".log"} == before
