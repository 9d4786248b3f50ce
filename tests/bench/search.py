"""Scores ways to search: how far the best values found so far are from the best there are, by number of trials.

`python -m tests.bench.search` searches what `python -m tests.bench.grid` trained: the recorded runs themselves, as
lists of values, and a smooth model of them, as ranges. `--csv FILE` searches a table with the columns N, D, lr, batch
and loss instead, each pair of N and D on its own. Nothing is trained.

A search sees recorded losses, with the noise of their seeds. Its regret is the smooth model's loss at the values that
looked best to it, minus the model's lowest. So luck with the seed does not count.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.trial import create_trial
from scipy import stats
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from hpstudy.analysis.ranges import position
from hpstudy.analysis.surrogate import matern, squares
from hpstudy.hparams import RULES
from hpstudy.search import Search
from hpstudy.search.sampling import proposer
from hpstudy.search.space import decode, distributions
from hpstudy.study import Choices, Dimension, FloatRange, OrderedChoices, Study, Value, parse_study
from tests.bench.rivals import Rival, rivals
from tests.helpers.recorded import RECORDED
from tests.helpers.search import result

KEYS = ("lr", "beta2", "weight_decay", "batch_tokens")
GROUPS = ("grid", "larger")
MARKS = (8, 16, 32, 64)  # trials after which the regret is shown
SHIFT = 0.02  # nats below the lowest loss at which the model's logarithm has its zero
FOLDS = 5
CAP = 500  # rows from which the model's length scales are fitted
MORE_KEYS = """
beta1 = {{ low = 0.8, high = 0.98 }}
beta2 = {{ low = 0.9, high = 0.999 }}
weight_decay = {{ low = 1e-3, high = 1.0 }}"""
Array = NDArray[np.float64]
Values = Mapping[str, Value]

STUDY = """\
question = "Which search is best?"
format = {format}

[trainer]
model = "{model}"
tokenizer = "gpt2:512"
context = 128
tokens = {tokens}

[hparams]
batch_tokens = 4096
batch_ramp_fraction = 0.0

[search]
lr = {{ low = 6e-4, high = 4e-2 }}

[budget]
{budget}

[confirm]
seeds = []
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is searched."""

    name: str
    space: dict[str, Dimension]
    seen: Callable[[Values, int], float]  # the loss that a search of some seed sees at some values
    real: Callable[[Values], float]
    lowest: float
    model: str = "gpt-2x64"
    tokens: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to search: a study of hpstudy's, or a sampler of Optuna's."""

    name: str
    sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None
    budget: str = ""  # lines of [budget]
    format: int = 4
    rival: Rival | None = None  # neither of the two
    ordered: bool = True  # of Optuna's: whether lists of numbers are whole numbers, not categories


def strategies() -> Iterator[Strategy]:
    """All that are scored."""
    yield Strategy(name="hpstudy")
    yield Strategy(name="hpstudy, no rules", budget="rules = []")
    yield Strategy(name="hpstudy, format 3", format=3)
    for kind, startup in (("tpe", 5), ("tpe", 10), ("tpe", 16), ("gp", 10)):  # without rules, as is "hpstudy, no rules"
        budget = f'rules = []\nsampler = {{ name = "{kind}", startup = {startup} }}'
        yield Strategy(name=f"hpstudy {kind} {startup}", budget=budget)
    yield Strategy(name="random", sampler=partial(_new, optuna.samplers.RandomSampler))
    yield Strategy(name="Optuna TPE", sampler=partial(_new, optuna.samplers.TPESampler), ordered=False)
    yield Strategy(name="Optuna TPE, ordered", sampler=partial(_new, optuna.samplers.TPESampler))
    yield Strategy(name="Optuna GP", sampler=partial(_new, optuna.samplers.GPSampler))
    if find_spec("cmaes"):
        yield Strategy(name="CMA-ES", sampler=partial(_new, optuna.samplers.CmaEsSampler))
    else:
        print("CMA-ES is left out: it needs the package cmaes")
    for name, rival in rivals():
        yield Strategy(name=name, rival=rival)


