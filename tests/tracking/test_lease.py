"""One driver writes a study at a time, also where locks do not work and hosts share the folder."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.files import write_atomic
from hpstudy.tracking import lease
from hpstudy.tracking.lease import LEASE, leased


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and waits of a tenth of their length."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LOST_SECONDS", 1.5)


def hold(folder: Path, *, host: str = "elsewhere", pid: int = 1, beat: int = 0, place: str = "") -> None:
    """Writes the lease of another driver, as drivers do, so that nobody reads half of it."""
    theirs = {"host": host, "pid": pid, "token": "theirs", "beat": beat, "place": place}
    write_atomic(folder / LEASE, json.dumps(theirs))


def test_a_lease_is_held_beats_and_is_given_back(tmp_path: Path) -> None:
    with leased(tmp_path, pytest.fail):
        first = json.loads((tmp_path / LEASE).read_text())
        assert (first["host"], first["pid"]) == (platform.node(), os.getpid())
        time.sleep(0.7)
        assert json.loads((tmp_path / LEASE).read_text())["beat"] > first["beat"]
    assert not (tmp_path / LEASE).exists()


def test_a_second_driver_is_refused_while_the_first_beats(tmp_path: Path) -> None:
    with leased(tmp_path, pytest.fail), pytest.raises(UserError) as refusal, leased(tmp_path, pytest.fail):
        pytest.fail("two drivers hold the lease")
    assert f"another hpstudy (pid {os.getpid()} on {platform.node()}) runs this study" in str(refusal.value)


def test_a_driver_of_another_host_is_refused_by_name_while_it_beats(tmp_path: Path) -> None:
    done = threading.Event()

    def beat() -> None:
        for count in range(100):
            hold(tmp_path, beat=count)
            if done.wait(0.2):
                return

    hold(tmp_path)
    thread = threading.Thread(target=beat)
    thread.start()
    with (
        pytest.raises(UserError, match=r"another hpstudy \(pid 1 on elsewhere\) runs this study"),
        leased(tmp_path, pytest.fail),
    ):
        pytest.fail("two drivers hold the lease")
    done.set()
    thread.join()


def test_a_lease_of_another_host_that_has_stopped_is_taken_over_after_a_while(tmp_path: Path) -> None:
    hold(tmp_path)
    began = time.monotonic()
    with leased(tmp_path, pytest.fail):
        assert time.monotonic() - began >= 1.5
    assert not (tmp_path / LEASE).exists()


def test_a_lease_of_a_process_of_this_host_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    hold(tmp_path, host=platform.node(), pid=2**22 - 1, place=lease._place())
    began = time.monotonic()
    with leased(tmp_path, pytest.fail):
        assert time.monotonic() - began < 1


def test_a_process_that_is_not_here_may_live_on_a_host_of_the_same_name(tmp_path: Path) -> None:
    """Containers and cluster images often share their host name."""
    hold(tmp_path, host=platform.node(), pid=2**22 - 1, place="another boot pid:[1]")
    began = time.monotonic()
    with leased(tmp_path, pytest.fail):
        assert time.monotonic() - began >= 1.5


def test_of_many_drivers_that_start_at_once_one_has_the_lease(tmp_path: Path) -> None:
    held, refused, start = list[int](), list[int](), threading.Barrier(12)

    def take(number: int) -> None:
        start.wait()
        try:
            with leased(tmp_path, lambda: None):
                held.append(number)
                time.sleep(2.5)
        except UserError:
            refused.append(number)

    threads = [threading.Thread(target=take, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 11)


DAMAGED = [
    *(b"", b"{", b"[]", b"\xff", b'{"host": 1}'),
    b'{"host": "h", "pid": 12e45, "token": "t", "beat": 0}',
    b'{"host": "h", "pid": null, "token": "t", "beat": 0}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_lease_is_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEASE).write_bytes(content)
    with leased(tmp_path, pytest.fail):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()


def test_a_process_number_beyond_any_is_no_process(tmp_path: Path) -> None:
    hold(tmp_path, pid=2**70, place=lease._place())
    with leased(tmp_path, pytest.fail):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()


def test_a_driver_that_wakes_up_after_another_has_come_and_gone_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own thread that keeps the lease may not have run yet."""
    monkeypatch.setattr(lease, "_keep", lambda *_: None)
    lost = threading.Event()
    with leased(tmp_path, lost.set) as holding:
        holding.refuse_if_lost()
        (tmp_path / LEASE).unlink()
        time.sleep(0.7)
        with pytest.raises(MachineError, match=r"another hpstudy has taken over this study.*writes nothing more"):
            holding.refuse_if_lost()
        assert lost.is_set()
    assert not (tmp_path / LEASE).exists()


def test_a_lease_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    lost = threading.Event()
    with leased(tmp_path, lost.set):
        (tmp_path / LEASE).unlink()
        assert lost.wait(2)
        time.sleep(0.5)
        assert not (tmp_path / LEASE).exists()


def test_a_driver_that_was_held_too_long_learns_that_another_has_the_study_and_leaves_its_lease(tmp_path: Path) -> None:
    lost = threading.Event()
    with leased(tmp_path, lost.set):
        hold(tmp_path)
        assert lost.wait(2)
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "theirs"
