"""Where a study stands, and that its advised step is accepted by what reads study files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpstudy.analysis.results import StudyResults, load
from hpstudy.analysis.state import Stage, State, state
from hpstudy.running.confirm import update_selections
from hpstudy.study import FloatRange, Study, load_study, refuse_changes
from hpstudy.study.schema import other_seed
from hpstudy.tracking.store import RunStore
from tests.helpers.running import interrupt, run_here
from tests.helpers.stores import edit

SEEDS = (101, 102, 103)
TEN = {"trials = 5": "trials = 10"}
RACE = {"format = 1": "format = 2", **TEN}
Tiny, Write = Callable[..., Study], Callable[..., None]
Confirm = Callable[..., StudyResults]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run in the folder of the study files and of `runs`."""
    monkeypatch.chdir(tmp_path)


def confirm_on(seeds: Sequence[int], more: str = "") -> str:
    return f"[confirm]\nseeds = {list(seeds)}\n{more}"


def now(name: str = "tiny") -> State:
    return state(load(name, "runs"))


@pytest.fixture
def confirm(searched: Callable[[Study], StudyResults], write_run: Write) -> Confirm:
    """A search of ten trials, then baseline and trial 1 with these differences on the study's first seeds."""

    def build(study: Study, differences: Sequence[float]) -> StudyResults:
        store = searched(study).store
        assert store is not None
        update_selections(study, store, print)
        for number, (seed, theirs, difference) in enumerate(
            zip(study.seeds, study.baseline_seeds, differences, strict=False)
        ):
            write_run(study, f"baseline-s{theirs}", "baseline", 4.0 + number / 100, seed=theirs)
            write_run(study, f"confirm-0001-s{seed}", "confirm", 4 + number / 100 + difference, trial=1, seed=seed)
        return load(study.name, "runs")

    return build


def test_a_study_that_a_driver_has_says_who_and_since_when(tiny: Tiny, write_run: Write) -> None:
    write_run(tiny(), "search-0000", "search", 4.0, trial=0)
    store = RunStore(Path("runs/tiny"))
    with store.locked():
        found = now()
        clock = datetime.now(UTC)
    assert (found.stage, found.command) == (Stage.RUNNING, "hpstudy status tiny")
    assert found.holder is not None
    assert found.holder.pid == os.getpid()
    assert re.fullmatch(rf"running since {clock:%H}:\d\d UTC by pid {os.getpid()} on \S+", str(found))
    assert now().stage is Stage.STOPPED


def test_a_stopped_search_is_resumed_with_what_runs_its_file(tiny: Tiny) -> None:
    interrupt(tiny(), Path("runs"), "search-0001", 10)
    found = now()
    assert (found.stage, found.trials, found.planned) == (Stage.STOPPED, 1, 5)
    assert (found.advice, found.command) == ("4 of 5 trials are left; resume it", "hpstudy run tiny.toml")
    run_here(load_study("tiny.toml"), Path("runs"))
    assert now().stage is Stage.DONE


def test_a_search_of_more_trials_than_its_file_states_is_measured_by_them(tiny: Tiny, write_run: Write) -> None:
    study = tiny(replace={"trials = 5": "trials = 2"})
    for number in range(3):
        write_run(study, f"search-{number:04d}", "search", 4.0, trial=number)
    found = now()
    assert (found.stage, found.trials, found.planned) == (Stage.DONE, 3, 3)
    assert "--trials" not in found.command  # first, fresh seeds


def test_a_baseline_outside_the_space_is_trained_first(tiny: Tiny, write_run: Write) -> None:
    study = tiny(replace={"low = 1e-4": "low = 1e-3", "trials = 5": "trials = 1"})
    write_run(study, "search-0000", "search", 4.0, trial=0)
    assert now().advice == "the baseline has not been trained; resume it"


def test_a_winner_that_has_no_fresh_run_is_confirmed(tiny: Tiny, searched) -> None:
    searched(tiny(more=confirm_on(SEEDS), replace=TEN))
    assert now().advice == "the winner has not been confirmed on fresh seeds; resume it"


