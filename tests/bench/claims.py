"""How often studies claim what is false: `python -m tests.bench.claims` prints the table, by simulation.

Every scenario simulates whole confirmations: trials whose losses on one seed choose the candidates, then runs on fresh
seeds, look by look, through the product's own selection of comparisons and its own race.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from hpstudy.statistics.difference import ALPHA, Floats
from hpstudy.statistics.race import BASELINE, Answer, Finding, Fresh, Race, Rules, comparisons
from hpstudy.study.schema import LOOKS, Design

STUDIES = 4000
COVERAGE = 0.945
TAIL = 0.2  # share of a candidate's runs that go badly
EFFECTS = (0.0, 0.75, 1.0, 1.5, 2.0, 3.0, 10.0)  # in standard deviations of a pair's difference
CLAIMS = (Answer.BETTER, Answer.WORSE)

Draw = Callable[[np.random.Generator, int, int], Floats]
"""(rng, sides, seeds) -> losses [sides, seeds]; the baseline is the first side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Studies of one kind."""

    name: str
    draw: Draw
    looks: tuple[int, ...] = LOOKS
    margin: float | None = None  # None: one standard deviation of a seed's difference
    design: Design = "paired"
    top: int = 1
    trials: int = 8
    tuned: bool = False  # also compares with a tuned learning rate
    extended: bool = False  # the search is extended once after the verdict, and adds another candidate
    truth: float = 0.0  # true difference of every candidate to the baseline
    equal: bool = True  # whether better and worse are both false
    mixed: bool = False  # whether the second candidate differs by the margin, and the first by nothing
    guaranteed: bool = True  # whether the promise of 5% is meant to hold
    why: str = ""  # what is in the way, if not


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What happened in all studies of a scenario."""

    false: float  # share of the studies with a false claim
    covered: float  # share of the headlines whose interval holds the true difference
    decided: float  # share whose headline is not "undecided"
    seeds: float  # mean over the studies of the most seeds of any comparison, per side
    unqualified: float  # share with a false claim whose sentence does not say that runs may go badly
    different: float  # share whose headline is "better" or "worse"


def normal(effect: float = 0.0, r: float = 0.0, spread: float = 1.0, shape: str = "normal") -> Draw:
    """Each candidate is correlated with the baseline by `r` and has `spread` times its noise.

    `effect` is in standard deviations of a pair's difference. A heavy shape is t with 3 degrees of freedom.
    """

    def noise(rng: np.random.Generator, *shape_: int) -> Floats:
        return rng.normal(size=shape_) if shape == "normal" else rng.standard_t(3, size=shape_) / 3**0.5

    def draw(rng: np.random.Generator, sides: int, seeds: int) -> Floats:
        baseline = noise(rng, 1, seeds)
        own = spread * (r * baseline + (1 - r**2) ** 0.5 * noise(rng, sides - 1, seeds))
        pair_sd = (1 + spread**2 - 2 * r * spread) ** 0.5
        return np.vstack([baseline, own + effect * pair_sd])

    return draw


def bad_tail(jump: float, *, of_baseline: bool = False, share: float = TAIL) -> Draw:
    """A `share` of one side's runs is worse by `jump` standard deviations. The means are equal."""

    def draw(rng: np.random.Generator, sides: int, seeds: int) -> Floats:
        losses = rng.normal(size=(sides, seeds))
        stray = slice(0, 1) if of_baseline else slice(1, None)
        losses[stray] += jump * ((rng.random(losses[stray].shape) < share) - share)
        return losses

    return draw


def mixed(rng: np.random.Generator, sides: int, seeds: int) -> Floats:
    """The first candidate equals the baseline, the second differs by one standard deviation of a pair's difference."""
    losses = rng.normal(size=(sides, seeds))
    losses[2:] += 2**0.5
    return losses


def bimodal(rng: np.random.Generator, sides: int, seeds: int) -> Floats:
    """Every run ends near one of two losses, by the toss of a coin."""
    return 0.1 * rng.normal(size=(sides, seeds)) + (rng.random((sides, seeds)) < 0.5)


