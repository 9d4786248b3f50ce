"""No file of a store is written through a symbolic link, through which a foreign file would be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.errors import MachineError
from hpstudy.files import write_atomic
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from hpstudy.training.checkpoint import Checkpoint, TrainingState, save_checkpoint
from tests.helpers.running import run_here
from tests.helpers.samples import header, record


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file that is not the study's."""
    path = tmp_path / "foreign.txt"
    path.write_text("not the study's")
    return path


def test_a_lock_that_is_a_link_is_refused_by_name(tmp_path: Path, foreign: Path) -> None:
    store = RunStore(tmp_path / "store")
    store.create()
    (store.root / ".lock").symlink_to(foreign)
    with (
        pytest.raises(MachineError, match=rf"^{store.root}/\.lock: cannot be written \(.*symbolic links\)"),
        store.locked(),
    ):
        pytest.fail("locked through a link")
    assert foreign.read_text() == "not the study's"


def test_steps_that_are_a_link_are_refused_by_name(tmp_path: Path, foreign: Path) -> None:
    store = RunStore(tmp_path)
    store.begin(header()).close()
    steps = store.folder("search-0007") / "steps.jsonl"
    steps.unlink()
    steps.symlink_to(foreign)
    with pytest.raises(MachineError, match=rf"^{steps}: cannot be written"):
        store.begin(header()).append(record(1))
    assert foreign.read_text() == "not the study's"


def test_a_workers_log_that_is_a_link_is_not_written(tiny: Callable[..., Study], tmp_path: Path, foreign: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "worker-0.log").symlink_to(foreign)
    with pytest.raises(MachineError, match=r"worker-0\.log: cannot be written"):
        run_here(tiny(), tmp_path / "runs")
    assert foreign.read_text() == "not the study's"


def test_an_atomic_write_replaces_a_link_and_leaves_its_target(tmp_path: Path, foreign: Path) -> None:
    path = tmp_path / "a.json"
    path.symlink_to(foreign)
    write_atomic(path, "new")
    assert (path.read_text(), path.is_symlink()) == ("new", False)
    assert foreign.read_text() == "not the study's"


def test_a_checkpoint_replaces_a_link_and_leaves_its_target(tmp_path: Path, foreign: Path) -> None:
    part = tmp_path / "checkpoint.pt.part"
    part.symlink_to(foreign)
    state = TrainingState(step=1, weights={}, optimizer={})
    save_checkpoint(part, Checkpoint(fingerprint="f", bad_steps=0, state=state))
    assert not part.is_symlink()
    assert foreign.read_text() == "not the study's"


def test_a_journal_that_is_a_link_is_refused_by_name(tiny: Callable[..., Study], tmp_path: Path, foreign: Path) -> None:
    run_here(tiny(replace={"trials = 5": "trials = 1"}), tmp_path / "runs")
    journal = tmp_path / "runs" / "tiny" / "optuna.journal"
    journal.rename(tmp_path / "kept")
    journal.symlink_to(foreign)
    with pytest.raises(MachineError, match=rf"^{journal}: is a link, .* put the file itself here"):
        run_here(tiny(), tmp_path / "runs")
    assert foreign.read_text() == "not the study's"
    (tmp_path / "kept").replace(journal)
    run_here(tiny(), tmp_path / "runs")
