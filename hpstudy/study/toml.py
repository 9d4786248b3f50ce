"""Values as TOML spells them, and whole files of them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile("[A-Za-z0-9_-]+")  # a key without quotes


def value(item: object) -> str:
    """A value as TOML spells it in one line; a table is `{ key = ... }`."""
    match item:
        case Mapping():
            return (
                f"{{ {', '.join(f'{_key(key)} = {value(inner)}' for key, inner in item.items())} }}" if item else "{}"
            )
        case list() | tuple():
            return f"[{', '.join(map(value, item))}]"
        case bool():
            return "true" if item else "false"
        case int() | float():
            return repr(item)  # inf and nan are TOML too
        case datetime.date() | datetime.time():
            return item.isoformat()
        case _:
            return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")


def document(data: Mapping[str, Any], heading: Sequence[str] = ()) -> str:
    """A file: the heading as comments, then the values, then a section for each table."""
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [f"{_key(key)} = {value(item)}" for key, item in data.items() if not isinstance(item, Mapping)]
    for name, table in data.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {value(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else value(key)
