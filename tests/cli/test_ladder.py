"""A ladder on the command line: three rungs, a check and a target, trained once, and what refuses to train."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from hpstudy import load
from hpstudy.study import load_study
from hpstudy.tracking.store import RunStore
from tests.helpers.command_line import Result, contents, hpstudy
from tests.helpers.running import CLI, any_alive, curves, trials, workers_of
from tests.helpers.wandb_rows import end_session, inspected

TEXT = """
question = "Does a tiny ladder work?"
format = 4

[ladder]
models = [
  { layers = 1, heads = 1, width = 8 },
  { layers = 1, heads = 1, width = 16 },
  { layers = 1, heads = 1, width = 24 },
]
tokens = [4_000, 6_000, 8_000]
trials = [8, 7, 7]
check = { layers = 1, heads = 2, width = 32 }
check_tokens = 10_000
check_trials = 7
target = "gpt-2x64"
target_tokens = 50_000

[trainer]
tokenizer = "gpt2:256"
context = 16
evals = 2
val_tokens = 512
precision = "fp32"

[hparams]
batch_tokens = 256
batch_ramp_fraction = 0.0

[search]
lr_over_rule = { low = 0.01, high = 1.0 }
weight_decay_timescale = { low = 0.03, high = 10 }

[budget]
parallel = 2
sampler = "random"
rules = []

[confirm]
seeds = [201, 202, 203]
"""  # fmt: skip
PARTS = ["tiny-1x8", "tiny-1x16", "tiny-1x24", "tiny-check", "tiny-check-predicted", "tiny-check-copied"]


class Trained(NamedTuple):
    """A folder with the ladder's file, after `hpstudy run tiny --wandb offline`."""

    folder: Path
    result: Result

    @property
    def runs(self) -> Path:
        return self.folder / "runs"


def write_file(folder: Path, **changes: str) -> Path:
    """Writes the ladder's file; `changes` maps old text to new, with _ for blanks in the old one."""
    path = folder / "studies" / "tiny.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = TEXT
    for old, new in changes.items():
        assert f"{old} = " in text
        text = "\n".join(f"{old} = {new}" if line.startswith(f"{old} = ") else line for line in text.splitlines())
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def trained_once() -> list[Trained]:
    """Filled by the first test that asks for `trained`."""
    return []


