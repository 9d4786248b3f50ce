"""The failures that users see as messages, with their exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")  # a terminal obeys these instead of showing them


class HpstudyError(Exception):
    """A failure that the user sees as a message, never as a traceback."""

    exit_code = 1


class UserError(HpstudyError):
    """The user's input is wrong. Each problem is one line that names place, value, rule and remedy.

    Control characters in quoted values are shown as escapes.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        listed = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(CONTROLS.sub(_escaped, problem) for problem in listed)
        super().__init__("\n".join(self.problems))


class MachineError(HpstudyError):
    """The machine failed. Nothing recorded is lost, and the message ends with what to do next."""


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "lr"?` for the nearest known word, or an empty string when none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f'; did you mean "{near[0]}"?' if near else ""
