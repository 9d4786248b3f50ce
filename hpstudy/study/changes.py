"""Whether a study's file still asks what it asked when the study began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpstudy.study.load import parse_study

PLAINEST = """
question = "What are the defaults?"
format = 1
trainer = { model = "gpt-2x64", tokens = 1_000_000 }
search = {}
"""


GROWING = ("budget.trials", "confirm.seeds")  # in a study that has begun


def question_sha256(resolved: Mapping[str, Any]) -> str:
    """The hash of all that a study fixed when it began: its `Study.resolved()` but for what may grow."""
    fixed = {key: value for key, value in resolved.items() if key not in GROWING}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def changed_keys(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`[search] lr: was ..., is ...` for each key in which two `Study.resolved()` differ; empty when they agree.

    More trials, and more seeds behind the old ones, are no difference. Nor is a key that `frozen` lacks and `now` has
    at its default: the study began under an hpstudy that did not know that key.
    """
    defaults = parse_study(PLAINEST, name="plainest", path=Path("plainest.toml")).resolved()
    return [
        f"{_place(key)}: was {_shown(frozen, key)}, is {_shown(now, key)}"
        for key in dict.fromkeys([*frozen, *now])
        if _differs(key, frozen if key in frozen else defaults, now) and not _grew(key, frozen, now)
    ]


def _differs(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return key not in before or key not in now or before[key] != now[key]


def _grew(key: str, frozen: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key not in GROWING or key not in frozen or key not in now:
        return False
    if key == "budget.trials":
        return bool(now[key] >= frozen[key])
    return bool(now[key][: len(frozen[key])] == frozen[key])


def _place(key: str) -> str:
    section, dot, rest = key.partition(".")
    return f"[{section}] {rest}" if dot else section


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
