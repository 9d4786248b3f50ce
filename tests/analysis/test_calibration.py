"""The error rates and the power that the verdict promises, by simulation; every n and seed is stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from hpstudy.analysis import stats
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.verdict import verdict
from hpstudy.statistics.difference import ALPHA, Floats, difference
from hpstudy.statistics.race import Answer
from hpstudy.study import Study
from hpstudy.study.schema import Design, other_seed
from tests.bench.claims import COVERAGE, EFFECTS, Rates, Scenario, effects, scenarios, simulate, tolerance
from tests.helpers.stores import Ends, repeated, stored

Shape = Literal["normal", "heavy"]

STUDIES = 20_000  # simulated for each rate
MOST = 0.05 + 3 * (0.05 * 0.95 / STUDIES) ** 0.5  # three Monte-Carlo standard errors above the promise: 5.46%
SIGMA = 1.0
DESIGNS = [("independent", 0.0), *(("paired", r) for r in (-0.8, -0.4, 0.0, 0.4, 0.8))]


def noise(rng: np.random.Generator, size: tuple[int, ...], shape: Shape) -> Floats:
    """Of standard deviation SIGMA; heavy-tailed is t with 3 degrees of freedom."""
    return SIGMA * (rng.normal(size=size) if shape == "normal" else rng.standard_t(3, size) / 3**0.5)


def arms(
    rng: np.random.Generator, shape: Shape, *, n: int, r: float, candidates: int = 1, studies: int = STUDIES
) -> tuple[Floats, Floats]:
    """Losses (study, candidate, seed), and the baseline's (study, 1, seed): no true difference, correlated by seed."""
    baseline = noise(rng, (studies, 1, n), shape)
    own = noise(rng, (studies, candidates, n), shape)
    return r * baseline + (1 - r**2) ** 0.5 * own, baseline


def answers(candidates: Floats, baseline: Floats, *, design: Design, margin: float) -> np.ndarray:
    """`verdict`'s answers (study, candidate), many studies at a time."""
    d = difference(candidates, np.broadcast_to(baseline, candidates.shape), design=design, margin=margin)
    p, q = (np.minimum(1, candidates.shape[-2] * level) for level in (d.p, d.p_equivalent))
    real = np.where(d.mean < 0, Answer.BETTER, Answer.WORSE)
    return np.where(q <= ALPHA, Answer.EQUIVALENT, np.where(p <= ALPHA, real, Answer.UNDECIDED))


def false_difference(found: np.ndarray) -> float:
    return float(np.isin(found, [Answer.BETTER, Answer.WORSE]).any(axis=-1).mean())


@pytest.mark.parametrize("shape", ["normal", "heavy"])
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("design", "r"), DESIGNS)
def test_a_difference_that_does_not_exist_is_found_in_at_most_5_percent(
    design: Design, r: float, n: int, shape: Shape
) -> None:
    candidate, baseline = arms(np.random.default_rng(n), shape, n=n, r=r)
    # without a margin nothing is equivalent, so every study that could err does
    assert false_difference(answers(candidate, baseline, design=design, margin=0)) <= MOST


@pytest.mark.parametrize("r", [-0.8, 0.0, 0.8])
def test_a_study_of_the_baseline_against_itself_ends_equivalent_or_undecided(r: float) -> None:
    found = answers(*arms(np.random.default_rng(1), "normal", n=5, r=r), design="paired", margin=2 * SIGMA)
    assert np.isin(found, [Answer.EQUIVALENT, Answer.UNDECIDED]).mean() >= 1 - MOST
    assert (found == Answer.EQUIVALENT).mean() > 0.2


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize("design", ["paired", "independent"])
def test_several_candidates_together_are_falsely_different_in_at_most_5_percent(
    design: Design, candidates: int
) -> None:
    losses, baseline = arms(np.random.default_rng(2), "normal", n=5, r=0.0, candidates=candidates)
    assert false_difference(answers(losses, baseline, design=design, margin=0)) <= MOST


@pytest.mark.parametrize("shape", ["normal", "heavy"])
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("design", ["paired", "independent"])
def test_a_difference_of_the_margin_is_equivalent_in_at_most_5_percent(
    design: Design, candidates: int, n: int, shape: Shape
) -> None:
    margin = 3 * SIGMA
    losses, baseline = arms(np.random.default_rng(n), shape, n=n, r=0.0, candidates=candidates)
    found = answers(losses + margin, baseline, design=design, margin=margin)
    assert (found == Answer.EQUIVALENT).any(axis=-1).mean() <= MOST


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_detectable_difference_is_found_in_80_percent_by_pairs_and_in_at_least_as_many_by_welchs_test(n: int) -> None:
    rng, gap = np.random.default_rng(n), stats.detectable(SIGMA * 2**0.5, n)
    candidate, baseline = gap + noise(rng, (STUDIES, n), "normal"), noise(rng, (STUDIES, n), "normal")
    paired = difference(candidate, baseline, design="paired", margin=0).p <= ALPHA
    welch = difference(candidate, baseline, design="independent", margin=0).p <= ALPHA
    error = 3 * (0.8 * 0.2 / STUDIES) ** 0.5
    assert paired.mean() == pytest.approx(0.8, abs=error)
    assert welch.mean() >= 0.8 - error