def _new(kind: Callable[..., optuna.samplers.BaseSampler], seed: int) -> optuna.samplers.BaseSampler:
    return kind(seed=seed)


class Smooth:
    """A Gaussian process of log(loss - lowest + SHIFT) over coordinates from 0 to 1, with noise known by row."""

    def __init__(self, points: Array, losses: Array, noise: Array) -> None:
        self._points, self._floor = points, float(losses.min()) - SHIFT
        heights = np.log(losses - self._floor)
        self._mean = float(heights.mean())
        self._variance = (noise / (losses - self._floor)) ** 2  # of a logarithm
        some = np.random.default_rng(0).permutation(len(points))[:CAP]
        target = heights[some] - self._mean
        start = np.array([0.0, *[-0.5] * points.shape[1], -3.0])
        self._scales = start
        found = minimize(self._evidence, start, args=(points[some], target, self._variance[some]), method="L-BFGS-B")
        self._scales = found.x
        solved = cho_factor(self._kernel(points, points) + np.diag(self._noise(self._variance)))
        self._weights = cho_solve(solved, heights - self._mean)

    def __call__(self, points: Array) -> Array:
        """The expected loss at each point."""
        heights = self._kernel(points, self._points) @ self._weights + self._mean
        return np.exp(heights) + self._floor

    def _kernel(self, one: Array, other: Array, scales: Array | None = None) -> Array:
        scales = self._scales if scales is None else scales
        kernel: Array = np.exp(scales[0]) * matern(squares(one, other), np.exp(scales[1:-1]))[0]
        return kernel

    def _noise(self, variance: Array, scales: Array | None = None) -> Array:
        scales = self._scales if scales is None else scales
        noise: Array = variance + np.exp(2 * scales[-1])
        return noise

    def _evidence(self, scales: Array, points: Array, target: Array, variance: Array) -> float:
        """The negative log evidence, with a weak prior."""
        matrix = self._kernel(points, points, scales) + np.diag(self._noise(variance, scales))
        solved = cho_factor(matrix, lower=True)
        fit = 0.5 * float(target @ cho_solve(solved, target)) + float(np.log(np.diag(solved[0])).sum())
        return fit + 0.5 * float(((scales - np.array([0, *[-0.5] * points.shape[1], -4])) ** 2 / 4).sum())


def recorded(rows: pd.DataFrame, name: str) -> Iterator[Problem]:
    """The recorded runs of a group as two problems: a grid, and the model of it. Prints how well the model predicts."""
    cells = rows.groupby(list(KEYS))["loss"].agg([list, "mean", "count", "std"]).reset_index()
    ranges = {key: _range(key, cells[key]) for key in KEYS}
    points = np.array([_positions(ranges, cell) for cell in cells[list(KEYS)].to_dict("records")])
    noise = noise_of(cells)
    losses, spread = cells["mean"].to_numpy(), noise(cells["lr"].to_numpy()) / np.sqrt(cells["count"].to_numpy())
    smooth = Smooth(points, losses, spread)
    _held_out(name, points, losses, spread)
    of_cell = {tuple(row): losses for *row, losses in cells[[*KEYS, "list"]].itertuples(index=False)}
    means = dict(zip(of_cell, smooth(points), strict=True))
    size = {"model": str(rows["model"].iloc[0]), "tokens": int(round(rows["D"].max(), -6))}
    grid: dict[str, Dimension] = {
        key: OrderedChoices(values=tuple(sorted(int(v) if RULES[key].kind is int else v for v in set(cells[key]))))
        for key in KEYS
    }

    def seen(values: Values, seed: int) -> float:
        losses: list[float] = of_cell[tuple(values[key] for key in KEYS)]
        return losses[_draw(values, seed).integers(len(losses))]

    yield Problem(
        name=f"{name}, recorded",
        space=grid,
        seen=seen,
        real=lambda values: means[tuple(values[key] for key in KEYS)],
        lowest=min(means.values()),
        **size,
    )
    continuous: dict[str, Dimension] = {key: ranges[key] for key in KEYS[:-1]}

    def real(values: Values) -> float:
        return float(smooth(np.array([_positions(ranges, values)]))[0])

    def scatter(values: Values) -> float:
        return float(noise(np.array([values["lr"]], float))[0])

    sides = [np.linspace(0, 1, 17)] * 3 + [np.unique(points[:, -1])]
    starts = np.array(list(product(*sides)))
    best = min(starts[np.argsort(smooth(starts))[:8]], key=lambda start: _descent(smooth, start))
    yield Problem(
        name=f"{name}, model of it",
        space=continuous | {"batch_tokens": grid["batch_tokens"]},
        seen=lambda values, seed: real(values) + scatter(values) * float(_draw(values, seed).standard_normal()),
        real=real,
        lowest=_descent(smooth, best),
        **size,
    )


