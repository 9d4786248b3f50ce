"""The journal after kills, damage and a full disk: repaired, refused with its line, or read without writing."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.search import Search, TrialView
from hpstudy.study import FloatRange, Study
from hpstudy.study.schema import MetricName, SamplerName
from tests.helpers.disk import full_disk
from tests.helpers.search import (
    LOSS,
    MEDIAN,
    ROOT,
    SPACE,
    SPEED,
    Killed,
    drive,
    kill_writes,
    tell_all,
    tight_result,
    toy_result,
    toy_study,
)

# Kills


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "grid"])
def test_a_search_killed_at_every_write_has_the_trials_of_an_uninterrupted_one(
    sampler: SamplerName, parallel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pruner = MEDIAN.model_copy(update={"startup": 2})
    study = toy_study(sampler, parallel=parallel, trials=8, evals=2, pruner=pruner)
    expected = drive(study, tmp_path / "uninterrupted", Random(0))
    journal = tmp_path / "journal"
    kill_writes(monkeypatch, journal)
    kills = 0
    while True:
        try:
            resumed = drive(study, journal, Random(kills))
            break
        except Killed:
            kills += 1
    assert resumed == expected
    assert kills >= 16


@pytest.mark.parametrize("metrics", [(LOSS,), (LOSS, SPEED)], ids=["loss", "front"])
def test_a_search_out_of_memory_and_killed_has_the_trials_of_an_uninterrupted_one(
    metrics: tuple[MetricName, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = toy_study(parallel=2, trials=8, evals=1, metrics=metrics)
    expected = drive(study, tmp_path / "uninterrupted", Random(0), tight_result)
    assert {trial.state for trial in expected} >= {"complete", "infeasible"}
    kill_writes(monkeypatch, tmp_path / "journal")
    for attempt in itertools.count(1):
        try:
            assert drive(study, tmp_path / "journal", Random(attempt), tight_result) == expected
            break
        except Killed:
            continue
    assert attempt > 8


def test_a_search_killed_by_the_system_has_the_trials_of_an_uninterrupted_one(tmp_path: Path):
    journal, chance, survivors = tmp_path / "journal", Random(0), 0
    command = [sys.executable, "-m", "tests.helpers.search", str(journal)]
    for num_events in (1, 9, 20, 33, 50):
        process = subprocess.Popen([*command, str(num_events)], cwd=ROOT)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < num_events):
            time.sleep(0.001)
        time.sleep(chance.random() / 200)
        survivors += process.poll() is not None
        process.kill()
        process.wait()
    assert survivors < 3  # most of them were killed at work
    started = time.monotonic()
    last = subprocess.run([*command, "0"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 15  # Optuna would wait 30 seconds for a dead process's lock
    assert last.stdout + last.stderr == ""  # Optuna's messages do not reach the user's terminal
    resumed = Search(toy_study("tpe", parallel=4), journal).trials()
    assert resumed == drive(toy_study("tpe", parallel=4), tmp_path / "uninterrupted", Random(7))


# Opening


def test_a_search_is_not_resumed_in_another_space(tmp_path: Path):
    journal = tmp_path / "journal"
    tell_all(Search(toy_study(), journal), [3.0])
    wider = SPACE | {"lr": FloatRange(low=1e-5, high=6e-3, scale="log")}
    with pytest.raises(UserError) as caught:
        Search(toy_study(space=wider), journal)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{journal}: [search] lr: must stay as it was when the study began, but was ")
    assert problem.endswith("; restore it, or copy the file under another name for another study")


def test_a_reader_writes_nothing_repairs_nothing_and_sees_every_trial(tmp_path: Path):
    journal = tmp_path / "journal"
    assert Search(toy_study(), journal, read_only=True).trials() == []
    assert list(tmp_path.iterdir()) == []
    writer = Search(toy_study(), journal)
    tell_all(writer, [3.0, 2.0])
    journal.with_name("journal.lock").symlink_to(journal)
    with journal.open("ab") as file:
        file.write(b'{"half')  # the writer is about to write the rest
    before = journal.read_bytes()
    reader = Search(toy_study(), journal, read_only=True)
    assert reader.trials() == writer.trials()
    assert [trial.objectives for trial in reader.trials()] == [(3.0,), (2.0,)]
    assert journal.read_bytes() == before
    assert journal.with_name("journal.lock").is_symlink()


def test_a_journal_is_found_again_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    tell_all(Search(toy_study(), Path("runs/journal")), [3.0])
    assert len(Search(toy_study(), Path("runs/journal")).trials()) == 1


# Damage


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a test writes its damaged journal."""
    return tmp_path / "journal"


@pytest.fixture
def complete(tmp_path: Path) -> tuple[Study, list[bytes], list[TrialView]]:
    """A study, the lines of its journal with every kind of event, and its trials."""
    study = toy_study("random", parallel=2, trials=3, evals=1)
    trials = drive(study, tmp_path / "complete", Random(1))
    return study, (tmp_path / "complete").read_bytes().splitlines(keepends=True), trials


