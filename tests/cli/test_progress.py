"""A study's progress: plain lines in a file, one live view on a terminal."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from hpstudy.cli.progress import StudyProgress
from hpstudy.records import Outcome, Run, RunResult, StepRecord
from hpstudy.search import Forecast
from hpstudy.study import Study
from tests.helpers.terminal import last_frame


@pytest.fixture
def study(tiny: Callable[..., Study]) -> Study:
    return tiny()


def a_run(study: Study, trial: int = 0, **changes: Any) -> Run:
    hparams = replace(study.baseline_hparams(5120), lr=6e-4 * (trial + 1))
    run_id = f"search-{trial:04d}"
    run = Run(run_id=run_id, phase="search", trial=trial, seed=0, tokens=5120, hparams=hparams)
    return replace(run, **changes)


def a_step(step: int, *, loss: float, tok_per_sec: float, val_loss: float | None = None) -> StepRecord:
    return StepRecord(
        step=step,
        tokens=256 * step,
        loss=loss,
        grad_norm=1.0,
        clipped=False,
        lr=6e-4,
        update_to_weight=1e-3,
        batch_tokens=256,
        micro_batch=16,
        accumulation=1,
        step_seconds=0.1,
        tok_per_sec=tok_per_sec,
        val_loss=val_loss,
        eval_index=None if val_loss is None else step // 5,
    )


def a_result(val_loss: float | None, outcome: Outcome = Outcome.COMPLETE, message: str = "") -> RunResult:
    return RunResult(
        outcome=outcome,
        steps=20,
        tokens=5120,
        val_loss=val_loss,
        best_val_loss=val_loss,
        train_loss=val_loss,
        tok_per_sec=12_345.6,
        train_seconds=200.0,
        clipped_share=0.0,
        message=message,
    )


def in_a_file(study: Study) -> tuple[StudyProgress, io.StringIO]:
    """A progress view that prints into a file."""
    file = io.StringIO()
    return StudyProgress(study, Console(file=file, force_terminal=False, soft_wrap=True)), file


def test_a_run_with_a_forecast_shows_where_it_ends(study, monkeypatch) -> None:
    monkeypatch.setattr("hpstudy.cli.progress.PLAIN_SECONDS", -1.0)
    progress, file = in_a_file(study)
    progress.phase("search", 5, [])
    progress.start(a_run(study))
    progress.forecast(a_run(study), Forecast(log_loss=math.log(3.6), spread=0.01, reach=0.02))
    progress.step(a_run(study), a_step(5, loss=4.5, tok_per_sec=1000.0, val_loss=4.25))
    assert "val 4.2500, forecast 3.6000 [3.5287, 3.6727], 1,000 tok/s" in file.getvalue()


def test_a_file_gets_one_plain_line_per_finished_run(study) -> None:
    progress, file = in_a_file(study)
    with progress.shown():
        progress.phase("search", 5, [])
        for trial, result in enumerate([a_result(5.5), a_result(None, Outcome.DIVERGED)]):
            progress.start(a_run(study, trial))
            progress.finish(a_run(study, trial), result)
    assert file.getvalue() == (
        "search 1/5  search-0000 (baseline): val loss 5.5000, 12,346 tok/s in 3m 20s\n"
        "search 2/5  search-0001: diverged, 12,346 tok/s in 3m 20s\n"
    )


def test_a_failed_run_shows_the_last_line_of_its_message(study) -> None:
    progress, file = in_a_file(study)
    progress.phase("search", 1, [])
    progress.start(a_run(study))
    progress.finish(a_run(study), a_result(None, Outcome.FAILED, "Traceback ...\nValueError: [red]no[/red]"))
    assert file.getvalue().splitlines()[1] == "  ValueError: [red]no[/red]"


def test_a_file_gets_a_line_about_an_active_run_every_ten_seconds(study, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress, file = in_a_file(study)
    progress.phase("search", 1, [])
    progress.start(a_run(study))
    for step in range(1, 21):  # a step a second, of 20 in the study
        clock[0] += 1
        progress.step(a_run(study), a_step(step, loss=5.0, tok_per_sec=100.0, val_loss=4.5 if step == 10 else None))
    assert file.getvalue().splitlines() == [
        "search-0000: step 1, 5%, loss 5.0000, 100 tok/s; the study: 19s left",
        "search-0000: step 12, 60%, loss 5.0000, val 4.5000, 100 tok/s; the study: 8s left",
    ]


def test_a_resumed_phase_shows_what_is_done_and_continues_the_count(study) -> None:
    progress, file = in_a_file(study)
    progress.phase("search", 3, [(a_run(study), a_result(5.5))])
    progress.start(a_run(study, 1))
    progress.finish(a_run(study, 1), a_result(5.0))
    first, second = file.getvalue().splitlines()
    assert first == "search: 1 of 3 are done from an earlier session"
    assert second.startswith("search 2/3  search-0001: ")


def test_a_run_of_a_later_phase_is_shown_as_ahead_and_not_counted(study) -> None:
    progress, file = in_a_file(study)
    ahead = replace(a_run(study), run_id="baseline-s7", phase="baseline", trial=None)
    progress.phase("search", 2, [])
    for run in (a_run(study, 1), ahead):
        progress.start(run)
        progress.finish(run, a_result(5.0))
    progress.phase("confirm", 2, [(ahead, a_result(5.0))])
    first, second = file.getvalue().splitlines()  # and no line that an earlier session had trained it
    assert (first.split()[:3], second.split()[:2]) == (["search", "1/2", "search-0001:"], ["ahead", "baseline-s7:"])


def test_a_terminal_shows_run_step_losses_speed_best_and_baseline(study) -> None:
    def events(progress: StudyProgress) -> None:
        progress.phase("search", 5, [])
        for trial, loss in enumerate([5.5, 5.25, 5.75]):
            progress.start(a_run(study, trial))
            progress.finish(a_run(study, trial), a_result(loss))
        progress.start(a_run(study, 3))
        progress.step(a_run(study, 3), a_step(5, loss=5.3, tok_per_sec=1000.0, val_loss=5.2))
        progress.step(a_run(study, 3), a_step(6, loss=5.1, tok_per_sec=3000.0))

    shown = last_frame(study, events)
    assert "tiny · search 3/5" in shown
    # the speed is the mean of recent steps, the validation loss is of the last evaluation
    assert "search-0003  step 6, 30%, loss 5.1000, val 5.2000, 2,000 tok/s" in shown
    assert "best 5.2500 (search-0001) · baseline 5.5000" in shown
    assert re.search(r"\d+s left", shown)
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_finished_runs_stay_above_the_live_view(study) -> None:
    file = io.StringIO()
    progress = StudyProgress(study, Console(file=file, force_terminal=True, width=100))
    with progress.shown():
        progress.phase("search", 5, [])
        progress.start(a_run(study))
        progress.finish(a_run(study), a_result(5.5))
    assert "search 1/5  search-0000 (baseline): val loss 5.5000, 12,346 tok/s in 3m 20s" in file.getvalue()


def test_the_view_says_how_long_the_study_still_takes(study, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def events(progress: StudyProgress) -> None:
        # two of five were done before; one and a half take 90 s, so one and a half more take 90 s
        progress.phase("search", 5, [(a_run(study, trial), a_result(5.5)) for trial in (0, 1)])
        progress.start(a_run(study, 2))
        progress.finish(a_run(study, 2), a_result(5.5))
        progress.start(a_run(study, 3))
        progress.step(a_run(study, 3), a_step(10, loss=5.0, tok_per_sec=1.0))
        clock[0] += 90

    assert "1m 30s left" in last_frame(study, events)


def test_only_complete_runs_can_be_the_best_and_a_diverged_baseline_has_no_loss(study) -> None:
    def events(progress: StudyProgress) -> None:
        progress.phase("search", 5, [])
        for trial, result in enumerate([a_result(None, Outcome.DIVERGED), a_result(1.0, Outcome.PRUNED)]):
            progress.start(a_run(study, trial))
            progress.finish(a_run(study, trial), result)

    assert "best - · baseline -" in last_frame(study, events)


def test_the_baseline_of_a_budget_in_seconds_is_shown(tiny) -> None:
    study = tiny(replace={"tokens = 5120": "seconds = 60"})

    def events(progress: StudyProgress) -> None:
        hparams = study.baseline_hparams(1_000_000)  # a warm-up that is known once the budget is calibrated
        progress.phase("search", 5, [(a_run(study, hparams=hparams, run_id=study.baseline_run_id), a_result(5.5))])

    assert "baseline 5.5000" in last_frame(study, events)


def test_a_throughput_study_shows_speeds(tiny) -> None:
    study = tiny(more='[objective]\nmetric = "train/tok_per_sec"')

    def events(progress: StudyProgress) -> None:
        faster = replace(a_result(9.0), tok_per_sec=23_456.0)
        progress.phase("search", 5, [(a_run(study), a_result(5.5)), (a_run(study, 1), faster)])

    assert "best 23,456 tok/s (search-0001) · baseline 12,346 tok/s" in last_frame(study, events)
