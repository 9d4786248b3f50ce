"""Several studies side by side: their answers, the values of their winners, their differences, the curves of each."""

from __future__ import annotations

import html
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from hpstudy.analysis.answers import Contrast, Verdict, by_speed, deciding
from hpstudy.analysis.numbers import plain, short
from hpstudy.analysis.results import StudyResults
from hpstudy.files import write_atomic
from hpstudy.hparams import COORDINATES
from hpstudy.report.curve_figures import loss_curves
from hpstudy.report.curves import ShownRuns, evaluated, shown_runs
from hpstudy.report.html import render
from hpstudy.report.sections import Section
from hpstudy.report.style import ACCENT, INK, INK_BAND, MUTED, Figure, empty_plot, interval_row, inwards
from hpstudy.report.tables import Table, interval, mean_se, relative
from hpstudy.spec import MODELS, ModelShape
from hpstudy.study import Study

REPORT = Path("report", "index.html")  # of a study, from its run folder
NO_VERDICT = "one seed each, no verdict"
NO_CANDIDATE = "no verdict"
MEASURED_ON = (
    "corpus",
    "tokenizer",
    "context",
    "val_tokens",
    "model",
    "tokens",
)  # losses compare only if these are equal
NOTHING_SEARCHED = "nothing searched"
IN_SHORT = ("study", "baseline", "val loss", "difference\n[95%]", "answer")  # columns of a narrow terminal
HEADER = ("study", "baseline", "winner", "val loss", "difference [95%]", "answer", "tok/s", "tokens")
NOTE = (
    "Losses in nats, mean ± standard error (seeds); differences to the baseline with their 95% interval, ratios of "
    "tokens/s if a study improves nothing else; tok/s is the winner's median, tokens are one run's."
)
ONE_SEED_NOTE = " One seed each: selection flatters the best of a search, which fresh seeds have not judged."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a study found: its winner against its baseline."""

    results: StudyResults
    shown: ShownRuns  # with at most one candidate: the winner or, without fresh seeds, the best run of the search

    @property
    def study(self) -> Study:
        """The study."""
        return self.results.study

    @property
    def verdict(self) -> Verdict:
        """The verdict."""
        return self.results.verdict()

    @property
    def contrast(self) -> Contrast | None:
        """The winner against the baseline; None without fresh seeds."""
        return self.verdict.contrasts[0] if self.verdict.contrasts else None

    @property
    def answer(self) -> str:
        """The verdict in one word, or that there is none."""
        if self.contrast:
            return str(deciding(self.contrast, self.study))
        if not self.study.space:
            return NOTHING_SEARCHED
        return NO_CANDIDATE if self.verdict.noise else NO_VERDICT


def finding(results: StudyResults) -> Finding:
    """The verdict of a study, and the runs that show it."""
    shown = replace(shown_runs(results), faint=())
    if results.verdict().contrasts:
        candidates = dict(list(shown.candidates.items())[:1])
    else:
        ranked = (str(run) for run in results.ranked()["run_id"])
        others = [run for run in ranked if run != results.study.baseline_run_id]
        candidates = {run: (run,) for run in others[:1]}
    return Finding(results=results, shown=replace(shown, candidates=candidates))


def side_by_side(findings: Sequence[Finding]) -> Table:
    """A row per study."""
    note = NOTE + (ONE_SEED_NOTE if any(found.answer == NO_VERDICT for found in findings) else "")
    return Table(title="Side by side", header=HEADER, rows=tuple(map(_row, findings)), note=note)


def values(findings: Sequence[Finding]) -> Table:
    """A row per key that any of the studies searches, a column per study: its winner's values."""
    keys = dict.fromkeys(key for found in findings for key in found.study.space)
    rows = [(key, *(_value(found, key) for found in findings)) for key in keys]
    none = [found.study.name for found in findings if found.results.tuned is None]
    note = "A study's best values, before them the baseline's; in brackets what the study does not search."
    if none:
        note += f" Without a winner the baseline's alone: {', '.join(none)}."
    return Table(
        title="The winners' values",
        header=("", *(found.study.name for found in findings)),
        rows=tuple(rows),
        note=note,
    )


def _value(found: Finding, key: str) -> str:
    """`0.1 → 0.5`: the baseline's value and the winner's. `(0.1)` if the study does not search the key."""
    study, tuned = found.study, found.results.tuned
    if key in COORDINATES and study.spec.tokens is None:
        return "-"  # a budget in seconds has no shares of tokens
    baseline = plain(study.value(study.baseline, key))
    if key not in study.space or tuned is None:
        ours = plain(study.value(tuned.hparams, key)) if tuned else baseline
        return f"({ours})"
    if key not in tuned.values:
        return "no effect"
    now = plain(tuned.values[key])
    return f"{now} as before" if now == baseline else f"{baseline} → {now}"


def _shown(value: object) -> str:
    """A value of a trainer spec; a model by its preset's name or its shape."""
    if isinstance(value, ModelShape):
        named = (name for name, shape in MODELS.items() if shape == value)
        return next(named, f"{value.layers} layers of width {value.width}")
    return f"{value:,}" if isinstance(value, int) else str(value)


def incomparable(findings: Sequence[Finding]) -> Iterator[str]:
    """A sentence on what makes the losses of the studies incomparable, if anything does."""
    differ = []
    for key in MEASURED_ON:
        names = defaultdict(list)
        for found in findings:
            names[_shown(getattr(found.study.spec, key))].append(found.study.name)
        if len(names) > 1:
            differ.append(f"{key} is {_in_studies(names)}")
    if differ:
        yield f"Losses and their differences are not comparable between these studies: {'. '.join(differ)}."