def cut_after_each_kind(lines: list[bytes]) -> list[list[bytes]]:
    """The journal cut after its last event of each kind: an end, a report, an ask."""
    last = {json.loads(line)["op_code"]: number for number, line in enumerate(lines, start=1)}
    return [lines[:number] for op_code, number in last.items() if op_code > 0]


def test_a_last_event_cut_short_at_any_byte_is_computed_again(complete, journal: Path):
    study, events, trials = complete
    for lines in cut_after_each_kind(events):
        head, last = b"".join(lines[:-1]), lines[-1]
        journal.write_bytes(head)
        intact = Search(study, journal, read_only=True).trials()
        for length in range(len(last)):
            journal.write_bytes(head + last[:length])
            assert Search(study, journal, read_only=True).trials() == intact
        for length in (0, 1, len(last) // 2, len(last) - 1):
            journal.write_bytes(head + last[:length])
            search = Search(study, journal)
            assert journal.read_bytes() == head
            repaired = f"{journal}: its last event, line {len(lines)}, was damaged and is computed again"
            assert search.repaired == (repaired if length else None)
        assert drive(study, journal, Random(2)) == trials


def test_a_last_event_with_any_byte_changed_is_computed_again_or_means_the_same(complete, journal: Path):
    study, events, trials = complete
    for lines in cut_after_each_kind(events):
        head, last = b"".join(lines[:-1]), lines[-1]
        journal.write_bytes(head)
        before = Search(study, journal, read_only=True).trials()
        journal.write_bytes(head + last)
        after = Search(study, journal, read_only=True).trials()
        assert before != after or b"intermediate" in last
        for at in range(len(last)):
            journal.write_bytes(head + last[:at] + (b"\xff" if at % 8 == 0 else b"#") + last[at + 1 :])
            assert Search(study, journal, read_only=True).trials() in (before, after)
            if at % 64 == 0:
                assert Search(study, journal).repaired
                assert journal.read_bytes() == head
                assert drive(study, journal, Random(2)) == trials


def test_a_damaged_event_between_intact_ones_is_named_and_kept(complete, journal: Path):
    study, events, _ = complete
    for number in (1, 2, len(events) - 1):
        for damaged in (b"\n", b'{"op_code":4}\n', events[number - 1][:-9] + b"\n", b"\xff" + events[number - 1]):
            content = b"".join([*events[: number - 1], damaged, *events[number:]])
            journal.write_bytes(content)
            for read_only in (False, True):
                with pytest.raises(MachineError) as caught:
                    Search(study, journal, read_only=read_only)
                assert str(caught.value) == (
                    f"{journal}: line {number}: must be an event of the study toy, but is damaged; restore the file, "
                    "or move it away and run the same command again: every trial is proposed again and gets the result "
                    "of its run"
                )
            assert journal.read_bytes() == content


def test_a_reader_leaves_out_a_damaged_last_event_and_writes_nothing(complete, journal: Path):
    study, events, _ = complete
    journal.write_bytes(b"".join(events[:-1]))
    intact = Search(study, journal, read_only=True).trials()
    for tail in (events[-1][:30], b"\xff" * 30 + b"\n", b"\0" * 30):
        journal.write_bytes(b"".join(events[:-1]) + tail)
        assert Search(study, journal, read_only=True).trials() == intact
        assert journal.read_bytes() == b"".join(events[:-1]) + tail
    journal.write_bytes(b"")
    assert Search(study, journal, read_only=True).trials() == []
    assert {path.name for path in journal.parent.iterdir()} == {"complete", "journal"}


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
@pytest.mark.parametrize("lines_left", [0, 3, 9])
def test_a_journal_that_lost_events_is_restored_from_the_results_of_the_runs(
    sampler: SamplerName, lines_left: int, journal: Path
):
    study = toy_study(sampler, parallel=3, trials=7, evals=1)
    trials = drive(study, journal, Random(0))
    hparams = [study.trial_hparams(trial.values, study.spec.tokens) for trial in trials]
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines_left]))
    search = Search(study, journal)
    for number in range(7):
        while search.ask():
            pass
        search.check(number, hparams[number], toy_result(trials[number].values))
        if number == search.pending()[0].number:
            search.tell(number, toy_result(trials[number].values))
        search.check(number, hparams[number], toy_result(trials[number].values))
    assert search.trials() == trials


# A full disk


def test_a_full_disk_is_named_and_the_search_continues_once_there_is_room(tmp_path: Path, journal: Path):
    study = toy_study(trials=4)
    expected = drive(study, tmp_path / "uninterrupted", Random(0))
    search = Search(study, journal)
    tell_all(search, [toy_result(trial.values).val_loss for trial in expected[:1]])
    refused = f"{journal}: must be readable and writable, but got: File too large; what was recorded before is safe: "
    refused += "correct that and run the same command again"
    for room in (0, 60):
        with full_disk(journal.stat().st_size + room), pytest.raises(MachineError, match=f"^{refused}$"):
            search.ask()
        search = Search(study, journal)
        assert (search.repaired is not None) is (room > 0)
    proposal = search.ask()
    with full_disk(journal.stat().st_size + 20), pytest.raises(MachineError, match=f"^{refused}$"):
        search.tell(1, toy_result(proposal.values))
    assert drive(study, journal, Random(0)) == expected