def test_runs_on_fresh_seeds_that_are_missing_are_counted(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN), [-0.3, -0.31])
    found = now()
    assert (found.stage, found.advice) == (Stage.STOPPED, "2 runs are left on fresh seeds; resume it")


def test_shorter_runs_that_measure_a_speed_up_are_missed_too(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on(SEEDS, "speedup = true\n"), replace=TEN), [-0.3, -0.31, -0.29])
    assert now().advice == "6 runs are left on fresh seeds; resume it"


def test_a_changed_run_is_repaired_before_all_else(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN), [-0.3, -0.31, -0.29])
    edit(Path("runs/tiny/search-0004/result.json"), '"val_loss": *3.9', '"val_loss": 3.8')
    found = now()
    assert (found.stage, found.step.brief) == (Stage.STOPPED, "repair")
    assert found.advice.startswith("search-0004 changed on disk")


def test_a_decided_study_may_search_longer(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN), [-0.3, -0.31, -0.29])
    found = now()
    assert (found.stage, found.step.brief) == (Stage.DONE, "more trials")
    assert found.command == "hpstudy run tiny.toml --trials 20"


def test_commands_name_the_folder_of_runs(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN), [-0.3, -0.31, -0.29])
    Path("runs").rename("other")
    assert state(load("tiny", "other")).command == "hpstudy run tiny.toml --runs other --trials 20"


def seeds_in(advice: str) -> list[int]:
    """The seeds that an advice states."""
    found = re.search(r"`seeds = \[([\d, ]+)\]`", advice)
    assert found, advice
    return [int(seed) for seed in found[1].split(",")]


@pytest.mark.parametrize("design", ["paired", "independent"])
def test_an_undecided_study_adds_seeds_that_its_file_may_grow_by(tiny: Tiny, confirm: Confirm, design: str) -> None:
    study = tiny(more=confirm_on(SEEDS, f'design = "{design}"\nmargin = 0.001\n'), replace=TEN)
    confirm(study, [-0.03, 0.0, -0.02])
    found = now()
    assert (found.stage, found.step.brief) == (Stage.UNDECIDED, "more seeds")
    assert "in the [confirm] of tiny.toml" in found.advice
    seeds = seeds_in(found.advice)
    assert tuple(seeds[:3]) == SEEDS
    assert f"about {len(seeds)} seeds a side" in found.advice
    edit(study.path, r"seeds = .*", f"seeds = {seeds}")
    grown = load_study("tiny.toml")
    refuse_changes(grown, Path("runs/tiny"))
    assert grown.seeds == tuple(seeds)


def test_new_seeds_of_an_independent_design_meet_no_other(tiny: Tiny, confirm: Confirm) -> None:
    near = 101 + other_seed(0) - 3  # the baseline's are so much higher that those of 101 follow these
    study = tiny(more=confirm_on([101, 102, near], 'design = "independent"\nmargin = 0.001\n'), replace=TEN)
    confirm(study, [-0.03, 0.0, -0.02])
    seeds = seeds_in(now().advice)
    edit(study.path, r"seeds = .*", f"seeds = {seeds}")
    assert load_study("tiny.toml").seeds == tuple(seeds)  # load refuses seeds that meet


def test_a_difference_too_small_to_decide_asks_for_longer_runs(tiny: Tiny, confirm: Confirm) -> None:
    study = tiny(more=confirm_on(SEEDS, "margin = 0.00001\n"), replace=TEN)
    confirm(study, [-0.02, 0.02, 0.0003])
    found = now()
    assert (found.stage, found.step.brief) == (Stage.UNDECIDED, "longer runs")
    assert "longer runs may show more" in found.advice


