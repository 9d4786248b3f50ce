"""hpstudy's own other processes: how they start, what they ignore, when they end, and how little they take."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Slurm warns with the last
WATCH_SECONDS = 1.0
LOWEST = 19  # nice value
PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("hpstudy", {str(Path(__file__).parent / "__init__.py")!r})
sys.modules["hpstudy"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
importlib.import_module(sys.argv.pop(1)).main()
"""
"""Runs `main` of a module of this process's own hpstudy, whatever the current folder and sys.path hold."""


def start(
    module: str, environment: Mapping[str, str], log: IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts `main` of a module in a fresh interpreter. Returns the process, and this end of a pipe to it.

    The file descriptor of the other end is its only argument. It writes to `log` or where this process writes, and has
    its own session, so that a terminal's Ctrl-C reaches only this process.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    return process, Connection(ours.detach())


def environment_without_folder() -> dict[str, str]:
    """This process's environment, with which a new interpreter imports nothing from the current folder."""
    # an empty entry, as "$PYTHONPATH:more" leaves, would mean the current folder
    path = os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def follow_parent() -> None:
    """Ignores STOP_SIGNALS, and ends this process soon after its parent has ended, whatever it does then.

    A cluster may signal every process of a study at once. The driver gets the signal too and decides.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[os.getppid()], name="parent-watch", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def lower_priority(pid: int) -> None:
    """Gives a process, and all that it starts from now on, only the time of the cores that nothing else wants.

    Linux may share time between sessions first (`man 7 sched`, autogroup). A process that the process starts in a
    session of its own needs another call for that.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, LOWEST)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(LOWEST))
