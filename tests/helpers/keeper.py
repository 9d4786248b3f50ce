"""Runs a command and keeps whatever it leaves running as its own descendants, until its stdin closes.

Then kills them all, and removes the folder in which they wrote: `keeper.py FOLDER COMMAND ...`.

Started by tests.helpers.cluster, once a node. When the tests end, even by kill -9, their end of the pipe closes.
Prints the command's exit code in a line of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def descendants(root: int) -> list[int]:
    """Pids of all processes under a process, from /proc, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def signal_all(root: int, number: int) -> None:
    """Sends a signal to all processes under a process."""
    for pid in descendants(root):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap() -> None:
    """Takes the exit codes of orphans, so that they do not stay as zombies."""
    while True:
        os.wait()


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
    print(code, flush=True)
    if not code:
        threading.Thread(target=reap, daemon=True).start()
    sys.stdin.read()
    while descendants(os.getpid()):  # what a dying process starts in between is found next time
        signal_all(os.getpid(), signal.SIGKILL)
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other nodes still write beside it
        folder.parent.rmdir()


if __name__ == "__main__":
    main()
