"""What a ladder has found, in the lines of a small terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from hpstudy.analysis.ladder import SEARCH, LadderResults
from hpstudy.analysis.ladder_trends import next_step, target_file
from hpstudy.analysis.numbers import rough, short
from hpstudy.analysis.rungs import Estimate, shown_key

MOST_LINES = 24
GAP = 2  # characters between columns


def ladder_screen(results: LadderResults, width: int) -> str:
    """The answer, each rung's best values, the regrets, and what comes next; a command is never cut."""
    now = next_step(results)
    answer = results.verdict if results.answer is not None else f"{now.badge}. {now.done}"
    wrapped = textwrap.wrap(answer, width - 2, break_on_hyphens=False)
    regrets = [*_regrets(results)]
    ends = [f"next      {now.command}"]
    if (path := target_file(results)) is not None:
        ends.insert(0, f"target    {path}")
    lines = [results.ladder.name, *(f"  {line}" for line in wrapped), ""]
    room = MOST_LINES - len(lines) - (len(regrets) + 1 if regrets else 0) - len(ends) - 1
    lines += [*_table(results, width, room), ""] if results.laws else []
    lines += [*regrets, ""] if regrets else []
    return "\n".join([*lines, *ends]) + "\n"


def _table(results: LadderResults, width: int, most: int) -> list[str]:
    """The rungs, the check and the target with their values; without intervals if these make lines too wide."""
    keys = list(results.laws)
    header = ("", "weights", "tokens", *map(shown_key, keys))
    for with_interval in (True, False):
        rows = [header, *_rows(results, keys, with_interval)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  " + (GAP * " ").join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if max(map(len, lines)) <= width:
            break
    if len(lines) > most:
        cut = len(lines) - most + 1
        lines[1 : 1 + cut] = [f"  {cut} smaller rungs are in the report"]
    return lines


def _rows(results: LadderResults, keys: Sequence[str], with_interval: bool) -> Iterator[tuple[str, ...]]:
    def text(found: Estimate | None) -> str:
        return "-" if found is None else str(found) if with_interval else rough(found.value)

    ladder = results.ladder
    for rung in results.rungs:
        yield (
            rung.size.label,
            *(short(rung.size.weights), short(rung.size.tokens)),
            *(text(rung.estimate(key)) for key in keys),
        )
    for role, size in (("check", ladder.check), ("target", ladder.target)):
        if size is not None and keys:
            sizes = short(size.weights), short(size.tokens)
            yield f"{role} {size.label}", *sizes, *(text(results.estimate(key, size)) for key in keys)
            if role == "check" and results.check is not None:
                yield "  measured", "", "", *(text(results.check.estimate(key)) for key in keys)


def _regrets(results: LadderResults) -> Iterator[str]:
    """`predicted  +0.004 [−0.001, +0.009]`, in nats above the check's own search."""
    sides = [each for each in results.regrets if each.side != SEARCH]
    names = [results.side_name(each.side) for each in sides]
    if sides:
        yield "  nats above the check's own search, with 95% intervals:"
    for name, each in zip(names, sides, strict=True):
        yield f"    {name:<{max(map(len, names))}}  {each}"
