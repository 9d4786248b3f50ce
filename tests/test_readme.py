"""The README says what the code does: its tables, its study file and its pandas are held to the code."""

import re
from pathlib import Path

import pandas as pd
import pytest

from hpstudy.analysis.frames import StudyFrames
from hpstudy.cli.app import app
from hpstudy.records import GLOSSARY
from hpstudy.study import list_studies, load_study, parse_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_lists_every_study_with_its_question():
    for name, question in list_studies(ROOT / "studies"):
        assert f"| `{name}` | {question} |" in README


def test_readme_lists_every_metric_with_its_meaning():
    for metric in GLOSSARY.values():
        assert f"| `{metric.name}` | {metric.unit} | {metric.doc} |" in README


def test_readme_lists_every_command():
    for command in app.registered_commands:
        assert f"`hpstudy {command.callback.__name__}" in README


def test_the_study_file_in_the_readme_is_valid():
    (text,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    study = parse_study(text, name="readme", path=Path("readme.toml"))
    assert study.question == load_study("betas", ROOT / "studies").question


def test_the_pandas_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch):
    """On two runs of two steps."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    trials = pd.DataFrame(
        {
            "run_id": ["a", "b"],
            "val_loss": [2.0, 1.0],
            "lr": [1e-3] * 2,
            "beta2": [0.9] * 2,
            "beta2_halflife_tokens": [1] * 2,
        }
    )
    steps = pd.DataFrame(
        {"run_id": ["a", "a", "b", "b"], "tokens": [1, 2, 1, 2], "train/loss": 1.0, "train/clipped": True}
    )
    steps["run_id"] = steps["run_id"].astype("category")
    frames = StudyFrames(name="quickstart", trials=trials, read_steps=lambda: steps)
    monkeypatch.setattr("hpstudy.load", lambda _: frames)
    exec(code, {})
