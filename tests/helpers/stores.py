"""Run stores with made-up losses: real files, read back by the real loader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpstudy.analysis.frames import StudyFrames, load
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.results import StudyResults
from hpstudy.hparams import GPT3, derived
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord, repeats
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

BUDGET, BATCH = 8192, 256
EVALS = 4
SEEDS = (101, 102, 103, 104, 105)
BASELINE = (3.215, 3.219, 3.209, 3.230, 3.206)  # losses, by seed
LOWER = tuple(loss - drop for loss, drop in zip(BASELINE, (0.30, 0.31, 0.29, 0.30, 0.30), strict=True))
NOISY = (3.22, 3.18, 3.24, 3.19, 3.23)  # on average as low as the baseline's
Ends = dict[str, float | Outcome | None]
"""Run id -> the loss at which it ended, or another outcome, or None if it is unfinished."""
RUN = re.compile(
    r"(?P<phase>search|baseline|confirm|tuned-lr|batch)(?:-tuned-lr|-batch)?(?:-(?P<trial>\d{4}))?(?:-s(?P<seed>\d+))?"
)


def header_of(run: Run, *, study: str = "tiny") -> RunHeader:
    """A header that keeps a run."""
    return RunHeader(
        run=run,
        study=study,
        wandb_id=f"w-{run.run_id}",
        derived=derived(run.hparams),
        num_params=1000,
        started="2026-11-23T12:00:00+00:00",
    )


def step_record(step: int, loss: float, *, steps: int, **figures: Any) -> StepRecord:
    """One step of a run of `steps` steps, with an evaluation at each quarter."""
    index, rest = divmod(step, steps // EVALS)
    evaluation = {} if rest else {"val_loss": loss, "eval_index": index, "eval_seconds": 0.1}
    made: dict[str, Any] = {
        "grad_norm": 1.0,
        "clipped": False,
        "lr": 6e-4,
        "update_to_weight": 1e-3,
        "step_seconds": 0.25,
        "tok_per_sec": 1000.0,
    }
    return StepRecord(
        step=step,
        tokens=BATCH * step,
        loss=loss,
        batch_tokens=BATCH,
        micro_batch=16,
        accumulation=1,
        **(made | evaluation | figures),
    )


def result_of(outcome: Outcome, *, steps: int, val_loss: float | None, **figures: Any) -> RunResult:
    """How a run of `steps` steps ended."""
    made: dict[str, Any] = {
        "best_val_loss": val_loss,
        "train_loss": val_loss,
        "tok_per_sec": 1000.0,
        "train_seconds": BATCH * steps / 1000,
        "clipped_share": 0.0,
    }
    return RunResult(outcome=outcome, steps=steps, tokens=BATCH * steps, val_loss=val_loss, **(made | figures))


def keep_run(
    store: RunStore, header: RunHeader, records: Iterable[StepRecord], result: RunResult | None = None
) -> None:
    """Writes one run; without a result it is unfinished."""
    writer = store.begin(header)
    for record in records:
        writer.append(record)
    if result:
        writer.finish(result)
    writer.close()


def unsealed(folder: Path, **changes: Any) -> None:
    """Takes the hashes out of a run's result, as versions before them wrote it, and changes values of it."""
    path = folder / "result.json"
    kept = json.loads(path.read_text())
    del kept["sha256"]
    path.write_text(json.dumps(kept | changes))


def begun(
    root: Path,
    *,
    name: str = "tiny",
    text: str = "",
    values: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> RunStore:
    """The store of a study that has begun, in the folder `root`/runs; `path` is where its own file is."""
    store = RunStore(root / "runs" / name)
    store.create()
    store.freeze_study(text, dict(values or {}), path)
    return store


def keep_ended(store: RunStore, run: Run, end: float | Outcome | None, *, tok_per_sec: float = 1000.0) -> None:
    """Writes a run that ended at a loss, with another outcome, or not yet (None).

    If it ended at a loss, its losses fall in a straight line from 5 nats to that loss.
    """
    steps, loss = run.tokens // BATCH, end if isinstance(end, float) else None
    line = [] if loss is None else [5 + (loss - 5) * step / steps for step in range(1, steps + 1)]
    records = [step_record(step, now, steps=steps) for step, now in enumerate(line, start=1)]
    outcome = end if isinstance(end, Outcome) else Outcome.COMPLETE
    seconds = run.tokens / tok_per_sec
    result = result_of(outcome, steps=len(records), val_loss=loss, tok_per_sec=tok_per_sec, train_seconds=seconds)
    keep_run(store, header_of(run), records, None if end is None else result)


def on_seeds(name: str, losses: Sequence[float], seeds: Sequence[int]) -> dict[str, float]:
    """The ends of runs such as baseline-s101 for `stored`."""
    return {f"{name}-s{seed}": float(loss) for seed, loss in zip(seeds, losses, strict=True)}


def repeated(trial: str, losses: Sequence[float], seeds: Sequence[int], *, searched: float = 2.9) -> Ends:
    """The ends of a trial, search-0003 or tuned-lr-0004, and of the runs that repeat it on fresh seeds."""
    return {trial: searched, **on_seeds(f"confirm-{trial.removeprefix('search-')}", losses, seeds)}


def ends(trials: Mapping[str, Sequence[float]] | None = None, *, baseline: Sequence[float] = BASELINE) -> Ends:
    """The ends of the baseline's runs on SEEDS, and of trials with the runs that repeat them, by their losses."""
    found: Ends = dict(on_seeds("baseline", baseline, SEEDS))
    for trial, losses in (trials or {}).items():
        found |= repeated(trial, losses, SEEDS)
    return found


def stored(root: Path, ends: Ends, *, speed: Mapping[str, float] | None = None) -> StudyFrames:
    """The frames of a store with these runs: ended at a loss, with another outcome, or unfinished (None).

    A run's id says what it is: confirm-0003-s101-t50 repeats search-0003 at half the budget. `speed` is tokens/s by id.
    """
    store = begun(root)
    for run_id, end in ends.items():
        parts, (of, fraction) = RUN.match(run_id), repeats(run_id)
        assert parts, run_id
        phase: Phase = parts["phase"]  # type: ignore[assignment]
        run = Run(
            run_id=run_id,
            phase=phase,
            trial=int(parts["trial"]) if parts["trial"] else None,
            seed=int(parts["seed"] or 0),
            tokens=int(BUDGET * fraction),
            hparams=GPT3,
            of=of,
            fraction=fraction,
        )
        keep_ended(store, run, end, tok_per_sec=(speed or {}).get(run_id, 1000.0))
    return load("tiny", runs=root / "runs")


def fresh_runs(
    root: Path,
    ends: Ends,
    study: Study,
    *,
    speed: Mapping[str, float] | None = None,
) -> FreshRuns:
    """The runs on fresh seeds of a store with these runs; see `stored`."""
    return FreshRuns(frames=stored(root, ends, speed=speed), study=study)


def results_of(study: Study, frames: StudyFrames, root: Path) -> StudyResults:
    """What a study with these tables found. The study is kept in a store in the folder `root`."""
    store = begun(root, name=study.name, text=study.path.read_text(), values=study.resolved(), path=study.path)
    return StudyResults(frames=frames, store=store)


def edit(path: Path, pattern: str, new: str) -> None:
    """Replaces the first match, which there must be."""
    text, count = re.subn(pattern, new, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)
