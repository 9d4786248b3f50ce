"""How much faster several processes train one run than one, and how far their losses are apart.

python -m tests.bench.ranks [PROCESSES ...]: gpt-2x64 in fp32, timed in turns, then 50 steps of a run.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from hpstudy.hparams import HParams
from hpstudy.records import Run
from hpstudy.running.bench import SETTINGS
from hpstudy.running.executors import Worker, time_steps, wait_until_ready
from hpstudy.running.local import LocalExecutor
from hpstudy.running.messages import Recorded, Setup, Train
from hpstudy.spec import TrainerSpec

ROUNDS, TIMED_STEPS, COMPARED_STEPS = 5, 30, 50


def losses(worker: Worker, hparams: HParams) -> list[float]:
    """The train losses of a run's first steps."""
    tokens = COMPARED_STEPS * hparams.batch_tokens
    run = Run(run_id="run", phase="search", trial=0, seed=0, tokens=tokens, hparams=hparams)
    worker.send(Train(run=run, awaits_decision=False))
    found = []
    while isinstance(report := worker.receive(), Recorded):
        found.append(report.record.loss)
    return found


def main(counts: list[int]) -> None:
    """Prints a line per number of processes."""
    setting = SETTINGS[0]
    with tempfile.TemporaryDirectory() as folder:
        executor, workers = LocalExecutor(Path(folder)), dict[int, Worker]()
        try:
            for count in counts:
                spec: TrainerSpec = replace(setting.spec(1, processes=count), precision="fp32")
                setup = Setup(spec=spec, device="cpu", base=Path.cwd())
                workers[count] = executor.start(setup, count)
                wait_until_ready(workers[count])
            hparams = {count: replace(setting.hparams("cpu", count), lr=3e-3) for count in counts}
            seconds: dict[int, list[float]] = {count: [] for count in counts}
            for _ in range(ROUNDS):
                for count, worker in workers.items():
                    seconds[count] += time_steps(worker, hparams[count], steps=TIMED_STEPS).step_seconds
            curves = {count: losses(worker, hparams[count]) for count, worker in workers.items()}
        finally:
            executor.stop(list(workers.values()))
    for count in counts:
        median, least = sorted(seconds[count])[len(seconds[count]) // 2], min(seconds[count])
        apart = max(abs(a - b) for a, b in zip(curves[counts[0]], curves[count], strict=True))
        batch = hparams[count].batch_tokens
        print(
            f"{count} processes: {batch / median:,.0f} tokens/s (median), {batch / least:,.0f} (fastest step); losses "
            f"at most {apart:.1e} from those of {counts[0]}, which end at {curves[counts[0]][-1]:.3f}"
        )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1, 2])
