"""A user without a W&B login, and a W&B server on 127.0.0.1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.loopback import Loopback
from tests.helpers.wandb_rows import KEY, end_session


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user without login or settings. wandb's session ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield tmp_path
    end_session()


@pytest.fixture
def loopback() -> Loopback:
    """The server's kind. Test modules that need more answers override it."""
    return Loopback()


@pytest.fixture
def server(home: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """The server that wandb is configured for, with a key."""
    with loopback as server:
        monkeypatch.setenv("WANDB_DIR", str(home))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        end_session()  # wandb reads its settings once a session
        yield server
        server.status = None  # nothing that is still open may wait for an answer
        end_session()
