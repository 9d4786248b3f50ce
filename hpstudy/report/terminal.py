"""The last screen of `run` and `confirm`: what a study found, in the lines of a small terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from hpstudy.analysis.answers import SPEED, Contrast, by_speed, deciding, found_nothing
from hpstudy.analysis.drift import apart, drift
from hpstudy.analysis.foreseen import savings
from hpstudy.analysis.in_short import Tone, best_trial, found_name, in_short, opponent, shared_digits
from hpstudy.analysis.measured import ONE_SEED_DIGITS, Measured, measured
from hpstudy.analysis.numbers import duration, interval_decimals, listed, p_text, plain, short, with_sign
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import closest, closest_notes
from hpstudy.analysis.state import State
from hpstudy.report.tables import interval
from hpstudy.running.confirm import read_selections
from hpstudy.statistics.race import Answer
from hpstudy.tracking.wandb_sink import whereabouts

GAP = 3  # characters between columns
LEAST_LABEL = 10  # characters
PROMPT_LINES = 2  # of a terminal's height: the command before and the prompt after
MARKS: dict[Tone, tuple[str, str]] = {"good": ("✓", "green"), "bad": ("✗", "red"), "open": ("·", "yellow")}
"""Tone -> its mark and colour."""
SPELLED = {"✓": "+", "✗": "x", "·": "-", "×": "x", "−": "-", "→": "->", "±": "+-"}
"""Characters that a stream may not have -> what stands for them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    label: str
    baseline: str
    tuned: str
    note: str


def last_screen(
    results: StudyResults, now: State, page: Path, *, width: int, height: int | None = None, encoding: str = "utf-8"
) -> Text:
    """What the study found, its answer, and where to look next. `now` is where it stands, `page` its report.

    Its own text fits `width`; a path or a command is never cut. With a `height`, keys that do not fit are counted.
    """
    question = textwrap.wrap(results.study.question, width - 2, initial_indent="  ", subsequent_indent="  ")
    answer = textwrap.wrap(_spelled(_answer(results, now), encoding), width - 4)
    region = _region(results, width, encoding)
    links = list(_links(results, now, page, width))
    cautions, saved = _cautions(results), savings(results)
    drifted = _drift(results, width)
    around = len(question) + len(answer) + len(region) + len(drifted) + bool(saved) + bool(cautions) + len(links)
    others = around + 4  # title, headings, two empty lines
    shown = _table(results, width, None if height is None else height - PROMPT_LINES - others, encoding)
    mark, color = MARKS[in_short(results, now).tone]
    mark = _spelled(mark, encoding)
    lines = [
        Text.assemble("  ", (results.study.name, "bold"), GAP * " ", _spelled(_size(results), encoding)),
        *(Text(line, style="dim" if number == 0 else "") for number, line in enumerate(shown)),
        Text(),
        *map(Text, question),
        Text.assemble("  ", (mark, f"bold {color}"), " ", (answer[0], "bold")),
        *(Text(f"    {line}", style="bold") for line in answer[1:]),
    ]
    lines += map(Text, [*region, *drifted])
    if saved:
        said = f"foresight stopped {saved.stopped} of {saved.ended} trials and saved {saved.share:.0%} of the tokens"
        lines.append(Text(f"    {said}", style="dim"))
    if cautions:
        lines.append(Text(f"    {listed(cautions)}: see How sure in the report", style="yellow"))
    return Text("\n").join([*lines, Text(), *map(Text, links)])


def _size(results: StudyResults) -> str:
    """`18 runs · 5.4M tokens · 47s of training · cpu bf16`."""
    ended = results.trials[results.trials["outcome"].notna()]
    runs, tokens, seconds = len(ended), float(ended["tokens"].sum()), float(ended["train_seconds"].sum())
    device = [str(results.environment[key]) for key in ("device", "precision") if key in results.environment]
    counted = [f"{runs} run{'s' if runs != 1 else ''}", f"{short(tokens)} tokens", f"{duration(seconds)} of training"]
    return " · ".join([*counted, *([" ".join(device)] if device else [])])


