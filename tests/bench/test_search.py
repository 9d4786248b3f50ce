"""The scores of searches: regret is counted by the real loss, the model is close, and tables of others are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpstudy.study import OrderedChoices
from tests.bench import search
from tests.bench.search import Problem, Smooth, Strategy, regrets, strategies

LOSSES = {1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.1, 8e-3: 3.5}


def lucky(**values: float) -> float:
    """The loss that a search sees: at lr = 4e-3 the seed is lucky."""
    return LOSSES[values["lr"]] - 0.3 * (values["lr"] == 4e-3)


@pytest.mark.parametrize("strategy", [s for s in strategies() if s.name in ("random", "hpstudy tpe 5", "Optuna TPE")])
def test_luck_with_the_seed_does_not_count(strategy: Strategy):
    problem = Problem(
        name="four rates",
        space={"lr": OrderedChoices(values=tuple(LOSSES))},
        seen=lambda values, _: lucky(**values),
        real=lambda values: LOSSES[values["lr"]],
        lowest=3.0,
    )
    found = regrets(strategy, problem, seed=0, trials=24, parallel=2)
    assert len(found) == 24
    assert found[-1] == pytest.approx(0.1)  # it chooses 4e-3, which is not the best


def test_the_model_predicts_cells_that_it_has_not_seen():
    draw = np.random.default_rng(0)
    points = draw.random((200, 3))
    real = 3.5 + (points[:, 0] - 0.6) ** 2 + 0.2 * points[:, 1] + 0.1 * points[:, 0] * points[:, 2]
    noise = np.full(200, 0.005)
    model = Smooth(points[:150], (real + 0.005 * draw.standard_normal(200))[:150], noise[:150])
    assert np.median(np.abs(model(points[150:]) - real[150:])) < 0.004  # less than a run's noise


def test_a_table_of_losses_is_searched_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [
        f"{n},1e9,{lr},{batch},{3 + lr * 10 + n / 1e9}" for n in (1e8, 2e8) for lr in (1e-3, 2e-3) for batch in (8, 16)
    ]
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,lr,batch,loss", *rows]) + "\n")
    command = ["search", "--csv", str(tmp_path / "runs.csv"), "--seeds", "2", "--trials", "32", "--only", "random"]
    monkeypatch.setattr("sys.argv", command)
    search.main()
    table = capsys.readouterr().out
    assert "runs.csv, 2 pairs of N and D: regret in mnat, mean and 95% interval of 2 searches, parallel 4" in table
    last = next(line for line in table.splitlines() if line.startswith("random"))
    assert last.split()[-4:-1] == ["0.0", "±", "0.0"]  # of four points, 32 trials find the best
