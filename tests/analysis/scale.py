"""Measures the analysis at scale: `python -m tests.analysis.scale` loads, exports and reports a large study.

1,000 runs of 10,000 steps each, made up and written as the driver writes them; the seconds and the peak memory of each
part are of a process of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpstudy.hparams import derived
from hpstudy.records import Outcome, Run, RunHeader, RunResult, StepRecord
from hpstudy.study import load_study
from hpstudy.tracking.store import RunStore
from tests.conftest import TINY

RUNS, STEPS, EVALS = 1_000, 10_000, 20
CURVES = 20  # that differ
PARTS = {
    "load": "hpstudy.load('tiny', runs).steps",
    "export, parquet": "export(hpstudy.load('tiny', runs).frames, runs / 'export', 'parquet')",
    "export, csv": "export(hpstudy.load('tiny', runs).frames, runs / 'export', 'csv')",
    "report": "report_page(hpstudy.load('tiny', runs), RunStore(runs / 'tiny'))",
}
IMPORTS = """\
import sys, time
from pathlib import Path
import hpstudy
from hpstudy.analysis.export import export
from hpstudy.cli.data_commands import report_page
from hpstudy.tracking.store import RunStore
from hpstudy.training.memory import peak_gib
runs, start = Path(sys.argv[1]), time.perf_counter()
{part}
print(f"{{time.perf_counter() - start:.1f} s, {{peak_gib():.2f} GiB")
""".replace("{{", "{").replace("}}", "}")


def main() -> None:
    """Prints a line per part; each part loads the study itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        write(folder)
        print(f"{RUNS:,} runs of {STEPS:,} steps written in {time.perf_counter() - start:.0f} s", flush=True)
        for part, code in PARTS.items():
            command = [sys.executable, "-c", IMPORTS.replace("{part}", code), str(folder)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            print(f"{part:<16} {told}", flush=True)


def write(folder: Path, num_runs: int = RUNS, num_steps: int = STEPS) -> None:
    """A study whose runs end at made-up losses."""
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
        if trial >= CURVES:  # ten million lines would take longer to write than to analyse
            shutil.copy(store.folder(f"search-{trial % CURVES:04d}") / "steps.jsonl", store.folder(run.run_id))


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
