"""The W&B sink while runs train, against the real wandb: its offline files, and a server on 127.0.0.1."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, StepRecord
from hpstudy.tracking import wandb_sink
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import new_wandb_id
from tests.helpers.command_line import run_python
from tests.helpers.loopback import Loopback
from tests.helpers.samples import header, record, result
from tests.helpers.wandb_rows import (
    KEY,
    STEPS,
    end_session,
    history,
    inspected,
    new_sink,
    offline_rows,
    own_keys,
    same,
    wait_until,
)


def test_an_offline_run_holds_every_step_of_the_store(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store, messages = RunStore(home / "store"), []
    store.create()
    steps = [*STEPS, record(21, loss=math.nan), record(22, loss=math.inf)]
    ended = result(Outcome.DIVERGED, steps=22, train_loss=math.inf)
    sink, writer = new_sink(home, "offline", messages), store.begin(header())
    sink.begin(header())
    for step in steps:
        writer.append(step)
        sink.log("search-0007", step)
    writer.finish(ended)
    sink.finish("search-0007", ended)
    sink.close(30)

    assert messages == []
    (run,) = store.runs()
    end_session()
    records = inspected(home, "id")
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
        "tokens": {"last": 22 * 4096},
        "train/loss": {"last": "Infinity"},
        "train/tok_per_sec": {"last": 409_600},
        "val/loss": {"last": 5},
    }
    assert capfd.readouterr() == ("", "")


def test_an_offline_run_that_begins_again_discards_its_fragment(home: Path) -> None:
    for steps in (STEPS[:5], STEPS):  # a driver that is killed, and the one that resumes the run
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
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    runs = {"search-0001": "a", "baseline-s101": "b"}
    sink.begin(header("search-0001", wandb_id="a", trial=1))
    sink.begin(header("baseline-s101", wandb_id="b", phase="baseline", trial=None, seed=101))
    for step in STEPS:
        for run_id in runs:
            sink.log(run_id, step)
    sink.finish("search-0001", result())
    sink.finish("baseline-s101", result(Outcome.FAILED))
    sink.close(30)

    assert messages == []
    for run_id, wandb_id in runs.items():
        assert same(own_keys(server.runs[wandb_id].history), STEPS)
        delivery = json.loads((home / run_id / "wandb.json").read_text())
        assert delivery == {"mode": "online", "url": f"{server.url}/e/p/runs/{wandb_id}", "id": wandb_id}
    assert (server.runs["a"].exitcode, server.runs["b"].exitcode) == (0, 1)
    created = server.runs["b"].upserts[0]
    assert (created["groupName"], created["jobType"], created["displayName"]) == (
        "quickstart",
        "baseline",
        "quickstart/baseline-s101",
    )
    assert server.runs["a"].tags == ["search", "complete"]
    assert server.runs["b"].tags == ["baseline", "failed"]
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


def test_the_config_of_a_trial_that_a_published_rule_proposed_names_the_rule(home: Path, server: Loopback) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages, rules={"search-0007": "step-law"})
    sink.begin(header(wandb_id="ruled"))
    sink.begin(header("baseline-s101", phase="baseline", seed=101, wandb_id="other"))
    sink.abandon("search-0007")
    sink.abandon("baseline-s101")
    sink.close(30)
    assert messages == []
    assert {name: run.config.get("rule") for name, run in server.runs.items()} == {"ruled": "step-law", "other": None}


def test_the_config_of_a_confirm_run_has_the_trial_that_it_repeats_and_its_share_of_the_budget(
    home: Path, server: Loopback
) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    sink.begin(header(wandb_id="search"))
    confirm = header(
        "confirm-0007-s101-t75", phase="confirm", seed=101, of="search-0007", fraction=0.75, wandb_id="confirm"
    )
    sink.begin(confirm)
    sink.abandon("search-0007")
    sink.abandon("confirm-0007-s101-t75")
    sink.close(30)
    assert messages == []
    configs = {wandb_id: run.config for wandb_id, run in server.runs.items()}
    assert {name: (config["of"], config["fraction"]) for name, config in configs.items()} == {
        "search": (None, 1),
        "confirm": ("search-0007", 0.75),
    }


def test_a_resumed_online_run_continues_after_the_servers_last_step(home: Path, server: Loopback) -> None:
    for steps in (STEPS[:12], STEPS):  # the driver that resumes the run logs everything again
        sink = new_sink(home, "online", [])
        sink.begin(header())
        for step in steps:
            sink.log("search-0007", step)
        sink.abandon("search-0007")
        sink.close(30)
    assert same(own_keys(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("status", [401, 500, None], ids=["refuses", "fails", "closes the connection"])
def test_a_run_whose_server_does_not_answer_continues_offline(
    home: Path, server: Loopback, capfd: pytest.CaptureFixture[str], status: int | None
) -> None:
    server.status = status
    messages: list[str] = []
    sink = new_sink(home, "online", messages, patience=1.0)
    sink.begin(header())
    for step in STEPS:
        sink.log("search-0007", step)
    sink.finish("search-0007", result())
    sink.close(30)

    (line,) = messages
    assert "\n" not in line
    assert line.startswith("W&B: CommError: ")
    assert "offline" in line
    assert f"`hpstudy sync {home.name} --runs {home.parent}`" in line
    assert same(offline_rows(home, "id"), STEPS)
    assert capfd.readouterr() == ("", "")


def test_a_run_without_a_key_is_offline_and_nothing_prompts(home: Path) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    sink.begin(header())
    sink.close(30)
    assert len(messages) == 1
    assert messages[0].startswith("W&B: UsageError: No API key configured")
    assert offline_rows(home, "id") == []


def test_a_server_lost_in_mid_run_is_reported_once_and_later_runs_are_offline(home: Path, server: Loopback) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages, patience=1.0)
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
    assert len(messages) == 1
    assert "TimeoutError" in messages[0]
    assert same(offline_rows(home, "next"), STEPS)


def test_a_run_continues_without_wandb_after_wandbs_own_process_died(home: Path) -> None:
    program = f"""
