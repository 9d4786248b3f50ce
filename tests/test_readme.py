"""The README agrees with the code: its tables, its study file and its pandas."""

import re
from pathlib import Path

import pytest

from hpstudy.cli.app import app
from hpstudy.study import list_studies, load_study, parse_study
from hpstudy.tracking.store import RunStore
from tests.helpers.stores import stored

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def folder_without_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Studies are then those that come with hpstudy."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_lists_every_study_with_its_question():
    for name, question in list_studies():
        assert f"| `{name}` | {question} |" in README


def test_readme_is_at_most_8_kilobytes():
    assert len(README.encode()) <= 8192


def test_every_file_that_the_readme_names_exists():
    linked = [path for path in re.findall(r"\]\((.*?)\)", README) if not path.startswith("http")]
    rooms = re.findall(r"`([a-z/]+(?:\.py|/))`", README.split("| room | does |")[1])
    assert len(linked) >= 5
    assert len(rooms) >= 15
    for path in linked:
        assert (ROOT / path).exists(), path
    names = {path.name for path in (ROOT / "hpstudy").rglob("*")}
    for path in rooms:
        assert path.strip("/") in names, path


def test_readme_lists_every_command():
    for command in app.registered_commands:
        assert f"`hpstudy {command.callback.__name__}" in README


def test_the_study_file_in_the_readme_is_valid():
    (text,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    study = parse_study(text, name="readme", path=Path("readme.toml"))
    assert study.question == load_study("betas").question


def test_the_pandas_in_the_readme_runs(folder_without_studies: Path, capsys):
    """On a store with made-up losses, read by the real loader."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    study = load_study("quickstart")
    losses = {"baseline": (3.0, 3.01, 3.02), "confirm-0001": (3.001, 3.009, 3.02)}  # the same on average
    fresh = {
        f"{side}-s{seed}": loss for side in losses for seed, loss in zip(study.seeds[:3], losses[side], strict=True)
    }
    stored(folder_without_studies, {"search-0000": 3.0, "search-0001": 2.9, **fresh})
    runs = folder_without_studies / "runs"
    store = RunStore((runs / "tiny").rename(runs / "quickstart"))
    store.freeze_study(study.path.read_text(encoding="utf-8"), study.resolved())
    exec(code, {})
    out = capsys.readouterr().out
    assert out.startswith("quickstart: Are GPT-3's learning rate, betas and weight decay right for a tiny model?\n")
    assert "} Yes: search-0001 and the baseline (GPT-3's values except for " in out
