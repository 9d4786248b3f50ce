"""Measures the laws of a ladder: `python -m tests.bench.ladder` on simulated ladders, with a FILE on published grids.

FILE is a CSV with the columns N, D, lr, batch (both D and batch in tokens) and loss, or the name `recorded`: the set
`sizes` of `python -m tests.bench.grid`, 105 runs of five models.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import qmc

from hpstudy.errors import UserError
from hpstudy.hparams import GPT3
from hpstudy.search.rules import Sizes, step_law
from hpstudy.statistics.scaling import Law, Optimum, boundary, law, least_trials, optimum
from tests.helpers.recorded import RECORDED

Array = NDArray[np.float64]

# What is simulated. Everything is in natural logs; octaves are printed.
OCTAVE = math.log(2)
KEYS = ("lr", "batch", "beta2")
HALF = 0.75 * math.log(10)  # of the box: 1.5 decades in each key
RUNGS = np.log(np.geomspace(1e5, 5e6, 5))  # five rungs over 50x in N
TRIALS = (32, 24, 16, 12, 12)
CHECK, FAR = RUNGS[-1] + math.log(3), RUNGS[-1] + math.log(30)
FARTHEST_LOSS = math.log(512)  # of a diverged trial
BENDS = (2.0, 3.0, 4.0)  # octaves off the line through the first three rungs, at the last rung
DRAWS = 100
EDGE = 0.25  # nats that a rung's optimum stays away from the ends of the box


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """One simulated rung."""

    points: Array  # N x K
    losses: Array  # N
    unstable: NDArray[np.bool_]  # N


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Simulated rungs and the laws behind them."""

    rungs: list[Trials]
    noise: float  # the seeds' standard deviation as four fresh runs would estimate it
    check: Array  # K optima at CHECK
    far: Array  # K optima at FAR
    boundary: tuple[float, float]  # largest stable log lr at CHECK and FAR


