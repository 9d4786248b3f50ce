"""Whole studies to their verdict: real trainings on fresh seeds, also after a stop and in stores of older versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scipy import stats

from hpstudy import load
from hpstudy.analysis.results import StudyResults
from hpstudy.errors import MachineError
from hpstudy.records import Run, StepRecord
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.statistics.levels import overall
from hpstudy.statistics.race import Answer
from hpstudy.tracking.seal import MARK
from hpstudy.tracking.store import RunStore
from tests.helpers.running import Watch, curves, interrupt, run_here, trials
from tests.helpers.stores import unsealed

SEEDS = (7, 8, 9)


def loss(results: StudyResults, run_id: str) -> float:
    return results.trials.set_index("run_id").loc[run_id, "val_loss"]


def confirmed_candidate(runs: Path) -> str:
    """The id, without its seed, of the runs that repeat the first candidate."""
    (selection,) = json.loads((runs / "tiny" / "confirm.json").read_text())
    return f"confirm-{selection['candidates'][0].removeprefix('search-')}"


def identities(store: RunStore) -> dict[str, Run]:
    return {view.run_id: view.header.run for view in store.runs()}


def test_a_study_runs_winner_tuned_lr_and_baseline_on_the_fresh_seeds_and_shorter(confirmed_runs, uninterrupted):
    steps = curves(RunStore(confirmed_runs / "tiny"))
    (selection,) = json.loads((confirmed_runs / "tiny" / "confirm.json").read_text())
    winner, opponent = (name.removeprefix("search-") for name in selection["candidates"])
    full = {f"{name}-s{seed}" for name in ("baseline", f"confirm-{winner}", f"confirm-{opponent}") for seed in SEEDS}
    shorter = {f"confirm-{winner}-s{seed}-{share}" for seed in SEEDS for share in ("t50", "t75")}
    searches = {f"{phase}-000{n}" for phase in ("search", "tuned-lr") for n in range(3)}
    assert steps.keys() == full | shorter | searches
    assert {name: len(records) for name, records in steps.items() if len(records) != 20} == {
        name: 10 if name.endswith("t50") else 15 for name in shorter
    }
    searched = {name: records for name, records in steps.items() if name.startswith("search")}
    assert searched == {name: uninterrupted[1][name] for name in searched}  # what follows changes no trial
    assert steps["tuned-lr-0000"] == steps["search-0000"]  # both begin with GPT-3's values
    assert steps["baseline-s7"] != steps["baseline-s8"]


def test_the_verdict_is_scipys_on_the_recorded_losses(confirmed_runs):
    results = load("tiny", confirmed_runs)
    verdict = results.verdict()
    assert [c.candidate.rpartition("-")[0] for c in verdict.contrasts] == ["search", "tuned-lr"]
    baseline = [loss(results, f"baseline-s{seed}") for seed in SEEDS]
    tests, best = [], loss(results, "search-0000")
    for c in verdict.contrasts:
        ours = [loss(results, f"confirm-{c.candidate.removeprefix('search-')}-s{seed}") for seed in SEEDS]
        tests.append(stats.ttest_rel(ours, baseline))
        low, high = tests[-1].confidence_interval(1 - 0.05 / 3)
        assert [c.difference, c.low, c.high] == pytest.approx([sum(ours) / 3 - sum(baseline) / 3, low, high], abs=1e-10)
        assert c.optimism == pytest.approx(loss(results, c.candidate) - best - c.difference)
        assert (c.n, c.baseline_n, c.left_out) == (3, 3, ())
    winner, tuned = (
        [loss(results, f"confirm-{c.candidate.removeprefix('search-')}-s{seed}") for seed in SEEDS]
        for c in verdict.contrasts
    )
    (added,) = verdict.additions
    tests.append(stats.ttest_rel(winner, tuned))
    assert [added.low, added.high] == pytest.approx([*tests[-1].confidence_interval(1 - 0.05 / 3)], abs=1e-10)
    ps = [*(c.p for c in verdict.contrasts), added.p]
    assert ps == pytest.approx([min(1, len(ps) * test.pvalue) for test in tests], abs=1e-10)
    assert results.noise.sd == pytest.approx(stats.tstd(baseline))
    assert set(results.confirmed["fraction"]) == {0.5, 0.75, 1.0}
    assert results.halflives.loc[0, "beta1_halflife_tokens"] == pytest.approx(256 * 6.5788, rel=1e-4)  # ln .5 / ln .9


def test_a_study_stopped_on_its_way_to_the_verdict_resumes_to_the_same_one(confirmable, confirmed_runs, tmp_path):
    candidate = confirmed_candidate(confirmed_runs)
    interrupt(confirmable(), tmp_path / "runs", f"{candidate}-s7", 3)
    store = run_here(confirmable(), tmp_path / "runs")
    assert curves(store) == curves(RunStore(confirmed_runs / "tiny"))
    assert load("tiny", tmp_path / "runs").verdict() == load("tiny", confirmed_runs).verdict()


def test_a_store_without_of_and_fraction_resumes_and_its_confirm_runs_keep_their_identity(
    confirmable, confirmed_runs, tmp_path
):
    """Older versions kept both only in the run's id."""
    study, runs, watch = confirmable(), tmp_path / "runs", Watch()
    unfinished = f"{confirmed_candidate(confirmed_runs)}-s8-t50"
    interrupt(study, runs, unfinished, 3)
    finished = {view.run_id for view in RunStore(runs / "tiny").runs() if view.result}
    for header in runs.glob("tiny/*/header.json"):
        written = json.loads(header.read_text())
        del written["run"]["of"], written["run"]["fraction"]
        header.write_text(json.dumps(written))
        if header.with_name("result.json").exists():
            unsealed(header.parent)
        elif (mark := header.with_name(MARK)).exists():  # they noted no hash of a header
            noted = json.loads(mark.read_text())
            mark.write_text(json.dumps({key: value for key, value in noted.items() if key != header.name}))
    store, expected = run_here(study, runs, watch=watch), RunStore(confirmed_runs / "tiny")
    assert unfinished in watch.started
    assert not finished & set(watch.started)
    assert identities(store) == identities(expected)
    assert {(run.of, run.fraction) for run in identities(store).values()} > {(None, 1.0)}
    assert curves(store) == curves(expected)
    assert trials(study, store) == trials(study, expected)
    assert load("tiny", runs).verdict() == load("tiny", confirmed_runs).verdict()


