"""The program that tries a ladder's laws on published grids."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.bench import ladder

BEST_LRS = {1e6: 8e-3, 4e6: 4e-3, 16e6: 2e-3, 64e6: 1e-3}  # halves each time N grows by 4


def grid(path: Path) -> Path:
    """A grid of lr and batch on four models, with a cliff at four times the best lr and a diverged run at the end."""
    rows = [
        {
            "n": weights,
            "D": 20 * weights,
            "LR": lr,
            "batch": batch,
            "loss": 3 + 0.1 * np.log(lr / best) ** 2 + 0.05 * np.log(batch / 2**15) ** 2 + (lr > 3 * best),
            "seed": 0,
        }
        for weights, best in BEST_LRS.items()
        for lr in 2.5e-4 * 2.0 ** np.arange(8)
        for batch in (2**14, 2**15, 2**16)
    ]
    pd.DataFrame(rows).assign(loss=lambda runs: runs["loss"].where(runs["LR"] < 0.03)).to_csv(path, index=False)
    return path


def test_laws_of_small_cells_predict_the_best_values_of_a_large_one(tmp_path: Path):
    cells = ladder.cells_of(ladder.runs_of(str(grid(tmp_path / "grid.csv"))))
    fitted = ladder.fit(cells[:3])
    assert fitted.sizes.shape[1] == 1  # D follows N
    assert np.exp(fitted.predict(cells[3])) == pytest.approx([1e-3, 2**15], rel=0.25)
    predicted, copied = (cells[3].regret(ladder.ways_of(fitted, cells[3])[way][0]) for way in ("predicted", "copied"))
    assert predicted < 0.02
    assert copied == pytest.approx(0.1 * np.log(8) ** 2 + 1)


def test_the_program_prints_the_regret_of_every_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ladder", str(grid(tmp_path / "grid.csv"))])
    ladder.main()
    printed = capsys.readouterr().out
    assert "lr goes as N^-0.5" in printed
    held = [line.split() for line in printed.splitlines() if line.startswith("N 6.4e+07")]
    assert [words[4] for words in held] == ["predicted", "copied", "GPT-3", "step-law"]
    assert held[1][5:8] == ["8.0e-03", "32,768", "1432"]
    assert "beyond the grid" in printed  # GPT-3's batch


def test_a_file_without_losses_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "bad.csv"
    path.write_text("N,D,lr,batch\n1,2,3,4\n")
    monkeypatch.setattr(sys, "argv", ["ladder", str(path)])
    with pytest.raises(SystemExit, match=r"bad\.csv: columns .* but loss are missing"):
        ladder.main()
