"""The races against sweep agents: the same trials in every way, and what counts as outside training."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hpstudy.records import StepRecord
from hpstudy.tracking.store import RunStore
from tests.bench import __main__ as program
from tests.bench.trials import outside_training, study_races
from tests.helpers.samples import header
from tests.helpers.samples import result as ended
from tests.helpers.stores import keep_run, step_record


def steps(first: float) -> list[StepRecord]:
    """Two steps of first + 1 and first + 2 seconds, then an evaluation of one second."""
    return [
        step_record(1, 1.0, steps=20, step_seconds=first + 1),
        step_record(2, 1.0, steps=20, step_seconds=first + 2, val_loss=1.0, eval_index=1, eval_seconds=1.0),
    ]


def test_time_outside_training_is_what_steps_and_evaluations_leave(tmp_path: Path):
    store = RunStore(tmp_path)
    for number, records in enumerate((steps(0.25), steps(0.5))):
        run_id = f"search-{number:04d}"
        keep_run(store, header(run_id, trial=number), records, ended(steps=2))
        for name, moment in (("header.json", 100), ("result.json", 120)):
            os.utime(tmp_path / run_id / name, (moment, moment))
    (tmp_path / "worker-0.log").touch()
    seconds = (1.25 + 2.25 + 1.0) + (1.5 + 2.5 + 1.0)  # two steps and an evaluation of one second
    assert outside_training(store) == pytest.approx(1 - seconds / 20)


def test_the_program_takes_the_trials_and_tokens_of_its_study(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, int] = {}
    monkeypatch.setattr(program, "study_races", lambda _, **values: given.update(values) or [])
    monkeypatch.setattr(program, "study_race_table", lambda _: "")
    monkeypatch.setattr(sys, "argv", ["bench", "--study", "--trials", "16", "--tokens", "1300000"])
    program.main()
    assert (given["trials"], given["tokens"]) == (16, 1_300_000)


@pytest.mark.slow
def test_every_way_trains_the_same_trials(tmp_path: Path):
    (race,) = study_races(tmp_path, rounds=1, trials=2, tokens=20_000, say=lambda _: None)
    # nine steps from the same weights on the same tokens, evaluated alike: only the rounding of bf16 differs
    assert list(race.agents) == ["one agent, torch's threads", "2 agents, own threads"]
    for way, side in race.agents.items():
        assert side.val_losses == pytest.approx(race.hpstudy.val_losses, abs=0.02)
        assert race.speedup(way) == pytest.approx(side.seconds / race.hpstudy.seconds)
    assert len(list(tmp_path.glob("round-1/wandb/offline-run-*/*.wandb"))) == 4