def test_an_undecided_race_is_asked_again_in_a_copy_that_loads(tiny: Tiny, confirm: Confirm) -> None:
    study = tiny(more="[confirm]\nlooks = [3]\nmargin = 0.001\n", replace=RACE)
    confirm(study, [-0.02, 0.01, -0.015])
    found = now()
    assert (found.stage, found.step.brief) == (Stage.UNDECIDED, "more seeds")
    assert found.command == "hpstudy run tiny-longer.toml"
    copy_as(found, "tiny-longer.toml")
    looks = re.search(r"`(looks = \[3, \d+\])`", found.advice)
    assert looks
    edit(Path("tiny-longer.toml"), r"looks = \[3\]", looks[1])
    assert load_study("tiny-longer.toml").confirm.looks is not None
    RunStore(Path("runs/tiny-longer")).create()
    shutil.copy("runs/tiny/study.toml", "runs/tiny-longer")
    assert now().command == "hpstudy status tiny-longer"


def copy_as(found: State, name: str) -> None:
    """Does what the advice says first."""
    assert f"copy runs/tiny/study.toml to {name} and " in found.advice
    shutil.copy("runs/tiny/study.toml", name)


def test_a_winner_at_the_end_of_a_range_gets_a_wider_one_in_a_copy_that_runs(tiny: Tiny, confirm: Confirm) -> None:
    lr = load_lr(tiny, confirm)
    found = now()
    assert (found.stage, found.step.brief) == (Stage.DONE, "wider range")
    assert found.command == "hpstudy run tiny-wider.toml"
    copy_as(found, "tiny-wider.toml")
    wider = re.search(r"`(lr = \{[^}]*\})`", found.advice)
    assert wider
    edit(Path("tiny-wider.toml"), r"lr = \{[^}]*\}", wider[1])
    edit(Path("tiny-wider.toml"), r"trials = 10", "trials = 2")
    study = load_study("tiny-wider.toml")
    dimension = study.space["lr"]
    assert isinstance(dimension, FloatRange)
    assert dimension.low < lr < dimension.high
    run_here(study, Path("runs"))
    assert now("tiny-wider").trials == 2


def load_lr(tiny: Tiny, confirm: Confirm) -> float:
    """The lr of a study's winner, at the high end of its range."""
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN), [-0.3, -0.31, -0.29])
    lr = float(load("tiny", "runs").ranked()["lr"].iloc[0])
    shutil.rmtree("runs")
    ends = {"low = 1e-4, high = 3e-2": f"low = 1e-5, high = {lr * 1.01!r}"}
    confirm(tiny(more=confirm_on(SEEDS), replace=TEN | ends), [-0.3, -0.31, -0.29])
    return lr


def test_a_winner_that_lost_to_the_baseline_asks_for_no_wider_range(tiny: Tiny, confirm: Confirm) -> None:
    load_lr(tiny, confirm)
    shutil.rmtree("runs")
    confirm(load_study("tiny.toml"), [0.3, 0.31, 0.29])
    found = now()
    assert (found.step.brief, found.advice) == ("more trials", "better values may exist")


@pytest.mark.parametrize(("sampler", "trials"), [("grid", 2), ("random", 6)])
def test_a_search_that_has_tried_everything_is_exported(tiny: Tiny, sampler: str, trials: int) -> None:
    study = tiny(
        more=confirm_on(SEEDS, "margin = 5.0\n"),  # so that the answer is equivalent
        replace={
            'lr = { low = 1e-4, high = 3e-2, scale = "log" }\n': 'clip_mode = { choices = ["global", "none"] }\n',
            'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n': "",
            'sampler = { name = "tpe", startup = 2 }': f'sampler = "{sampler}"',
            "trials = 5\n": f"trials = {trials}\n",
        },
    )
    run_here(study, Path("runs"))
    found = now()
    assert (found.stage, found.step.brief, found.command) == (Stage.DONE, "export", "hpstudy export tiny")