@pytest.mark.parametrize("measured_by", [3, 5, 10])
def test_power_at_the_promised_number_of_seeds_is_at_least_80_percent(measured_by: int) -> None:
    """100 studies measure their noise with few seeds, run the seeds that it asks for 20 times, and look for 2 SIGMA."""
    rng, studies, repeats, gap = np.random.default_rng(3), 100, 20, 2 * SIGMA
    chances = []
    for sd in noise(rng, (studies, measured_by), "normal").std(axis=-1, ddof=1):
        n = stats.seeds_to_detect(gap, float(sd) * 2**0.5, sd_df=measured_by - 1)
        assert n is not None
        candidate, baseline = gap + noise(rng, (repeats, n), "normal"), noise(rng, (repeats, n), "normal")
        p = difference(candidate, baseline, design="paired", margin=0).p
        chances.append((p <= ALPHA).mean())
    assert np.mean(chances) >= 0.8 - 3 * np.std(chances) / studies**0.5


def check(scenario: Scenario, rates: Rates, studies: int) -> None:
    """The promise: at most 5% false claims, and headlines whose intervals cover."""
    error = tolerance(studies)
    assert rates.unqualified <= ALPHA + error
    if scenario.guaranteed:
        assert rates.false <= ALPHA + error
        assert rates.covered >= COVERAGE - error


QUICK = ("no difference, a race", "top 3, a race", "tuned-lr besides, 5 seeds", "20% of runs worse by 10 sd, a race")


@pytest.mark.parametrize("scenario", [s for s in scenarios() if s.name in QUICK], ids=lambda scenario: scenario.name)
def test_whole_studies_claim_what_is_false_in_at_most_5_percent(scenario: Scenario) -> None:
    check(scenario, simulate(scenario, 500, seed=1), 500)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", list(scenarios()), ids=lambda scenario: scenario.name)
def test_no_kind_of_study_claims_what_is_false_in_more_than_5_percent(scenario: Scenario) -> None:
    check(scenario, simulate(scenario, 4000), 4000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "decided", "seeds"),
    list(
        zip(effects(), (0.95, 0.85, 0.95, 0.99, 0.99, 0.99, 0.99), (11.4, 14.0, 11.9, 7.9, 6.2, 4.9, 3.3), strict=True)
    ),
    ids=[f"{effect:g} sd" for effect in EFFECTS],
)
def test_a_race_decides_with_few_seeds(scenario: Scenario, decided: float, seeds: float) -> None:
    rates = simulate(scenario, 4000)
    assert rates.decided >= decided
    assert rates.seeds <= seeds


@pytest.mark.parametrize("design", ["paired", "independent"])
def test_the_verdict_answers_as_these_simulations_do(
    design: Design, tiny: Callable[..., Study], tmp_path: Path
) -> None:
    """Ten studies of three candidates, whose answers are of all four kinds."""
    seeds, studies, margin = [101, 102, 103, 104], 10, 0.2
    study = tiny(more=f'\n[confirm]\nseeds = {seeds}\ntop = 3\nmargin = {margin}\ndesign = "{design}"\n')
    others = seeds if design == "paired" else [*map(other_seed, seeds)]
    names = ["search-0001", "search-0002", "search-0003"]
    ends: Ends = {f"baseline-s{seed}": 3.0 for seed in others}
    for name in names:
        ends |= repeated(name, [3.0] * len(seeds), seeds)
    template = stored(tmp_path, ends)
    candidates, baseline = arms(np.random.default_rng(5), "normal", n=4, r=0.3, candidates=3, studies=studies)
    losses, baseline = 3 + 0.08 * candidates + np.array([[-0.5], [0.0], [0.4]]), 3 + 0.08 * baseline
    expected = answers(losses, baseline, design=design, margin=margin)
    assert len(np.unique(expected)) == 4
    for ours, theirs, row in zip(losses, baseline, expected, strict=True):
        by_run = dict(zip((f"baseline-s{seed}" for seed in others), theirs[0], strict=True))
        for name, values in zip(names, ours, strict=True):
            by_run |= zip((f"confirm-{name[-4:]}-s{seed}" for seed in seeds), values, strict=True)
        trials = template.trials.assign(val_loss=template.trials["run_id"].astype("str").map(by_run))
        frames = StudyFrames(name="tiny", trials=trials, read_steps=template.read_steps)
        found = verdict(FreshRuns(frames=frames, study=study))
        assert {c.candidate: c.answer for c in found.contrasts} == dict(zip(names, row, strict=True))
