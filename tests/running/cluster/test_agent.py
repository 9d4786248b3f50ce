"""An agent's own folder on a node that does not see the driver's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpstudy.running.cluster.agent import Agent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSTUDY_CACHE", str(tmp_path / "cache"))


def folder_of(agent: Agent, tmp_path: Path) -> Path:
    return agent.meet(tmp_path / "absent", "token", "id").folder


def test_a_folder_that_holds_the_drivers_token_is_used_itself(tmp_path: Path):
    (tmp_path / "token").touch()
    node = Agent(0).meet(tmp_path, "token", "id")
    assert (node.sees_folder, node.folder) == (True, tmp_path)


def test_the_checkpoint_of_a_killed_agent_is_removed_by_the_next_but_not_its_log(tmp_path: Path):
    alive, later = Agent(1), Agent(2)
    folders = [folder_of(alive, tmp_path)]
    meet = "Agent(0).meet(Path('absent'), 'token', 'id')"
    code = f"from hpstudy.running.cluster.agent import *; node = {meet}; print(node.folder, flush=True); os._exit(1)"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    folders.append(Path(killed.stdout.strip()))
    for folder in folders:
        (folder / "checkpoint.pt").write_text("state")
        (folder / "worker-0.log").write_text("last line")
    folder_of(later, tmp_path)
    assert {path.name for path in folders[1].iterdir()} == {"worker-0.log"}
    assert {path.name for path in folders[0].iterdir()} == {"checkpoint.pt", "worker-0.log", "lock"}
    for agent in (alive, later):
        agent.end()


def test_an_agent_that_ends_leaves_nothing_but_a_log_that_holds_something(tmp_path: Path):
    agent = Agent(0)
    folder = folder_of(agent, tmp_path)
    assert folder_of(agent, tmp_path) == folder  # asked again because the answer was lost
    agent.put(folder / "checkpoint.pt", 0, b"state")
    assert agent.get(folder / "checkpoint.pt", 2, 100) == b"ate"
    (folder / "worker-0.log").touch()
    agent.end()
    assert not folder.exists()