def test_a_lost_list_of_selections_is_refused_by_name(confirmable, confirmed_runs, tmp_path):
    """A new list would count the selections from one again."""
    runs = Path(shutil.copytree(confirmed_runs, tmp_path / "runs"))
    path = runs / "tiny" / "confirm.json"
    path.unlink()
    with pytest.raises(MachineError, match=rf"^{path}: is missing, though runs on fresh seeds have begun"):
        run_here(confirmable(), runs)
    assert not path.exists()


def test_added_seeds_train_only_what_is_new_and_count_as_another_selection(confirmable, confirmed_runs, tmp_path):
    runs, watch = tmp_path / "runs", Watch()
    shutil.copytree(confirmed_runs, runs)
    run_here(confirmable([7, 8, 9, 10]), runs, watch=watch)
    assert watch.started
    assert all("-s10" in run_id for run_id in watch.started)
    verdict = load("tiny", runs).verdict()
    assert {c.n for c in verdict.contrasts} == {4}
    assert "each time with its own chance to err: in all up to 10% where nothing differs." in verdict.sentence
    assert "chance to err" not in load("tiny", confirmed_runs).verdict().sentence


def test_a_race_trains_no_more_seeds_than_its_answer_takes(raced_runs):
    runs, said = raced_runs
    results, store = load("tiny", runs), RunStore(runs / "tiny")
    (contrast,) = results.verdict().contrasts
    assert (contrast.answer, contrast.n, contrast.looks) == (Answer.BETTER, 3, 8)
    seeds = results.study.seeds[:3]
    assert {view.header.run.seed for view in store.runs()} - {results.study.spec.seed} == set(seeds)
    ours, theirs = (
        [loss(results, f"{name}-s{seed}") for seed in seeds]
        for name in (f"confirm-{contrast.candidate.removeprefix('search-')}", "baseline")
    )
    expected = stats.ttest_rel(ours, theirs)
    assert contrast.p == pytest.approx(overall(float(expected.pvalue), (3, 5, 8)), abs=1e-10)
    assert [line for line in said if "seeds" in line] == [f"{contrast.candidate}: better after 3 seeds"]


