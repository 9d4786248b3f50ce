"""The baseline beside the best trials of a search, as a DataFrame."""

from __future__ import annotations

import pandas as pd

from hpstudy.analysis.answers import Noise
from hpstudy.analysis.results import StudyResults

HALFLIFE_COLUMNS = ("beta1_halflife_tokens", "beta2_halflife_tokens")
ALWAYS_SHOWN = ("lr", "beta1", HALFLIFE_COLUMNS[0], "beta2", HALFLIFE_COLUMNS[1], "weight_decay", "micro_batch")


def leaderboard(results: StudyResults, *, best: int = 5) -> pd.DataFrame:
    """The baseline's row, then up to `best` trials in the order of `StudyResults.ranked`, of two objectives the front.

    Columns: run, baseline (whether the row is it), val_loss (nats), difference (of val_loss to the baseline's),
    tok_per_sec, speedup (over the baseline's; if speed is an objective), outcome, ALWAYS_SHOWN with the half-lives, and
    every other key that the study searches. Without a finished baseline, differences are NaN.
    """
    study = results.study
    trials = results.trials
    baseline = trials[trials["run_id"] == study.baseline_run_id]
    ranked = results.ranked(only_front=True)
    others = ranked[ranked["run_id"] != study.baseline_run_id].head(best)
    table = pd.concat([baseline, others], ignore_index=True)
    table["run"] = table["run_id"].astype("str")
    table["baseline"] = table["run"] == study.baseline_run_id
    reference = baseline[["val_loss", "tok_per_sec"]].mean()  # of one row, or NaN
    table["difference"] = table["val_loss"] - reference["val_loss"]
    table["speedup"] = table["tok_per_sec"] / reference["tok_per_sec"]
    speed = ["tok_per_sec", "speedup"] if "train/tok_per_sec" in study.metrics else ["tok_per_sec"]
    searched = [key for key in study.space if key not in ALWAYS_SHOWN]
    return table[["run", "baseline", "val_loss", "difference", *speed, "outcome", *ALWAYS_SHOWN, *searched]]


def signed(difference: float, noise: Noise | None) -> str:
    """A difference between two runs in nats, with a ~ if two seeds of one setting may differ as much."""
    return f"{'~' if noise and abs(difference) <= noise.one_seed else ''}{difference:+.4f}"


def one_seed_note(noise: Noise) -> str:
    """The sentence below a table of differences between single runs."""
    return f"~ marks differences that two seeds of one setting show too, up to {noise.one_seed:.2g} nats."