import os, signal, subprocess, time
from pathlib import Path
from hpstudy.tracking.wandb_sink import WandbSink
from tests.helpers.samples import header, record, result
here = Path({str(home)!r})
sink = WandbSink(mode="offline", project="p", entity=None, directory=here, extra={{}}, say=print)
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
    done = run_python(program, check=True, timeout=60)
    (line,) = done.stdout.splitlines()
    assert line.startswith("W&B: ")
    assert "is left out from here" in line
    assert done.stderr == ""


def test_close_waits_no_longer_than_its_timeout(home: Path, server: Loopback) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages, patience=2.0)
    server.status = None
    sink.begin(header())
    began = time.monotonic()
    sink.close(0.3)
    assert time.monotonic() - began < 1.0
    assert "within 0.3 s" in messages[0]
    assert f"`hpstudy sync {home.name} --runs {home.parent}`" in messages[0]
    sink.close(30)


def test_a_disabled_sink_does_not_import_wandb(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from hpstudy.tracking.wandb_settings import resolve_mode
from hpstudy.tracking.wandb_sink import WandbSink
from tests.helpers.samples import header, record, result
assert resolve_mode("disabled") == "disabled"
here = Path({str(tmp_path)!r})
sink = WandbSink(mode="disabled", project="p", entity=None, directory=here, extra={{}}, say=print)
sink.begin(header())
sink.log("search-0007", record(1))
sink.finish("search-0007", result())
sink.close(1)
assert "wandb" not in sys.modules
"""
    done = run_python(program, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_logging_a_step_takes_microseconds(home: Path) -> None:
    sink = new_sink(home, "offline", [])
    sink.begin(header())
    began = time.perf_counter()
    for step in range(1, 1001):
        sink.log("search-0007", STEPS[step % 20])
    mean = (time.perf_counter() - began) / 1000
    sink.close(30)
    assert mean < 1e-3  # some 2 µs on a quiet core


def test_rows_that_come_faster_than_wandb_takes_them_wait_in_the_run_store_and_arrive_once(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs fall behind: one catches up while it trains, one at its end."""
    monkeypatch.setattr(wandb_sink, "MAX_WAITING", 8)
    messages: list[str] = []
    store, sink = RunStore(home), new_sink(home, "online", messages)
    writers = {}
    server.status = "hang"  # the thread waits in wandb.init, as long as this says
    for trial, run_id in enumerate(("search-0001", "search-0002"), start=1):
        began = header(run_id, wandb_id=f"w-{run_id}", trial=trial)
        writers[run_id] = store.begin(began)
        sink.begin(began)

    def train(run_id: str, steps: list[StepRecord]) -> None:
        for step in steps:
            writers[run_id].append(step)
            sink.log(run_id, step)
            assert sink._queue.qsize() <= 8 + 1  # what waits, and one that takes the place of a row

    train("search-0001", STEPS[:15])
    train("search-0002", STEPS)
    assert messages == ["W&B takes rows more slowly than they come; it gets the rest later, from the run store"]
    server.status = 200
    sink.drain(lambda: None)
    train("search-0001", STEPS[15:])
    sink.drain(lambda: None)
    assert sink._last["search-0001"] == 20  # before its end
    for run_id, writer in writers.items():
        writer.finish(result())
        sink.finish(run_id, result())
    sink.close(30)
    assert len(messages) == 1
    for run_id in writers:
        assert same(own_keys(server.runs[f"w-{run_id}"].history), STEPS)
        assert json.loads((home / run_id / "wandb.json").read_text())["mode"] == "online"


@given(st.text(max_size=300))
def test_ids_suit_wandb_and_differ_each_time(study: str) -> None:
    first, second = new_wandb_id(study, "confirm-0007-s101"), new_wandb_id(study, "confirm-0007-s101")
    assert first != second
    assert len(first) <= 128
    assert not set(first) & set(":;,#?/'")
    assert "confirm-0007-s101" in first


REDIRECTED = {
    "WANDB_RUN_ID": "agents-run",
    "WANDB_SWEEP_ID": "agents-sweep",
    "WANDB_RESUME": "must",
    "WANDB_RUN_GROUP": "agents-group",
    "WANDB_JOB_TYPE": "agents-type",
    "WANDB_NAME": "agents-name",
}


def test_runs_under_an_agents_environment_stay_two_runs_with_their_own_identity(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in REDIRECTED.items():
        monkeypatch.setenv(name, value)
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    for run_id, wandb_id in (("search-0007", "one"), ("search-0008", "two")):
        sink.begin(header(run_id, wandb_id=wandb_id))
        for step in STEPS:
            sink.log(run_id, step)
        sink.finish(run_id, result())
    sink.close(30)
    assert set(server.runs) == {"one", "two"}
    assert all(same(own_keys(run.history), STEPS) for run in server.runs.values())
    created = [run.upserts[0] for run in server.runs.values()]
    assert [(c["groupName"], c["jobType"], c["displayName"]) for c in created] == [
        ("quickstart", "search", "quickstart/search-0007"),
        ("quickstart", "search", "quickstart/search-0008"),
    ]
    (line,) = messages
    assert line.startswith("W&B: WANDB_RUN_ID, WANDB_SWEEP_ID, ")
    assert line.endswith("would send these runs elsewhere, so it is not passed on")


@pytest.mark.usefixtures("server")
def test_a_run_that_wandb_opens_elsewhere_is_not_marked_and_goes_offline(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    init = wandb.init

    def elsewhere(**asked: object) -> object:
        return init(**asked | ({"id": "other"} if asked["mode"] == "online" else {}))

    monkeypatch.setattr(wandb, "init", elsewhere)
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    sink.begin(header())
    for step in STEPS:
        sink.log("search-0007", step)
    sink.finish("search-0007", result())
    sink.close(30)
    assert "search-0007 was to go to p/id, but W&B opened p/other" in messages[0]
    assert json.loads((home / "search-0007" / "wandb.json").read_text())["mode"] == "offline"


@pytest.mark.usefixtures("server")
def test_the_load_of_the_machine_is_sampled_while_a_run_trains_and_not_when_it_is_sent_later(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    init, sampled = wandb.init, {}

    def noting(**asked: object) -> object:
        sampled[asked["id"]] = not asked["settings"].x_disable_stats
        return init(**asked)

    monkeypatch.setattr(wandb, "init", noting)
    store, messages = RunStore(home / "store"), list[str]()
    store.create()
    writer = store.begin(header(wandb_id="later"))
    writer.finish(result(steps=0))
    sink = new_sink(store.root, "online", messages)
    sink.begin(header(wandb_id="now"))
    sink.finish("search-0007", result(steps=0))
    sink.drain(lambda: None)
    (view,) = store.runs()
    (view.folder / "wandb.json").unlink()  # as if it had never been sent
    sink.replay(view)
    sink.close(30)
    assert (sampled, messages) == ({"now": True, "later": False}, [])
