"""The report's tables as plain text, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hpstudy.analysis.answers import Addition, Contrast, Noise, Relative, Verdict, by_speed
from hpstudy.analysis.foreseen import Foreseen
from hpstudy.analysis.in_short import found_name, opponent
from hpstudy.analysis.measured import ONE_SEED_DIGITS
from hpstudy.analysis.numbers import decimals, duration, interval_decimals, plain, short, with_sign
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import rule_names, rule_results
from hpstudy.analysis.speedup import Ratio, Speedup, crossing_tokens, speedup
from hpstudy.records import Outcome
from hpstudy.report.endings import ending, not_complete
from hpstudy.statistics.race import BASELINE
from hpstudy.study import Study, run_command

MOST_SEEDS = 1000  # that a table names; more are out of reach
MIN_LOST = 3  # lost runs, before their common values are worth a sentence
MOST_TRIALS = 200  # rows of the search's table
MEASURES = {
    "beta1_halflife_tokens": "beta1 half-life (tokens)",
    "beta2_halflife_tokens": "beta2 half-life (tokens)",
    "decay_timescale_steps": "decay timescale (steps)",
    "clipped_share": "clipped steps",
    "tok_per_sec": "speed (tokens/s)",
}
HALFLIVES = ("beta1_halflife_tokens", "beta2_halflife_tokens")
MISSING = "-"


STATISTICS: tuple[tuple[str, Callable[[Contrast], str]], ...] = (
    ("answer on the loss", lambda c: str(c.answer)),
    ("design", lambda c: str(c.design)),
    ("p of no difference", lambda c: f"{c.p:.2g}"),
    ("p of equivalence", lambda c: f"{c.p_equivalent:.2g}"),
    ("correlation over shared seeds", lambda c: MISSING if c.correlation is None else f"{c.correlation:.2f}"),
    ("s.d. of a seed's difference", lambda c: f"{c.sd:.2g}"),
    ("margin (nats)", lambda c: f"{c.margin:.2g}"),
    ("seeds the other design needed", lambda c: plain(c.other_design_seeds)),
    ("answer on the speed", lambda c: str(c.pace) if c.speed else MISSING),
    ("p of equal speed", lambda c: f"{c.speed.p:.2g}" if c.speed else MISSING),
    ("loss in the search", lambda c: f"{c.search_loss:.{interval_decimals(c.low, c.high)}f}"),
    ("optimism of the search", lambda c: with_sign(c.optimism, interval_decimals(c.low, c.high))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of text. The first column names its rows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: bool = False  # whether its cells are prose rather than numbers
    id: str = ""  # in the page
    sortable: bool = False
    prose: str = ""  # the column whose cells are prose
    links: Mapping[str, str] = field(default_factory=dict)  # the address behind a row's name


def informative(rows: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The rows that say something of at least one column."""
    return tuple(row for row in rows if any(cell not in ("", MISSING) for cell in row[1:]))


def changes(results: StudyResults) -> Table | None:
    """What to change: each searched key that has an effect, the baseline's value, the found one, and what it means."""
    if results.tuned is None:
        return None
    rows = tuple(change.cells for change in results.tuned.changes)
    return Table(title="Values", header=("", opponent(results.study), found_name(results), ""), rows=rows)


def sides(results: StudyResults) -> Table:
    """Baseline and candidates as columns: losses on fresh seeds, differences, what their runs were like, and values."""
    study, verdict, fresh, trials = results.study, results.verdict(), results.fresh, results.trials
    measured = bool(verdict.contrasts or verdict.noise)
    searched = trials[trials["run_id"] == study.baseline_run_id]
    baseline = fresh.full(BASELINE) if measured else searched
    columns = {BASELINE: baseline} | {c.candidate: fresh.full(c.candidate) for c in verdict.contrasts}
    keys = [key for key in study.space if len(columns) != 2]  # of two sides the first screen shows them
    rows = list(_losses(verdict, study, baseline)) if measured else [_one_seed(results)]
    rows += [(key, *(_cell(runs, key) for runs in columns.values())) for key in keys]
    rows += [(label, *(_cell(runs, column) for runs in columns.values())) for column, label in MEASURES.items()]
    medians = (_step_median(results, runs, "train/update_to_weight") for runs in columns.values())
    rows.append(("update / weight, median step", *medians))
    note = "Losses in nats on fresh seeds, mean ± standard error (runs); differences with their 95% interval."
    if len({c.baseline_n for c in verdict.contrasts}) > 1:
        note += (
            " The baseline's mean is over the first candidate's seeds; each difference is of a candidate's own pairs."
        )
    if not measured:
        note = "One seed, that of the search: a reference point and no result."
    return Table(title="Both sides", header=("", *columns), rows=informative(rows), note=note)


