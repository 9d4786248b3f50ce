"""The driver's end of a worker: its environment, how it starts, and the clock that counts its silence."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.files import cache_dir
from hpstudy.running import executors, local
from hpstudy.running.executors import AwakeClock, wait_until_ready
from hpstudy.running.local import LocalExecutor, worker_environment
from hpstudy.running.messages import Setup
from tests.bench import ROOT
from tests.helpers.running import any_alive, kill_workers, workers_of
from tests.helpers.training import SPEC


def test_compiled_code_is_kept_in_hpstudys_cache_unless_the_user_has_another_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert worker_environment(1)["TORCHINDUCTOR_CACHE_DIR"] == str(cache_dir() / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert worker_environment(1)["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


def test_a_worker_has_the_threads_of_its_study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = worker_environment(3)
    assert [environment[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL")] == ["3", "3"]


def test_a_trainer_that_the_users_input_forbids_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 20.0)  # a busy machine may need more than the one second
    setup = Setup(spec=replace(SPEC, corpus="text:absent.txt"), device="cpu", base=tmp_path)
    worker = LocalExecutor(tmp_path).start(setup, 0)
    with pytest.raises(UserError, match=r"absent\.txt"):
        wait_until_ready(worker)
    assert "exit code 0" in worker.last_words().cause


def test_a_worker_that_dies_before_it_is_ready_is_an_error_with_its_last_words(tmp_path: Path):
    log = tmp_path / "worker-0.log"
    log.write_text("loading\nno room left\n\n")
    worker = LocalExecutor(tmp_path).start(Setup(spec=SPEC, device="cpu", base=tmp_path), 0)
    kill_workers()
    with pytest.raises(MachineError) as error:
        wait_until_ready(worker)
    assert str(error.value) == "the worker died before it was ready: no room left; try `hpstudy doctor`"
    assert worker.last_words().cause == f"the worker died (exit code -9; see {log})"


LONG_ORDER = """
import sys
from pathlib import Path
from hpstudy.running.executors import time_steps, wait_until_ready
from hpstudy.running.local import LocalExecutor
from hpstudy.running.messages import Setup
from tests.helpers.training import HPARAMS, SPEC
worker = LocalExecutor(Path(sys.argv[1])).start(Setup(spec=SPEC, device="cpu", base=Path()), 0)
wait_until_ready(worker)
print("ready", flush=True)
time_steps(worker, HPARAMS, steps=10**9)
"""


def test_a_worker_whose_driver_was_killed_ends_in_the_middle_of_a_long_order(tmp_path: Path):
    command = [sys.executable, "-c", LONG_ORDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == b"ready\n"
        workers = workers_of(driver.pid)
        time.sleep(1)
        driver.kill()
        driver.wait()
    assert len(workers) == 1
    deadline = time.monotonic() + 10
    while any_alive(workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_clock_stands_still_while_the_process_is_held(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(executors.time, "monotonic", lambda: now)
    clock = AwakeClock()
    for gap in (0.2, 0.1, 3600.0, 0.2):
        now += gap
        clock.seconds()
    assert clock.seconds() == pytest.approx(0.2 + 0.1 + 0.4 + 0.2)
