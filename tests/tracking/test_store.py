"""The run store: what was written is read back, also after a kill, a cut, damage, or a loss that is not a number."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Phase, StepRecord
from hpstudy.tracking.store import RunStore, RunView, RunWriter
from tests.helpers.command_line import run_python
from tests.helpers.disk import full_disk
from tests.helpers.samples import header, record, result


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs" / "quickstart")
    store.create()
    return store


def test_a_finished_run_reads_back_as_it_was_written(store: RunStore) -> None:
    steps = [record(1), record(2, loss=math.nan), record(3, loss=-math.inf, evaluated=True)]
    ended = result(Outcome.DIVERGED, steps=3, train_loss=math.inf)
    writer = store.begin(header())
    for step in steps:
        writer.append(step)
    assert store.result("search-0007") is None
    writer.finish(ended)

    (run,) = store.runs()
    assert run.header == header() == store.header("search-0007")
    assert run.header.derived["decay_timescale_steps"] == math.inf
    assert run.result == ended == store.result("search-0007")
    assert repr(list(run.records())) == repr(steps)
    assert [json.loads(line)["step"] for line in run.steps_path.read_text().splitlines()] == [1, 2, 3]


def test_runs_come_in_order_of_phase_and_number(store: RunStore) -> None:
    for run in [
        header("confirm-0007-s102", phase="confirm", trial=7, seed=102),
        header("confirm-0007-s101", phase="confirm", trial=7, seed=101),
        header("baseline-s101", phase="baseline", trial=None, seed=101),
        header("search-0010", trial=10),
        header("search-0002", trial=2),
    ]:
        store.begin(run).close()
    (store.root / "wandb").mkdir()
    (store.root / "search-0011").mkdir()  # killed before its header was written
    assert [run.run_id for run in store.runs()] == [
        "search-0002",
        "search-0010",
        "baseline-s101",
        "confirm-0007-s101",
        "confirm-0007-s102",
    ]


def test_a_killed_process_loses_no_step(store: RunStore) -> None:
    program = f"""
import os, signal
from pathlib import Path
from hpstudy.tracking.store import RunStore
from tests.helpers.samples import header, record
writer = RunStore(Path({str(store.root)!r})).begin(header())
for step in range(1, 501):
    writer.append(record(step))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(program).returncode == -9
    (run,) = store.runs()
    assert run.result is None
    assert list(run.records()) == [record(step) for step in range(1, 501)]


def test_a_cut_last_line_is_left_out_while_the_run_is_unfinished(store: RunStore) -> None:
    writer = store.begin(header())
    for step in (1, 2, 3):
        writer.append(record(step))
    writer.close()
    (run,) = store.runs()
    run.steps_path.write_bytes(run.steps_path.read_bytes()[:-20])
    assert [row["step"] for row in run.rows()] == [1, 2]


def test_an_unfinished_file_cut_at_any_byte_keeps_its_whole_lines(store: RunStore) -> None:
    run, whole = three_steps(store)
    for size in range(len(whole) + 1):
        run.steps_path.write_bytes(whole[:size])
        kept = [1, 2, 3][: whole[:size].count(b"\n")]
        assert [row["step"] for row in run.rows()] == kept
        again = store.begin(header())
        assert [step.step for step in again.recorded] == kept
        assert [again.append(record(step, loss=math.nan if step == 2 else None)) for step in (1, 2, 3)] == [
            step not in kept for step in (1, 2, 3)
        ]
        again.close()
        assert run.steps_path.read_bytes() == whole


def test_a_finished_file_cut_inside_a_line_is_an_error_that_names_the_line(store: RunStore) -> None:
    run, whole = three_steps(store)
    finished = replace(run, result=result(steps=3))
    ends = {at for at, byte in enumerate(whole) if byte == ord("\n")}
    between = {0} | ends | {end + 1 for end in ends}  # before or after a line's end
    for size in set(range(len(whole))) - between:
        finished.steps_path.write_bytes(whole[:size])
        number = whole[:size].count(b"\n") + 1
        with pytest.raises(MachineError, match=rf"search-0007/steps\.jsonl: line {number} must be"):
            list(finished.rows())


def three_steps(store: RunStore) -> tuple[RunView, bytes]:
    """An unfinished run, and the bytes of its steps."""
    writer = store.begin(header())
    for step in (1, 2, 3):
        writer.append(record(step, loss=math.nan if step == 2 else None))
    writer.close()
    (run,) = store.runs()
    return run, run.steps_path.read_bytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b.replace(b'"step": 2', b'"step"\xff2')])