def noise_of(cells: pd.DataFrame) -> Callable[[Array], Array]:
    """Learning rates -> the standard deviation of a loss over seeds, which is larger where training is nearly unstable.

    From the cells with repeats, pooled by learning rate, and between them on a log scale; 5 mnat without repeats.
    """
    pooled = (cells[cells["count"] > 1].groupby("lr")["std"].agg(lambda s: (s**2).mean()) ** 0.5).sort_index()
    if pooled.empty:
        return lambda rates: np.full(len(rates), 0.005)
    return lambda rates: np.interp(np.log(rates), np.log(pooled.index.to_numpy()), pooled.to_numpy())


def _descent(smooth: Smooth, start: Array) -> float:
    """The lowest loss near a start, at its batch."""
    bounds = [(0.0, 1.0)] * 3
    found = minimize(lambda x: float(smooth(np.array([[*x, start[3]]]))[0]), start[:3], bounds=bounds)
    return float(found.fun)


def _held_out(name: str, points: Array, losses: Array, spread: Array) -> None:
    fold = np.random.default_rng(1).integers(FOLDS, size=len(points))
    errors = np.empty(len(points))
    for number in range(FOLDS):
        kept, left = fold != number, fold == number
        errors[left] = Smooth(points[kept], losses[kept], spread[kept])(points[left]) - losses[left]
    near = losses < np.quantile(losses, 0.25)
    print(
        f"{name}: {len(points)} cells, lowest loss {losses.min():.3f}. In the best quarter a cell's own noise is "
        f"{1e3 * np.median(spread[near]):.0f} mnat and the model errs by {1e3 * np.median(np.abs(errors[near])):.0f} "
        f"on cells held out (medians; {1e3 * np.median(np.abs(errors)):.0f} on all cells)"
    )


def _range(key: str, values: pd.Series) -> FloatRange:
    """From the least to the largest of some values, on the key's own scale; batches are on a log scale."""
    scale = "log" if key == "batch_tokens" else RULES[key].scale
    return FloatRange(low=float(values.min()), high=float(values.max()), scale=scale)


def _positions(ranges: Mapping[str, FloatRange], values: Values) -> list[float]:
    """Where the values of a point are in their ranges, from 0 to 1."""
    return [position(ranges[key], values[key]) for key in KEYS]


def _draw(values: Values, seed: int) -> np.random.Generator:
    """Chance that is the same whenever a search of this seed comes to these values."""
    return np.random.default_rng([seed, *(abs(hash(value)) for value in values.values())])


