"""How near published rules come on small models: `python -m tests.bench.laws` prints a table; nothing is trained.

The runs are the set `sizes` of `python -m tests.bench.grid`: learning rate x batch on five models, 4M tokens. Losses
between two recorded learning rates are interpolated over their logarithm; the batch is the nearest recorded one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from hpstudy.hparams import GPT3
from hpstudy.search.rules import PUBLISHED, Sizes
from hpstudy.study.schema import RuleName
from tests.bench.grid import MODELS
from tests.helpers.recorded import RECORDED

VOCABULARY, CONTEXT = 512, 128
RULES: tuple[RuleName, ...] = ("step-law", "sqrt-batch", "batch-0.3")  # those that predict a learning rate


def loss_at(losses: pd.DataFrame, lr: float, batch: float) -> float:
    """The recorded loss near a learning rate and a batch; NaN beyond the recorded learning rates."""
    if not losses.index.min() <= lr <= losses.index.max():
        return float("nan")
    nearest = min(losses.columns, key=lambda known: abs(np.log(known / batch)))
    return float(np.interp(np.log(lr), np.log(losses.index.to_numpy()), losses[nearest].to_numpy()))


def main() -> None:
    """Prints, for each model, the best values and what each rule predicts and loses to them."""
    runs = pd.read_parquet(RECORDED)
    runs = runs[runs["group"] == "sizes"]
    names = sorted(set(runs["model"]), key=lambda name: MODELS[name].num_params(VOCABULARY, CONTEXT))
    print(f"{'model':12}{'N':>10}{'best lr':>9}{'batch':>7}{'GPT-3 lr':>12}" + "".join(f"{r:>22}" for r in RULES))
    for name in names:
        rows = runs[runs["model"] == name]
        losses = rows.pivot(index="lr", columns="batch_tokens", values="loss")
        best = rows.loc[rows["loss"].idxmin()]
        whole = MODELS[name].num_params(VOCABULARY, CONTEXT)
        sizes = Sizes(weights=int(best["N"]), all_weights=whole, tokens=int(best["D"]))
        batch = int(best["batch_tokens"])
        beside = replace(GPT3, batch_tokens=batch)
        cells = []
        for rule in RULES:
            found = PUBLISHED[rule].predict(sizes, beside)
            lost = loss_at(losses, found["lr"], found.get("batch_tokens", batch)) - best["loss"]
            cells.append(f"{found['lr']:.1e}: " + ("beyond" if math.isnan(lost) else f"{1e3 * lost:+.0f} mnat"))
        gpt3 = 1e3 * (loss_at(losses, GPT3.lr, batch) - best["loss"])
        print(
            f"{name:12}{int(best['N']):>10,}{best['lr']:>9.4f}{batch:>7}{gpt3:>+7.0f} mnat"
            + "".join(f"{cell:>22}" for cell in cells)
        )


if __name__ == "__main__":
    main()
