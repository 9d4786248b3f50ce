"""hpstudy's other processes; how they start and end is tested with the workers and with W&B's writers."""

from __future__ import annotations

import subprocess

from hpstudy.processes import LOWEST, lower_priority


def test_a_process_of_lower_priority_passes_it_on_to_what_it_starts() -> None:
    with subprocess.Popen(["sh", "-c", "read _; nice"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        lower_priority(process.pid)
        assert process.communicate(b"\n")[0] == f"{LOWEST}\n".encode()


def test_lowering_the_priority_of_a_process_that_has_ended_does_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    lower_priority(process.pid)
