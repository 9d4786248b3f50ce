"""Where runs go on W&B: the mode, the login, the project and the entity."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.tracking.wandb_settings import Mode, require_login, resolve_mode, resolve_project
from tests.helpers.wandb_rows import KEY


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_auto_follows_wandb_mode_then_the_key(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize("key", [KEY, "malformed"])
def test_auto_is_online_with_a_login(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (home / "netrc").write_text(f"machine 127.0.0.1:9 login user password {key}\n")
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize("flag", ["online", "offline", "disabled"])
def test_a_flag_comes_before_wandb_mode(monkeypatch: pytest.MonkeyPatch, flag: Mode) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(flag) == flag


def test_an_unknown_wandb_mode_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r'WANDB_MODE: must be one of online, .*but got "ofline"'):
        resolve_mode("auto")


@pytest.mark.usefixtures("home")
def test_a_required_login_is_missed_with_a_message_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        require_login("--save: ")
    assert str(caught.value) == "--save: W&B: no key or login here; set WANDB_API_KEY or run `wandb login`"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    require_login("--save: ")
    monkeypatch.setenv("WANDB_MODE", "offline")  # how runs go, not whether they may be sent later
    require_login("--save: ")


@pytest.mark.usefixtures("home")
def test_the_environment_names_the_project_before_the_study_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_project("mine", None) == ("mine", None)
    assert resolve_project("mine", "me") == ("mine", "me")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    assert resolve_project("mine", "me") == ("ours", "us")
