"""Measures a search of 2,000 short trials in one storage: `python -m tests.bench.load` prints time, memory and disk.

Search, run store and the order of writing are hpstudy's own. Only the losses are made up: a bowl with a known optimum.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np

from hpstudy.hparams import derived
from hpstudy.records import Outcome, Run, RunHeader, StepRecord
from hpstudy.running.run_queue import TrialQueue
from hpstudy.running.summary import RunSummary
from hpstudy.search import Proposal, Search
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from tests.helpers.tiny import TINY

BEST_LR, BEST_LOSS = 3e-3, 3.0
STEPS, EVALS = 20, 4
STUDY = TINY.replace("parallel = 2", "parallel = 4").replace("startup = 2", "startup = 10").format(more="")


class TimedSearch(Search):
    """A search that notes how long each of its proposals took."""

    def __init__(self, study: Study, storage: Path, *, trials: int) -> None:
        self.ask_seconds: list[float] = []
        super().__init__(study, storage, trials=trials)

    def ask(self) -> Proposal | None:
        """The next trial, timed."""
        start = time.perf_counter()
        proposal = super().ask()
        if proposal is not None:
            self.ask_seconds.append(time.perf_counter() - start)
        return proposal


def record(run: Run, step: int, steps: int = STEPS) -> StepRecord:
    """What a step measures of a loss that falls towards a bowl over lr and beta2."""
    h = run.hparams
    bowl = math.log(h.lr / BEST_LR) ** 2 / 10 + (math.log((1 - h.beta2) / 0.01) / 10) ** 2
    loss = BEST_LOSS + bowl + 2 * (1 - step / steps)
    evaluation = {"val_loss": loss, "eval_index": step * EVALS // steps, "eval_seconds": 0.01, "bf16_lost": 0.0}
    return StepRecord(
        step=step,
        tokens=step * h.batch_tokens,
        loss=loss,
        grad_norm=1.0,
        clipped=False,
        lr=h.lr,
        update_to_weight=1e-3,
        batch_tokens=h.batch_tokens,
        micro_batch=h.micro_batch,
        accumulation=1,
        step_seconds=0.01,
        tok_per_sec=h.batch_tokens / 0.01,
        **(evaluation if step * EVALS % steps == 0 else {}),
    )


def train(study: Study, store: RunStore, run: Run, queue: TrialQueue) -> None:
    """Writes one run, header, steps and result, and reports it to the search."""
    header = RunHeader(
        run=run,
        study=study.name,
        wandb_id=run.run_id,
        derived=derived(run.hparams),
        num_params=1000,
        started="2026-01-01T00:00:00+00:00",
    )
    writer, summary = store.begin(header), RunSummary()
    for step in range(1, STEPS + 1):
        measured = record(run, step)
        writer.append(measured)
        summary.add(measured)
        queue.on_step(run, measured)
    result = summary.result(Outcome.COMPLETE)
    writer.finish(result)
    queue.on_result(run, result)


def search(study: Study, store: RunStore, trials: int) -> tuple[list[float], list[float]]:
    """Trains every trial, four at once, which end in random order.

    Returns (seconds that each proposal took, peak memory of this process at the end of each trial in MiB).
    """
    searched = TimedSearch(study, store.root / "optuna.journal", trials=trials)
    queue = TrialQueue(study, searched, lambda _: 0)
    rng, active, peaks = Random(0), list[Run](), list[float]()
    while True:
        while len(active) < study.budget.parallel and (run := queue.next()) is not None:
            active.append(run)
        if not active:
            return searched.ask_seconds, peaks
        train(study, store, active.pop(rng.randrange(len(active))), queue)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # Linux counts in KiB


def megabytes(paths: Iterable[Path]) -> str:
    """The size of files, and of the blocks that they take on disk."""
    stats = [path.stat() for path in paths if path.is_file()]
    return f"{sum(s.st_size for s in stats) / 1e6:.1f} MB ({sum(512 * s.st_blocks for s in stats) / 1e6:.1f} on disk)"


def main() -> None:
    """Prints the proposal times of the first and the last hundred trials, the memory, the disk and the whole time."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, metavar="N", help="trials of the search (2000)")
    trials = parser.parse_args().trials
    if trials < 100:
        parser.error("--trials must be at least 100")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.toml"
        path.write_text(STUDY)
        study, store = load_study(str(path)), RunStore(Path(folder) / "load")
        store.create()
        start = time.perf_counter()
        asked, peaks = search(study, store, trials)
        seconds = time.perf_counter() - start
        journal = store.root / "optuna.journal"
        best = min(trial.objectives for trial in Search(study, journal, read_only=True).trials() if trial.objectives)
        print(f"{trials} trials of {STEPS} steps in {seconds:.0f} s; the best has a loss of {best[0]:.4f}")
        for first, last in ((1, 100), (trials - 99, trials)):
            median, worst = 1000 * np.quantile(asked[first - 1 : last], [0.5, 0.99])
            print(f"ask, trials {first}-{last}: median {median:.1f} ms, 99th percentile {worst:.1f} ms")
        print(f"peak memory: {peaks[99]:.0f} MiB after trial 100, {peaks[-1]:.0f} MiB after trial {trials}")
        print(f"journal: {megabytes([journal])}; run store: {megabytes(store.root.glob('search-*/*'))}")


if __name__ == "__main__":
    main()
