"""Whole studies to their verdict: real trainings on fresh seeds, stopped and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scipy import stats

from hpstudy import load
from hpstudy.analysis.answers import Answer
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Run, StepRecord
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.tracking.store import RunStore
from studies import Watch, curves, go

CONFIRM = '[baseline]\nalso = "tuned-lr"\n[confirm]\nspeedup = true\nseeds = {}\n'
SHORT = {"trials = 5": "trials = 3"}


@pytest.fixture
def study(tiny):
    return lambda seeds=(7, 8): tiny(replace=SHORT, more=CONFIRM.format(list(seeds)))


@pytest.fixture(scope="session")
def confirmed_once() -> list[Path]:
    """Filled by the first test that asks for `confirmed`."""
    return []


@pytest.fixture
def confirmed(study, confirmed_once: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran to its verdict without interruption."""
    if not confirmed_once:
        runs = tmp_path_factory.mktemp("confirmed")
        go(study(), runs)
        confirmed_once.append(runs)
    return confirmed_once[0]


def loss(results: StudyResults, run_id: str) -> float:
    return results.trials.set_index("run_id").loc[run_id, "val_loss"]


def test_a_study_runs_winner_tuned_lr_and_baseline_on_the_fresh_seeds_and_shorter(confirmed, uninterrupted):
    steps = curves(RunStore(confirmed / "tiny"))
    (look,) = json.loads((confirmed / "tiny" / "confirm.json").read_text())
    winner, opponent = (name.removeprefix("search-") for name in look["candidates"])
    full = {f"{who}-s{seed}" for who in ("baseline", f"confirm-{winner}", f"confirm-{opponent}") for seed in (7, 8)}
    shorter = {f"confirm-{winner}-s{seed}-{share}" for seed in (7, 8) for share in ("t50", "t75")}
    trials = {f"{phase}-000{n}" for phase in ("search", "tuned-lr") for n in range(3)}
    assert steps.keys() == full | shorter | trials
    assert {name: len(records) for name, records in steps.items() if len(records) != 20} == {
        name: 10 if name.endswith("t50") else 15 for name in shorter
    }
    searched = {name: records for name, records in steps.items() if name.startswith("search")}
    assert searched == {name: uninterrupted[1][name] for name in searched}  # what follows changes no trial
    assert steps["tuned-lr-0000"] == steps["search-0000"]  # both begin with GPT-3's values
    assert steps["baseline-s7"] != steps["baseline-s8"]


def test_the_verdict_is_scipys_on_the_losses_that_were_recorded(confirmed):
    results = load("tiny", confirmed)
    told = results.verdict()
    assert [c.candidate.rpartition("-")[0] for c in told.contrasts] == ["search", "tuned-lr"]
    baseline = [loss(results, f"baseline-s{seed}") for seed in (7, 8)]
    tests = []
    for c in told.contrasts:
        ours = [loss(results, f"confirm-{c.candidate.removeprefix('search-')}-s{seed}") for seed in (7, 8)]
        tests.append(stats.ttest_rel(ours, baseline))
        low, high = tests[-1].confidence_interval()
        assert [c.difference, c.low, c.high] == pytest.approx([sum(ours) / 2 - sum(baseline) / 2, low, high], abs=1e-10)
        assert c.optimism == pytest.approx(loss(results, c.candidate) - sum(ours) / 2)
        assert (c.n, c.baseline_n, c.left_out) == (2, 2, ())
    small, large = sorted(test.pvalue for test in tests)
    holm = min(1, 2 * small), max(min(1, 2 * small), large)
    assert sorted(c.p for c in told.contrasts) == pytest.approx(holm, abs=1e-10)
    assert results.noise.sd == pytest.approx(stats.tstd(baseline))
    assert set(results.confirmed["fraction"]) == {0.5, 0.75, 1.0}
    assert results.halflives.loc[0, "beta1_halflife_tokens"] == pytest.approx(256 * 6.5788, rel=1e-4)  # ln .5 / ln .9


def test_a_study_stopped_on_its_way_to_the_verdict_goes_on_to_the_same_one(study, confirmed, tmp_path):
    stop, runs = StopRequest(), tmp_path / "runs"

    def ask(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.phase, run.seed, record.step) == ("confirm", 7, 3)

    with pytest.raises(Interrupted):
        go(study(), runs, watch=Watch(ask), stop=stop)
    store = go(study(), runs)
    assert curves(store) == curves(RunStore(confirmed / "tiny"))
    assert load("tiny", runs).verdict() == load("tiny", confirmed).verdict()


def test_added_seeds_train_what_is_new_alone_and_count_as_another_look(study, confirmed, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(confirmed, runs)
    watch = Watch()
    go(study([7, 8, 9]), runs, watch=watch)
    assert watch.started
    assert all("-s9" in run_id for run_id in watch.started)
    told = load("tiny", runs).verdict()
    assert {c.n for c in told.contrasts} == {3}
    assert "This is look 2 at fresh seeds" in told.sentence
    assert "look" not in load("tiny", confirmed).verdict().sentence


def test_a_study_of_the_baseline_against_itself_is_not_decided_either_way(tiny, tmp_path):
    """Micro-batches change nothing but rounding, and the seeds are others: 5 a side, a false answer in 5% of draws."""
    space = {
        'lr = { low = 1e-4, high = 3e-2, scale = "log" }': "micro_batch = { choices = [16, 8] }",
        'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': "",
        "micro_batch = 16": "",
        'sampler = { name = "tpe", startup = 2 }': 'sampler = "grid"',
        "trials = 5": "trials = 2",
    }
    seeds = [7, 8, 9, 10, 11]
    study = tiny(replace=space, more=f'[confirm]\ndesign = "independent"\nmargin = 0.1\nseeds = {seeds}')
    store = go(study, tmp_path)
    fresh = {view.header.run.seed for view in store.runs() if view.header.run.phase == "baseline"}
    assert fresh == {seed + 1_000_000 for seed in seeds}
    results = load("tiny", tmp_path)
    (contrast,) = results.verdict().contrasts
    assert contrast.answer in (Answer.EQUIVALENT, Answer.UNDECIDED)
    ours = [loss(results, f"confirm-0001-s{seed}") for seed in seeds]
    theirs = [loss(results, f"baseline-s{seed + 1_000_000}") for seed in seeds]
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    assert contrast.p == pytest.approx(expected.pvalue, abs=1e-10)
