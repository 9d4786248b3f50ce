"""A ladder whose training is made up, with known laws: the best lr over Step Law's grows slowly with N.

`python -m tests.helpers.made_up_ladder DIR` writes its stores and its report into the folder DIR.
"""

from __future__ import annotations

import math
from pathlib import Path

from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.ladders import load_ladder_results
from hpstudy.coordinates import coordinate
from hpstudy.records import Run
from hpstudy.study import Study
from hpstudy.study.frozen import LADDER_FILE
from hpstudy.study.ladder import CHECK, Ladder, parse_ladder
from tests.helpers.made_up import MadeUp, train

NAME = "made-up"
SEEDS = (901, 902, 903, 904)
SMALLEST = 1e5  # weights, at which the best values are BEST
BEST = {"lr_over_rule": 0.35, "weight_decay_timescale": 0.25, "beta2_halflife": 0.04}
SLOPES = {"lr_over_rule": 0.12, "weight_decay_timescale": 0.0, "beta2_halflife": -0.15}  # of the logs in that of N
CURVATURES = {"lr_over_rule": 0.15, "weight_decay_timescale": 0.06, "beta2_halflife": 0.05}  # nats per squared log unit
STABLE, STABLE_SLOPE = 0.07, -0.4  # the largest stable lr at SMALLEST, and the slope of its log
TEXT = """
question = "Do lr, weight decay and beta2 found on small models hold on a larger one?"

[trainer]
tokenizer  = "bytes"
context    = 128
evals      = 4
val_tokens = 8192

[hparams]
batch_ramp_fraction = 0.0

[search]
lr_over_rule           = { low = 0.03, high = 3.0 }
weight_decay_timescale = { low = 0.03, high = 3.0 }
beta2_halflife         = { low = 0.004, high = 0.4 }

[budget]
sampler = "random"
rules   = []

[confirm]
seeds  = [101, 102, 103, 104]
margin = 0.01

[ladder]
models               = ["gpt-2x64", "gpt-3x96", "gpt-4x128", "gpt-6x192"]
tokens_per_parameter = 20
batch                = 0.02
trials               = [32, 28, 24, 20]
check                = "gpt-6x256"
check_trials         = 16
check_seeds          = 4
check_rules          = ["step-law"]
check_margin         = 0.02
target               = "gpt-125m"
"""


def best_value(key: str, weights: float) -> float:
    """The best value of a key at a number of weights."""
    return BEST[key] * (weights / SMALLEST) ** SLOPES[key]


def stable_lr(weights: float) -> float:
    """The largest stable lr at a number of weights."""
    return STABLE * (weights / SMALLEST) ** STABLE_SLOPE


def loss(run: Run, study: Study) -> float:
    """A bowl around the best values of the study's size; an unstable run learns next to nothing."""
    size = study.size()
    if run.hparams.lr > stable_lr(size.weights):
        return math.log(study.vocab_size) - 0.2
    away = {key: math.log(coordinate(key, run.hparams, size) / best_value(key, size.weights)) for key in BEST}
    bowl = sum(CURVATURES[key] * min(abs(distance), 4.0) ** 2 for key, distance in away.items())
    return 3.4 - 0.18 * math.log(size.tokens / 2e6) + min(bowl, 1.2)


def made_up_ladder(runs: Path, *, rungs: int = 4, checked: bool = True, text: str = TEXT) -> LadderResults:
    """Writes the stores of the first rungs and, if `checked`, those of the check; returns what the ladder has found."""
    ladder = parse_ladder(text, name=NAME, path=Path("studies") / f"{NAME}.toml")
    root = runs / NAME
    root.mkdir(parents=True)
    (root / LADDER_FILE).write_text(text)
    for size in ladder.rungs[:rungs]:
        _train(ladder, size.label, ladder.rung_text(size), runs)
    results = load_ladder_results(ladder, runs)
    if not checked or ladder.check is None:
        return results
    _train(ladder, CHECK, ladder.check_text(ladder.check, SEEDS), runs)
    for side, values in results.side_values(ladder.check).items():
        _train(ladder, f"{CHECK}-{side}", ladder.side_text(ladder.check, side, values, SEEDS), runs)
    return load_ladder_results(ladder, runs)


def _train(ladder: Ladder, part: str, text: str, runs: Path) -> None:
    train(ladder.part(part), MadeUp(text=text, loss=loss, noise=0.004), runs)
