"""What runs on fresh seeds: the winner, the baseline, and in `confirm.json` when each was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hpstudy.records import Outcome, Phase, Run
from hpstudy.running.tuned_lr import tuned_lr
from hpstudy.search import num_trials
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore, RunView

LOOKS = "confirm.json"
SHORTER = {"t50": 0.5, "t75": 0.75}  # name of a speed-up run -> share of the full budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A choice of candidates and seeds that a verdict may have followed; it never changes once it is written."""

    trials: int  # of the search by then
    seeds: tuple[int, ...]
    candidates: tuple[str, ...]  # run ids, best first; those of tuned-lr behind those of the search


def baseline_run_id(study: Study) -> str:
    """The run that the search is compared with: trial 0, or a run of its own when the space does not hold it."""
    return "search-0000" if study.baseline_proposal() is not None else f"baseline-s{study.spec.seed}"


def read_looks(store: RunStore) -> list[Look]:
    """The looks of earlier sessions, in order; empty before the first."""
    return store.read(LOOKS, lambda raw: list(map(_look, raw))) or []


def _look(raw: dict[str, Any]) -> Look:
    return Look(trials=raw["trials"], seeds=tuple(raw["seeds"]), candidates=tuple(raw["candidates"]))


def looks_so_far(study: Study, store: RunStore, say: Callable[[str], None]) -> list[Look]:
    """Earlier looks, and another where the search or the file has since changed what is to be confirmed.

    What was confirmed stays: an extended search adds its new winner to it.
    """
    looks, now = read_looks(store), choose(study, store.runs())
    if not now.seeds:
        return looks
    before = looks[-1] if looks else None
    if before is None or (before.candidates, before.seeds) != (now.candidates, now.seeds):
        looks.append(now)
        store.write_json(LOOKS, [asdict(look) for look in looks])
    if before is not None and before.candidates != now.candidates:
        say(
            f"confirm: after {now.trials} trials the choice is {_named(now)}, after {before.trials} it was "
            f"{_named(before)}; all are confirmed, and the verdict is adjusted for all"
        )
    return looks


def _named(look: Look) -> str:
    return " and ".join(look.candidates) or "nobody"


def choose(study: Study, views: Sequence[RunView]) -> Look:
    """The candidates that the runs so far name: `[confirm] top` of the search, and the best of tuned-lr."""
    candidates = ranked(study, views, "search")[: study.confirm.top]
    if study.also == "tuned-lr":
        candidates += ranked(study, views, "tuned-lr")[:1]
    return Look(
        trials=sum(view.header.run.phase == "search" for view in views),
        seeds=study.confirm.seeds,
        candidates=tuple(candidates),
    )


def ranked(study: Study, views: Sequence[RunView], phase: Literal["search", "tuned-lr"]) -> list[str]:
    """The complete trials of a phase that are not the baseline, the best first, each set of values once.

    By val/loss; the fastest first where tok/s is the only objective. With two objectives those that no other trial
    equals or beats in both and that are no slower than the baseline, by val/loss.
    """
    metrics = ["val/loss"] if phase == "tuned-lr" else [objective.metric for objective in study.objectives]
    (baseline,) = (view for view in views if view.run_id == baseline_run_id(study))
    measured = [view for view in views if view.header.run.phase == phase and _measured(view)]
    best_first = sorted(measured, key=_speed, reverse=True)
    if metrics != ["train/tok_per_sec"]:
        best_first.sort(key=_loss)  # stable: the faster first among equals
    if len(metrics) > 1:
        best_first = [view for view in _front(best_first) if _speed(view) >= _speed(baseline)]
    distinct = {view.header.run.hparams: view.run_id for view in reversed(best_first)}
    distinct.pop(baseline.header.run.hparams, None)
    return [view.run_id for view in best_first if view.run_id in distinct.values()]


def _measured(view: RunView) -> bool:
    return view.result is not None and view.result.outcome is Outcome.COMPLETE and math.isfinite(_loss(view))


def _loss(view: RunView) -> float:
    loss = view.result.val_loss if view.result else None
    return math.nan if loss is None else loss


def _speed(view: RunView) -> float:
    return (view.result.tok_per_sec if view.result else None) or 0.0


def _front(by_loss: Iterable[RunView]) -> Iterator[RunView]:
    fastest = -math.inf
    for view in by_loss:
        if _speed(view) > fastest:
            fastest = _speed(view)
            yield view


def confirm_runs(study: Study, looks: Sequence[Look], begun: Mapping[str, Run]) -> list[Run]:
    """Every run on fresh seeds, seed by seed, so that a stopped study has whole pairs; none without seeds.

    `begun` has the trials' and the baseline's runs by id. With `[confirm] speedup` the first candidate of each look
    runs at a half and three quarters of the budget too.
    """
    if not looks:
        return []
    baseline = begun[baseline_run_id(study)]
    candidates = dict.fromkeys(name for look in looks for name in look.candidates)
    searched = [[name for name in look.candidates if begun[name].phase == "search"] for look in looks]
    winners = {names[0] for names in searched if names} if study.confirm.speedup else set()
    runs = []
    for seed, other in zip(study.confirm.seeds, study.confirm.baseline_seeds, strict=True):
        runs.append(replace(baseline, run_id=f"baseline-s{other}", phase="baseline", trial=None, seed=other))
        for name in candidates:
            run_id = f"confirm-{name.removeprefix('search-')}-s{seed}"
            full = replace(begun[name], run_id=run_id, phase="confirm", seed=seed)
            runs.append(full)
            runs += [_shorter(study, full, what, share) for what, share in SHORTER.items() if name in winners]
    return runs


def _shorter(study: Study, full: Run, what: str, share: float) -> Run:
    """A run at a share of the budget with its own full schedule; whole steps, at least one."""
    batch = full.hparams.batch_tokens
    tokens = max(int(full.tokens * share) // batch, 1) * batch
    values = {key: getattr(full.hparams, key) for key in study.space}
    return replace(full, run_id=f"{full.run_id}-{what}", tokens=tokens, hparams=study.trial_hparams(values, tokens))


def planned(study: Study, trials: int | None) -> dict[Phase, list[float]]:
    """Each phase's runs as shares of the full budget: at most so many, as candidates may turn out to be fewer.

    `trials` of the search where more or fewer are asked for than the file says.
    """
    searched, is_trial = num_trials(study, trials), study.baseline_proposal() is not None
    tuned = num_trials(tuned_lr(study), searched) if study.also == "tuned-lr" else 0
    seeds, candidates = len(study.confirm.seeds), min(study.confirm.top, searched - is_trial)
    shorter = [*SHORTER.values()] if study.confirm.speedup and candidates else []
    plan: dict[Phase, list[float]] = {
        "search": [1.0] * searched,
        "baseline": [1.0] * (seeds + (not is_trial)),
        "tuned-lr": [1.0] * tuned,
        "confirm": [*[1.0] * (candidates + (tuned > 1)), *shorter] * seeds,
    }
    return {phase: shares for phase, shares in plan.items() if shares}
