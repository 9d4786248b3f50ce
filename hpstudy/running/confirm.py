"""Which runs train on fresh seeds. confirm.json keeps each selection of candidates and seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hpstudy.errors import MachineError
from hpstudy.files import read_json, to_json
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Phase, Run, baseline_run_id, confirm_run_id
from hpstudy.running.opponents import batch_control, tuned_lr
from hpstudy.statistics.race import BASELINE, Rules
from hpstudy.study import MetricName, Study, num_trials
from hpstudy.study.ranking import Score, best_first, front
from hpstudy.tracking.store import RunStore, RunView

FILE = "confirm.json"
SHORTER = (0.5, 0.75)  # budgets, as shares of the full one, of the runs that measure a speed-up


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of candidates and seeds that a verdict may have followed. It never changes once it is written."""

    trials: int  # of the search at that time
    seeds: tuple[int, ...]
    candidates: tuple[str, ...]  # run ids, best first; the other opponents after those of the search


def read_selections(store: RunStore) -> list[Selection]:
    """The selections of earlier sessions, in order."""
    return read_json(store.root / FILE, lambda raw: list(map(_selection, raw))) or []


def _selection(raw: dict[str, Any]) -> Selection:
    found = Selection(trials=raw["trials"], seeds=tuple(raw["seeds"]), candidates=tuple(raw["candidates"]))
    if raw.get("sha256", _hash(found)) != _hash(found):  # 0.1.0 kept none
        raise ValueError(f"the selection of {_named(found)} was edited")
    return found


def _hash(selection: Selection) -> str:
    return hashlib.sha256(to_json(asdict(selection)).encode()).hexdigest()


def is_new(now: Selection, before: Sequence[Selection]) -> bool:
    """Whether a selection is another than the last one."""
    return not before or (before[-1].candidates, before[-1].seeds) != (now.candidates, now.seeds)


def expect_selections(store: RunStore) -> None:
    """Makes the file of selections, empty, before the first run on a fresh seed: from then on it must be there."""
    if not (store.root / FILE).exists():
        store.write_json(FILE, [])


def update_selections(study: Study, store: RunStore, say: Callable[[str], None]) -> list[Selection]:
    """All selections, with a new one if the search or the file has changed what is to be confirmed.

    What was confirmed stays: an extended search adds its new winner.
    """
    views = store.runs()
    selections, now = read_selections(store), select(study, views)
    begun = {view.run_id for view in views if view.header.run.phase in ("baseline", "confirm")}
    if begun - {study.baseline_run_id} and not (store.root / FILE).exists():
        raise MachineError(
            f"{store.root / FILE}: is missing, though runs on fresh seeds have begun: nothing says how often "
            "candidates were selected, on which the verdict depends; restore it from a copy, or start again with "
            "another --runs folder"
        )
    if not now.seeds:
        return selections
    before = selections[-1] if selections else None
    if is_new(now, selections):
        selections.append(now)
        store.write_json(FILE, [{**asdict(selection), "sha256": _hash(selection)} for selection in selections])
    if before is not None and before.candidates != now.candidates:
        say(
            f"confirm: after {now.trials} trials the choice is {_named(now)}, after {before.trials} it was "
            f"{_named(before)}; all are confirmed and tested together"
        )
    return selections


def _named(selection: Selection) -> str:
    return " and ".join(selection.candidates) or "no trial"


def select(study: Study, views: Sequence[RunView]) -> Selection:
    """The candidates among the runs so far: the best `[confirm] top` of the search, and the study's other opponents."""
    candidates = eligible(study, views, "search")[: study.confirm.top]
    if "tuned-lr" in study.also:
        candidates += eligible(study, views, "tuned-lr")[:1]
    if "batch" in study.also:
        complete = {view.run_id for view in views if view.result and view.result.outcome is Outcome.COMPLETE}
        if (control := control_of_best(study, views)) is not None and control.run_id in complete:
            candidates.append(control.run_id)
    return Selection(
        trials=sum(view.header.run.phase == "search" for view in views),
        seeds=study.seeds,
        candidates=tuple(candidates),
    )


def control_of_best(study: Study, views: Sequence[RunView]) -> Run | None:
    """The baseline at the batch of the search's best trial; None without such a trial, or if it has the baseline's."""
    best = eligible(study, views, "search")[:1]
    return next((batch_control(study, view.header.run) for view in views if view.run_id in best), None)