def scenarios() -> Iterator[Scenario]:
    """All that are simulated."""
    none = replace(Scenario(name="no difference", draw=normal()), margin=0.0)
    yield replace(none, name="no difference, a race")
    for n in (3, 5, 8):
        yield replace(none, name=f"no difference, {n} fixed seeds", looks=(n,))
    for n in (3, 5, 8):
        yield replace(none, name=f"no difference, {n} independent seeds", looks=(n,), design="independent")
    for looks, kind in ((LOOKS, "a race"), ((5,), "5 seeds")):
        base = replace(none, looks=looks)
        for r in (-0.8, -0.4, 0.4, 0.8):
            yield replace(base, name=f"sides correlated by {r:+.1f}, {kind}", draw=normal(r=r))
        yield replace(base, name=f"heavy tails, {kind}", draw=normal(shape="heavy"))
        yield replace(base, name=f"noise 4 times the baseline's, {kind}", draw=normal(spread=4))
        yield replace(base, name=f"noise a quarter of it, {kind}", draw=normal(spread=0.25))
        yield replace(base, name=f"two clusters of losses, {kind}", draw=bimodal)
        yield replace(base, name=f"top 3, {kind}", top=3)
        yield replace(base, name=f"top 5, {kind}", top=5)
        yield replace(base, name=f"tuned-lr besides, {kind}", tuned=True)
        yield replace(
            base, name=f"search extended once, {kind}", extended=True, guaranteed=False,
            why="each selection has its own 5%; the sentence says so",
        )  # fmt: skip
        yield replace(
            base, name=f"20% of runs worse by 10 sd, {kind}", draw=bad_tail(10), guaranteed=False,
            why="a few seeds cannot show it; without the sentence's caveat:",
        )  # fmt: skip
        yield replace(
            base, name=f"20% of the baseline's worse by 10 sd, {kind}", draw=bad_tail(10, of_baseline=True),
            guaranteed=False, why="a few seeds cannot show it; without the sentence's caveat:",
        )  # fmt: skip
        yield replace(base, name=f"one equal, one at the margin, {kind}", draw=mixed, top=2, margin=None, mixed=True)
    yield replace(
        none, name="equal by the margin at its edge, a race", draw=normal(1.0), margin=None, truth=2**0.5, equal=False
    )
    yield replace(
        none, name="equal by a stated margin at its edge", draw=normal(2.0), margin=2 * 2**0.5, truth=2 * 2**0.5,
        equal=False,
    )  # fmt: skip


def effects() -> Iterator[Scenario]:
    """True differences, in standard deviations of a pair's difference: how many seeds they take."""
    for effect in (0.0, 0.75, 1.0, 1.5, 2.0, 3.0, 10.0):
        yield Scenario(
            name=f"{effect:g} sd",
            draw=normal(effect),
            truth=effect * 2**0.5,
            equal=effect == 0.0,
            guaranteed=effect == 0,
        )


def simulate(scenario: Scenario, studies: int = STUDIES, seed: int = 0) -> Rates:
    """The rates over so many studies."""
    rng = np.random.default_rng(seed)
    outcomes = np.array([_study(scenario, rng) for _ in range(studies)], float)
    return Rates(**dict(zip(Rates.__slots__, outcomes.mean(axis=0), strict=True)))


