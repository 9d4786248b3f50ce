"""Each study of the gallery stands where it is meant to stand, so that its pictures show what they are taken for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

import hpstudy
from hpstudy.analysis.in_short import in_short
from hpstudy.analysis.state import Stage, state
from hpstudy.records import BROKEN, Outcome
from hpstudy.study.load import parse_study
from tests.helpers.gallery import GALLERY
from tests.helpers.made_up import WORST_LOSS, WORST_NORM, train

BADGES = {
    "decided": ("No", Stage.DONE),
    "undecided": ("Undecided", Stage.UNDECIDED),
    "two-objectives": ("Better", Stage.DONE),
    "failures": ("Better", Stage.DONE),
    "pruned": ("Better", Stage.DONE),
    "foresight": ("Better", Stage.DONE),
    "hundred": ("Better", Stage.DONE),
    "opponents": ("Yes", Stage.DONE),
    "interim": ("2 of 12 trials", Stage.STOPPED),
    "speed": ("No", Stage.DONE),
    "baseline-only": ("Reference", Stage.DONE),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    for name, made_up in GALLERY.items():
        train(name, made_up, folder)
    return folder


@pytest.mark.parametrize("name", GALLERY)
def test_a_study_has_the_answer_and_the_stage_that_it_is_there_for(runs: Path, name: str):
    results = hpstudy.load(name, runs)
    now = state(results)
    assert (in_short(results, now).badge, now.stage) == BADGES[name]


def test_the_undecided_race_has_run_to_its_last_look(runs: Path):
    (contrast,) = hpstudy.load("undecided", runs).verdict().contrasts
    assert contrast.n == 20
    assert contrast.low < 0 < contrast.high


def test_what_is_proposed_for_the_undecided_race_is_a_sound_study_file(runs: Path):
    advice = state(hpstudy.load("undecided", runs)).advice
    (looks,) = re.findall("`looks = ([^`]*)`", advice)
    assert advice.endswith(", and leave `seeds` out")
    text, seeds = re.subn("seeds = .*", "", re.sub("looks = .*", f"looks = {looks}", GALLERY["undecided"].text))
    assert seeds == 1
    longer = parse_study(text, name="undecided-longer", path=Path("undecided-longer.toml"))
    assert len(longer.seeds) == longer.confirm.looks[-1] > 20


def test_trials_are_lost_in_each_way(runs: Path):
    results = hpstudy.load("failures", runs)
    lost = results.trials[results.trials["outcome"] != Outcome.COMPLETE].set_index("run_id")["outcome"]
    assert dict(lost) == {"search-0003": "diverged", "search-0005": "failed", "search-0008": "out_of_memory"}
    steps = results.steps.groupby("run_id", observed=True)[["train/loss", "train/grad_norm"]].max()
    assert steps.loc["search-0003"].to_list() == pytest.approx([WORST_LOSS, WORST_NORM], rel=1e-3)
    assert {results.store.result(name).message.split(":")[0] for name, how in lost.items() if how in BROKEN} == {
        "RuntimeError",
        "torch.OutOfMemoryError",
    }


def test_trials_are_pruned_at_different_steps(runs: Path):
    trials = hpstudy.load("pruned", runs).trials
    pruned = trials[trials["outcome"] == Outcome.PRUNED]
    assert 8 <= len(pruned) <= 16
    assert pruned["steps"].nunique() > 2


def test_two_objectives_have_a_front_of_several_trials(runs: Path):
    assert len(hpstudy.load("two-objectives", runs).ranked(only_front=True)) > 2


def test_the_hundred_trials_try_every_choice(runs: Path):
    trials = hpstudy.load("hundred", runs).trials
    searched = trials[trials["phase"] == "search"]
    assert len(searched) == 100
    assert set(searched["clip_mode"]) == {"global", "per_tensor", "none"}
    assert set(searched["batch_tokens"]) == {1024, 2048, 4096, 8192}


def test_an_interim_study_has_an_unfinished_run_with_steps(runs: Path):
    results = hpstudy.load("interim", runs)
    (unfinished,) = results.trials.loc[results.trials["outcome"].isna(), "run_id"]
    assert 0 < (results.steps["run_id"] == unfinished).sum() < 146


def test_a_study_made_again_has_the_same_numbers(runs: Path, tmp_path: Path):
    train("interim", GALLERY["interim"], tmp_path)
    first, again = hpstudy.load("interim", runs), hpstudy.load("interim", tmp_path)
    assert_frame_equal(first.trials, again.trials)
    assert_frame_equal(first.steps, again.steps)
