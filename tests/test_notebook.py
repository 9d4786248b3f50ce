"""A loaded study shows itself in a notebook, as plain values and figures, also without a study file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpstudy
from hpstudy.analysis.answers import Contrast, Noise, Verdict
from hpstudy.analysis.results import StudyResults
from hpstudy.errors import UserError
from hpstudy.hparams import GPT3
from hpstudy.notebook import LoadedStudy
from hpstudy.study import Study
from tests.helpers.command_line import run_python

Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"


@pytest.fixture
def loaded(tiny: Tiny, confirmed: Build, tmp_path: Path) -> LoadedStudy:
    """A study with a verdict."""
    confirmed(tiny(more=CONFIRM))
    return hpstudy.load("tiny", tmp_path / "runs")


@pytest.fixture
def online(loaded: LoadedStudy) -> LoadedStudy:
    """The same tables as W&B gives them, without a study file."""
    return LoadedStudy(frames=loaded.frames, store=None)


def test_repr_says_question_state_answer_losses_values_and_next_step(loaded: LoadedStudy, tmp_path: Path) -> None:
    lr = loaded.best["lr"]
    heading, *lines = repr(loaded).splitlines()
    assert heading == "tiny: Does the smallest study there is run?"
    facts = {line[2:].split("  ")[0]: line[2:].split("  ", 1)[-1].strip() for line in lines[:6]}
    assert facts["state"] == "done, 10 of 10 trials"
    assert facts["answer"] == "Better. Tuned values reach 3.6111 nats where GPT-3's reach 4.0100."
    assert facts["GPT-3"] == "val loss 4.0100 ±0.0058 nats (search-0000, 3 seeds)"
    assert facts["tuned"] == "val loss 3.6111 ±0.0064 nats (search-0001, 3 seeds)"
    assert f"--runs {tmp_path / 'runs'}" in facts["next"]
    table = [line.split() for line in lines[6:]]
    assert table[0] == ["GPT-3", "tuned"]
    assert table[1] == ["lr", f"{GPT3.lr:.4g}", f"{lr:.4g}", f"×{lr / GPT3.lr:.2g}"]
    assert len(lines) < 24


def test_html_has_the_same_facts_and_escapes_the_question(tiny: Tiny, confirmed: Build, tmp_path: Path) -> None:
    hostile = "Is <script>alert(1)</script> run?"
    confirmed(tiny(more=CONFIRM, replace={"Does the smallest study there is run?": hostile}))
    page = hpstudy.load("tiny", tmp_path / "runs")._repr_html_()
    assert "<script>" not in page
    assert "Tuned values reach 3.6111 nats where GPT-3&#x27;s reach 4.0100." in page
    assert "<td>lr</td>" in page


def test_the_best_values_are_plain_numbers_of_the_searched_keys(loaded: LoadedStudy) -> None:
    row = loaded.trials.set_index("run_id").loc["search-0001"]
    assert loaded.best == {"lr": row["lr"], "beta2": row["beta2"]}
    assert {type(value) for value in loaded.best.values()} == {float}


def test_before_any_trial_nothing_is_best_and_repr_says_so(tiny: Tiny, write_run: Any, tmp_path: Path) -> None:
    write_run(tiny(), "search-0000", "search", 4.0, trial=0)
    loaded = hpstudy.load("tiny", tmp_path / "runs")
    assert loaded.best == {}
    assert "4 of 5 trials are left" in repr(loaded)


def test_plot_has_the_figures_of_the_report(loaded: LoadedStudy) -> None:
    figures = loaded.plot()
    assert "Validation loss" in figures
    assert all(figure.data for figure in figures.values())


def test_tables_from_wandb_show_what_is_known(loaded: LoadedStudy, online: LoadedStudy) -> None:
    assert online.best == loaded.best
    assert online.plot() == {}
    text = repr(online)
    assert "W&B, which holds no study file" in text
    assert "10 search, 3 baseline, 3 confirm; 15 complete" in text
    assert "val loss 3.6000 nats (search-0001, one seed)" in text
    assert "W&amp;B" in online._repr_html_()


@pytest.mark.usefixtures("loaded")
def test_a_study_that_cannot_be_read_shows_the_problem(tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny" / "study.toml").write_text("broken = ")
    again = hpstudy.load("tiny", tmp_path / "runs")
    assert "problem" in repr(again)
    assert "problem" in again._repr_html_()


def test_documented_values_are_plain_python_numbers(loaded: LoadedStudy) -> None:
    for value in (loaded.verdict(), loaded.noise, loaded.tuned, loaded.study.seeds, loaded.best):
        assert [kind for kind in map(type, parts(value)) if issubclass(kind, np.generic)] == []
        assert "np." not in repr(value)


def parts(value: Any) -> Iterator[Any]:
    """A value and all that it holds."""
    yield value
    if dataclasses.is_dataclass(value):
        held: Any = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        held = [*value, *value.values()]
    else:
        held = value if isinstance(value, list | tuple) else []
    for each in held:
        yield from parts(each)


@pytest.mark.parametrize(
    "public",
    [hpstudy.load, LoadedStudy, LoadedStudy.plot, LoadedStudy.verdict, LoadedStudy.ranked, Verdict, Contrast, Noise],
)
def test_type_hints_resolve(public: Any) -> None:
    assert typing.get_type_hints(public)


def test_an_unknown_study_is_refused_with_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        hpstudy.load("none")
    (problem,) = caught.value.problems
    assert problem.startswith(f'{tmp_path / "runs"}: no study "none" has begun in this folder')


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        hpstudy.laod  # noqa: B018


def test_a_notebook_completes_the_name_before_its_first_use() -> None:
    done = run_python("import hpstudy, sys; print('load' in dir(hpstudy), 'pandas' in sys.modules)", check=True)
    assert done.stdout == "True False\n"
