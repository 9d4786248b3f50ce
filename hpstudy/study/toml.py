"""Values as TOML spells them, and whole files of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def value(item: object) -> str:
    """A value as TOML spells it in one line; a table is `{ key = ... }`."""
    if isinstance(item, Mapping):
        return f"{{ {', '.join(f'{key} = {value(inner)}' for key, inner in item.items())} }}" if item else "{}"
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(value, item))}]"
    return json.dumps(item, ensure_ascii=False)


def document(data: Mapping[str, Any], heading: Sequence[str] = ()) -> str:
    """A file: the heading as comments, then the values, then a section for each table."""
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [f"{key} = {value(item)}" for key, item in data.items() if not isinstance(item, Mapping)]
    for name, table in data.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {value(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"
