"""A ladder's page: the answer, the laws with what they predict, the check, the rungs, and the target."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hpstudy.analysis.in_short import InShort, Tone, opponent
from hpstudy.analysis.ladder import Answer, LadderResults
from hpstudy.analysis.ladder_trends import (
    answer_badge,
    gain_sentence,
    next_step,
    target_file,
    what_changed,
    written,
)
from hpstudy.analysis.measured import measured
from hpstudy.analysis.numbers import plain, rough, short
from hpstudy.analysis.rungs import Rung, raw_keys, shown_key
from hpstudy.files import command, write_atomic
from hpstudy.report.html import render
from hpstudy.report.images import draw
from hpstudy.report.ladder_figures import KEY_LEGEND, check_figures, compute_figures, key_figures, ladder_figures
from hpstudy.report.ladder_screen import ladder_screen
from hpstudy.report.markdown import opened_markdown
from hpstudy.report.sections import Opening, Section
from hpstudy.report.tables import Table
from hpstudy.study import num_trials

__all__ = ["ladder_figures", "ladder_screen", "write_ladder_report"]

TONES: Mapping[Answer, Tone] = {"holds": "good", "fails": "bad", "undecided": "open"}


def write_ladder_report(results: LadderResults, folder: Path, *, images: bool = False) -> Path:
    """Writes `index.html` and `report.md` atomically, and returns the path of the page.

    With `images`, `report.md` shows the figures, which are written as SVG beside it; raises as `images.draw` does.
    """
    name, question = results.ladder.name, results.ladder.question
    opening, parts = ladder_opening(results), ladder_sections(results, folder)
    files = draw({figure.title: figure for part in parts for figure in part.figures}, folder) if images else {}
    write_atomic(folder / "report.md", opened_markdown(name, question, opening, parts, files))
    page = folder / "index.html"
    write_atomic(page, render(name=name, question=question, opening=opening, sections=parts))
    return page


def ladder_opening(results: LadderResults) -> Opening:
    """The answer with a sentence for each key; before the check ends, what is done. Then what comes next."""
    now, sentences = next_step(results), results.sentences()
    if results.answer is None:
        short = InShort(badge=now.badge, tone="open", sentence=now.done)
        return Opening(short=short, text=tuple(sentences[1:]), advice=now.advice, command=now.command)
    badge = answer_badge(results.answer)
    verdict = sentences[0].removeprefix(f"{badge}: ")
    sentence = f"{verdict[0].upper()}{verdict[1:]}"
    return Opening(
        short=InShort(badge=badge, tone=TONES[results.answer], sentence=sentence),
        text=tuple(sentences[1:]),
        advice=now.advice,
        command=now.command,
    )


def ladder_sections(results: LadderResults, folder: Path) -> list[Section]:
    """The parts of the page whose folder this is, as far as the ladder has come."""
    keys, compute = tuple(key_figures(results)), tuple(compute_figures(results))
    said = gain_sentence(results)
    parts = [
        Section(title="The best values against size", id="laws", legend=KEY_LEGEND, figures=keys) if keys else None,
        Section(title="The gain with scale", id="gains", text=(said,) if said else (), figures=compute)
        if compute
        else None,
        _check(results),
        Section(title="Rungs", id="rungs", tables=(rungs_table(results, folder),)) if results.rungs else None,
        Section(title="What did not transfer", id="transfer", text=tuple(what_changed(results)))
        if results.laws
        else None,
        _target(results),
    ]
    return [part for part in parts if part is not None]


def _check(results: LadderResults) -> Section | None:
    check = results.ladder.check
    if check is None or not results.regrets:
        return None
    text = [
        f"{check.label} has {short(check.weights)} weights and trains on {short(check.tokens)} tokens, "
        f"{results.factors(check)} beyond the largest rung. The laws have not seen it."
    ]
    return Section(
        title="The check", id="check", text=tuple(text), figures=tuple(check_figures(results)),
        tables=(sides_table(results),),
    )  # fmt: skip


def sides_table(results: LadderResults) -> Table:
    """The check's sides: their values, their loss, and what they lose to the search."""
    assert results.check is not None
    keys = raw_keys([*results.check.study.space])
    rows = []
    for each in results.regrets:
        values = (plain(getattr(each.hparams, key)) for key in keys)
        loss = "-" if each.loss is None else f"{each.loss:.4f}"
        regret = "0, by definition" if each is results.regrets[0] else str(each)
        rows.append((results.side_name(each.side), *values, loss, regret, str(each.seeds)))
    return Table(
        title="Sides of the check",
        header=("", *keys, "val loss", "regret [95%]", "seeds"),
        rows=tuple(rows),
        note="Mean losses on fresh seeds and regrets in nats; a side's seeds are those that it shares with the search.",
    )