def _study(scenario: Scenario, rng: np.random.Generator) -> tuple[bool | int, ...]:
    """The outcomes of one study, in the order of `Rates`."""
    rules = Rules(looks=scenario.looks, design=scenario.design, margin=scenario.margin)
    names = [f"search-{n:04d}" for n in range(1, scenario.top + 1 + scenario.extended)]
    opponents = ["tuned-lr-0001"] if scenario.tuned else []
    searched = np.sort(scenario.draw(rng, scenario.trials, 1)[:, 0])  # one seed each, whose luck chooses the candidates
    losses = dict(zip(names, searched, strict=False))
    runs = {
        side: [Fresh(loss=float(loss)) for loss in row]
        for side, row in zip(
            [BASELINE, *names, *opponents],
            scenario.draw(rng, 1 + len(names) + len(opponents), scenario.looks[-1]),
            strict=True,
        )
    }
    first = dict(list(losses.items())[: scenario.top])
    races = [rules.race(comparisons({**first, **dict.fromkeys(opponents, 0.0)}), runs)]
    if scenario.extended:
        races.append(rules.race(comparisons({**losses, **dict.fromkeys(opponents, 0.0)}), runs))
    false = [found for race in races for found in race.findings.values() if _is_false(found, scenario)]
    headline = _headline(races[-1])
    return (
        bool(false),
        headline.low <= scenario.truth <= headline.high,
        headline.answer is not Answer.UNDECIDED,
        max(found.seeds for found in races[-1].findings.values()),
        any(not _is_qualified(found) for found in false),
        headline.answer in CLAIMS,
    )


def _is_qualified(found: Finding) -> bool:
    """Whether the sentence says that the runs are uneven, or that a fifth of them may still go badly."""
    return bool(found.uneven) or 1 - ALPHA ** (1 / found.seeds) >= TAIL


def _is_false(found: Finding, scenario: Scenario) -> bool:
    if scenario.mixed and found.comparison[0].endswith("2"):
        return found.answer in (Answer.EQUIVALENT, Answer.BETTER)
    if found.answer is Answer.EQUIVALENT:
        return not scenario.equal
    truth = 0.0 if scenario.equal or found.comparison[1] != BASELINE else scenario.truth
    return found.answer in CLAIMS and (truth == 0 or (found.answer is Answer.BETTER) != (truth < 0))


def _headline(race: Race) -> Finding:
    """The finding that the report's first sentence is about."""
    against_baseline = [found for (_, opponent), found in race.findings.items() if opponent == BASELINE]
    return min(against_baseline, key=lambda found: (found.answer is not Answer.BETTER, found.test.mean))


def fixed_seeds(effect: float, power: float, most: int = 64) -> int:
    """The fewest fixed paired seeds whose t test decides `effect` (in sd of a pair's difference) with that power."""
    from scipy import stats

    for n in range(3, most):
        if stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, n - 1), n - 1, effect * n**0.5) >= power:
            return n
    return most


def main() -> int:
    """Prints both tables; returns 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.claims", description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES, metavar="N", help=f"of each scenario ({STUDIES:,})")
    studies = parser.parse_args().studies
    start, broken = time.perf_counter(), 0
    console = Console(width=150, markup=False)
    table = Table("scenario", "false claims", "interval covers", "seeds", "", box=None, header_style="", pad_edge=False)
    for scenario in scenarios():
        rates = simulate(scenario, studies)
        broken += scenario.guaranteed and rates.false > ALPHA + tolerance(studies)
        why = scenario.why + (f" {rates.unqualified:.1%}" if scenario.why.endswith(":") else "")
        table.add_row(scenario.name, f"{rates.false:.1%}", f"{rates.covered:.1%}", f"{rates.seeds:.1f}", why)
    console.print(table)
    columns = ("true difference", "better or worse", "decided", "seeds", "fixed seeds of equal power")
    table = Table(*columns, box=None, header_style="", pad_edge=False)
    for effect, scenario in zip(EFFECTS, effects(), strict=True):
        rates = simulate(scenario, studies)
        fixed = str(fixed_seeds(effect, min(rates.different, 0.99))) if effect else "-"
        table.add_row(scenario.name, f"{rates.different:.1%}", f"{rates.decided:.1%}", f"{rates.seeds:.1f}", fixed)
    console.print(table)
    console.print(f"{studies:,} studies each, {time.perf_counter() - start:.0f} s")
    return int(broken > 0)


def tolerance(studies: int) -> float:
    """Three Monte-Carlo standard errors of a rate of 5%."""
    return 3.0 * (ALPHA * (1 - ALPHA) / studies) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