def from_csv(file: Path) -> Iterator[Problem]:
    """Each pair of N and D of a table, over its learning rates and batches. A missing point has the nearest's loss."""
    for (size, tokens), rows in pd.read_csv(file).groupby(["N", "D"]):
        losses = rows.groupby(["lr", "batch"])["loss"].mean()
        points = np.log(np.array(losses.index.tolist(), float))
        if len(losses) < 2 or min(map(len, map(np.unique, points.T))) < 2:
            continue
        space: dict[str, Dimension] = {
            "lr": OrderedChoices(values=tuple(sorted(map(float, set(rows["lr"]))))),
            "batch_tokens": OrderedChoices(values=tuple(sorted(map(int, set(rows["batch"]))))),
        }

        yield Problem(
            name=f"N={size:.3g} D={tokens:.3g}",
            space=space,
            seen=partial(_nearest, points, losses.to_numpy()),
            real=partial(_nearest, points, losses.to_numpy()),
            lowest=float(losses.min()),
        )


def _nearest(points: Array, losses: Array, values: Values, _: int = 0) -> float:
    """The loss of the nearest recorded point."""
    wanted = np.log([float(values["lr"]), float(values["batch_tokens"])])
    return float(losses[np.argmin(((points - wanted) ** 2).sum(axis=1))])


def regrets(strategy: Strategy, problem: Problem, seed: int, trials: int, parallel: int) -> Array:
    """The regret after each trial of one search."""
    found = _by_rival if strategy.rival else _by_optuna if strategy.sampler else _by_hpstudy
    losses, real = [], []
    for values in found(strategy, problem, seed, trials, parallel):
        losses.append(problem.seen(values, seed))
        real.append(problem.real(values))
    best = [int(np.argmin(losses[: count + 1])) for count in range(len(losses))]
    return np.array(real)[best] - problem.lowest


def _by_hpstudy(strategy: Strategy, problem: Problem, seed: int, trials: int, parallel: int) -> Iterator[Values]:
    """The values of each trial of a study, in order; trial n is asked once n - parallel is told."""
    study = _study(strategy, problem, seed, trials, parallel)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(study, Path(folder) / "journal")
        while (proposal := search.ask()) is not None or search.pending():
            if proposal is None:
                oldest = search.pending()[0]
                search.tell(oldest.number, result(val_loss=problem.seen(oldest.values, seed)))
            else:
                yield proposal.values


def _study(strategy: Strategy, problem: Problem, seed: int, trials: int, parallel: int) -> Study:
    text = STUDY.format(format=strategy.format, budget=strategy.budget, model=problem.model, tokens=problem.tokens)
    study = parse_study(text, name="bench", path=Path("bench.toml"))
    space = problem.space
    if strategy.format < 4:
        space = {k: Choices(values=d.values) if isinstance(d, OrderedChoices) else d for k, d in space.items()}
    sampler = study.budget.sampler.model_copy(update={"seed": seed})
    budget = study.budget.model_copy(update={"trials": trials, "parallel": parallel, "sampler": sampler})
    return replace(study, space=space, budget=budget)


def _by_optuna(strategy: Strategy, problem: Problem, seed: int, trials: int, parallel: int) -> Iterator[Values]:
    assert strategy.sampler is not None
    space = dict(problem.space)
    if not strategy.ordered:
        space = {k: Choices(values=d.values) if isinstance(d, OrderedChoices) else d for k, d in space.items()}
    study = optuna.create_study(sampler=strategy.sampler(seed))
    running: list[tuple[optuna.Trial, Values]] = []
    for _ in range(trials):
        if len(running) == parallel:
            trial, values = running.pop(0)
            study.tell(trial, problem.seen(values, seed))
        trial = study.ask(distributions(space))
        running.append((trial, decode(space, trial.params)))
        yield running[-1][1]


def _by_rival(strategy: Strategy, problem: Problem, seed: int, trials: int, parallel: int) -> Iterator[Values]:
    assert strategy.rival is not None
    running: list[tuple[Any, Values]] = []
    with strategy.rival(problem.space, trials, seed) as (ask, tell):
        for _ in range(trials):
            if len(running) == parallel:
                token, values = running.pop(0)
                tell(token, problem.seen(values, seed))
            running.append(ask())
            yield running[-1][1]


