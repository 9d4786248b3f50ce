"""A study survives the end of its terminal, closed and full streams, and signals that its shell ignores."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.frames import load
from tests.helpers.command_line import PROGRAM, run_python
from tests.helpers.running import wait_for_step

TINY = 5  # trials


@pytest.fixture
def command(tiny_file: Callable[..., Path], tmp_path: Path) -> list[str]:
    return [PROGRAM, "run", str(tiny_file()), "--runs", str(tmp_path / "runs"), "--wandb", "disabled"]


def complete(tmp_path: Path) -> bool:
    """Whether every run of the study has ended and its journal is whole."""
    frames = load("tiny", tmp_path / "runs")
    lines = (tmp_path / "runs" / "tiny" / "optuna.journal").read_bytes().splitlines()
    return list(frames.trials["outcome"]) == ["complete"] * TINY and all(line.startswith(b"{") for line in lines)


def test_a_study_continues_when_its_terminal_is_gone(command: list[str], tmp_path: Path) -> None:
    """As after `disown`: no signal comes, but every write to the terminal fails with EIO."""
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=side, stdin=side, text=True, start_new_session=True
    )
    os.close(side)
    wait_for_step(tmp_path / "runs", "search-0001", process)
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "val loss" in out
    assert complete(tmp_path)


def test_a_study_under_nohup_survives_sighup(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(["nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "runs", "search-0001", process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert complete(tmp_path)


def test_the_end_of_a_terminal_stops_a_study_with_checkpoints(command: list[str], tmp_path: Path) -> None:
    """A controlling terminal that closes sends SIGHUP, and nothing can be printed any more."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    header = tmp_path / "runs" / "tiny" / "search-0001" / "header.json"
    deadline = time.monotonic() + 60
    while not header.exists():
        assert time.monotonic() < deadline
        os.set_blocking(terminal, False)
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert complete(tmp_path)


@pytest.mark.parametrize("redirection", [">&- 2>&-", "2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_study_runs_with_closed_or_full_streams(command: list[str], tmp_path: Path, redirection: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert complete(tmp_path)
    assert (tmp_path / "runs" / "tiny" / "report" / "index.html").exists()


def test_results_that_cannot_be_printed_are_an_error_after_the_study(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["sh", "-c", '"$@" >/dev/full', "sh", *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "[Errno 28] No space left on device"
    assert complete(tmp_path)


def test_main_works_from_a_thread(command: list[str], tmp_path: Path) -> None:
    program = f"""
import sys, threading
from hpstudy.cli import main
sys.argv = {command!r}
codes = []
def run():
    try:
        main()
    except SystemExit as error:
        codes.append(error.code)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(codes)
"""
    done = run_python(program, timeout=60)
    assert done.stdout.splitlines()[-1] in ("[]", "[0]", "[None]"), done.stderr
    assert complete(tmp_path)
