"""A study that starts warm knows other studies' trials, and only those that were kept when it began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.running.warm_start import WARM_START, gather
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore
from tests.helpers.running import interrupt, run_here, trials

WARM = 'warm_start = ["tiny"]'
"""More of [budget]."""


@pytest.fixture
def source(tiny, tmp_path: Path) -> RunStore:
    """A study of five trials in the folder of runs."""
    return run_here(tiny(), tmp_path / "runs")


def test_a_warm_study_keeps_trials_and_hash_and_has_only_its_own_trials(tiny, tmp_path: Path, source: RunStore) -> None:
    study = tiny("warm", more=WARM)
    store = run_here(study, tmp_path / "runs")
    kept = json.loads((store.root / WARM_START).read_text())["sources"]
    assert [each["source"] for each in kept] == ["tiny"]
    assert [trial["loss"] for trial in kept[0]["trials"]] == [t.objectives[0] for t in trials(tiny(), source)]
    assert json.loads((store.root / ENVIRONMENT).read_text())["warm_start_sha256"]
    found = trials(study, store)
    assert [trial.number for trial in found] == list(range(5))
    assert found[0].values == pytest.approx(study.baseline_proposal())
    assert [t.values for t in found[1:]] != [t.values for t in trials(tiny(), source)[1:]]


def test_a_warm_study_resumes_from_what_it_kept_whatever_becomes_of_the_source(
    tiny, tmp_path: Path, source: RunStore
) -> None:
    study, runs = tiny("warm", more=WARM), tmp_path / "runs"
    whole = trials(study, run_here(study, runs))
    (runs / "warm").rename(tmp_path / "whole")
    interrupt(study, runs, "search-0001", 5)
    source.root.rename(tmp_path / "moved")
    assert trials(study, run_here(study, runs, workers=2)) == whole


def test_an_edited_warm_start_is_refused(tiny, tmp_path: Path, source: RunStore) -> None:
    study, runs = tiny("warm", more=WARM), tmp_path / "runs"
    interrupt(study, runs, "search-0001", 5)
    path = runs / "warm" / WARM_START
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(UserError, match=r"warm_start.json: must be as when the study began"):
        run_here(study, runs)
    path.unlink()
    with pytest.raises(UserError, match=r"warm_start.json: must be as when the study began"):
        run_here(study, runs)


def test_trials_outside_the_space_are_left_out_and_counted(tiny, tmp_path: Path, source: RunStore) -> None:
    narrow = tiny("narrow", more=WARM, replace={"low = 1e-4": "low = 5e-4"})
    (found,) = gather(narrow, tmp_path / "runs")
    inside = [t for t in trials(tiny(), source) if t.values["lr"] >= 5e-4]
    assert 1 <= len(inside) < 5
    assert [trial.loss for trial in found.prior.trials] == [t.objectives[0] for t in inside]
    assert str(found) == f"tiny: {len(inside)} of 5 finished trials, {5 - len(inside)} outside the space are left out"


def test_every_bad_source_is_named_with_its_remedy(tiny, tmp_path: Path, source: RunStore) -> None:
    other = tiny("other", replace={"trials = 5": "trials = 1"}, more="")
    (tmp_path / "bad.db").write_text("no journal\n")
    sources = ["tinny", "warm", f"optuna:{tmp_path}/none", f"optuna:{tmp_path}/bad.db", "wandb:e/p/s"]
    study = tiny("warm", more=f"warm_start = {json.dumps(sources)}")
    with pytest.raises(UserError) as caught:
        gather(study, tmp_path / "runs")
    expected = [
        'no study "tinny" has begun in .*; did you mean "tiny"',
        '"warm" is this study itself; leave it out',
        "none: cannot be read: No such file or directory",
        "bad.db: must hold one study, but holds none",
        '"wandb:e/p/s": no login',
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, pattern in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(f"{study.path}: [budget] warm_start: ")
        assert pytest.approx(1) == 1
        import re

        assert re.search(pattern, problem), problem
    assert other
