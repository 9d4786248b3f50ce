"""The baseline beside the best trials of a search: as a DataFrame, and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from hpstudy.analysis.answers import Noise
from hpstudy.analysis.frames import StudyFrames
from hpstudy.study import MetricName, Study

HALFLIVES = ("beta1_halflife_tokens", "beta2_halflife_tokens")
ALWAYS_SHOWN = ("lr", "beta1", HALFLIVES[0], "beta2", HALFLIVES[1], "weight_decay", "micro_batch")
MAX_WIDTH, GAP = 100, 2  # characters
CAPTION = (
    "Losses in nats, half-lives in tokens. One seed each, and the best of a search is flattered by its selection: only "
    "runs on fresh seeds can say whether it is better."
)


def comparison(frames: StudyFrames, study: Study | None, *, baseline_run_id: str, best: int = 5) -> pd.DataFrame:
    """The baseline's row, then up to `best` completed search trials by the objective, or the Pareto front by loss.

    Columns: run, baseline (whether the row is it), val_loss (nats), difference (of val_loss to the baseline's),
    tok_per_sec, speedup (over the baseline's; where speed is an objective), outcome, ALWAYS_SHOWN with the half-lives,
    and every other key that the study searches. Without a study the objective is val/loss. While the baseline is
    unfinished, or has no row because it has not begun, differences are NaN.
    """
    metrics: list[MetricName] = [objective.metric for objective in study.objectives] if study else ["val/loss"]
    trials = frames.trials.assign(run=frames.trials["run_id"].astype("str"))
    trials["baseline"] = trials["run"] == baseline_run_id
    baseline = trials[trials["baseline"]]
    complete = trials[(trials["phase"] == "search") & (trials["outcome"] == "complete")]
    ranked = _ranked(complete, metrics)
    table = pd.concat([baseline, ranked[~ranked["baseline"]].head(best)], ignore_index=True)
    reference = baseline[["val_loss", "tok_per_sec"]].mean()  # of one row, or of none: NaN
    table["difference"] = table["val_loss"] - reference["val_loss"]
    table["speedup"] = table["tok_per_sec"] / reference["tok_per_sec"]
    speed = ["tok_per_sec", "speedup"] if "train/tok_per_sec" in metrics else ["tok_per_sec"]
    others = [key for key in (study.space if study else ()) if key not in ALWAYS_SHOWN]
    return table[["run", "baseline", "val_loss", "difference", *speed, "outcome", *ALWAYS_SHOWN, *others]]


def _ranked(trials: pd.DataFrame, metrics: list[MetricName]) -> pd.DataFrame:
    """The best first; with two objectives only the trials that no other one equals or beats in both."""
    if metrics == ["train/tok_per_sec"]:
        return trials.sort_values("tok_per_sec", ascending=False, kind="stable")
    by_loss = trials.sort_values(["val_loss", "tok_per_sec"], ascending=[True, False], kind="stable")
    if len(metrics) == 1:
        return by_loss
    fastest_before = by_loss["tok_per_sec"].cummax().shift(fill_value=-math.inf)
    return by_loss[by_loss["tok_per_sec"] > fastest_before]


def comparison_table(
    frame: pd.DataFrame, title: str | None = None, width: int = 100, noise: Noise | None = None
) -> Table:
    """What `comparison` returned, for people: runs as rows or, where that is wider than `width`, as columns.

    Where that is too wide as well, the last trials are left out. Differences that two seeds of one setting
    may show too are marked.
    """
    columns = _cells(frame, noise)
    rows = [list(row) for row in zip(*columns, strict=True)]
    if _width(columns) > width:
        rows = [[heading.replace("-\n", "-").replace("\n", " "), *cells] for heading, *cells in columns]
        while len(rows[0]) > 2 and _width(list(zip(*rows, strict=True))) > width:
            rows = [row[:-1] for row in rows]
    caption = f"{CAPTION} {one_seed_note(noise)}" if noise else CAPTION
    table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, GAP - 1, 0, 0)  # the box adds one
    for index, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if index else "left", vertical="bottom", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def signed(difference: float, noise: Noise | None) -> str:
    """A difference between two runs in nats, marked where it is no larger than two seeds of one setting may show."""
    return f"{'~' if noise and abs(difference) <= noise.one_seed else ''}{difference:+.4f}"


def one_seed_note(noise: Noise) -> str:
    """The sentence below a table of differences between single runs."""
    return f"~ marks what two seeds of one setting differ by too, up to {noise.one_seed:.2g} nats."


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(GAP + max(len(line) for text in column for line in text.split("\n")) for column in columns)


def _cells(frame: pd.DataFrame, noise: Noise | None) -> list[list[str]]:
    """Each column as its heading and its cells; outcomes only where one is not complete."""
    looks: dict[str, tuple[str, Callable[[Any], str]]] = {
        "val_loss": ("val\nloss", "{:.4f}".format),
        "difference": ("difference", lambda difference: signed(difference, noise)),
        "tok_per_sec": ("tok/s", short),
        "speedup": ("speedup", "{:.2f}x".format),
        "lr": ("lr", "{:.3g}".format),
        "beta2": ("beta2", "{:.5g}".format),
        **dict.fromkeys(HALFLIVES, ("half-\nlife", short)),
    }
    columns = []
    for name in frame.columns.drop("baseline"):
        heading, look = looks.get(name, (name.replace("_", "\n"), _plain))
        cells = ["-" if pd.isna(value) else look(value) for value in frame[name]]
        if name == "difference":
            cells = ["baseline" if is_it else cell for cell, is_it in zip(cells, frame["baseline"], strict=True)]
        if name != "outcome" or (frame[name] != "complete").any():
            columns.append([heading, *cells])
    return columns


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def short(value: float) -> str:
    """3,451,204 as 3.45M: three digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # 999,600 rounds to 1M
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