def eligible(study: Study, views: Sequence[RunView], phase: Literal["search", "tuned-lr"]) -> list[str]:
    """The complete trials of a phase other than the baseline, best first, each set of values once.

    With two objectives only those on the Pareto front that are no slower than the baseline.
    """
    metrics: Sequence[MetricName] = ("val/loss",) if phase == "tuned-lr" else study.metrics
    runs = {view.run_id: view.header.run for view in views}
    results = {view.run_id: view.result for view in views if view.result is not None}
    measured = [
        Score.of(run_id, result)
        for run_id, result in results.items()
        if runs[run_id].phase == phase and result.outcome is Outcome.COMPLETE
    ]
    ranked = front(metrics, best_first(metrics, measured))
    if len(metrics) > 1:
        baseline = results.get(study.baseline_run_id)
        least = (baseline.tok_per_sec if baseline else None) or 0.0
        ranked = [score for score in ranked if score.tok_per_sec >= least]
    distinct: dict[HParams, str] = {}
    for score in ranked:
        distinct.setdefault(runs[score.run_id].hparams, score.run_id)
    if (own := runs.get(study.baseline_run_id)) is not None:
        distinct.pop(own.hparams, None)
    return list(distinct.values())


def sides(study: Study, selections: Sequence[Selection], begun: Mapping[str, Run]) -> dict[str, Run]:
    """What each side of the confirmation repeats: the baseline's run first, then each candidate's.

    `begun` holds the runs of trials and baseline by id. Raises MachineError for a candidate that the study has not run.
    """
    if not selections:
        return {}
    candidates = dict.fromkeys(name for selection in selections for name in selection.candidates)
    if unknown := [name for name in candidates if name not in begun]:
        raise MachineError(f"{FILE}: names {', '.join(unknown)}, which this study has not; restore it from a copy")
    return {BASELINE: begun[study.baseline_run_id]} | {name: begun[name] for name in candidates}


def winners(study: Study, selections: Sequence[Selection], begun: Mapping[str, Run]) -> set[str]:
    """The first candidate of each selection, which also runs at the SHORTER budgets if `[confirm] speedup` says so."""
    searched = [[name for name in s.candidates if begun[name].phase == "search"] for s in selections]
    return {names[0] for names in searched if names} if study.confirm.speedup else set()


def fresh_run(study: Study, side: str, repeated: Run, place: int) -> Run:
    """A side's run on its fresh seed number `place`, from 0."""
    if side == BASELINE:
        seed = study.baseline_seeds[place]
        return replace(repeated, run_id=baseline_run_id(seed), phase="baseline", trial=None, seed=seed)
    seed = study.seeds[place]
    return replace(repeated, run_id=confirm_run_id(side, seed), phase="confirm", seed=seed, of=side)


def shorter_runs(study: Study, full: Run) -> list[Run]:
    """A fresh run at each of the SHORTER budgets."""
    return [_shorter(study, full, fraction) for fraction in SHORTER]


def _shorter(study: Study, full: Run, fraction: float) -> Run:
    """A run with a fraction of the budget and its own full schedule: whole steps, at least one."""
    assert full.of is not None
    batch = full.hparams.batch_tokens
    tokens = max(int(full.tokens * fraction) // batch, 1) * batch
    values = {key: study.value(full.hparams, key, full.tokens) for key in study.space}
    return replace(
        full,
        run_id=confirm_run_id(full.of, full.seed, fraction),
        fraction=fraction,
        tokens=tokens,
        hparams=study.trial_hparams(values, tokens),
    )


def most_seeds(study: Study) -> int:
    """How many fresh seeds a side may train."""
    return Rules.of(study).looks[-1]


def planned(study: Study, trials: int | None) -> dict[Phase, list[float]]:
    """Each phase's runs as shares of the full budget. An upper bound: candidates may be fewer, or decided sooner.

    `trials` is the number of trials if it is not the file's.
    """
    searched, is_trial = num_trials(study, trials), study.baseline_proposal() is not None
    tuned = num_trials(tuned_lr(study), searched) if "tuned-lr" in study.also else 0
    seeds, candidates = most_seeds(study), min(study.confirm.top, searched - is_trial)
    controls = min(candidates, 1) if "batch" in study.also else 0
    shorter = list(SHORTER) if study.confirm.speedup and candidates else []
    plan: dict[Phase, list[float]] = {
        "search": [1.0] * searched,
        "baseline": [1.0] * (seeds + (not is_trial)),
        "tuned-lr": [1.0] * tuned,
        "batch": [1.0] * controls,
        "confirm": [*[1.0] * (candidates + (tuned > 1) + controls), *shorter] * seeds,
    }
    return {phase: shares for phase, shares in plan.items() if shares}
