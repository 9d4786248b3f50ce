"""The README says what the code does: its tables, its study file and its pandas are held to the code."""

import re
from pathlib import Path

import pytest

from hpstudy.cli.app import app
from hpstudy.records import GLOSSARY
from hpstudy.study import list_studies, load_study, parse_study
from hpstudy.tracking.store import RunStore
from tests.analysis.fresh_runs import stored

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


def test_the_pandas_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """On a store with made-up losses, read back by the real loader."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    fresh = {f"{who}-s{seed}": 3.0 + seed / 9999 for who in ("baseline", "confirm-0001") for seed in (101, 102, 103)}
    stored(tmp_path, {"search-0000": 3.0, "search-0001": 2.9, **fresh})
    store = RunStore((tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "quickstart"))
    store.freeze_study((ROOT / "studies" / "quickstart.toml").read_text(), {})
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("Yes: search-0001 and the baseline (GPT-3's values but for ")