def test_a_damaged_line_of_a_finished_run_is_named(store: RunStore, damage) -> None:
    writer = store.begin(header())
    for step in (1, 2):
        writer.append(record(step))
    writer.finish(result(steps=2))
    (run,) = store.runs()
    run.steps_path.write_bytes(damage(run.steps_path.read_bytes()))
    with pytest.raises(MachineError, match=r"search-0007/steps\.jsonl: line 2 must be"):
        list(run.rows())


def test_steps_missing_at_the_end_of_a_finished_run_are_an_error_that_counts_them(store: RunStore) -> None:
    run, whole = three_steps(store)
    finished = replace(run, result=result(steps=3))
    finished.steps_path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(MachineError) as caught:
        list(finished.rows())
    assert str(caught.value) == (
        f"{run.steps_path}: must hold 3 steps, but holds 2; remove {run.folder} and run the study again"
    )


def test_an_unfinished_run_keeps_its_steps_and_compares_steps_that_are_trained_again(store: RunStore) -> None:
    writer = store.begin(header())
    assert [writer.append(record(step)) for step in (1, 2)] == [True, True]
    writer.close()
    again = store.begin(header())
    assert [step.step for step in again.recorded] == [1, 2]
    assert again.append(replace(record(2), tok_per_sec=1.0, step_seconds=9.0)) is False  # times never repeat
    assert again.append(record(3)) is True
    again.close()
    (run,) = store.runs()
    assert [step.step for step in run.records()] == [1, 2, 3]
    assert [step.tok_per_sec for step in run.records()][1] == record(2).tok_per_sec


def test_a_step_trained_again_with_other_numbers_is_an_error_that_names_them(store: RunStore) -> None:
    writer = store.begin(header())
    writer.append(record(1, loss=2.0))
    writer.close()
    again = store.begin(header())
    with pytest.raises(MachineError, match=r"gives train/loss nan where 2\.0 was recorded.*remove"):
        again.append(record(1, loss=math.nan))
    again.close()


def steps_of_another_version(store: RunStore) -> Path:
    """A run's steps without a metric of this version."""
    writer = store.begin(header())
    writer.append(record(1))
    writer.close()
    path = store.folder("search-0007") / "steps.jsonl"
    path.write_text(path.read_text().replace('"train/loss"', '"train/former_loss"'))
    return path


def test_an_intact_step_that_this_version_cannot_read_is_kept_and_named(store: RunStore) -> None:
    path = steps_of_another_version(store)
    before = path.read_bytes()
    with pytest.raises(MachineError, match=r"steps\.jsonl: was written by another version of hpstudy .*that version"):
        store.begin(header())
    assert path.read_bytes() == before


def test_reading_records_of_another_version_names_the_file_and_the_metric(store: RunStore) -> None:
    steps_of_another_version(store)
    with pytest.raises(MachineError, match=r"steps\.jsonl: was written by another version of hpstudy .*'loss'"):
        list(store.view("search-0007").records())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("phase", "rearch", r"run\.phase: .*but got 'rearch'"),
        ("seed", "x", r"run\.seed: .*but got 'x'"),
        ("fraction", "q", r"run\.fraction: .*but got 'q'"),
        ("hparams", {"lr": None}, r"run\.hparams\.lr: .*but got None"),
    ],
)
def test_a_header_with_a_value_of_a_wrong_type_is_refused_by_name(
    store: RunStore, key: str, value: object, problem: str
) -> None:
    store.begin(header()).close()
    path = store.folder("search-0007") / "header.json"
    kept = json.loads(path.read_text())
    kept["run"][key] = value
    path.write_text(json.dumps(kept))
    with pytest.raises(MachineError, match=rf"header\.json: .*damaged: {problem}; remove .*/search-0007 and run"):
        store.runs()


@pytest.mark.parametrize("started", ["", "yesterday", "2026-13-01T00:00:00+00:00", 3])
def test_a_header_with_a_start_that_is_no_time_is_refused_by_name(store: RunStore, started: object) -> None:
    store.begin(header()).close()
    path = store.folder("search-0007") / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": started}))
    with pytest.raises(MachineError, match=r"header\.json: must be a file that hpstudy wrote, but it is damaged"):
        store.runs()


def test_a_second_look_reads_no_file_that_is_as_it_was(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.begin(header()).finish(result())
    first, read = store.runs(), list[str]()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name))
    assert store.runs() == first
    assert read == []


def test_a_look_has_what_this_process_wrote_since_the_last_one(store: RunStore) -> None:
    writer = store.begin(header())
    (begun,) = store.runs()
    writer.finish(result(steps=0))
    (finished,) = store.runs()
    assert (begun.result, finished.result) == (None, result(steps=0))
    store.begin(header("search-0008", trial=8)).close()
    assert [run.header.run.trial for run in store.runs()] == [7, 8]