def _losses(verdict: Verdict, study: Study, baseline: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    contrasts = verdict.contrasts
    if not contrasts:
        losses = baseline["loss"].dropna()
        yield "val loss (nats)", mean_se(float(losses.mean()), float(losses.sem()), len(losses))  # type: ignore[arg-type]
        return
    first = contrasts[0]
    baseline_cell = mean_se(first.baseline_mean, first.baseline_se, first.baseline_n)
    yield "val loss (nats)", baseline_cell, *(mean_se(c.mean, c.se, c.n) for c in contrasts)
    yield "difference [95%]", MISSING, *map(interval, contrasts)
    yield "loss" if by_speed(study) else "answer", MISSING, *(f"{c.answer} (p = {c.level:.2g})" for c in contrasts)
    if any(c.speed for c in contrasts):
        yield "speed over the baseline's [95%]", MISSING, *(relative(c.speed) for c in contrasts)
        yield "speed", MISSING, *(f"{c.pace} (p = {c.speed.p:.2g})" if c.speed else MISSING for c in contrasts)
    if any(c.updates for c in contrasts):
        yield "updates over the baseline's [95%]", MISSING, *(relative(c.updates) for c in contrasts)


def mean_se(mean: float, se: float, n: int) -> str:
    """A mean over n seeds with its standard error."""
    digits = decimals(se)
    return f"{mean:.{digits}f} ± {se:.{digits}f} ({n})"


def interval(found: Contrast | Addition) -> str:
    """A difference in loss with its 95% interval."""
    digits = interval_decimals(found.low, found.high)
    value, low, high = (with_sign(end, digits) for end in (found.difference, found.low, found.high))
    return f"{value} [{low}, {high}]"


def relative(found: Relative | None) -> str:
    """A ratio to the baseline with its 95% interval."""
    if found is None:
        return MISSING
    digits = interval_decimals(found.low, found.high)
    return f"{found.ratio:.{digits}f}x [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _step_median(results: StudyResults, runs: pd.DataFrame, metric: str) -> str:
    steps = results.steps
    return plain(steps.loc[steps["run_id"].isin(runs["run_id"]), metric].median())


def _one_seed(results: StudyResults) -> tuple[str, ...]:
    loss = results.one_seed_loss(results.study.baseline_run_id)
    return "val loss (nats)", MISSING if pd.isna(loss) else f"{loss:.{ONE_SEED_DIGITS}f} (one seed)"


def _cell(runs: pd.DataFrame, column: str) -> str:
    if runs.empty:
        return MISSING
    if column == "clipped_share":
        return f"{runs[column].median():.1%}"
    if column == "tok_per_sec":
        return plain(runs[column].median())
    value = runs[column].iloc[0]
    return short(float(value)) if column in HALFLIVES else plain(value)


def certainty(verdict: Verdict) -> Iterator[Table]:
    """The seeds that a difference takes, and what the winner adds to other opponents than the baseline."""
    if verdict.noise:
        seeds = verdict.noise.seeds_for
        rows = tuple((f"{difference:g}", f"{count:,}") for difference, count in seeds.items() if count <= MOST_SEEDS)
        note = "With 80% power, two-sided at 5%, at the noise measured here."
        yield Table(title="Seeds per arm to see a difference", header=("nats", "seeds"), rows=rows, note=note)
    for added in verdict.additions:
        yield Table(
            title=f"What {added.candidate} adds to {added.opponent}",
            header=("", added.candidate),
            rows=(
                (f"difference to {added.opponent} [95%]", interval(added)),
                ("answer", f"{added.answer} (p = {added.level:.2g})"),
                ("paired seeds", str(added.n)),
            ),
            note="Adjusted together with the verdict's own comparisons.",
        )


def statistics(verdict: Verdict) -> Table:
    """How each candidate's answer was reached."""
    return Table(
        title="How each answer was reached",
        header=("", *(c.candidate for c in verdict.contrasts)),
        rows=informative((label, *map(text, verdict.contrasts)) for label, text in STATISTICS),
        note="Optimism is the difference to the baseline in the search less the one on fresh seeds: below 0, the "
        "search flattered it.",
    )


def speedups(results: StudyResults) -> Table | None:
    """How much sooner each candidate reaches the baseline's loss; None if no shorter runs have measured it."""
    names = [c.candidate for c in results.verdict().contrasts]
    measured = {name: speedup(results.fresh, name) for name in names}
    if not any(measured.values()):
        return None
    kinds: tuple[tuple[str, Callable[[Speedup], Ratio]], ...] = (
        ("in tokens [95%]", lambda s: s.tokens),
        ("in steps [95%]", lambda s: s.steps),
        ("in seconds [95%]", lambda s: s.seconds),
    )
    rows = [(label, *(_ratio(ratio(s)) if s else MISSING for s in measured.values())) for label, ratio in kinds]
    crossings = (crossing_tokens(results.fresh, name) for name in names)
    rows.append(("the curves cross at (tokens)", *map(plain, crossings)))
    note = (
        "Measured by whole runs on shorter budgets (speedup in [confirm]); seconds at the mean speed of the full runs. "
        "The curves cross in mid-schedule, before the learning rate has decayed, which is not where a shorter schedule "
        "would end."
    )
    return Table(title="Speed-up to the baseline's loss", header=("", *measured), rows=informative(rows), note=note)


def _ratio(ratio: Ratio) -> str:
    def times(value: float | None) -> str:
        return MISSING if value is None else f"{value:.2f}x"

    if ratio.low is not None and ratio.low >= ratio.most:
        return f"≥ {times(ratio.most)}"
    return f"{times(ratio.value)} [{times(ratio.low)}, {times(ratio.high)}]"


def trials_table(results: StudyResults) -> Table:
    """The search's trials, the best first and those that are not complete last: results, searched keys, speed.

    One seed each; differences that two seeds of one setting show too are marked.
    """
    study, noise = results.study, results.noise
    ranked, others = results.ranked(), not_complete(results)
    baseline = results.one_seed_loss(study.baseline_run_id)
    digits = decimals(noise.sd) if noise else ONE_SEED_DIGITS
    shown = pd.concat([ranked, others]).head(MOST_TRIALS)
    rules = rule_names(study)
    header = (
        *("trial", "val loss", "difference", *(["rule"] if rules else []), *study.space, "tokens/s"),
        *(["ended"] if len(others) else []),
    )
    rows = []
    for row in shown.to_dict("records"):
        complete, run_id = row["outcome"] == Outcome.COMPLETE, str(row["run_id"])
        is_baseline = run_id == study.baseline_run_id
        gap = MISSING if not complete else _gap(row["val_loss"] - baseline, noise, digits)
        loss = f"{row['val_loss']:.{digits}f}" if complete else MISSING
        cells = [run_id, loss, "baseline" if is_baseline else gap, *([rules.get(run_id, "")] if rules else [])]
        cells += [plain(row[key]) for key in study.space]
        rows.append((*cells, plain(row["tok_per_sec"]), *([ending(row)] if len(others) else [])))
    note = "One seed each. Selection flatters the best of a search: only fresh seeds can say whether it is better."
    if noise:
        note += f" ~ marks differences that two seeds of one setting show too, up to {noise.one_seed:.2g} nats."
    if len(ranked) + len(others) > MOST_TRIALS:
        note += f" The first {MOST_TRIALS} of {len(ranked) + len(others):,}; trials.csv has all."
    note += "".join(f" {sentence}" for sentence in _common_values(others, ranked, study))
    return Table(title="Trials", header=header, rows=tuple(rows), note=note, id="trials", sortable=True, prose="ended")


def rules_table(results: StudyResults) -> Table | None:
    """The trials that published rules proposed, the best first; None without any that ended."""
    found = rule_results(results)
    digits = decimals(results.noise.sd) if results.noise else ONE_SEED_DIGITS
    rows = tuple(
        (
            each.rule,
            each.run_id,
            MISSING if each.regret is None else f"{each.regret:.{digits}f}",
            "not complete" if each.regret is None else f"{each.rank} of {each.trials}",
            " ".join([*each.outside, *each.moved]) or MISSING,
            ", ".join(each.sources),
        )
        for each in found
    )
    header = ("rule", "trial", "above the best (nats)", "rank", "used beyond its source", "source")
    note = "Each of these trials has a published rule's values, and the baseline's of all other keys. One seed each."
    return Table(title="Published rules", header=header, rows=rows, note=note, words=True) if found else None


def _gap(difference: float, noise: Noise | None, digits: int) -> str:
    """A difference between two runs in nats, with a ~ if two seeds of one setting may differ as much."""
    if pd.isna(difference):
        return MISSING
    return f"{'~' if noise and abs(difference) <= noise.one_seed else ''}{with_sign(difference, digits)}"


def _common_values(lost: pd.DataFrame, complete: pd.DataFrame, study: Study) -> Iterator[str]:
    """One sentence per key in which all lost runs are above or below all complete trials."""
    lost = lost[lost["outcome"] != Outcome.PRUNED.value]
    for key in study.space:
        if not pd.api.types.is_numeric_dtype(trials := lost[key]) or complete.empty or len(lost) < MIN_LOST:
            continue
        if trials.min() > complete[key].max():
            yield f"All lost ones have {key} of {trials.min():.4g} or more; no complete trial reaches that."
        elif trials.max() < complete[key].min():
            yield f"All lost ones have {key} of {trials.max():.4g} or less; no complete trial goes so low."


def forecast_errors(found: Foreseen) -> Table | None:
    """How far forecasts of finished trials missed, beside what does not know the schedule."""
    if not found.errors:
        return None
    rows = tuple(
        (f"{each.share:.0%}", *(f"{miss:.4f}" for miss in (each.forecast, each.current, each.blind)),
         f"{each.held} of {each.num_trials}")
        for each in found.errors
    )  # fmt: skip
    header = ("of the run", "forecast", "current loss", "schedule-blind fit", "90% interval held")
    note = (
        "Median distance to the final loss (nats) of trials that were trained to their end, each forecast from those "
        "that had ended when it began. The fit is a power law in tokens through the losses so far."
    )
    return Table(title="Forecasts", header=header, rows=rows, note=note)


def audit(found: Foreseen) -> Table | None:
    """The trials that would have been stopped but were trained to their end."""
    if not found.audited:
        return None
    rows = tuple(
        (
            each.run_id,
            f"{each.share:.0%}",
            str(each.forecast),
            f"{each.loss:.4f}",
            "yes" if each.held else "no",
            "yes" if each.is_best else "no",
        )
        for each in found.audited
    )
    header = ("trial", "stopped at", "forecast [90%]", "val loss", "inside", "best of the search")
    note = "Trials 9, 19, 29 and so on are never stopped; these would have been."
    return Table(title="Audit", header=header, rows=rows, note=note)


def cost(trials: pd.DataFrame) -> Table:
    """Finished runs, their tokens and their time of training, by phase."""
    done = trials[trials["outcome"].notna()]
    phases = [(str(phase), runs) for phase, runs in done.groupby("phase", observed=True)]
    rows = tuple(
        (
            name,
            f"{len(runs):,}",
            ", ".join(f"{count} {what}" for what, count in runs["outcome"].value_counts().items() if count),
            short(float(runs["tokens"].sum())),
            duration(float(runs["train_seconds"].sum())),
        )
        for name, runs in [*phases, ("all", done)]
    )
    return Table(title="Cost", header=("phase", "runs", "outcomes", "tokens", "time of steps"), rows=rows)


def environment_table(environment: Mapping[str, Any]) -> Table:
    """What the numbers depend on besides the study file."""
    rows = tuple(
        (key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        for key, value in environment.items()
    )
    return Table(title="Environment", header=("", "value"), rows=rows, words=True)


def resolved_table(study: Study) -> Table:
    """Every value that determines results."""
    rows = tuple((key, str(value)) for key, value in study.resolved().items())
    return Table(title="The study, resolved", header=("key", "value"), rows=rows, words=True)


def command(results: StudyResults) -> str:
    """The command that trains the study again here, with as many trials as its search has."""
    return run_command(results.frames.runs / results.name, *more_trials(results))


def more_trials(results: StudyResults) -> list[str]:
    """The flag of a search that was extended; empty for others."""
    searched = int((results.trials["phase"] == "search").sum())
    return ["--trials", str(searched)] if searched > results.study.trials else []
