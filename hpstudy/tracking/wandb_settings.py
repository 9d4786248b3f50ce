"""Where and how runs go to Weights & Biases: mode, project, entity, login."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from hpstudy.errors import UserError

if TYPE_CHECKING:
    from hpstudy.study import Study

Mode = Literal["online", "offline", "disabled"]
ModeFlag = Literal["auto", "online", "offline", "disabled"]

WANDB_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
WANDB_MODES |= {"run": "online", "shared": "online", "dryrun": "offline"}  # older names
REDIRECTS = (
    *("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_NAME"),
    *(
        "WANDB_CONFIG_PATHS",
        "WANDB_RUN_GROUP",
        "WANDB_JOB_TYPE",
        "WANDB_LAUNCH",
        "WANDB_LAUNCH_CONFIG_PATH",
        "WANDB_ARTIFACTS",
    ),
)
NO_LOGIN = "W&B: no key or login here; set WANDB_API_KEY or run `wandb login`"


def resolve_mode(flag: ModeFlag) -> Mode:
    """The mode that --wandb means. `auto` follows WANDB_MODE; without it, online with a key or login, else offline.

    Never prompts. Raises UserError if WANDB_MODE is not a mode.
    """
    if flag != "auto":
        return flag
    asked = os.environ.get("WANDB_MODE")
    if asked:
        if asked not in WANDB_MODES:
            raise UserError(f'WANDB_MODE: must be one of {", ".join(WANDB_MODES)}, but got "{asked}"; or pass --wandb')
        return WANDB_MODES[asked]
    return "online" if _may_have_login() else "offline"


def drop_redirects() -> list[str]:
    """Removes the variables with which an agent or a launcher redirects wandb from this process, and names them.

    With them two runs of a study would become one on the server.
    """
    return [name for name in REDIRECTS if os.environ.pop(name, None)]


def require_login(what: str = "") -> None:
    """Raises UserError without a key or login, whatever WANDB_MODE says; `what` begins the message."""
    if not _may_have_login():
        raise UserError(f"{what}{NO_LOGIN}")


def _may_have_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return find_login()[0]
    except Exception:  # a malformed key, or settings that do not load: going online reports it and falls back
        return True


def find_login() -> tuple[bool, str]:
    """Whether there is a key or a login for W&B's server, and the server's address. Never prompts."""
    import wandb  # here: it takes half a second
    from wandb.sdk.lib import wbauth

    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url  # without `silent` it greets on stderr
    return bool(wbauth.authenticate_session(host=host, source="hpstudy", prompt=False, update_session=False)), host


def resolve_project(project: str, entity: str | None) -> tuple[str, str | None]:
    """The project and entity that runs go to. WANDB_PROJECT and WANDB_ENTITY override the study's own."""
    return os.environ.get("WANDB_PROJECT") or project, os.environ.get("WANDB_ENTITY") or entity


def study_config(study: Study) -> dict[str, Any]:
    """The study's fixed values, which the config of each of its runs has."""
    spec = study.spec
    return {
        "question": study.question,
        "model": asdict(spec.model),
        "corpus": spec.corpus,
        "tokenizer": spec.tokenizer,
        "context": spec.context,
        "precision": spec.precision,
        "threads": spec.threads,
        **({"ladder": study.part_of} if study.part_of else {}),
    }
