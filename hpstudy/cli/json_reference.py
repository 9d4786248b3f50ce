"""The reference of what --json prints, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from hpstudy.analysis.overview import OVERVIEW
from hpstudy.cli.check_command import CHECK

INTRO = """\
## --json

For scripts, `--json` prints one JSON object in one line on stdout, and nothing else there; errors stay on stderr, with
the same exit codes. What is not known is null. `status NAME`, `report`, `run` and `confirm` print an object of these
keys, `status`, `compare` and `results` a list of them as `studies`:
"""
SEVERAL = """\
`compare` adds `incomparable` (sentences on why losses do not compare) and `page` (its path). `results` adds `cautions`
(sentences), `rules` (per published rule: on how many `studies`, the medians of its `rank` among so many `trials` and of
its `regret` in nats, and how many trials were `lost`, which means not complete), and to each study `p_adjusted`: the p
value of its answer, adjusted for all studies shown; or null.

`check` prints an object of these keys:
"""


def json_markdown() -> str:
    """The section on --json."""
    return "\n".join([INTRO, _table(OVERVIEW), SEVERAL, _table(CHECK)])


def _table(keys: Mapping[str, str]) -> str:
    lines = ["| key | value |", "|---|---|", *(f"| `{key}` | {doc} |" for key, doc in keys.items())]
    return "\n".join(lines) + "\n"