def test_a_study_without_fresh_seeds_runs_once_they_are_added(tiny: Tiny) -> None:
    study = tiny(replace={"trials = 5": "trials = 2"})
    run_here(study, Path("runs"))
    found = now()
    assert (found.stage, found.step.brief, found.command) == (Stage.DONE, "more seeds", "hpstudy run tiny.toml")
    seeds = seeds_in(found.advice)
    assert seeds == [101, 102, 103, 104, 105]
    edit(study.path, r"seeds = .*", f"seeds = {seeds}")
    run_here(load_study("tiny.toml"), Path("runs"))
    assert now().step.brief != "resume"
    assert load("tiny", "runs").verdict().contrasts[0].n == 5


def test_a_study_with_too_few_seeds_for_a_verdict_gets_more(tiny: Tiny, confirm: Confirm) -> None:
    confirm(tiny(more=confirm_on([7, 8]), replace=TEN), [-0.3, -0.31])
    found = now()
    assert (found.stage, seeds_in(found.advice)) == (Stage.UNDECIDED, [7, 8, 9, 10, 11])


def test_seeds_that_follow_from_the_file_stay_those_that_the_study_began_with(tiny: Tiny, confirm: Confirm) -> None:
    study = tiny(more='[confirm]\nmargin = 0.001\ndesign = "independent"\n', replace=RACE)
    assert study.derives_seeds
    confirm(study, [-0.04, 0.0, -0.03, 0.0, -0.02])
    seeds = seeds_in(now().advice)
    assert tuple(seeds[:5]) == study.seeds
    edit(study.path, r"\[confirm\]\n", f"[confirm]\nseeds = {seeds}\n")
    refuse_changes(load_study("tiny.toml"), Path("runs/tiny"))


def test_nothing_searched_is_a_reference(tiny: Tiny) -> None:
    study = tiny(
        replace={
            'lr = { low = 1e-4, high = 3e-2, scale = "log" }\n': "",
            'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }\n': "",
            "trials = 5\n": "trials = 1\n",
        }
    )
    run_here(study, Path("runs"))
    found = now()
    assert (found.stage, found.trials, found.planned, found.step.brief) == (Stage.DONE, 1, 1, "export")


def test_a_study_whose_file_is_gone_runs_from_the_copy_in_its_folder(tiny: Tiny) -> None:
    study = tiny()
    interrupt(study, Path("runs"), "search-0001", 10)
    Path("elsewhere").mkdir()
    study.path.rename("elsewhere/mine.toml")
    copy, _, run = now().command.partition(" && ")
    subprocess.run(copy, shell=True, check=True)
    assert run == "hpstudy run runs/tiny/tiny.toml"
    run_here(load_study("runs/tiny/tiny.toml"), Path("runs"))
    assert now().trials == 5


def test_a_study_file_that_moves_with_its_runs_is_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("old/sub").mkdir(parents=True)
    study = tiny()
    study.path.rename("old/sub/tiny.toml")
    interrupt(load_study("old/sub/tiny.toml"), Path("old/runs"), "search-0001", 10)
    Path("old").rename("new")
    assert state(load("tiny", "new/runs")).command == "hpstudy run new/sub/tiny.toml --runs new/runs"
    monkeypatch.chdir("new/sub")
    assert state(load("tiny", "../runs")).command == "hpstudy run tiny.toml --runs ../runs"


def test_a_study_by_name_is_named_unless_another_study_has_its_name(tiny: Tiny) -> None:
    Path("studies").mkdir()
    study = tiny()
    shutil.copy(study.path, "studies/tiny.toml")
    interrupt(load_study("tiny"), Path("runs"), "search-0001", 10)
    assert now().command == "hpstudy run tiny"
    Path("runs/tiny/source.json").unlink()  # as versions before it
    assert now().command == "hpstudy run tiny"
    edit(Path("studies/tiny.toml"), "tokens = 5120", "tokens = 2560")
    study.path.unlink()
    assert now().command.startswith("cp runs/tiny/study.toml runs/tiny/tiny.toml && hpstudy run runs/tiny/tiny.toml")