@pytest.fixture
def trained(
    trained_once: list[Trained], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Trained:
    """The trained ladder, in its folder; for tests that only read it."""
    if not trained_once:
        folder = tmp_path_factory.mktemp("ladder")
        write_file(folder)
        monkeypatch.chdir(folder)
        trained_once.append(Trained(folder, hpstudy("run", "tiny", "--wandb", "offline", "--workers", 1)))
        end_session()
    monkeypatch.chdir(trained_once[0].folder)
    return trained_once[0]


@pytest.fixture
def copied(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained ladder's folder, for tests that change it; it becomes the working directory."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copied"))
    monkeypatch.chdir(folder)
    return folder


def test_run_trains_every_part_and_says_what_it_found(trained) -> None:
    assert trained.result.code == 0, trained.result
    assert sorted(path.parent.name for path in trained.runs.glob("*/study.toml")) == sorted(PARTS)
    lines = trained.result.out.splitlines()
    assert lines[0] == "tiny"
    assert " at 1x32: its loss less that of a search of 7 trials is " in " ".join(trained.result.out.split())
    rows = [line.split() for line in lines]
    assert [row[:3] for row in rows if row and row[0] in ("1x8", "1x16", "1x24")] == [
        ["1x8", "888", "4k"], ["1x16", "3.31k", "6k"], ["1x24", "7.27k", "8k"],
    ]  # fmt: skip
    assert ["target", "studies/tiny-target.toml"] in rows
    assert ["next", "hpstudy", "run", "tiny-target"] in rows
    assert ["report", "runs/tiny/report/index.html"] in rows
    for part in PARTS:
        assert f"{part}: runs/{part}/report/index.html" in trained.result.err


def test_each_rung_first_tries_what_the_smaller_ones_predict(trained) -> None:
    assert load_study("runs/tiny/tiny-1x8.toml").budget.first == ()
    for part in ("tiny-1x16", "tiny-1x24"):
        study = load_study(f"runs/tiny/{part}.toml")
        assert trials(study, RunStore(trained.runs / part))[0].values == study.budget.first[0]


def test_sides_of_the_check_train_the_same_fresh_seeds(trained) -> None:
    for part in PARTS[3:]:
        seeds = {
            view.header.run.seed for view in RunStore(trained.runs / part).runs() if view.header.run.phase != "search"
        }
        assert {201, 202, 203} <= seeds
    smallest = load("tiny-1x8").tuned
    assert smallest is not None
    assert load_study("runs/tiny/tiny-check-copied.toml").baseline.lr == pytest.approx(smallest.hparams.lr, rel=1e-5)


def test_check_prices_each_rung_the_check_and_the_target(copied) -> None:
    before = contents(copied)
    result = hpstudy("check", "tiny", "--device", "cpu")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()]
    # 8 trials, the baseline outside of the space, and 3 seeds of winner and baseline
    assert [row[:3] + row[5:7] for row in rows if row and row[0].startswith("1x")] == [
        ["1x8", "888", "4k", "8", "15"], ["1x16", "3.31k", "6k", "7", "14"], ["1x24", "7.27k", "8k", "7", "14"],
    ]  # fmt: skip
    assert ["keys", "lr_over_rule,", "weight_decay_timescale"] in rows
    assert any(row[:2] == ["target", "2x64:"] for row in rows)
    assert "cost     " in hpstudy("check", "tiny-target", "--device", "cpu").out
    assert contents(copied) == before


def test_status_and_report_show_the_same_and_status_writes_nothing(copied) -> None:
    before = contents(copied)
    status = hpstudy("status", "tiny")
    assert status.code == 0
    assert contents(copied) == before
    assert status.out in hpstudy("report", "tiny").out
    listed = hpstudy("status")
    assert "tiny: a ladder; `hpstudy status tiny` shows its rungs" in listed.out.splitlines()
    page = (copied / "runs" / "tiny" / "report" / "index.html").read_text()
    assert all(f"../../{part}/report/index.html" in page for part in PARTS[:4])


def test_ladder_as_json_is_what_the_folder_has(copied) -> None:
    result = hpstudy("ladder", "studies/tiny.toml", "--json")
    values = json.loads(result.out)
    assert values == json.loads((copied / "runs" / "tiny" / "ladder.json").read_text())
    assert [rung["study"] for rung in values["rungs"]] == PARTS[:3]
    assert [side["side"] for side in values["check"]] == ["search", "predicted", "copied", "gpt3"]
    assert values["answer"] in ("holds", "fails", "undecided")
    assert values["target"] == "studies/tiny-target.toml"
    assert json.loads(hpstudy("status", "tiny", "--json").out)["laws"] == values["laws"]


@pytest.mark.usefixtures("copied")
def test_export_writes_each_parts_tables_and_the_ladders_own() -> None:
    result = hpstudy("export", "tiny")
    assert result.code == 0
    paths = [Path(line) for line in result.out.splitlines()]
    assert all(path.exists() for path in paths)
    assert {path.parts[1] for path in paths} == {"tiny", *PARTS}
    found = load("tiny")
    pd.testing.assert_frame_equal(pd.read_csv("runs/tiny/export/optima.csv"), found.optima, check_dtype=False)
    assert list(pd.read_csv("runs/tiny/export/regrets.csv")["side"]) == ["search", "predicted", "copied", "gpt3"]


@pytest.mark.usefixtures("trained")
def test_compare_and_results_take_a_ladder_for_its_parts() -> None:
    compared = hpstudy("compare", "tiny")
    assert compared.code == 0
    assert all(part in compared.out for part in PARTS)
    results = hpstudy("results", "tiny")
    assert results.code == 0
    assert "tiny" in results.out


@pytest.mark.usefixtures("trained")
def test_load_gives_the_rungs_their_studies_and_the_laws() -> None:
    found = load("tiny")
    assert [rung.results.name for rung in found.rungs] == PARTS[:3]
    assert list(found.studies) == PARTS
    assert list(found.laws) == ["lr_over_rule", "weight_decay_timescale"]
    assert list(found.losses["side"]) == ["search", "predicted", "copied", "gpt3"]
    assert repr(found).startswith("tiny\n")
    with pytest.raises(AttributeError):
        _ = found.trials  # of a part alone


def test_the_targets_study_says_that_it_was_predicted(trained) -> None:
    path = trained.folder / "studies" / "tiny-target.toml"
    heading = path.read_text().splitlines()
    assert heading[0] == "# Written by `hpstudy ladder tiny`: predicted from 3 smaller studies, not measured."
    assert heading[1] == "# It extrapolates 14x in weights and 6.2x in tokens beyond the largest of them, 1x24."
    study = load_study("tiny-target")
    assert study.spec.tokens == 50_000
    assert len(study.budget.first) == 1


def test_each_part_is_a_group_in_wandb_and_its_runs_name_the_ladder(trained) -> None:
    for part in ("tiny-1x8", "tiny-check"):
        store = RunStore(trained.runs / part)
        view = next(view for view in store.runs() if view.header.run.phase == "search")
        run = next(line["run"] for line in inspected(store.root, view.header.wandb_id) if line["type"] == "run")
        assert (run["run_group"], "ladder:tiny" in run["tags"]) == (part, True)


def test_a_part_can_be_run_by_its_file_and_has_ended(copied) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*.jsonl")}
    assert hpstudy("run", "runs/tiny/tiny-1x16.toml", "--wandb", "offline").code == 0
    assert {path: path.read_bytes() for path in copied.rglob("*.jsonl")} == before


# refusals


def refused(*args: object) -> str:
    """The error of a command that must change nothing."""
    before = contents(Path.cwd())
    result = hpstudy(*args)
    assert (result.code, result.out) == (2, ""), result
    assert contents(Path.cwd()) == before
    return result.err


def test_a_changed_file_is_refused(copied) -> None:
    write_file(copied, evals="3", trials="[9, 7, 7]")
    assert refused("run", "tiny") == "".join(
        f"studies/tiny.toml: changed after its ladder began: {change}; put the values back, or copy the file under "
        "another name for another ladder\n"
        for change in ("[trainer] evals: was 2, is 3", "[ladder] trials: was [8, 7, 7], is [9, 7, 7]")
    )


def test_a_finished_ladder_trains_nothing_more_and_may_have_another_target(copied) -> None:
    write_file(copied, target_tokens="60_000")
    before = {path: path.read_bytes() for path in copied.rglob("*.jsonl")}
    result = hpstudy("run", "tiny", "--wandb", "offline")
    assert (result.code, result.err) == (0, "tiny: Does a tiny ladder work?\n")
    assert {path: path.read_bytes() for path in copied.rglob("*.jsonl")} == before
    assert load_study("tiny-target").spec.tokens == 60_000


@pytest.mark.usefixtures("trained")
def test_the_number_of_trials_is_the_files() -> None:
    assert refused("run", "tiny", "--trials", 3) == (
        "--trials: a ladder's trials are those of [ladder] trials; edit the file before it begins\n"
    )


def test_another_file_of_the_targets_name_is_kept(copied) -> None:
    (copied / "studies" / "tiny-target.toml").write_text("# mine\n")
    result = hpstudy("ladder", "tiny")
    assert result.code == 2
    assert result.err == (
        "studies/tiny-target.toml: is not a file that a ladder has written; move it away, or rename the ladder\n"
    )
    assert (copied / "studies" / "tiny-target.toml").read_text() == "# mine\n"


def test_a_ladder_that_has_not_begun_says_how_to_begin(tmp_path, monkeypatch) -> None:
    write_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert refused("ladder", "tiny") == "runs/tiny: no ladder has begun there; start it with `hpstudy run tiny`\n"
    assert "Does a tiny ladder work?" in hpstudy("status").out


# every order of work gives the same


def found_in(folder: Path) -> dict[str, Any]:
    """What no worker and no interruption changes: the trials and losses of every part, ladder.json, the target."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("runs/tiny/*.toml")):
        if path.name == "ladder.toml":
            continue
        store = RunStore(folder / "runs" / path.stem)
        found[path.stem] = path.read_text(), trials(load_study(str(path)), store), curves(store)
    return found | {
        "ladder.json": (folder / "runs" / "tiny" / "ladder.json").read_text(),
        "target": [
            line
            for line in (folder / "studies" / "tiny-target.toml").read_text().splitlines()
            if not line.startswith("# One run takes ")  # at the measured speed
        ],
    }


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLI, "run", "tiny", "--wandb", "disabled", "--workers", str(workers)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path, workers: int) -> None:
    process = start(folder, workers)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error.decode()


def kills(folder: Path, rng: random.Random) -> Iterator[int]:
    """Runs the ladder and kills its driver after some seconds, until it ends; yields how often."""
    count = 0
    while True:
        process = start(folder, 1)
        try:
            _, error = process.communicate(timeout=rng.uniform(6, 25))
            assert process.returncode == 0, error.decode()
        except subprocess.TimeoutExpired:
            pids = workers_of(process.pid)
            process.kill()
            process.communicate()
            while any_alive(pids):
                time.sleep(0.05)
            count += 1
        else:
            yield count
            return


@pytest.mark.slow
def test_workers_and_kills_change_neither_rungs_nor_trials_nor_target(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    folders = {name: tmp_path / name for name in ("killed", "two", "four")}
    for folder in folders.values():
        write_file(folder, sampler='{ name = "tpe", startup = 3 }')
    for name, workers in (("two", 2), ("four", 4)):
        finish(folders[name], workers)
    assert sum(kills(folders["killed"], random.Random(15))) >= 2
    expected = found_in(folders["two"])
    assert len(expected) == len(PARTS) + 2
    for name in ("four", "killed"):  # killed with one worker
        assert found_in(folders[name]) == expected, name
