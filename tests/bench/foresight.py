"""How well foresight forecasts, and what it saves: recorded trials replayed through the real search, in random orders.

`python -m tests.bench.foresight` reads tests/recorded/runs.parquet, or the file that it is given.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hpstudy.analysis.foreseen import SHARES, schedule_blind
from hpstudy.hparams import HParams
from hpstudy.records import Outcome
from hpstudy.search import Search
from hpstudy.search.foresight import LEAST_FINISHED, Curve, Foresight
from hpstudy.study import Study
from hpstudy.study.load import parse_study
from tests.bench.grid import KEYS
from tests.helpers.recorded import RECORDED
from tests.helpers.search import result

TEXT = """
question = "What does foresight save?"

[trainer]
model     = "{model}"
tokenizer = "gpt2:512"
context   = 128
tokens    = {tokens}

[hparams]
batch_ramp_fraction = 0.0

[search]
lr              = {{ low = 1e-4, high = 1e-1, scale = "log" }}
beta1           = {{ low = 0.5, high = 0.999, scale = "log1m" }}
beta2           = {{ low = 0.5, high = 0.9999, scale = "log1m" }}
weight_decay    = {{ low = 1e-4, high = 10.0, scale = "log" }}
warmup_fraction = {{ low = 0.001, high = 0.5 }}
min_lr_fraction = {{ low = 0.0, high = 0.5 }}
batch_tokens    = {{ choices = [1024, 2048, 4096, 8192] }}

[budget]
trials   = {trials}
parallel = {parallel}
pruner   = "foresight"

[confirm]
margin = 0.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded trial."""

    values: dict[str, float | int]
    losses: dict[int, float]
    final: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a search with foresight came to."""

    saved: float  # share of the tokens
    regret: float  # nats
    stopped: int


def recorded_trials(runs: pd.DataFrame) -> list[Recorded]:
    """The trials of a table of recorded runs."""
    return [
        Recorded(
            values={key: int(row[key]) if key == "batch_tokens" else float(row[key]) for key in KEYS},
            losses=dict(zip(map(int, row["evals"]), map(float, row["curve"]), strict=True)),
            final=float(row["loss"]),
        )
        for row in runs.to_dict("records")
    ]


def study_of(model: str, tokens: int, trials: int, parallel: int) -> Study:
    """A study whose space holds the recorded trials."""
    text = TEXT.format(model=model, tokens=tokens, trials=trials, parallel=parallel)
    return parse_study(text, name="foresight", path=Path("foresight.toml"))


def replayed(study: Study, trials: Sequence[Recorded]) -> Replay:
    """A whole search whose proposals are the recorded trials, in this order."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(study, Path(folder) / "journal")
        search._first = dict(enumerate(dict(trial.values) for trial in trials))
        ends: list[tuple[int, float]] = []  # (last evaluation, final loss or infinity)
        for number, trial in enumerate(trials):
            while search.ask() is not None:
                pass
            ends.append(_train(search, number, trial))
    done = sum(last for last, _ in ends)
    whole = sum(max(trial.losses) for trial in trials)
    best = min(trial.final for trial in trials)
    return Replay(
        saved=1 - done / whole,
        regret=min(loss for _, loss in ends) - best,
        stopped=sum(math.isinf(loss) for _, loss in ends),
    )


def _train(search: Search, number: int, trial: Recorded) -> tuple[int, float]:
    last = 0
    outcome = Outcome.COMPLETE
    for last, loss in sorted(trial.losses.items()):
        search.report(number, last, loss)
        if search.should_stop(number, last):
            outcome = Outcome.PRUNED
            break
    complete = outcome is Outcome.COMPLETE
    search.tell(number, result(outcome, trial.final if complete else trial.losses[last]))
    return last, trial.final if complete else math.inf


def forecasts(
    study: Study, trials: Sequence[Recorded], evals: int
) -> Iterator[tuple[float, float, float, float, bool]]:
    """(share, errors of the forecast, of the current loss and of a blind fit, whether the interval held the loss).

    Each trial is forecast from those before it, all of which ended.
    """
    assert study.spec.tokens is not None
    foresight = Foresight(evals=evals, tokens=study.spec.tokens, top=1, margin=0.0)
    curves = [
        Curve(number=number, hparams=_hparams(study, trial), losses=trial.losses) for number, trial in enumerate(trials)
    ]
    for number, curve in enumerate(curves):
        if evals not in curve.losses or sum(evals in past.losses for past in curves[:number]) < LEAST_FINISHED:
            continue
        final = curve.losses[evals]
        for share in SHARES:
            at = round(share * evals)
            found = foresight.forecast(curves[:number], curve.until(at), at)
            if found is None or at not in curve.losses:
                continue
            blind = schedule_blind(curve.until(at).losses, evals)
            held = found.low <= final <= found.high
            yield share, abs(found.loss - final), abs(curve.losses[at] - final), abs(blind - final), held


def _hparams(study: Study, trial: Recorded) -> HParams:
    return study.trial_hparams(dict(trial.values), study.spec.tokens)


def seed_sd(runs: pd.DataFrame) -> tuple[float, float]:
    """(pooled, median) standard deviation of the final loss over seeds, from the grid's repeats, in nats."""
    grid = runs[(runs["group"] == "grid") & ~runs["diverged"]]
    sds = grid.groupby(list(KEYS))["loss"].std().dropna()
    return float(np.sqrt((sds**2).mean())), float(sds.median())


def main() -> None:
    """Prints the errors, and what was saved."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.foresight", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=RECORDED)
    parser.add_argument("--replays", type=int, default=20, help="random orders")
    parser.add_argument("--parallel", type=int, default=2)
    args = parser.parse_args()
    runs = pd.read_parquet(args.file)
    pooled, median = seed_sd(runs)
    print(
        f"a seed's s.d. of the final loss, gpt-2x64: {1e3 * pooled:.0f} mnat pooled, {1e3 * median:.0f} in the middle"
    )
    for model, group in runs[runs["group"] == "random"].groupby("model"):
        trials = recorded_trials(group)
        study = study_of(str(model), int(group["D"].max()), len(trials), args.parallel)
        orders = [np.random.default_rng(number).permutation(len(trials)) for number in range(args.replays)]
        found = [row for order in orders for row in forecasts(study, [trials[index] for index in order], 20)]
        table = pd.DataFrame(found, columns=["share", "forecast", "current", "blind", "held"])
        print(f"\n{model}, {len(trials)} trials, {args.replays} orders; median error in mnat")
        print("of the run  forecast  current loss  blind fit  90% interval holds")
        for share, rows in table.groupby("share"):
            errors = "".join(
                f"{1e3 * rows[name].median():{width}.0f}"
                for name, width in (("forecast", 10), ("current", 14), ("blind", 11))
            )
            print(f"{share:10.0%}{errors}{rows['held'].mean():20.1%}")
        ends = [replayed(study, [trials[index] for index in order]) for order in orders]
        saved, regret = np.array([end.saved for end in ends]), 1e3 * np.array([end.regret for end in ends])
        print(
            f"stopped {np.mean([end.stopped for end in ends]):.1f} of {len(trials)}; tokens saved {saved.mean():.1%} "
            f"({saved.min():.1%} to {saved.max():.1%}); regret {regret.mean():.1f} mnat, worst {regret.max():.1f}, "
            f"none in {np.mean(regret <= 0):.0%}"
        )


if __name__ == "__main__":
    main()
