"""The W&B sink against the real wandb: its offline files, and a server on 127.0.0.1."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback
from tracking_samples import header, record, result

from hpstudy.errors import UserError
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, StepRecord, as_row
from hpstudy.tracking.store import RunStore, restored
from hpstudy.tracking.wandb_sink import Mode, WandbSink, new_wandb_id, resolve_mode, resolve_project, whereabouts

KEY = "0" * 40
STEPS = [record(step, evaluated=step == 10) for step in range(1, 21)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user without login or settings, and a wandb session that ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield tmp_path
    end_session()


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with Loopback() as server:
        monkeypatch.setenv("WANDB_DIR", str(home))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        server.status = None  # nothing that is still open may wait for an answer
        end_session()


def end_session() -> None:
    import wandb

    wandb.teardown()


def new_sink(home: Path, mode: Mode, said: list[str], patience: float = 10.0) -> WandbSink:
    return WandbSink(
        mode=mode,
        project="p",
        entity=None,
        study="quickstart",
        directory=home,
        extra={"corpus": "asv"},
        say=said.append,
        patience=patience,
    )


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def offline_records(home: Path, wandb_id: str) -> list[dict[str, Any]]:
    """What one offline file holds, by W&B's own reader."""
    end_session()  # the file is whole once the session has ended
    (path,) = (home / "wandb").glob(f"offline-run-*-{wandb_id}/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def rows_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without wandb's own keys."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return restored(rows_of([line["history"]["item"] for line in records if line["type"] == "history"]))


def offline_rows(home: Path, wandb_id: str) -> list[dict[str, Any]]:
    return history(offline_records(home, wandb_id))


def same(rows: list[dict[str, Any]], steps: list[StepRecord]) -> bool:
    """Equal row by row; through repr of floats, because NaN differs from itself, whatever the order of keys."""

    def comparable(row: dict[str, Any]) -> list[tuple[str, str]]:
        return sorted((key, repr(float(value))) for key, value in row.items())

    return [comparable(row) for row in rows] == [comparable(as_row(step)) for step in steps]


def test_an_offline_run_holds_every_step_of_the_store(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store, said = RunStore(home / "store"), []
    store.create()
    steps = [*STEPS, record(21, loss=math.nan), record(22, loss=math.inf)]
    ended = result(Outcome.DIVERGED, steps=22, train_loss=math.inf)
    sink, writer = new_sink(home, "offline", said), store.begin(header())
    sink.begin(header())
    for step in steps:
        writer.append(step)
        sink.log("search-0007", step)
    writer.finish(ended)
    sink.finish("search-0007", ended)
    sink.close(30)

    assert said == []
    (run,) = store.runs()
    records = offline_records(home, "id")
    assert same(history(records), list(run.records()))
    assert [line["exit"]["exit_code"] for line in records if line["type"] == "exit"] == [0]
    updates = [line["summary"]["update"] for line in records if line["type"] == "summary"]
    summary = {key: value for update in updates for key, value in update.items() if not key.startswith("_")}
    assert summary == {
        "result/outcome": "diverged",
        "result/steps": 22,
        "result/tokens": 22 * 4096,
        "result/val_loss": 5,
        "result/best_val_loss": 4.9,
        "result/train_loss": "Infinity",
        "result/tok_per_sec": 409_600,
        "result/train_seconds": 0.22,
        "result/clipped_share": 0.05,
    }
    assert capfd.readouterr() == ("", "")


def test_an_offline_run_that_begins_again_discards_its_fragment(home: Path) -> None:
    for steps in (STEPS[:5], STEPS):  # a driver that is killed, and its second life
        sink = new_sink(home, "offline", [])
        sink.begin(header())
        for step in steps:
            sink.log("search-0007", step)
        sink.abandon("search-0007")
        sink.close(30)
    assert same(offline_rows(home, "id"), STEPS)


def test_the_server_receives_each_row_of_parallel_runs_once(
    home: Path, server: Loopback, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    sink = new_sink(home, "online", said)
    runs = {"search-0001": "a", "baseline-s101": "b"}
    sink.begin(header("search-0001", wandb_id="a", trial=1))
    sink.begin(header("baseline-s101", wandb_id="b", phase="baseline", trial=None, seed=101))
    for step in STEPS:
        for run_id in runs:
            sink.log(run_id, step)
    sink.finish("search-0001", result())
    sink.finish("baseline-s101", result(Outcome.FAILED))
    sink.close(30)

    assert said == []
    for run_id, wandb_id in runs.items():
        assert same(rows_of(server.runs[wandb_id].history), STEPS)
        delivery = json.loads((home / run_id / "wandb.json").read_text())
        assert delivery == {"mode": "online", "url": f"{server.url}/e/p/runs/{wandb_id}"}
    assert (server.runs["a"].exitcode, server.runs["b"].exitcode) == (0, 1)
    created = server.runs["b"].upserts[0]
    assert (created["groupName"], created["jobType"], created["displayName"]) == (
        "quickstart",
        "baseline",
        "baseline-s101",
    )
    config = server.runs["b"].config
    assert {key: config.get(key) for key in ("study", "run_id", "phase", "trial", "seed", "corpus", "wandb_id")} == {
        "study": "quickstart",
        "run_id": "baseline-s101",
        "phase": "baseline",
        "trial": None,
        "seed": 101,
        "corpus": "asv",
        "wandb_id": "b",
    }
    assert (config["lr"], config["beta2"], config["budget_tokens"]) == (1e-3, GPT3.beta2, 81_920)
    assert config["decay_timescale_steps"] == "Infinity"
    assert server.runs["b"].summary["result/outcome"] == "failed"
    assert KEY not in "".join(path.read_text(errors="replace") for path in home.rglob("*") if path.is_file())
    assert capfd.readouterr() == ("", "")


def test_an_online_run_goes_on_after_the_servers_last_step(home: Path, server: Loopback) -> None:
    for steps in (STEPS[:12], STEPS):  # the second life logs everything again
        sink = new_sink(home, "online", [])
        sink.begin(header())
        for step in steps:
            sink.log("search-0007", step)
        sink.abandon("search-0007")
        sink.close(30)
    assert same(rows_of(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("status", [401, 500, None], ids=["refuses", "fails", "hangs-up"])
def test_a_server_that_does_not_answer_sends_the_run_offline(
    home: Path, server: Loopback, capfd: pytest.CaptureFixture[str], status: int | None
) -> None:
    server.status = status
    said: list[str] = []
    sink = new_sink(home, "online", said, patience=1.0)
    sink.begin(header())
    for step in STEPS:
        sink.log("search-0007", step)
    sink.finish("search-0007", result())
    sink.close(30)

    (line,) = said
    assert "\n" not in line
    assert line.startswith("W&B: CommError: ")
    assert "offline" in line
    assert "`hpstudy sync quickstart`" in line
    assert same(offline_rows(home, "id"), STEPS)
    assert capfd.readouterr() == ("", "")


def test_a_missing_key_sends_the_run_offline_without_a_prompt(home: Path) -> None:
    said: list[str] = []
    sink = new_sink(home, "online", said)
    sink.begin(header())
    sink.close(30)
    assert len(said) == 1
    assert said[0].startswith("W&B: UsageError: No API key configured")
    assert offline_rows(home, "id") == []


def test_a_server_lost_in_mid_run_is_said_once_and_later_runs_are_offline(home: Path, server: Loopback) -> None:
    said: list[str] = []
    sink = new_sink(home, "online", said, patience=1.0)
    sink.begin(header(wandb_id="lost"))
    sink.log("search-0007", STEPS[0])
    wait_until(lambda: "lost" in server.runs)
    server.status = None
    for step in STEPS[1:]:
        sink.log("search-0007", step)
    sink.finish("search-0007", result())
    sink.begin(header("search-0008", wandb_id="next"))
    for step in STEPS:
        sink.log("search-0008", step)
    sink.finish("search-0008", result())
    sink.close(30)
    assert len(said) == 1
    assert "TimeoutError" in said[0]
    assert same(offline_rows(home, "next"), STEPS)


def test_the_death_of_wandbs_own_process_costs_only_the_view(home: Path) -> None:
    program = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from tracking_samples import header, record, result
from hpstudy.tracking.wandb_sink import whereabouts, WandbSink
here = Path({str(home)!r})
sink = WandbSink(mode="offline", project="p", entity=None, study="quickstart", directory=here, extra={{}}, say=print)
sink.begin(header())
while not list(here.glob("wandb/offline-run-*/*.wandb")):
    time.sleep(0.01)
for line in subprocess.run(["ps", "-A", "-o", "ppid=,pid=,comm="], capture_output=True, text=True).stdout.splitlines():
    parent, pid, name = line.split(maxsplit=2)
    if int(parent) == os.getpid() and "wandb-core" in name:
        os.kill(int(pid), signal.SIGKILL)
time.sleep(0.2)
for step in range(1, 21):
    sink.log("search-0007", record(step))
sink.finish("search-0007", result())
sink.close(30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    (line,) = done.stdout.splitlines()
    assert line.startswith("W&B: ")
    assert "is left out from here" in line
    assert done.stderr == ""


def test_closing_waits_no_longer_than_it_was_told(home: Path, server: Loopback) -> None:
    said: list[str] = []
    sink = new_sink(home, "online", said, patience=2.0)
    server.status = None
    sink.begin(header())
    began = time.monotonic()
    sink.close(0.3)
    assert time.monotonic() - began < 1.0
    assert "within 0.3 s" in said[0]
    assert "`hpstudy sync quickstart`" in said[0]
    sink.close(30)


def test_disabled_does_not_even_import_wandb(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from tracking_samples import header, record, result
from hpstudy.tracking.wandb_sink import whereabouts, WandbSink, new_wandb_id, resolve_mode
assert resolve_mode("disabled") == "disabled"
here = Path({str(tmp_path)!r})
sink = WandbSink(mode="disabled", project="p", entity=None, study="s", directory=here, extra={{}}, say=print)
sink.begin(header())
sink.log("search-0007", record(1))
sink.finish("search-0007", result())
sink.close(1)
assert "wandb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_logging_costs_the_driver_next_to_nothing(home: Path) -> None:
    sink = new_sink(home, "offline", [])
    sink.begin(header())
    began = time.perf_counter()
    for step in range(1, 1001):
        sink.log("search-0007", STEPS[step % 20])
    mean = (time.perf_counter() - began) / 1000
    sink.close(30)
    assert mean < 1e-3  # some 2 µs on a quiet core


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_auto_follows_wandb_mode_then_the_key(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize("key", [KEY, "malformed"])
def test_auto_is_online_with_a_login(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (home / "netrc").write_text(f"machine 127.0.0.1:9 login user password {key}\n")
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize("flag", ["online", "offline", "disabled"])
def test_a_flag_that_says_what_it_wants_is_obeyed(monkeypatch: pytest.MonkeyPatch, flag: Mode) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(flag) == flag


def test_an_unknown_wandb_mode_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r'WANDB_MODE: must be one of online, .*but got "ofline"'):
        resolve_mode("auto")


@pytest.mark.usefixtures("home")
def test_the_environment_names_the_project_before_the_study_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_project(None, None) == ("hpstudy", None)
    assert resolve_project("mine", "me") == ("mine", "me")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    assert resolve_project("mine", "me") == ("ours", "us")


@given(st.text(max_size=300))
def test_ids_suit_wandb_and_differ_each_time(study: str) -> None:
    first, second = new_wandb_id(study, "confirm-0007-s101"), new_wandb_id(study, "confirm-0007-s101")
    assert first != second
    assert len(first) <= 128
    assert not set(first) & set(":;,#?/'")
    assert "confirm-0007-s101" in first


def stored(home: Path) -> RunStore:
    """A study of one finished run, with the steps that W&B is sent."""
    store = RunStore(home / "quickstart")
    store.create()
    writer = store.begin(header())
    for step in STEPS:
        writer.append(step)
    writer.finish(result())
    return store


def send_live(store: RunStore, said: list[str], patience: float, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Sends the run as it comes, `meanwhile` after its fifth step; the longest time that it kept the caller waiting."""
    sink, longest = new_sink(store.root, "online", said, patience=patience), 0.0
    sink.begin(header())
    for step in STEPS:
        began = time.monotonic()
        sink.log("search-0007", step)
        longest = max(longest, time.monotonic() - began)
        if step.step == 5:
            meanwhile()
    sink.finish("search-0007", result())
    sink.close(60)
    return longest


def deliver(store: RunStore) -> None:
    """What `hpstudy sync` does, twice."""
    said: list[str] = []
    for _ in range(2):
        sink = new_sink(store.root, "online", said)
        for view in store.runs():
            sink.replay(view)
        sink.close(60)
    assert said == []


def kill_wandb() -> None:
    """Kills wandb's own process."""
    import wandb

    process = wandb.setup()._connection._proc._process
    process.kill()
    process.wait()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, None, "hang"])
def test_what_a_failing_server_missed_is_delivered_once(home: Path, server: Loopback, status: int | str | None) -> None:
    store, said = stored(home), list[str]()
    server.status = status
    waited = send_live(store, said, patience=1.0)
    assert waited < 0.1
    assert len(said) == 1
    end_session()
    server.status = 200
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("at_once", [True, False], ids=["from the start", "in mid-run"])
def test_a_server_that_recovers_gets_each_row_once(home: Path, server: Loopback, at_once: bool) -> None:
    store, said = stored(home), list[str]()

    def fail() -> None:
        server.status = 503
        threading.Timer(0.5, setattr, (server, "status", 200)).start()

    def fail_once_begun() -> None:
        wait_until(lambda: "id" in server.runs)
        fail()

    if at_once:
        fail()
    send_live(store, said, 20.0, (lambda: None) if at_once else fail_once_begun)
    assert said == []
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)


def test_a_server_that_goes_in_mid_run_is_delivered_the_rest_once(home: Path, server: Loopback) -> None:
    store, said = stored(home), list[str]()

    def go() -> None:
        wait_until(lambda: "id" in server.runs)
        server.status = None

    send_live(store, said, 1.0, go)
    assert len(said) == 1
    end_session()
    server.status = 200
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)


def test_the_death_of_wandbs_own_process_loses_no_row_for_good(home: Path, server: Loopback) -> None:
    store, said = stored(home), list[str]()

    def kill() -> None:
        wait_until(lambda: "id" in server.runs)
        kill_wandb()

    send_live(store, said, 2.0, kill)
    assert len(said) == 1
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)


def test_deleted_wandb_files_are_no_loss(home: Path, server: Loopback) -> None:
    store, said = stored(home), list[str]()
    sink = new_sink(store.root, "offline", said)
    for view in store.runs():
        sink.replay(view)
    sink.close(30)
    shutil.rmtree(store.root / "wandb")
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"mode": "online"}', "\xff"])
def test_a_run_whose_delivery_cannot_be_told_is_sent_again_without_a_row_twice(home: Path, server, damage: str) -> None:
    store = stored(home)
    deliver(store)
    (view,) = store.runs()
    (view.folder / "wandb.json").write_bytes(damage.encode("latin-1"))
    assert whereabouts(store.root, "quickstart") == "none"
    deliver(store)
    assert same(rows_of(server.runs["id"].history), STEPS)
    assert json.loads((view.folder / "wandb.json").read_text())["mode"] == "online"


def test_a_replayed_store_reaches_the_server_once_however_often_it_is_replayed(home: Path, server: Loopback) -> None:
    store = RunStore(home / "quickstart")
    store.create()
    for trial in range(2):
        writer = store.begin(header(f"search-000{trial}", wandb_id=f"id-{trial}", trial=trial))
        for step in STEPS:
            writer.append(step)
        writer.finish(result())
    said: list[str] = []
    for mode in ("offline", "online", "online", "offline"):
        sink = new_sink(store.root, mode, said)
        for view in store.runs():
            sink.replay(view)
        sink.close(30)
    assert said == []
    assert set(server.runs) == {"id-0", "id-1"}
    assert all(same(rows_of(run.history), STEPS) for run in server.runs.values())
    assert list((store.root / "wandb").glob("offline-run-*")) == []
    assert whereabouts(store.root, "quickstart").endswith("/p/groups/quickstart")