def simulate(rng: np.random.Generator, bend: float = 0.0) -> Ladder:
    """Draws a ladder whose optima follow laws; the learning rate's leaves its law by `bend` octaves at the last rung.

    The loss grows as a square near the optimum and as a line farther off. It depends on the learning rate relative to
    a power of the batch. About an octave above the best learning rate it leaps by 0.4 to 1 nats, trials become unstable
    and a third of these end at the loss of a uniform guess. The seeds' noise is 5 to 20 mnat and five times as much at
    the cliff. An optimum may lie anywhere in the box, EDGE off its ends, and scatters about its law by up to 0.15.
    """
    ages_R, num_keys = RUNGS - RUNGS.mean(), len(KEYS)
    slopes_K = rng.uniform(-0.25, 0.25, num_keys)  # in coordinates that a rule has made nearly free of scale
    path_RK = np.outer(ages_R, slopes_K)
    path_RK[:, 0] += np.array([0, 0, 0, 0.5, 1]) * bend * OCTAVE * rng.choice([-1, 1])
    low_K, high_K = path_RK.min(axis=0), path_RK.max(axis=0)
    room_K = np.maximum(HALF - EDGE - (high_K - low_K) / 2, 0.0)
    start_K = rng.uniform(-room_K, room_K) - (high_K + low_K) / 2
    scatter = rng.uniform(0, 0.15)
    optima_RK = path_RK + start_K + scatter * rng.standard_normal(path_RK.shape)

    curvatures_K = np.exp(rng.uniform(np.log([0.05, 0.02, 0.01]), np.log([0.3, 0.15, 0.1])))
    by_batch, stretch = rng.uniform(0, 0.5), rng.uniform(0.7, 2.0)
    gaps_R = OCTAVE * (rng.uniform(0.9, 1.4) - rng.uniform(0, 0.05) * ages_R)  # the cliff comes nearer with size
    width, height = rng.uniform(0.1, 0.4), rng.uniform(0.4, 1.0)
    noise = math.exp(rng.uniform(math.log(0.005), math.log(0.02)))
    sobol = rng.random() < 0.5

    def soft(x: Array) -> Array:
        return stretch**2 * (np.sqrt(1 + (x / stretch) ** 2) - 1)

    rungs = []
    for age, optimum_K, gap, num_trials in zip(ages_R, optima_RK, gaps_R, TRIALS, strict=True):
        uniform_NK = rng.random((num_trials, num_keys))
        if sobol:
            uniform_NK = qmc.Sobol(num_keys, rng=rng).random(32)[:num_trials]
        points_NK = HALF * (2 * uniform_NK - 1)
        away_NK = points_NK - optimum_K
        lr_N = away_NK[:, 0] - by_batch * away_NK[:, 1]
        over_N = np.clip((lr_N - gap) / width, 0, 1)
        losses_N = 3.4 - 0.25 * age + height * over_N**2 * (3 - 2 * over_N)
        losses_N += curvatures_K[0] * np.where(lr_N < 0, soft(lr_N), lr_N**2 / 2)
        losses_N += curvatures_K[1] * soft(away_NK[:, 1]) + curvatures_K[2] * soft(away_NK[:, 2])
        near_N = np.clip((lr_N - gap + 0.5) / (0.5 + width), 0, 1)
        losses_N += noise * (1 + 4 * near_N) * rng.standard_normal(num_trials)
        chances_N = 1 / (1 + np.exp(-(lr_N - gap - width / 2) / (width / 4 + 0.03)))
        unstable_N = rng.random(num_trials) < chances_N
        diverged_N = unstable_N & (rng.random(num_trials) < 1 / 3)
        losses_N = np.where(diverged_N, FARTHEST_LOSS, np.minimum(losses_N, FARTHEST_LOSS))
        rungs.append(Trials(points=points_NK, losses=losses_N, unstable=unstable_N))

    def at(log_size: float) -> Array:
        return slopes_K * (log_size - RUNGS.mean()) + start_K

    def stable(log_size: float) -> float:
        """At the middle of the box, as trials with any batch show it."""
        gap = gaps_R.mean() + np.polyfit(ages_R, gaps_R, 1)[0] * (log_size - RUNGS.mean())
        return float(at(log_size)[0] - by_batch * at(log_size)[1] + gap + width / 2)

    check_K, far_K = (at(size) + scatter * rng.standard_normal(num_keys) for size in (CHECK, FAR))
    return Ladder(
        rungs=rungs,
        noise=noise * math.sqrt(rng.chisquare(4) / 4),
        check=check_K,
        far=far_K,
        boundary=(stable(CHECK), stable(FAR)),
    )


def laws_of(ladder: Ladder) -> list[Law]:
    """The law of each key's optimum, and last that of the largest stable learning rate."""
    high_K = np.full(len(KEYS), HALF)
    optima = [optimum(r.points, r.losses, -high_K, high_K, noise=ladder.noise, resamples=DRAWS) for r in ladder.rungs]
    found = [(size, best) for size, best in zip(RUNGS, optima, strict=True) if best]
    sizes_R1 = np.array([[size] for size, _ in found])
    laws = [
        law(sizes_R1, np.array([o.centre[key] for _, o in found]), np.array([o.error[key] for _, o in found]))
        for key in range(len(KEYS))
    ]
    edges = [boundary(rung.points[:, 0], rung.unstable) for rung in ladder.rungs]
    bounded = [(size, edge) for size, edge in zip(RUNGS, edges, strict=True) if edge and edge.bounded]
    if len(bounded) >= 2:
        sizes_R1 = np.array([[size] for size, _ in bounded])
        laws.append(law(sizes_R1, np.array([e.value for _, e in bounded]), np.array([e.error for _, e in bounded])))
    return laws


