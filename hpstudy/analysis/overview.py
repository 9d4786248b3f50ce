"""What a study is, how far it is, what it found and what comes next, as one JSON object for scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpstudy.analysis.answers import Contrast, Relative, deciding
from hpstudy.analysis.departures import departures
from hpstudy.analysis.drift import drift
from hpstudy.analysis.measured import measured
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import rule_results
from hpstudy.analysis.state import state
from hpstudy.records import Outcome
from hpstudy.running.worker_states import Workers, read_workers
from hpstudy.study import Choices
from hpstudy.tracking.wandb_sink import group_page, num_offline

OVERVIEW: dict[str, str] = {
    "study": "its name",
    "question": "what it asks",
    "stage": "running, stopped, undecided or done; in a list also not begun, or unreadable",
    "holder": "who runs it now, with `host`, `pid` and `since` (UTC); null if nobody does",
    "workers": "while it runs, per worker: `number`, `node` (empty: the driver's machine), `kind` of machine, `state` "
    "(waits for a place, starts, trains or is idle), the `run` it trains, and `since` when (UTC); null otherwise",
    "waits": "what workers that wait for a place need, and what the cluster has; null if none waits",
    "trials": "of the search: `ended` of `planned`, and how many ended in each outcome",
    "reply": "yes, no, undecided, or nothing better found; null without a verdict, or if the file says no `yes`",
    "answer": "better, worse, equivalent, faster, slower or undecided; null before a verdict",
    "headline": "the answer in one sentence",
    "sentence": "the headline, and what a reader must know besides",
    "baseline": "`run_id`, `val_loss` (nats) with its standard error `se`, `seeds`, whether all `diverged`, and the "
    "median `tok_per_sec`",
    "tuned": "the same of the best values, with `confirmed`: whether fresh seeds compared them; null without any",
    "difference": "of val loss, tuned minus baseline (nats): `value`, `low`, `high` (95%), `p`, `margin`; or null",
    "speed": "tokens per second, tuned over baseline: `ratio`, `low`, `high`, `p`; null if speed is no objective",
    "drift": "the baseline's tokens per second after the search over those at its start: `ratio` (null: `missing` says "
    "why), over so many `runs`, and a `warning` if it is more than the best values gain; null if speed is no objective",
    "values": "per searched key: `key`, `baseline`, `tuned`, `ratio`; of betas and weight decay also "
    "`measure` (half-life or timescale), its `unit`, `baseline_measure` and `tuned_measure`; of coordinates the "
    "`measure` is the hyperparameter that they stand for",
    "rules": "per published rule whose trial ended, the best first: `rule`, `run_id`, `val_loss`, `regret` (nats above "
    "the best trial; null unless complete), `rank` of so many `trials`, `sources`, and sentences on what was `moved` "
    "into the range and on sizes `outside` of those that it was fitted to",
    "region": "where the loss is predicted within `margin` (nats) of the best: `keys`, per key `low` and `high` or "
    "`choices`, and whether `everything` searched is; `simplest` values; null while the trials cannot say",
    "departures": "per key in which the baseline is not GPT-3's: `key`, `value`, `gpt3`",
    "runs": "all runs of the study that ended",
    "tokens": "that they trained on",
    "train_seconds": "that their steps took",
    "device": "what they ran on, with `precision` and the `commit` of hpstudy",
    "started": "when the first run began (UTC)",
    "report": "path of the report; null until it is written",
    "wandb": "`page`: the address of its runs there, or null; `offline`: runs that are in offline files alone",
    "next": "the `step` in a word or two, the same as `advice`, and the `command` that follows it",
    "problems": "what was left out of the numbers and why, or why the study cannot be read",
}
"""Key -> what it holds, for `overview`. In a list, what is not known of a study that has not begun is null."""


def overview(results: StudyResults, *, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of OVERVIEW. Every value is plain JSON; a number that is not known is None.

    A next command that runs the study has `flags`.
    """
    assert results.store is not None
    study, verdict, trials, found = results.study, results.verdict(), results.trials, results.tuned
    where, root = state(results, flags=flags), results.store.root
    searched = trials.loc[trials["phase"] == "search", "outcome"].value_counts()
    first = verdict.contrasts[0] if verdict.contrasts else None
    baseline, best = measured(results)
    workers = read_workers(results.store, where.holder)
    page, ended = root / "report" / "index.html", trials[trials["outcome"].notna()]
    made: dict[str, Any] = {
        "study": study.name,
        "question": study.question,
        "stage": str(where.stage),
        "holder": {key: getattr(where.holder, key) for key in ("host", "pid", "since")} if where.holder else None,
        "workers": _workers(workers) if workers else None,
        "waits": workers.room or None if workers else None,
        "trials": {
            "ended": where.trials,
            "planned": where.planned,
            **{str(outcome): int(searched.get(outcome.value, 0)) for outcome in Outcome},
        },
        "reply": verdict.reply,
        "answer": str(deciding(first, study)) if first else None,
        "headline": verdict.headline,
        "sentence": verdict.sentence,
        "baseline": asdict(baseline),
        "tuned": asdict(best) | {"confirmed": found.confirmed} if best and found else None,
        "difference": _difference(first),
        "speed": _speed(first.speed) if first and first.speed else None,
        "drift": _drift(results),
        "values": [asdict(change) for change in found.changes] if found else [],
        "rules": [asdict(found) for found in rule_results(results)],
        "region": _region(results),
        "departures": [{"key": d.key, "value": d.value, "gpt3": d.gpt3} for d in departures(study)],
        "runs": len(ended),
        "tokens": int(ended["tokens"].sum()),
        "train_seconds": float(ended["train_seconds"].sum()),
        "device": {
            "name": results.environment.get("device_name"),
            "precision": results.environment.get("precision"),
            "commit": results.commit,
        },
        "started": trials["started"].min().isoformat() if len(trials) else None,
        "report": str(page) if page.exists() else None,
        "wandb": {"page": group_page(root, study.name) or None, "offline": num_offline(root)},
        "next": {"step": where.step.brief, "advice": where.advice, "command": where.command},
        "problems": list(results.frames.problems),
    }
    return {key: finite(made[key]) for key in OVERVIEW}