def _in_studies(names: Mapping[str, Sequence[str]]) -> str:
    """`gpt2:256 in ranks; bytes in raw`."""
    return "; ".join(f"{value} in {', '.join(studies)}" for value, studies in names.items())


def write_side_by_side(findings: Sequence[Finding], page: Path) -> Path:
    """Writes the page atomically and returns its path. Raises MachineError if it cannot be written."""
    names = ", ".join(found.study.name for found in findings)
    questions = tuple(f"{found.study.name}: {found.study.question}" for found in findings)
    different = tuple(incomparable(findings))
    shared = [findings] if not different else [[found] for found in findings if _has_difference(found)]
    figures = tuple(differences(group, size="half" if different else "full") for group in shared)
    sections = [
        Section(
            title="Side by side",
            figures=figures,
            tables=(side_by_side(findings), *([values(findings)] if values(findings).rows else [])),
            warnings=different,
            text=questions,
            links=tuple(_links(findings, page)),
        ),
        Section(title="Winner and baseline", figures=tuple(map(_curves, findings))),
    ]
    answers = "; ".join(f"{found.study.name}: {found.answer}" for found in findings)
    write_atomic(page, render(name="compare", question=names, headline=answers, sections=sections))
    return page


def _links(findings: Sequence[Finding], page: Path) -> Iterator[tuple[str, str]]:
    """The studies' reports, as far as they are written, with their addresses from the page."""
    for found in findings:
        report = found.results.store.root / REPORT if found.results.store else None
        if report is not None and report.exists():
            yield f"Report of {found.study.name}", os.path.relpath(report, page.parent)


def _has_difference(found: Finding) -> bool:
    return found.contrast is not None and not by_speed(found.study)


def differences(findings: Sequence[Finding], size: Literal["full", "half"] = "full") -> Figure:
    """Each winner's difference to its baseline with its interval, a row per study, beside that study's margin."""
    plot = empty_plot("difference in val loss (nats)", "", height=120 + 64 * len(findings))
    plot.add_vline(x=0, line={"color": INK, "width": 1.6, "dash": "dash"})
    on_loss = [found.contrast for found in findings if found.contrast and not by_speed(found.study)]
    ends = [0.0, *(end for c in on_loss for end in (c.low, c.high))]
    pad = 0.12 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - pad, max(ends) + pad
    for row, found in enumerate(findings):
        contrast, margin = found.contrast, found.verdict.margin
        if contrast is None or by_speed(found.study):
            text = f"{relative(contrast.speed)} {found.answer}" if contrast else found.answer
            anchor, shift = ("right", -8) if inwards(0, low, high) == "right" else ("left", 8)
            plot.add_annotation(
                x=0, y=-row, text=text, showarrow=False, font={"color": MUTED}, xanchor=anchor, xshift=shift
            )
            continue
        plot.add_shape(
            x0=-margin, x1=margin, y0=-row - 0.3, y1=-row + 0.3, fillcolor=INK_BAND, line_width=0, layer="below"
        )
        interval_row(
            plot,
            row,
            (contrast.difference, contrast.low, contrast.high),
            (low, high),
            text=f"<b>{html.escape(contrast.candidate)}</b>  {found.answer}",
            hover=f"{html.escape(found.study.name)}<br>{interval(contrast)}",
            colour=ACCENT,
        )
    plot.update_xaxes(range=[low, high])
    names = [html.escape(found.study.name) for found in findings]
    rows = [-row for row in range(len(findings))]
    plot.update_yaxes(tickvals=rows, ticktext=names, range=[-len(findings) + 0.4, 0.8], showgrid=False)
    caption = (
        "Dot and 95% interval on fresh seeds; left of the dashed line beats that study's baseline. "
        "Shaded: each study's margin."
    )
    if any(by_speed(found.study) for found in findings):
        caption += " Ratios are of tokens/s, as that study improves nothing else."
    title = "Difference to the baseline"
    if len(findings) == 1:
        title += f": {findings[0].study.name}"
    return Figure(title=title, caption=caption, plot=plot, size=size)


def _row(found: Finding) -> tuple[str, ...]:
    trials, contrast = found.results.trials, found.contrast
    winner = next(iter(found.shown.candidates), "-")
    runs = [
        trials[trials["run_id"].isin(members)]
        for members in (found.shown.baseline, found.shown.candidates.get(winner, ()))
    ]
    if contrast:
        baseline = mean_se(contrast.baseline_mean, contrast.baseline_se, contrast.baseline_n)
        difference = relative(contrast.speed) if by_speed(found.study) else interval(contrast)
        losses = (baseline, winner, mean_se(contrast.mean, contrast.se, contrast.n), difference)
    else:
        once, best = (_mean(side["val_loss"].dropna()) for side in runs)
        losses = (once, winner, best, "-")
    speed, tokens = runs[1]["tok_per_sec"].median(), runs[0]["budget_tokens"].max()
    return found.study.name, *losses, found.answer, *("-" if math.isnan(v) else short(v) for v in (speed, tokens))


def _mean(losses: pd.Series[float]) -> str:
    if len(losses) < 2:
        return f"{losses.iloc[0]:.4f} (1)" if len(losses) else "-"
    return mean_se(float(losses.mean()), float(losses.sem()), len(losses))  # type: ignore[arg-type]


def _curves(found: Finding) -> Figure:
    figure = loss_curves(found.results, found.shown, evaluated(found.results, found.shown))
    figure.plot.update_layout(height=330)
    seeds = "mean ± s.d. over fresh seeds" if found.verdict.noise else NO_VERDICT
    caption = f"The baseline is dashed; {seeds}."
    return replace(figure, title=found.study.name, caption=caption, size="half")