def test_a_race_stopped_on_its_way_to_the_verdict_resumes_to_the_same_one(raceable, raced_runs, tmp_path):
    study, whole = raceable(), raced_runs[0]
    interrupt(study, tmp_path / "runs", f"baseline-s{study.seeds[1]}", 3)
    assert load("tiny", tmp_path / "runs").verdict().contrasts == ()
    assert curves(run_here(study, tmp_path / "runs")) == curves(RunStore(whole / "tiny"))
    assert load("tiny", tmp_path / "runs").verdict() == load("tiny", whole).verdict()


def test_several_workers_reach_the_verdict_of_one(raceable, raced_runs, tmp_path):
    """Idle ones train runs of the next look meanwhile, which do not count."""
    whole = raced_runs[0]
    store = run_here(raceable(), tmp_path / "runs", workers=3)
    assert curves(RunStore(whole / "tiny")).items() <= curves(store).items()
    assert load("tiny", tmp_path / "runs").verdict() == load("tiny", whole).verdict()


def test_a_study_stopped_while_a_baseline_may_train_ahead_resumes_to_the_same_verdict(raceable, raced_runs, tmp_path):
    """Each run is trained once, and the file of selections must be there from the first fresh seed on."""
    study, whole, first = raceable(), RunStore(raced_runs[0] / "tiny"), f"baseline-s{raceable().seeds[0]}"
    stop = StopRequest()

    def on_step(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.run_id, record.step) == (first, 3)

    with pytest.raises(Interrupted):
        run_here(study, tmp_path, watch=Watch(on_step), stop=stop, workers=2)
    path = tmp_path / "tiny" / "confirm.json"
    chosen = path.read_text()
    path.unlink()
    with pytest.raises(MachineError, match=rf"^{path}: is missing, though runs on fresh seeds have begun"):
        run_here(study, tmp_path)
    path.write_text(chosen)
    again = Watch()
    store = run_here(study, tmp_path, watch=again, workers=2)
    assert len(again.started) == len(set(again.started))
    assert curves(whole).items() <= curves(store).items()
    assert load("tiny", tmp_path).verdict() == load("tiny", raced_runs[0]).verdict()


def test_a_study_of_the_baseline_against_itself_decides_neither_way(tiny, tmp_path):
    """Micro-batches change only rounding, and each side has its own 5 seeds: 5% of such draws would decide."""
    space = {
        'lr = { low = 1e-4, high = 3e-2, scale = "log" }': "micro_batch = { choices = [16, 8] }",
        'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': "",
        "micro_batch = 16": "",
        'sampler = { name = "tpe", startup = 2 }': 'sampler = "grid"',
        "trials = 5": "trials = 2",
    }
    seeds = [7, 8, 9, 10, 11]
    study = tiny(replace=space, more=f'[confirm]\ndesign = "independent"\nmargin = 0.1\nseeds = {seeds}')
    store = run_here(study, tmp_path)
    fresh = {view.header.run.seed for view in store.runs() if view.header.run.phase == "baseline"}
    assert fresh == {seed + 1_000_000 for seed in seeds}
    results = load("tiny", tmp_path)
    (contrast,) = results.verdict().contrasts
    assert contrast.answer in (Answer.EQUIVALENT, Answer.UNDECIDED)
    ours = [loss(results, f"confirm-0001-s{seed}") for seed in seeds]
    theirs = [loss(results, f"baseline-s{seed + 1_000_000}") for seed in seeds]
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    assert contrast.p == pytest.approx(expected.pvalue, abs=1e-10)