def test_a_look_has_what_others_changed_since_the_last_one(store: RunStore) -> None:
    """Edited in place with the same size and time, replaced by an older copy, or removed."""
    store.begin(header()).finish(result(train_loss=3.5))
    assert [run.result.train_loss for run in store.runs()] == [3.5]
    path = store.folder("search-0007") / "result.json"
    text, before = path.read_text(), path.stat()
    path.write_text(text.replace('"train_loss": 3.5', '"train_loss": 2.5'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert [run.result.train_loss for run in store.runs()] == [2.5]
    copy = path.with_name("copy")
    copy.write_text(text)
    os.utime(copy, (0, 0))
    copy.replace(path)
    assert [run.result.train_loss for run in store.runs()] == [3.5]
    path.unlink()
    assert [run.result for run in store.runs()] == [None]
    path.write_text("{")
    with pytest.raises(MachineError, match=r"result\.json: .*damaged"):
        store.runs()


@pytest.mark.parametrize(("key", "value"), [("steps", None), ("val_loss", "low"), ("outcome", "done")])
def test_a_result_with_a_value_of_a_wrong_type_is_refused_by_name(store: RunStore, key: str, value: object) -> None:
    store.begin(header()).finish(result())
    path = store.folder("search-0007") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(MachineError, match=rf"result\.json: .*damaged: {key}: .*but got {value!r}; remove"):
        store.runs()


def test_a_hyperparameter_that_an_older_version_did_not_have_is_gpt3s(store: RunStore) -> None:
    store.begin(header()).close()
    path = store.folder("search-0007") / "header.json"
    kept = json.loads(path.read_text())
    del kept["run"]["hparams"]["grad_clip"]
    path.write_text(json.dumps(kept))
    assert store.header("search-0007").run.hparams.grad_clip == GPT3.grad_clip


def test_a_run_that_begins_again_discards_its_steps(store: RunStore) -> None:
    writer = store.begin(header())
    writer.append(record(1))
    writer.close()
    again = store.begin(header(), fresh=True)
    assert again.recorded == []
    assert again.append(record(1, loss=2.0)) is True
    again.close()
    (run,) = store.runs()
    assert [step.loss for step in run.records()] == [2.0]


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "tok', b"\0\0\0\0\n", b"{}\n", b'{"step": 3}\n{"step": 4}\n', b"\xff\xfe\n"]
)
def test_damaged_last_lines_of_an_unfinished_run_are_cut_off(store: RunStore, tail: bytes) -> None:
    writer = store.begin(header())
    for step in (1, 2):
        writer.append(record(step))
    writer.close()
    path = store.folder("search-0007") / "steps.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = store.begin(header())
    assert [step.step for step in again.recorded] == [1, 2]
    assert again.cut == len(tail)
    again.append(record(3))
    again.close()
    (run,) = store.runs()
    assert [step.step for step in run.records()] == [1, 2, 3]


@pytest.mark.parametrize("write", ["mark", "finish"])
def test_a_folder_removed_in_the_moment_before_a_write_is_named(store: RunStore, write: str, monkeypatch) -> None:
    writer = store.begin(header())
    folder = store.folder(header().run.run_id)
    writer.append(record(1))
    read = Path.read_bytes

    def remove_then_read(path: Path) -> bytes:
        shutil.rmtree(folder, ignore_errors=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", remove_then_read)
    with pytest.raises(MachineError, match="was removed while the study ran; run the study again"):
        writer.mark() if write == "mark" else writer.finish(result())
    writer.close()


@pytest.mark.parametrize("write", ["mark", "finish"])
def test_a_driver_held_while_it_waits_for_the_disk_leaves_a_run_to_the_one_that_took_over(
    store: RunStore, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.begin(header()).close()
    folder, lost = store.folder(header().run.run_id), list[str]()

    def refuse_if_lost() -> None:
        if lost:
            raise MachineError("another hpstudy has taken over this study")

    writer = RunWriter.open(folder, refuse_if_lost=refuse_if_lost)
    writer.append(record(1))

    def held(_steps: object) -> None:
        (folder / "steps.jsonl").write_bytes(b"of another driver\n")
        lost.append(write)

    monkeypatch.setattr("hpstudy.tracking.store.make_durable", held)
    with pytest.raises(MachineError, match=r"^another hpstudy has taken over this study$"):
        writer.mark() if write == "mark" else writer.finish(result())
    writer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["header.json", "steps.jsonl"]
    assert (folder / "steps.jsonl").read_bytes() == b"of another driver\n"


def test_a_finished_run_is_never_begun_again(store: RunStore) -> None:
    store.begin(header()).finish(result())
    with pytest.raises(AssertionError, match="finished"):
        store.begin(header())


def test_keys_of_a_newer_store_are_ignored(store: RunStore) -> None:
    writer = store.begin(header())
    writer.append(record(1))
    writer.finish(result(steps=1))
    for name in ("header.json", "result.json", "steps.jsonl"):
        path = store.root / "search-0007" / name
        path.write_text(path.read_text().replace("{", '{"from_the_future":1,', 1))
    (run,) = store.runs()
    assert (run.header, run.result, list(run.records())) == (header(), result(steps=1), [record(1)])


@pytest.mark.parametrize(
    ("run_id", "phase", "of", "fraction"),
    [
        ("search-0007", "search", None, 1.0),
        ("confirm-0007-s101", "confirm", "search-0007", 1.0),
        ("confirm-0007-s101-t75", "confirm", "search-0007", 0.75),
        ("confirm-tuned-lr-0007-s101-t50", "confirm", "tuned-lr-0007", 0.5),
    ],
)
def test_a_header_of_an_older_version_has_of_and_fraction_from_its_run_id(
    store: RunStore, run_id: str, phase: Phase, of: str | None, fraction: float
) -> None:
    store.begin(header(run_id, phase=phase, of=of, fraction=fraction)).close()
    path = store.root / run_id / "header.json"
    written = json.loads(path.read_text())
    del written["run"]["of"], written["run"]["fraction"]
    path.write_text(json.dumps(written))
    (run,) = store.runs()
    assert run.header == header(run_id, phase=phase, of=of, fraction=fraction)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": {}}', "null"])
def test_a_damaged_header_is_named(store: RunStore, text: str) -> None:
    store.begin(header()).close()
    (store.root / "search-0007" / "header.json").write_text(text)
    with pytest.raises(MachineError, match=r"search-0007/header\.json: must be a file that hpstudy wrote"):
        store.runs()


@pytest.mark.parametrize(
    "name", ["", "..", "../search-0007", "search-../x", "search/0007", "Search-7", "search-7\n", "wandb", "/tmp/a-b"]
)
def test_a_name_cannot_leave_the_folder(store: RunStore, name: str) -> None:
    for use in (store.header, store.result, store.folder):
        with pytest.raises(UserError, match="name must look like search-0007"):
            use(name)
    with pytest.raises(UserError):
        store.begin(header(name))


def test_a_study_is_frozen_as_text_and_as_values(store: RunStore) -> None:
    store.freeze_study('question = "é?"\n', {"search.lr": [1e-4, math.inf], "budget.trials": 64})
    assert (store.root / "study.toml").read_text(encoding="utf-8") == 'question = "é?"\n'
    assert store.read_json("study.json") == {"search.lr": [1e-4, math.inf], "budget.trials": 64}
    assert store.read_json("environment.json") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "3"])
def test_a_damaged_file_of_the_study_is_named_and_not_treated_as_missing(store: RunStore, text: str) -> None:
    (store.root / "environment.json").write_text(text)
    with pytest.raises(MachineError, match=r"environment\.json: must be a file that hpstudy wrote"):
        store.read_json("environment.json")


def test_reading_a_store_creates_no_folder(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs" / "quickstart")
    assert store.runs() == []
    assert store.header("search-0007") is None
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"quickstart: the folder of runs must be writable.*--runs") as caught:
        RunStore(tmp_path / "runs" / "quickstart").create()
    assert caught.value.exit_code == 2


def test_a_full_disk_names_the_file_and_the_remedy_and_loses_no_step(store: RunStore) -> None:
    writer = store.begin(header())
    for step in (1, 2):
        writer.append(record(step))
    size = (store.folder("search-0007") / "steps.jsonl").stat().st_size
    message = (
        r"steps\.jsonl: cannot be written \(File too large\); what was recorded before is safe; put this right "
        "and run the same command again"
    )
    with full_disk(size + 10):  # room for a part of the third line
        with pytest.raises(MachineError, match=message):
            writer.append(record(3))
        with pytest.raises(MachineError, match="cannot be written"):
            writer.close()
    again = store.begin(header())
    assert len(again.recorded) == 2
    assert again.cut > 0
    for step in (3, 4, 5):
        again.append(record(step))
    again.close()
    (run,) = store.runs()
    assert [step.step for step in run.records()] == [1, 2, 3, 4, 5]


def test_a_step_costs_microseconds(store: RunStore) -> None:
    steps: list[StepRecord] = [record(step) for step in range(1, 2001)]
    writer = store.begin(header())
    began = time.perf_counter()
    for step in steps:
        writer.append(step)
    mean = (time.perf_counter() - began) / len(steps)
    writer.close()
    assert mean < 300e-6  # some 20 µs on a quiet core