def unknown(name: str, **values: Any) -> dict[str, Any]:
    """The keys of OVERVIEW for a study that has no readable runs, with these values; None for all others."""
    return dict.fromkeys(OVERVIEW) | {"study": name, "problems": []} | values


def _workers(found: Workers) -> list[dict[str, Any]]:
    return [asdict(worker) | {"state": str(worker.state)} for worker in found.workers]


def _difference(c: Contrast | None) -> dict[str, Any] | None:
    if c is None:
        return None
    return {"value": c.difference, "low": c.low, "high": c.high, "p": c.p, "margin": c.margin}


def _region(results: StudyResults) -> dict[str, Any] | None:
    if (found := results.region) is None:
        return None
    study, space = results.study, results.study.space
    keys = [
        {"key": each.key, "everything": each.everything}
        | (
            {"choices": list(each.values)}
            if isinstance(space[each.key], Choices)
            else {"low": each.values[0], "high": each.values[1]}
        )
        for each in found.keys
    ]
    simplest = {key: study.value(study.baseline, key) for key in found.kept} | dict(found.others)
    return {"margin": found.margin, "keys": keys, "simplest": simplest}


def _drift(results: StudyResults) -> dict[str, Any] | None:
    found = drift(results)
    return {key: getattr(found, key) for key in ("ratio", "runs", "missing", "warning")} if found else None


def _speed(found: Relative) -> dict[str, Any]:
    return {"ratio": found.ratio, "low": found.low, "high": found.high, "p": found.p}


def finite(value: Any) -> Any:
    """The value as JSON knows it: numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
