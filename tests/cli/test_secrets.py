"""No secret of the environment is written or printed, and only the owner can write the files of a study."""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import PROGRAM

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefcafecafe",  # of the length that W&B takes
    "HF_TOKEN": "hf_canaryCANARYcanary",
    "AWS_SECRET_ACCESS_KEY": "canary/AWS+canary/secret",
}
SHORT_KEY = "canary-key-of-the-wrong-length"
PLAIN = [secret.encode() for secret in (*SECRETS.values(), SHORT_KEY)]
FORBIDDEN = PLAIN + [base64.b64encode(secret).rstrip(b"=") for secret in PLAIN]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts `hpstudy ARGS` in the test's folder, with every secret in its environment."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)

    def start(*args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([PROGRAM, *args], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def kill_a_worker(driver: subprocess.Popen[bytes], file: Path) -> None:
    """Kills a worker of the driver as soon as `file` has content."""
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)


def leaks(folder: Path, *printed: bytes) -> list[str]:
    """Files below a folder and printed outputs that contain a secret."""
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {f"output {number}": text for number, text in enumerate(printed)}
    return [place for place, content in contents.items() if any(secret in content for secret in FORBIDDEN)]


def test_leaks_finds_a_secret_in_a_file_and_in_an_output(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_bytes(b"password " + PLAIN[0])
    assert leaks(tmp_path, b"", base64.b64encode(PLAIN[1])) == [str(tmp_path / "netrc"), "output 1"]


def test_a_study_whose_worker_dies_and_whose_key_is_refused_writes_no_secret(
    started, tiny_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_file(replace={"trials = 5": "trials = 1", "tokens = 5120": "tokens = 128000"})
    run = started("run", str(path), "--wandb", "offline", "--workers", "1")
    kill_a_worker(run, tmp_path / "runs" / "tiny" / "search-0000" / "steps.jsonl")
    printed = [*run.communicate(timeout=120)]
    assert run.returncode == 0, printed
    assert b"exit code -9" in printed[1]
    monkeypatch.setenv("WANDB_API_KEY", SHORT_KEY)
    for args in (("export", "tiny", "--format", "csv"), ("sync", "tiny")):
        printed += started(*args).communicate(timeout=60)
    assert b"WANDB_API_KEY invalid" in printed[-1]
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    kinds = {file.name if file.suffix in (".json", ".jsonl", ".log") else file.suffix for file in written}
    assert {"header.json", "environment.json", "steps.jsonl", "worker-0.log", ".wandb", ".csv", ".journal"} <= kinds
    assert leaks(tmp_path, *printed) == []
    others = stat.S_IWGRP | stat.S_IWOTH | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
    assert [str(file) for file in written if file.stat().st_mode & others] == []


def test_a_worker_that_cannot_be_built_prints_no_secret(started, tiny_file, tmp_path: Path) -> None:
    run = started("run", str(tiny_file(replace={"width = 16": f"width = {2**17}"})), "--wandb", "offline")
    printed = run.communicate(timeout=60)
    assert run.returncode == 1
    assert b"allocate" in printed[1]
    assert leaks(tmp_path, *printed) == []
