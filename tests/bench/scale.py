"""Measures the analysis at scale: `python -m tests.bench.scale` loads, exports and reports a large study.

It has 1,000 runs of 10,000 steps with made-up losses, written as the driver writes them. Each part is measured in a
process of its own.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from hpstudy.files import to_json
from hpstudy.hparams import derived
from hpstudy.records import Outcome, Run, RunHeader, RunResult, StepRecord
from hpstudy.study import load_frozen, load_study
from hpstudy.tracking import wandb_files
from hpstudy.tracking.seal import RESULT, TABLE, sealed
from hpstudy.tracking.seal import STEPS as STEPS_FILE
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import sink_for
from tests.helpers.tiny import TINY

RUNS, STEPS, EVALS = 1_000, 10_000, 20
WANDB_RUNS = 8  # whose files are written
CURVES = 20  # different ones; the other runs get copies
PARTS = {
    "load": "hpstudy.load('tiny', runs).steps",
    "load, two metrics": "hpstudy.load('tiny', runs).read_steps(['step', 'train/loss'])",
    "load, from JSON": "without_tables(runs, lambda: hpstudy.load('tiny', runs).steps)",
    "export, parquet": "export(hpstudy.load('tiny', runs).frames, runs / 'export', 'parquet')",
    "export, csv": "export(hpstudy.load('tiny', runs).frames, runs / 'export', 'csv')",
    "report": "report_page(hpstudy.load('tiny', runs))",
}
CODE = """\
import sys, time
from pathlib import Path
import hpstudy
from hpstudy.analysis.export import export
from hpstudy.cli.report_commands import report_page
from hpstudy.system import peak_gib
from tests.bench.scale import without_tables
runs, start = Path(sys.argv[1]), time.perf_counter()
PART
print(f"{time.perf_counter() - start:.1f} s, {peak_gib():.2f} GiB")
"""


def main() -> None:
    """Prints a line per part: its seconds, loading the study included, and its peak memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"runs of the study ({RUNS})")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"steps of each run ({STEPS})")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        write(folder, args.runs, args.steps)
        seconds = time.perf_counter() - start
        print(f"{args.runs:,} runs of {args.steps:,} steps written in {seconds:.0f} s", flush=True)
        wandb_files_rate(folder)
        lines, tables = size(folder, STEPS_FILE), size(folder, TABLE)
        print(f"steps: {lines / 2**30:.2f} GiB of JSON, {tables / 2**30:.2f} GiB of Parquet", flush=True)
        for part, code in PARTS.items():
            command = [sys.executable, "-c", CODE.replace("PART", code), str(folder)]
            figures = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            print(f"{part:<17} {figures}", flush=True)


def wandb_files_rate(folder: Path) -> None:
    """Prints how fast W&B's offline files are written, by one process and by one per core, their start included."""
    views = iter(RunStore(folder / "tiny").runs())
    for count in sorted({1, wandb_files.cores()}):
        wandb_files.MOST_WRITERS = count
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        some, sink = (
            list(islice(views, WANDB_RUNS)),
            sink_for(load_frozen(folder / "tiny"), folder / "tiny", "offline", print),
        )
        for view in some:
            sink.replay(view)
        sink.drain(lambda: None)
        seconds, rows = time.perf_counter() - start, sum(view.result.steps for view in some if view.result)
        sink.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"W&B files by {count:<3} {rows / seconds:,.0f} rows/s, {1000 * cpu / rows:.2f} ms of CPU a row", flush=True
        )


def write(folder: Path, num_runs: int = RUNS, num_steps: int = STEPS) -> None:
    """Writes a study whose runs have made-up losses."""
    file = folder / "tiny.toml"
    file.write_text(TINY.format(more="") + "\n[confirm]\nseeds = []\n")
    study = load_study(str(file))
    store = RunStore(folder / "tiny")
    store.create()
    store.freeze_study(file.read_text(), study.resolved())
    rng = np.random.default_rng(0)
    for trial in range(num_runs):
        values = {"lr": float(10 ** rng.uniform(-4, -1.6)), "beta2": float(rng.uniform(0.9, 0.999))}
        hparams = study.baseline_hparams(5120) if trial == 0 else study.trial_hparams(values, 5120)
        run = Run(
            run_id=f"search-{trial:04d}", phase="search", trial=trial, seed=0, tokens=num_steps * 256, hparams=hparams
        )
        header = RunHeader(
            run=run,
            study="tiny",
            wandb_id=run.run_id,
            derived=derived(hparams),
            num_params=1,
            started="2026-01-01T00:00:00+00:00",
        )
        writer = store.begin(header)
        if trial < CURVES:
            losses = 3 + 2 * np.exp(-np.arange(num_steps) / 2000) + rng.normal(0, 0.05, num_steps) + rng.uniform(0, 0.5)
            for step in range(1, num_steps + 1):
                writer.append(record(step, float(losses[step - 1]), num_steps))
            writer.finish(result(3.5, num_steps))
        else:  # writing ten million lines takes longer than analysing them
            writer.close()
            copy = store.folder(run.run_id)
            for path in store.folder(f"search-{trial % CURVES:04d}").glob("steps.*"):
                shutil.copy(path, copy)
            (copy / RESULT).write_text(to_json(sealed(asdict(result(3.5, num_steps)), copy)))


def size(folder: Path, name: str) -> int:
    """The bytes of all files of that name."""
    return sum(path.stat().st_size for path in folder.glob(f"tiny/*/{name}"))


def without_tables(folder: Path, load: Callable[[], object]) -> None:
    """Calls `load` while the runs have no Parquet files."""
    tables = list(folder.glob(f"tiny/*/{TABLE}"))
    for path in tables:
        path.rename(path.with_suffix(".aside"))
    load()
    for path in tables:
        path.with_suffix(".aside").rename(path)


def record(step: int, loss: float, num_steps: int) -> StepRecord:
    """A step as a trainer yields it."""
    index, on_grid = divmod(step, num_steps // EVALS)
    evaluated = {} if on_grid else {"val_loss": loss, "eval_index": index, "eval_seconds": 0.1, "bf16_lost": 0.2}
    return StepRecord(
        step=step,
        tokens=step * 256,
        loss=loss,
        grad_norm=1.0 + loss / 100,
        clipped=step % 3 == 0,
        lr=6e-4 * (1 - step / num_steps / 2),
        update_to_weight=1e-3 * loss,
        batch_tokens=256,
        micro_batch=16,
        accumulation=1,
        step_seconds=0.25,
        tok_per_sec=1000.0 + loss,
        **evaluated,
    )


def result(loss: float, num_steps: int) -> RunResult:
    """How each run ends."""
    return RunResult(
        outcome=Outcome.COMPLETE,
        steps=num_steps,
        tokens=num_steps * 256,
        val_loss=loss,
        best_val_loss=loss,
        train_loss=loss,
        tok_per_sec=1000.0,
        train_seconds=2560.0,
        clipped_share=1 / 3,
    )


if __name__ == "__main__":
    main()