def simulated(num_ladders: int, seed: int) -> pd.DataFrame:
    """A row for each key: cover and median width at CHECK and FAR, cover of the slope's sign, and false bends."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_ladders):
        ladder = simulate(rng)
        for key, fitted in enumerate(laws_of(ladder)):
            truths = (ladder.check[key], ladder.far[key]) if key < len(KEYS) else ladder.boundary
            row: dict[str, object] = {"key": key}
            for place, log_size, truth in zip(("3x", "30x"), (CHECK, FAR), truths, strict=True):
                mean, low, high = fitted.at(np.array([log_size]))
                row |= {
                    f"held {place}": low <= truth <= high,
                    f"width {place}": (high - low) / OCTAVE,
                    f"miss {place}": abs(mean - truth) / OCTAVE,
                }
            rows.append(row | {"bend": fitted.bent})
    return (
        pd.DataFrame(rows)
        .groupby("key")
        .agg(
            {
                column: "mean" if column == "bend" or "held" in column else "median"
                for column in rows[0]
                if column != "key"
            }
        )
    )


def bends_found(num_ladders: int, seed: int) -> list[float]:
    """The share of ladders whose learning rate's bend is flagged, for each of BENDS."""
    rng = np.random.default_rng(seed)
    return [float(np.mean([laws_of(simulate(rng, size))[0].bent for _ in range(num_ladders)])) for size in BENDS]