def _table(results: StudyResults, width: int, height: int | None, encoding: str) -> list[str]:
    """The headings and the rows. Leaves out errors, then units, if lines are wider than `width`."""
    lines: list[str] = []
    for errors, units in ((True, True), (False, True), (False, False)):
        measures, changes = list(_measures(results, errors)), list(_changes(results, units))
        room = len(changes) if height is None else max(height - len(measures), 1)
        more = len(changes) - room + 1 if len(changes) > room else 0
        kept = changes[: len(changes) - more]
        lines = _aligned([_headings(results), *measures, *kept], encoding)
        if more:
            lines.append(f"  and {more} more keys in the report")
        if max(map(len, lines)) <= width:
            break
    return lines


def _aligned(rows: Sequence[Row], encoding: str) -> list[str]:
    cells = [[_spelled(text, encoding) for text in (row.label, row.baseline, row.tuned)] for row in rows]
    widths = [GAP + max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = max(widths[0], LEAST_LABEL + GAP)
    texts = ("".join(map(str.ljust, texts, widths)) for texts in cells)
    return [f"  {text}{_spelled(row.note, encoding)}".rstrip() for text, row in zip(texts, rows, strict=True)]


def _headings(results: StudyResults) -> Row:
    found, contrasts = results.tuned, results.verdict().contrasts
    if not results.study.space:
        seeds = measured(results)[0].seeds
        return Row("", opponent(results.study), "", f"{seeds} seed{'s' if seeds != 1 else ''}" if seeds else "")
    if contrasts:
        return Row("", opponent(results.study), found_name(results), _seeds(contrasts[0]))
    return Row("", opponent(results.study), *((found_name(results), "one seed each") if found else ("", "")))


def _seeds(c: Contrast) -> str:
    return f"{c.n} seed pairs" if c.design == "paired" else f"{c.n} and {c.baseline_n} seeds"


def _measures(results: StudyResults, errors: bool) -> Iterator[Row]:
    """The loss and, if it is an objective, the speed; the one that decides is first."""
    study, contrasts = results.study, results.verdict().contrasts
    baseline, best = measured(results)
    digits = shared_digits(baseline, *([best] if best else []))
    first = contrasts[0] if contrasts else None
    loss = Row(
        "val loss",
        _loss(baseline, digits, errors),
        _loss(best, digits, errors),
        _difference(first, baseline, best),
    )
    if SPEED not in study.metrics:
        yield loss
        return
    speed = Row("tok/s", _speed(baseline), _speed(best), _ratio(first, baseline, best))
    yield from (speed, loss) if by_speed(study) else (loss, speed)


def _loss(side: Measured | None, digits: int, errors: bool) -> str:
    if side is None:
        return ""
    if side.val_loss is None or side.diverged:
        return str(side)
    error = f" ±{side.se:.{digits}f}" if errors and side.se is not None else ""
    return f"{side.val_loss:.{digits}f}{error}"


def _speed(side: Measured | None) -> str:
    return "" if side is None else plain(side.tok_per_sec)


def _difference(c: Contrast | None, baseline: Measured, best: Measured | None) -> str:
    if c is not None:
        return interval(c)
    if best is None or best.val_loss is None or baseline.val_loss is None:
        return ""
    return with_sign(best.val_loss - baseline.val_loss, ONE_SEED_DIGITS)


def _ratio(c: Contrast | None, baseline: Measured, best: Measured | None) -> str:
    if c is not None and c.speed is not None:
        digits = interval_decimals(c.speed.low, c.speed.high)
        return f"×{c.speed.ratio:.{digits}f} [{c.speed.low:.{digits}f}, {c.speed.high:.{digits}f}]"
    if best is None or not best.tok_per_sec or not baseline.tok_per_sec:
        return ""
    return f"×{best.tok_per_sec / baseline.tok_per_sec:.3g}"


def _changes(results: StudyResults, units: bool) -> Iterator[Row]:
    for change in results.tuned.changes if results.tuned else ():
        key, baseline, tuned, effect = change.cells
        yield Row(key, baseline, tuned, effect if units else effect.removesuffix(f" {change.unit}"))


def _answer(results: StudyResults, now: State) -> str:
    """The answer in one line, with the p value of the test that decided."""
    study, verdict, in_one_line = results.study, results.verdict(), in_short(results, now)
    if not study.space:
        return in_one_line.sentence
    if not verdict.contrasts:
        return verdict.headline
    first = verdict.contrasts[0]
    words, p = _words(results, first), _p(results, first)
    lead = verdict.reply is not None or deciding(first, study) is Answer.UNDECIDED
    said = f"{in_one_line.badge}: {words}" if lead else words[0].upper() + words[1:]
    return f"{said} ({p_text(p)})" if p is not None else said


def _words(results: StudyResults, c: Contrast) -> str:
    study = results.study
    if found_nothing(c, study):
        worse = "slower" if by_speed(study) else "worse"
        return f"the {best_trial(results.fresh.num_trials)} is {worse}"
    match deciding(c, study):
        case Answer.EQUIVALENT:
            return f"the best values found are as good, within {c.margin:.2g} nats"
        case Answer.UNDECIDED:
            what = "speeds" if by_speed(study) else "losses"
            return f"{c.n} seeds a side cannot tell the {what} apart"
        case answer:
            return f"the {'tuned values' if found_name(results) == 'tuned' else 'best values found'} are {answer}"


def _p(results: StudyResults, c: Contrast) -> float | None:
    if by_speed(results.study):
        return c.speed.p if c.speed else None
    return c.level


def _region(results: StudyResults, width: int, encoding: str) -> list[str]:
    """How far the found values may move, in the lines of the screen."""
    if results.region is None:
        return []
    sentence = _spelled(results.region.sentence(opponent(results.study)), encoding)
    return textwrap.wrap(sentence, width, initial_indent="    ", subsequent_indent="    ")


def _drift(results: StudyResults, width: int) -> list[str]:
    """How the machine's speed changed during the search, in the lines of the screen."""
    found = drift(results)
    return textwrap.wrap(f"drift: {found}", width, initial_indent="    ", subsequent_indent="    ") if found else []


def _cautions(results: StudyResults) -> list[str]:
    """What lowers the trust in the answer, in a few words each."""
    contrasts, drifted = results.verdict().contrasts, drift(results)
    found = {
        "uneven runs": any(c.uneven for c in contrasts),
        "diverged runs": any(c.diverged for c in contrasts),
        "runs left out": any(c.left_out for c in contrasts),
        "an extended search": bool(contrasts and results.store and len(read_selections(results.store)) > 1),
        "a changed environment": bool(results.accepted_changes),
        "several kinds of machines": bool(results.other_kinds),
        "a drift larger than the lead": bool(drifted and drifted.warning),
        "sides that trained apart": bool(apart(results)),
    }
    return [what for what, is_so in found.items() if is_so]


def _links(results: StudyResults, now: State, page: Path, width: int) -> Iterator[str]:
    assert results.store is not None
    if said := closest(results):
        yield from _wrapped(" ".join([said, *closest_notes(results)]), width, label="rules")
    for what, value in (
        ("report", str(page)),
        ("W&B", whereabouts(results.store.root, results.name)),
        ("next", now.command),
    ):
        yield f"    {what:<8}{value}"
    yield from _wrapped(now.advice, width)


def _wrapped(text: str, width: int, label: str = "") -> list[str]:
    """A sentence beside the links, in as many lines as it takes."""
    indent = f"    {label:<8}"
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=12 * " ", break_on_hyphens=False)


def _spelled(text: str, encoding: str) -> str:
    """The text in characters that the stream has."""
    for character, spelled in SPELLED.items():
        try:
            character.encode(encoding)
        except (UnicodeEncodeError, LookupError):
            text = text.replace(character, spelled)
    return text
