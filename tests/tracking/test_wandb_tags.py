"""The runs of the winner have a tag on W&B, once fresh seeds have decided; against a server on 127.0.0.1."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.results import StudyResults
from hpstudy.study import Study
from hpstudy.tracking.wandb_tags import tag_winner
from tests.helpers.command_line import PROGRAM
from tests.helpers.loopback import Loopback
from tests.helpers.samples import header, result
from tests.helpers.wandb_rows import STEPS, new_sink

WINNERS = {"search-0001", "confirm-0001-s101", "confirm-0001-s102", "confirm-0001-s103"}


def test_sync_tags_each_run_with_phase_baseline_outcome_and_winner(
    tiny: Callable[..., Study],
    confirmed: Callable[[Study], StudyResults],
    server: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "p")  # the server's only one
    results = confirmed(tiny(more="[confirm]\nseeds = [101, 102, 103]\n"))
    done = subprocess.run(
        [PROGRAM, "sync", "tiny", "--runs", str(tmp_path / "runs")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = dict(zip(results.trials["run_id"], results.trials["outcome"], strict=True))
    for run_id, outcome in outcomes.items():
        expected = {run_id.split("-")[0], outcome}
        expected |= {"winner"} if run_id in WINNERS else set()
        expected |= {"baseline"} if run_id == "search-0000" else set()
        assert set(server.runs[f"w-{run_id}"].tags) == expected


def test_a_tag_that_no_longer_holds_is_taken_away_and_right_runs_are_not_written(home: Path, server: Loopback) -> None:
    messages: list[str] = []
    sink = new_sink(home, "online", messages)
    for trial in (1, 2):
        sink.begin(header(f"search-000{trial}", wandb_id=f"id-{trial}", trial=trial))
        sink.log(f"search-000{trial}", STEPS[0])
        sink.finish(f"search-000{trial}", result(steps=1))
    sink.close(30)
    assert messages == []
    for winner in ("1", "2"):
        tag_winner("p", "e", "quickstart", {f"search-000{winner}"})
        assert [name for name, run in server.runs.items() if "winner" in run.tags] == [f"id-{winner}"]
    written = [len(run.upserts) for run in server.runs.values()]
    tag_winner("p", "e", "quickstart", {"search-0002"})
    assert [len(run.upserts) for run in server.runs.values()] == written