def print_simulated(num_ladders: int, seed: int) -> None:
    """Prints what 90% intervals of simulated ladders hold, and which bends are found."""
    found = simulated(num_ladders, seed)
    print(f"{num_ladders} ladders, seed {seed}; intervals of 90%, widths and median errors in octaves")
    print(
        f"{'':22}{'3x beyond: held':>16}{'width':>7}{'error':>7}{'30x: held':>11}{'width':>7}{'error':>7}{'bends':>8}"
    )
    for name, (_, row) in zip((*KEYS, "largest stable lr"), found.iterrows(), strict=True):
        print(
            f"{name:22}{row['held 3x']:>16.1%}{row['width 3x']:>7.2f}{row['miss 3x']:>7.2f}"
            f"{row['held 30x']:>11.1%}{row['width 30x']:>7.2f}{row['miss 30x']:>7.2f}{row['bend']:>8.1%}"
        )
    for size, share in zip(BENDS, bends_found(num_ladders, seed + 1), strict=True):
        print(f"a bend of lr by {size:g} octaves is flagged in {share:.1%}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The runs of one model and one number of tokens, seeds averaged."""

    weights: float  # N
    tokens: float  # D
    points: Array  # N x K: log lr, log batch
    losses: Array  # N

    @property
    def best(self) -> Array:
        """Its best run's point."""
        return np.asarray(self.points[self.losses.argmin()])

    def regret(self, point_K: Array) -> float:
        """Nats above the best of its runs: of the nearest batch, between the learning rates beside it.

        Beyond the grid the nearest end counts.
        """
        batches_N = self.points[:, 1]
        near_N = np.isclose(batches_N, batches_N[np.abs(batches_N - point_K[1]).argmin()])
        order = self.points[near_N, 0].argsort()
        lrs, losses = self.points[near_N, 0][order], self.losses[near_N][order]
        return float(np.interp(point_K[0], lrs, losses) - self.losses.min())

    def beyond(self, point_K: Array) -> bool:
        """Whether a point lies outside of the grid."""
        low_K, high_K = self.points.min(axis=0) - 1e-6, self.points.max(axis=0) + 1e-6
        return bool(((point_K < low_K) | (point_K > high_K)).any())


def cells_of(runs: pd.DataFrame) -> list[Cell]:
    """The cells of a table of runs, small ones first; a run without a finite loss has its cell's worst."""
    runs = runs.rename(columns={column: column.lower() for column in runs.columns})
    missing = [column for column in ("n", "d", "lr", "batch", "loss") if column not in runs.columns]
    if missing:
        raise UserError(f"columns N, D, lr, batch and loss must be there, but {', '.join(missing)} are missing")
    cells = []
    for (weights, tokens), rows in runs.groupby(["n", "d"]):
        losses = rows["loss"].replace([np.inf, -np.inf], np.nan)
        rows = rows.assign(loss=losses.fillna(losses.max()))
        means = rows.groupby(["lr", "batch"], as_index=False)["loss"].mean()
        points_NK = np.log(means[["lr", "batch"]].to_numpy(float))
        cells.append(Cell(weights=weights, tokens=tokens, points=points_NK, losses=means["loss"].to_numpy(float)))
    return sorted(cells, key=lambda cell: cell.weights * cell.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The small cells, and the laws of the keys that vary in all of them."""

    cells: list[Cell]
    optima: list[Optimum]
    sizes: Array  # R x 1 log N, or R x 2 with log D if it does not follow N
    keys: list[int]
    laws: list[Law]  # a law for each of keys

    def size(self, cell: Cell) -> Array:
        """A cell's log sizes, as the laws take them."""
        return np.log([cell.weights, cell.tokens])[: self.sizes.shape[1]]

    def predict(self, cell: Cell, laws: Sequence[Law] | None = None) -> Array:
        """Log lr and log batch for a cell; a key without a law keeps the largest small cell's best value."""
        point_K = self.cells[-1].best.copy()
        point_K[self.keys] = [fitted.at(self.size(cell))[0] for fitted in laws or self.laws]
        return point_K

    def draws(self, cell: Cell) -> Array:
        """Predictions by the draws of each small cell's optimum, as R x K."""
        drawn = []
        for draw in range(len(self.optima[0].draws)):
            means = [np.array([best.draws[draw, key] for best in self.optima]) for key in range(len(self.keys))]
            errors = [np.array([best.error[key] for best in self.optima]) for key in range(len(self.keys))]
            drawn.append(self.predict(cell, [law(self.sizes, *pair) for pair in zip(means, errors, strict=True)]))
        return np.array(drawn)


def fit(cells: Sequence[Cell]) -> Fitted:
    """Optima and laws of small cells; those with too few runs are left out."""
    widths_CK = np.array([np.ptp(cell.points, axis=0) for cell in cells])
    keys = [key for key in range(2) if (widths_CK[:, key] > 0).all()]
    found = []
    for number, cell in enumerate(cells):
        points_NK = cell.points[:, keys]
        low_K, high_K = points_NK.min(axis=0), points_NK.max(axis=0)
        best = optimum(points_NK, cell.losses, low_K, high_K, noise=None, seed=number) if keys else None
        if best is not None:
            found.append((cell, best))
    if len(found) < 2:
        least = least_trials(max(len(keys), 1))
        raise UserError(f"two small cells of {least} runs with several lr must be there, but got {len(found)}")
    sizes_R2 = np.log([[cell.weights, cell.tokens] for cell, _ in found])
    free = len(found) > 3 and np.linalg.matrix_rank(sizes_R2 - sizes_R2.mean(axis=0), tol=0.1) == 2
    sizes = sizes_R2 if free else sizes_R2[:, : 1 + int(np.ptp(sizes_R2[:, 0]) == 0)]
    laws = [
        law(sizes, np.array([o.centre[key] for _, o in found]), np.array([o.error[key] for _, o in found]))
        for key in range(len(keys))
    ]
    return Fitted(
        cells=[cell for cell, _ in found], optima=[best for _, best in found], sizes=sizes, keys=keys, laws=laws
    )


def ways_of(fitted: Fitted, cell: Cell, seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """What each way of choosing takes for a cell, and draws of it; a published value has no draws but itself."""
    rng, smallest = np.random.default_rng(seed), fitted.cells[0]
    resampled_RN = rng.integers(0, len(smallest.losses), (DRAWS, len(smallest.losses)))
    copied_RK = np.array([smallest.points[rows_N[smallest.losses[rows_N].argmin()]] for rows_N in resampled_RN])
    sizes = Sizes(weights=int(cell.weights), all_weights=int(cell.weights), tokens=int(cell.tokens))
    rule = step_law(sizes, GPT3)
    gpt3_K, rule_K = np.log([[GPT3.lr, GPT3.batch_tokens], [rule["lr"], rule["batch_tokens"]]])
    return {
        "predicted": (fitted.predict(cell), fitted.draws(cell)),
        "copied": (smallest.best, copied_RK),
        "GPT-3": (gpt3_K, gpt3_K[None]),
        "step-law": (rule_K, rule_K[None]),
    }


def print_regrets(cells: Sequence[Cell], held: float) -> None:
    """Prints the laws of the small cells, and what each way of choosing costs on the large ones."""
    num_held = max(1, round(held * len(cells)))
    fitted, large = fit(cells[:-num_held]), cells[-num_held:]
    for cell, best in zip(fitted.cells, fitted.optima, strict=True):
        values = ", ".join(
            f"{('lr', 'batch')[key]} {math.exp(best.centre[at]):.2e}, error {best.error[at] / OCTAVE:.1f} octaves"
            for at, key in enumerate(fitted.keys)
        )
        print(f"fitted N {cell.weights:.3g}, D {cell.tokens:.3g}, {len(cell.losses)} runs: {values}")
    for key, found in zip(fitted.keys, fitted.laws, strict=True):
        slopes = ", ".join(
            f"{name}^{slope:.2f} [{low:.2f}, {high:.2f}]"
            for name, slope, low, high in zip(_names(fitted), found.slope, *found.slope_interval(), strict=True)
        )
        bend = "too few cells to tell a bend" if found.bend is None else f"p of a line {found.bend:.2f}"
        print(f"{('lr', 'batch')[key]} goes as {slopes}; {bend}")

    print(f"\n{'held cell':24}{'way':12}{'lr':>9}{'batch':>10}{'regret (mnat)':>15}{'90% interval':>20}")
    everywhere: dict[str, list[tuple[float, Array]]] = {}
    for cell in large:
        for way, (point_K, draws_RK) in ways_of(fitted, cell).items():
            regret, drawn_R = cell.regret(point_K), np.array([cell.regret(draw_K) for draw_K in draws_RK])
            everywhere.setdefault(way, []).append((regret, drawn_R))
            mark = "  beyond the grid" if cell.beyond(point_K) else ""
            print(_line(f"N {cell.weights:.3g}, D {cell.tokens:.3g}", way, point_K, regret, drawn_R) + mark)
        inside = [
            f"{('lr', 'batch')[key]} {math.exp(value):.2e} {'in' if low <= value <= high else 'outside of'}"
            f" [{math.exp(low):.1e}, {math.exp(high):.1e}]"
            for key, found in zip(fitted.keys, fitted.laws, strict=True)
            for value, (_, low, high) in [(cell.best[key], found.at(fitted.size(cell)))]
        ]
        print(f"{'':24}its best run: {'; '.join(inside)}")
    rng = np.random.default_rng(0)
    for way, costs in everywhere.items():
        picks_RC = rng.integers(0, len(costs), (1000, len(costs)))
        means = np.array([np.mean([rng.choice(costs[pick][1]) for pick in picks_C]) for picks_C in picks_RC])
        print(_line(f"mean of {len(costs)} held", way, None, float(np.mean([cost for cost, _ in costs])), means))


def _names(fitted: Fitted) -> tuple[str, ...]:
    """The sizes that the laws take."""
    return ("N", "D")[: fitted.sizes.shape[1]]


def _line(name: str, way: str, point_K: Array | None, regret: float, drawn_R: Array) -> str:
    values = f"{'':19}" if point_K is None else f"{math.exp(point_K[0]):>9.1e}{math.exp(point_K[1]):>10,.0f}"
    low, high = np.quantile(1e3 * drawn_R, (0.05, 0.95))
    interval = f"[{low:.0f}, {high:.0f}]" if len(drawn_R) > 1 else "fixed"
    return f"{name:24}{way:12}{values}{1e3 * regret:>15.0f}{interval:>20}"


def runs_of(name: str) -> pd.DataFrame:
    """The runs of a CSV file, or with the name `recorded` the recorded set `sizes`."""
    if name != "recorded":
        return pd.read_csv(Path(name))
    runs = pd.read_parquet(RECORDED)
    return runs[runs["group"] == "sizes"].rename(columns={"batch_tokens": "batch"})


def main() -> None:
    """Prints what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ladder", description=__doc__)
    parser.add_argument("file", nargs="?", help="a CSV of published grids, or recorded; without it, simulated ladders")
    parser.add_argument("--ladders", type=int, default=500, help="simulated ladders")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--held", type=float, default=0.3, help="share of a file's cells, the largest, not fitted")
    args = parser.parse_args()
    if args.file is None:
        print_simulated(args.ladders, args.seed)
        return
    try:
        print_regrets(cells_of(runs_of(args.file)), args.held)
    except (UserError, OSError) as error:
        sys.exit(f"{args.file}: {error}")


if __name__ == "__main__":
    main()
