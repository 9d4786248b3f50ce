"""A study that starts warm knows other studies' trials, and only those that were kept when it began."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.results import StudyResults
from hpstudy.errors import UserError
from hpstudy.running.warm_start import WARM_START, gather
from hpstudy.study import Study
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_read import FetchedRun
from tests.helpers.command_line import hpstudy
from tests.helpers.running import interrupt, run_here, trials
from tests.helpers.stores import begun

WARM = 'warm_start = ["tiny"]'  # more of [budget]


pytestmark = pytest.mark.usefixtures("source")


@pytest.fixture
def source(tiny, searched: Callable[[Study], StudyResults]) -> RunStore:
    """A finished search of ten made-up trials, of which one diverged, in the folder of runs."""
    store = searched(tiny()).store
    assert store is not None
    return store


def test_a_warm_study_keeps_trials_and_hash_and_has_only_its_own_trials(tiny, tmp_path: Path) -> None:
    study = tiny("warm", more=WARM)
    store = run_here(study, tmp_path / "runs")
    kept = json.loads((store.root / WARM_START).read_text())["sources"]
    assert [each["source"] for each in kept] == ["tiny"]
    losses = [4.0, 3.6, 3.7, 3.8, 3.9, 4.0, 4.1, 4.4, 4.3, 4.4]  # the eighth diverged: as bad as the worst
    assert [trial["loss"] for trial in kept[0]["trials"]] == pytest.approx(losses)
    assert json.loads((store.root / ENVIRONMENT).read_text())["warm_start_sha256"]
    found = trials(study, store)
    assert [trial.number for trial in found] == list(range(5))
    assert found[0].values == pytest.approx(study.baseline_proposal())


def test_a_warm_study_resumes_from_what_it_kept_whatever_becomes_of_the_source(
    tiny, tmp_path: Path, source: RunStore
) -> None:
    study, runs = tiny("warm", more=WARM), tmp_path / "runs"
    whole = trials(study, run_here(study, runs))
    (runs / "warm").rename(tmp_path / "whole")
    interrupt(study, runs, "search-0001", 5)
    source.root.rename(tmp_path / "moved")
    assert trials(study, run_here(study, runs, workers=2)) == whole


def test_an_edited_warm_start_is_refused(tiny, tmp_path: Path) -> None:
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
    inside = sum(view.header.run.hparams.lr >= 5e-4 for view in source.runs())
    assert 1 <= inside == len(found.prior.trials) < 10
    assert str(found) == f"tiny: {inside} of 10 finished trials, {10 - inside} outside the space are left out"


def test_every_bad_source_is_named_with_its_remedy(
    tiny, tmp_path: Path, searched: Callable[[Study], StudyResults]
) -> None:
    begun(tmp_path, name="empty", text=tiny("empty").path.read_text(), values=tiny("empty").resolved())
    searched(tiny("other", replace={"beta2 =": "beta1 ="}))
    (tmp_path / "bad.db").write_text("no journal\n")
    sources = ["tinny", "warm", "empty", "other", f"optuna:{tmp_path}/none", f"optuna:{tmp_path}/bad.db", "wandb:e/p/s"]
    study = tiny("warm", more=f"warm_start = {json.dumps(sources)}")
    with pytest.raises(UserError) as caught:
        gather(study, tmp_path / "runs")
    expected = [
        'no study "tinny" has begun in .*; did you mean "tiny"',
        '"warm" is this study itself; leave it out',
        '"empty" has no finished trial; run it first, or leave it out',
        '"other" must search the same keys as this study, lr, beta2, but searches beta1, lr; leave it out',
        "none: cannot be read: No such file or directory",
        "bad.db: must hold one study, but holds none",
        '"wandb:e/p/s": no login',
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, pattern in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(f"{study.path}: [budget] warm_start: ")
        assert re.search(pattern, problem), problem


def test_a_study_on_wandb_gives_the_same_trials(
    tiny, tmp_path: Path, source: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fetch_runs` has tests of its own with a server; here it returns what it does for such a study."""
    fetched = [FetchedRun(header=v.header, result=v.result, remote=None, wandb_id=v.run_id) for v in source.runs()]
    monkeypatch.setattr(
        "hpstudy.running.warm_start.fetch_runs", lambda path: (fetched if path == "e/p/tiny" else [], [])
    )
    online, local = gather(tiny("warm", more='warm_start = ["wandb:e/p/tiny", "tiny"]'), tmp_path / "runs")
    assert online.prior.trials == local.prior.trials
    assert online.found == 10


def test_check_says_what_each_source_gives(tiny_file, tmp_path: Path) -> None:
    path = tiny_file("warm", more=WARM)
    shown = hpstudy("check", path, "--device", "cpu", "--runs", tmp_path / "runs")
    assert "warm     tiny: 10 of 10 finished trials\n" in shown.out
    bad = hpstudy("check", tiny_file("cold", more='warm_start = "tinny"'), "--runs", tmp_path / "runs", "--json")
    assert (bad.code, bad.out) == (2, "")
    assert 'did you mean "tiny"' in bad.err
