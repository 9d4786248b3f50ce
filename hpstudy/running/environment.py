"""What a study's numbers depend on besides its file. Frozen when the study starts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpstudy.errors import UserError
from hpstudy.study import Study

FROZEN = ("device", "device_name", "cpu_capability", "precision", "threads", "ranks", "torch", "corpus_digest")
PROPOSING = ("optuna", "numpy")  # packages that proposals and verdicts depend on
KINDS = "kinds"  # the key of environment.json that says what other kinds of machines have trained too
ACCEPTED = "accepted"  # the key of environment.json that lists the changes under which a study was resumed
HERE = Path(__file__).parent
PACKAGES = ("hpstudy", "optuna", "wandb", "tiktoken", "numpy", "pandas")


def describe(worker: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's environment, with package versions and the git commit of a checkout."""
    return {**worker, "packages": {name: version(name) for name in PACKAGES}, "git_commit": _git_commit()}


def differences(frozen: Mapping[str, Any], worker: Mapping[str, Any]) -> list[str]:
    """What training, proposals or verdicts depend on and has changed, each as "torch was 2.11, is 2.13"."""
    now = {**worker, **{name: version(name) for name in PROPOSING}}
    began = {**frozen, **{name: _packages(frozen).get(name) for name in PROPOSING}}
    keys = [key for key in (*FROZEN, *PROPOSING) if began.get(key) is not None]  # other versions may know fewer
    return [f"{key} was {began[key]}, is {now[key]}" for key in keys if began[key] != now[key]]


def kind_of(worker: Mapping[str, Any]) -> str:
    """The name of a kind of machine: two of one kind give the same numbers to the last bit."""
    values = json.dumps([worker.get(key) for key in FROZEN])
    return f"{worker['device_name']}, torch {worker['torch']} ({sha256(values.encode()).hexdigest()[:6]})"


def with_kind(frozen: Mapping[str, Any], worker: Mapping[str, Any]) -> dict[str, Any]:
    """The environment file with what a worker's kind differs in from the kind with which the study began."""
    known = frozen.get(KINDS)
    kinds = known if isinstance(known, dict) else {}
    return {**frozen, KINDS: {**kinds, kind_of(worker): differences(frozen, worker)}}


def inexact(study: Study, worker: Mapping[str, Any]) -> list[str]:
    """Why a run of the study need not have the same bits if it is trained again; empty if it must."""
    found = []
    if study.budget.pack != 1:
        found.append("[budget] pack: it may have been trained with others as one model, and is trained alone now")
    if study.mixed:
        found.append("[cluster] mixed: machines of several kinds round differently")
    if not worker.get("deterministic", True):
        found.append("[trainer] deterministic: is false, so a GPU need not repeat to the last bit")
    return found


def accepted_changes(environment: Mapping[str, Any]) -> list[str]:
    """The changes under which a study was resumed, each as "torch was 2.11, is 2.13"."""
    found = environment.get(ACCEPTED)
    return [str(change) for change in found] if isinstance(found, list) else []


def other_kinds(environment: Mapping[str, Any]) -> dict[str, list[str]]:
    """{kind: what differs} of the kinds of machines that trained besides the first."""
    found = environment.get(KINDS)
    return {str(kind): list(map(str, changes)) for kind, changes in found.items()} if isinstance(found, dict) else {}


def code_changes(frozen: Mapping[str, Any], worker: Mapping[str, Any]) -> list[str]:
    """How a worker's hpstudy differs from that with which the study began, as `differences`; empty if it does not.

    Each version trains, proposes and judges as those before it, which its tests hold, but may round otherwise.
    """
    now = describe(worker)
    known = "code_sha256" if frozen.get("code_sha256") else "git_commit"  # 0.1.0 knew the commit only
    if not frozen.get(known) or frozen[known] == now[known]:
        return []
    return [f"hpstudy was {_code(frozen)}, is {_code(now)}"]


def is_of_several_codes(environment: Mapping[str, Any]) -> bool:
    """Whether other code than that with which the study began has trained some of its runs."""
    return any(change.startswith("hpstudy was ") for change in accepted_changes(environment))


def with_code(frozen: Mapping[str, Any], worker: Mapping[str, Any]) -> dict[str, Any]:
    """The environment file once a worker trains: a change of hpstudy's own code is recorded, not refused."""
    accepted = accepted_changes(frozen)
    new = [change for change in code_changes(frozen, worker) if change not in accepted]
    return {**frozen, ACCEPTED: accepted + new} if new else dict(frozen)


def _code(environment: Mapping[str, Any]) -> str:
    """Names the code of an environment: version, commit and hash, as far as they are known."""
    known = {"": _packages(environment).get("hpstudy")}
    known |= {"commit ": environment.get("git_commit"), "code ": environment.get("code_sha256")}
    return " ".join(f"{what}{str(value)[:12]}" for what, value in known.items() if value)


def _packages(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    found = environment.get("packages")
    return found if isinstance(found, dict) else {}


def admitted(frozen: Mapping[str, Any], worker: Mapping[str, Any], folder: str, *, accept: bool) -> dict[str, Any]:
    """The environment file of a study that resumes on a worker, with every accepted change.

    Raises UserError for changes that would mix two kinds of numbers in one study, unless they are accepted.
    """
    accepted = accepted_changes(frozen)
    found = [change for change in differences(frozen, worker) if change not in accepted]
    if found and not accept:
        raise UserError(
            f"{folder}: the study began in another environment: {'; '.join(found)}. Its numbers would not be "
            "comparable; resume it where it began, start again with another --runs folder, or resume here with "
            "--accept-environment, which every report then says"
        )
    return {**frozen, ACCEPTED: accepted + found} if found else dict(frozen)


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that hpstudy runs from, whatever the current folder is."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