def proposal_seconds(trials: int, version: int) -> float:
    """CPU seconds of one proposal of TPE of four keys after so many trials, in a study of this format."""
    text = STUDY.replace("[budget]", f"{MORE_KEYS}\n[budget]").format(
        format=version, budget='sampler = "tpe"', model="gpt-2x64", tokens=1_000_000
    )
    study = parse_study(text, name="bench", path=Path("bench.toml"))
    space, draw = distributions(study.space), np.random.default_rng(0)
    made = [
        create_trial(
            params={name: each.low * (each.high / each.low) ** draw.random() for name, each in space.items()},
            distributions=space,
            value=draw.random(),
        )
        for _ in range(trials)
    ]
    for number, trial in enumerate(made):
        trial.number = number
    proposing = proposer(study, (), lambda _: 0.0)
    proposing.propose(made[:-1], trials - 4)
    begun = time.process_time()
    proposing.propose(made, trials - 3)
    return time.process_time() - begun


def _cell(found: Array) -> str:
    """The mean in mnat with its 95% interval, over searches."""
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else 0
    return f"{1e3 * found.mean():.1f} ± {1e3 * half:.1f}"


def main() -> None:
    """Prints a table for each problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.search", description=__doc__)
    parser.add_argument("--runs", type=Path, default=RECORDED, help="recorded runs (tests/recorded/runs.parquet)")
    parser.add_argument("--csv", type=Path, help="a table to search instead, with columns N, D, lr, batch and loss")
    parser.add_argument("--seeds", type=int, default=50, help="searches of each kind (50)")
    parser.add_argument("--trials", type=int, default=MARKS[-1], help="trials of a search (64)")
    parser.add_argument("--parallel", type=int, default=4, help="trials proposed before the first has ended (4)")
    parser.add_argument("--only", help="names of strategies, with semicolons between them")
    parser.add_argument("--on", help="part of the names of problems")
    parser.add_argument("--pace", type=int, metavar="N", help="only the seconds of a proposal of TPE after N trials")
    parser.add_argument("--quick", action="store_true", help="4 searches of 16 trials")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if args.pace:
        for version in (3, 4):
            milliseconds = sorted(1e3 * proposal_seconds(args.pace, version) for _ in range(5))[2]
            print(f"format {version}: {milliseconds:.0f} ms of CPU a proposal after {args.pace:,} trials")
        return
    seeds, trials = (4, 16) if args.quick else (args.seeds, args.trials)
    if args.csv:
        problems = list(from_csv(args.csv))
    else:
        runs = pd.read_parquet(args.runs)
        groups = [(name, runs[runs["group"] == name]) for name in GROUPS]
        problems = [problem for name, rows in groups if len(rows) for problem in recorded(rows, name)]
    wanted = args.only.split(";") if args.only else None
    chosen = [strategy for strategy in strategies() if wanted is None or strategy.name in wanted]
    marks = [mark for mark in MARKS if mark <= trials]
    for name, same in _tables(problems, args.csv):
        if args.on and args.on not in name:
            continue
        print(f"\n{name}: regret in mnat, mean and 95% interval of {seeds} searches, parallel {args.parallel}")
        print(f"{'trials':24}" + "".join(f"{mark:>18}" for mark in marks) + f"{'s a proposal':>15}")
        for strategy in chosen:
            begun = time.process_time()
            found = np.array(
                [
                    np.mean([regrets(strategy, one, seed, trials, args.parallel) for one in same], axis=0)
                    for seed in range(seeds)
                ]
            )
            pace = (time.process_time() - begun) / (seeds * trials * len(same))
            cells = "".join(f"{_cell(found[:, mark - 1]):>18}" for mark in marks)
            print(f"{strategy.name:24}{cells}{pace:15.3f}", flush=True)


def _tables(problems: Sequence[Problem], csv: Path | None) -> Iterator[tuple[str, Sequence[Problem]]]:
    """A table for each problem, or one for all of a CSV's."""
    if csv:
        yield f"{csv.name}, {len(problems)} pairs of N and D", problems
    else:
        yield from ((problem.name, [problem]) for problem in problems)


if __name__ == "__main__":
    main()
