"""What a study's numbers depend on stays as it was, or what changed is refused, accepted by name and reported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpstudy.analysis.results import load
from hpstudy.errors import MachineError, UserError
from hpstudy.running.environment import admitted
from hpstudy.running.local import PINNING, worker_environment
from hpstudy.study import Study
from tests.helpers.command_line import PROGRAM
from tests.helpers.running import Watch, curves, run_here


def changed(runs: Path, **values: Any) -> None:
    """Changes values of the tiny study's environment.json, None removes one."""
    path = runs / "tiny" / "environment.json"
    environment = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in environment.items() if value is not None}))


def run_in(folder: Path, study: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    """Runs one trial of a study from a folder."""
    command = [PROGRAM, "run", str(study), "--runs", str(runs), "--trials", "1", "--wandb", "disabled"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def begun(
    tiny: Callable[..., Study], run_once: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Path:
    """The runs of the tiny study after three of its five trials."""
    if "begun" not in run_once:
        run_once["begun"] = tmp_path_factory.mktemp("begun") / "runs"
        run_here(tiny(replace={"trials = 5": "trials = 3"}), run_once["begun"])
    return Path(shutil.copytree(run_once["begun"], tmp_path / "runs"))


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"torch": "1.0"}, "torch was 1.0, is "),
    ({"threads": 7}, "threads was 7, is 1"),
    ({"ranks": 2}, "ranks was 2, is 1"),
    ({"cpu_capability": "AVX512 avx2 made_up"}, "cpu_capability was AVX512 avx2 made_up, is "),
    ({"packages": {"optuna": "4.0.0"}}, "optuna was 4.0.0, is "),
    ({"packages": {"numpy": "1.0"}}, "numpy was 1.0, is "),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_every_change_of_what_numbers_depend_on_is_refused_by_name(begun: Path, change: dict[str, Any], said: str):
    here = json.loads((begun / "tiny" / "environment.json").read_text())
    with pytest.raises(UserError, match=rf"began in another environment: {said}.*--accept-environment"):
        admitted(here | change, here, "runs/tiny", accept=False)
    assert admitted(here, here, "runs/tiny", accept=False) == here


@pytest.mark.parametrize(("change", "said"), [CHANGES[0], CHANGES[-1]], ids=["in the worker", "in the driver"])
def test_a_changed_environment_is_refused_then_accepted_once_and_reported(
    tiny: Callable[..., Study], begun: Path, change: dict[str, Any], said: str
) -> None:
    changed(begun, **change)
    with pytest.raises(UserError, match=rf"began in another environment: {said}.*--accept-environment"):
        run_here(tiny(), begun)
    run_here(tiny(), begun, accept_environment=True)
    run_here(tiny(), begun)  # what was accepted is not asked again
    (accepted,) = load("tiny", begun).accepted_changes
    assert accepted.startswith(said)


def test_an_accepted_change_does_not_cover_another(tiny: Callable[..., Study], begun: Path) -> None:
    changed(begun, torch="1.0")
    run_here(tiny(), begun, accept_environment=True)
    changed(begun, threads=7)
    with pytest.raises(UserError, match="began in another environment: threads was 7, is 1") as refusal:
        run_here(tiny(), begun, trials=6)
    assert "torch" not in str(refusal.value)


def test_a_study_of_a_version_that_knew_less_resumes(tiny: Callable[..., Study], begun: Path) -> None:
    changed(begun, cpu_capability=None, code_sha256=None, packages=None)
    run_here(tiny(), begun)


@pytest.mark.parametrize(
    ("change", "was"),
    [
        ({"code_sha256": "0" * 64}, "hpstudy was .*code 000000000000, is "),
        (
            {"code_sha256": None, "git_commit": "abcdef" * 6, "packages": {"hpstudy": "0.1.0"}},
            "hpstudy was 0.1.0 commit abcdefabcdef, is ",
        ),
    ],
    ids=["code", "commit of a version before"],
)
def test_other_code_of_hpstudy_resumes_and_is_recorded_once(
    tiny: Callable[..., Study], begun: Path, change: dict[str, Any], was: str
) -> None:
    changed(begun, **change)
    run_here(tiny(replace={"trials = 5": "trials = 3"}), begun)
    assert load("tiny", begun).accepted_changes == []  # nothing was trained
    run_here(tiny(), begun)
    run_here(tiny(), begun)
    (recorded,) = load("tiny", begun).accepted_changes
    assert re.match(was, recorded)
    now = json.loads((begun / "tiny" / "environment.json").read_text())
    assert {key: now.get(key) for key in change} == change


def test_a_lost_environment_is_refused_and_not_written_again(tiny: Callable[..., Study], begun: Path) -> None:
    path = begun / "tiny" / "environment.json"
    path.unlink()
    with pytest.raises(MachineError, match=rf"^{path}: is missing.*restore it.*--accept-environment"):
        run_here(tiny(), begun)
    assert not path.exists()
    run_here(tiny(), begun, accept_environment=True)
    assert load("tiny", begun).accepted_changes == ["environment.json was lost, and recorded again during the study"]


def test_the_environment_names_the_instructions_that_kernels_are_chosen_by(
    tiny: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    store = run_here(tiny(replace={"trials = 5": "trials = 1"}), tmp_path)
    capability = store.read_json("environment.json")["cpu_capability"]
    assert capability.split()[0] == "DEFAULT"
    assert "ATEN_CPU_CAPABILITY=default" in capability
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    with pytest.raises(
        UserError, match=rf"cpu_capability was DEFAULT .*, is {torch.backends.cpu.get_cpu_capability()}"
    ):
        run_here(tiny(), tmp_path)


def test_a_worker_imports_nothing_from_the_current_folder(
    tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a user's own modules nor another checkout, also if PYTHONPATH has an empty entry."""
    here = tmp_path / "here"
    (here / "hpstudy").mkdir(parents=True)
    for name in ("bisect.py", "random.py", "numpy.py", "torch.py", "hpstudy/__init__.py"):
        (here / name).write_text("raise SystemExit('imported from the current folder')\n")
    expected = run_in(tmp_path, tiny_file(), tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = worker_environment(1)["PYTHONPATH"]
    assert "" not in found.split(os.pathsep) or found == ""
    monkeypatch.delenv("PYTHONPATH")
    done = run_in(here, tiny_file(), tmp_path / "runs")
    assert (expected.returncode, done.returncode) == (0, 0), done.stderr
    environments = [
        json.loads((tmp_path / at / "tiny" / "environment.json").read_text()) for at in ("elsewhere", "runs")
    ]
    assert environments[0] == environments[1]
    assert len(environments[0]["code_sha256"]) == 64


@pytest.mark.parametrize("name", PINNING)
def test_a_variable_that_pins_cores_does_not_reach_the_workers_and_is_named(
    tiny: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "0" if "AFFINITY" in name else "true")
    watch = Watch()
    store = run_here(tiny(replace={"trials = 5": "trials = 1"}), tmp_path, watch=watch)
    assert store.read_json("environment.json")["cores"] == len(os.sched_getaffinity(0))
    assert f"{name} would pin every training to the same cores, so workers do not get it" in watch.lines


def test_a_copy_of_the_study_gives_the_same_curves(tiny: Callable[..., Study], begun: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(begun, tmp_path / "copy"))
    assert curves(run_here(tiny(), copy)) == curves(run_here(tiny(), begun))
