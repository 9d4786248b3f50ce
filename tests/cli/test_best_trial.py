"""Which trial is best: the live view, `status`, the last screen and the report name the same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy import load
from hpstudy.analysis.state import state
from hpstudy.records import Run
from hpstudy.report.terminal import last_screen
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.command_line import hpstudy
from tests.helpers.stores import begun, keep_ended
from tests.helpers.terminal import last_frame

LOSS, SPEED = "val/loss", "train/tok_per_sec"
# (loss, tokens/s) of each trial, the baseline first; the best trial
FASTEST_HAS_A_HIGHER_LOSS = ([(4.0, 1000.0), (3.5, 1500.0), (3.25, 900.0), (3.75, 2000.0)], "search-0002")
EQUAL_LOSSES = ([(4.0, 1000.0), (3.25, 900.0), (3.25, 1200.0), (3.75, 2000.0)], "search-0002")
FASTEST = ([(4.0, 1000.0), (3.5, 1500.0), (3.25, 900.0), (3.75, 2000.0)], "search-0003")
CASES = {
    "loss and speed": ([LOSS, SPEED], *FASTEST_HAS_A_HIGHER_LOSS),
    "speed and loss": ([SPEED, LOSS], *FASTEST_HAS_A_HIGHER_LOSS),
    "equal losses, the faster is best": ([LOSS, SPEED], *EQUAL_LOSSES),
    "equal losses, speed listed first": ([SPEED, LOSS], *EQUAL_LOSSES),
    "loss alone": ([LOSS], *FASTEST_HAS_A_HIGHER_LOSS),
    "speed alone": ([SPEED], *FASTEST),
}


def keep(study: Study, folder: Path, scores: list[tuple[float, float]]) -> RunStore:
    """A store whose search has one complete trial per score."""
    store = begun(folder, name=study.name, text=study.path.read_text(), values=study.resolved())
    baseline = study.baseline_hparams(study.spec.tokens)
    for trial, (loss, tok_per_sec) in enumerate(scores):
        run = Run(
            run_id=f"search-{trial:04d}",
            phase="search",
            trial=trial,
            seed=0,
            tokens=5120,
            hparams=replace(baseline, lr=baseline.lr * (trial + 1)),
        )
        keep_ended(store, run, loss, tok_per_sec=tok_per_sec)
    return store


@pytest.mark.parametrize(("metrics", "scores", "best"), CASES.values(), ids=CASES)
def test_every_view_names_the_same_best_trial(
    tiny: Callable[..., Study], tmp_path: Path, metrics: list[str], scores: list[tuple[float, float]], best: str
) -> None:
    study = tiny(more=f"[objective]\nmetric = {json.dumps(metrics)}\n")
    assert study.metrics == tuple(metrics)
    store, runs = keep(study, tmp_path, scores), tmp_path / "runs"
    loss, tok_per_sec = scores[int(best[-1])]
    score = f"val loss {loss:.4f}" if LOSS in metrics else f"{tok_per_sec:,.0f} tok/s"

    finished = [(view.header.run, view.result) for view in store.runs()]
    frame = last_frame(study, lambda progress: progress.phase("search", 5, finished))
    assert f"best {score.removeprefix('val loss ')} ({best}) · baseline " in frame

    measured = f"{loss:.3f} nats" if LOSS in metrics else f"{tok_per_sec:,.0f} tokens/s"
    assert f"best     {best} {measured}, " in hpstudy("status", "tiny", "--runs", runs).out

    results = load("tiny", runs)
    lines = last_screen(results, state(results), Path("page"), width=80).plain.splitlines()
    (lr,) = (line.split()[2] for line in lines if line.strip().startswith("lr "))
    assert float(lr) == pytest.approx(study.baseline.lr * (int(best[-1]) + 1))

    page = Path(hpstudy("report", "tiny", "--runs", runs).out.strip())
    table = page.with_name("report.md").read_text().partition("### Trials")[2]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| search-")]
    assert rows[0] == best