def rungs_table(results: LadderResults, folder: Path) -> Table:
    """A row for each rung and the check, linked to their own reports."""
    rungs = results.searched
    names = [rung.size.label if rung is not results.check else f"check {rung.size.label}" for rung in rungs]
    header = [
        "",
        "weights",
        "tokens",
        "per weight",
        "epochs",
        "trials",
        "best loss",
        f"{opponent(rungs[0].study)}'s loss",
    ]
    keys = [shown_key(key) for key in results.keys]
    stable = any(rung.stable_lr is not None for rung in rungs)
    rows = []
    for name, rung in zip(names, rungs, strict=True):
        size = rung.size
        seen = "-" if rung.epochs is None else rough(rung.epochs)
        rows.append(
            (
                name,
                *(short(size.weights), short(size.tokens), rough(size.tokens / size.weights), seen),
                str(num_trials(rung.study)),
                *_losses(rung),
                *(written(rung.estimate(key)) for key in results.keys),
                *([_stable(rung)] if stable else []),
            )
        )
    links = {
        name: os.path.relpath(rung.results.store.root / "report" / "index.html", folder)
        for name, rung in zip(names, rungs, strict=True)
        if rung.results.store is not None
    }
    return Table(
        title="",
        header=(*header, *keys, *(["largest stable lr"] if stable else [])),
        rows=tuple(rows),
        note="Best values by a surface through all trials of a rung, with 90% intervals. Best loss: of the search's "
        "winner, in nats, mean ± standard error on fresh seeds.",
        links=links,
    )


def _losses(rung: Rung) -> tuple[str, str]:
    theirs, ours = measured(rung.results)
    return str(ours) if ours else "-", str(theirs)


def _stable(rung: Rung) -> str:
    found = rung.stable_lr
    if found is None:
        return "-"
    value = rough(math.exp(found.value))
    return value if found.bounded else f"≥ {value}"


def _target(results: LadderResults) -> Section | None:
    target, path = results.ladder.target, target_file(results)
    if target is None or not results.laws:
        return None
    point, predicted = results.point(target), results.predicted(target)
    rows = [
        (
            shown_key(key),
            written(results.estimate(key, target)),
            plain(predicted.lr if shown_key(key) == "lr" else point[key]),
        )
        for key in results.laws
    ]
    text = [
        f"{target.label} has {short(target.weights)} weights and trains on {short(target.tokens)} tokens: the laws "
        f"extrapolate {results.factors(target)} beyond {results.ladder.rungs[-1].label}."
    ]
    if (stable := results.largest_lr(target)) is not None:
        rows.append(("largest stable lr", str(stable), ""))
    if path is not None:
        text.append(f"`{path}` is a study of it that tries the predicted values first, within these intervals.")
    return Section(
        title="The target",
        id="target",
        text=tuple(text),
        tables=(Table(title="Predicted", header=("", "law [90%]", "tried first"), rows=tuple(rows)),),
        commands=(command("run", path.stem, results.runs),) if path else (),
    )


def ladder_results_markdown(results: LadderResults) -> str:
    """A ladder's answer for a page of several: its report below a heading of the second level, without figures."""
    opening, parts = ladder_opening(results), ladder_sections(results, results.root / "report")
    text = opened_markdown(results.ladder.name, results.ladder.question, opening, parts, {})
    text = re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", text)  # links to reports of parts, which lie beside this one
    return re.sub("^#", "##", text, flags=re.MULTILINE) + f"\nWritten by `hpstudy results {results.ladder.name}`.\n"
