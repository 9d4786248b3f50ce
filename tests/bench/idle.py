"""Where a study's worker-seconds go: `python -m tests.bench.idle quickstart` runs it and prints the share of each part.

The workers' time is their number times the seconds of the whole command, from the shell's prompt to the shell's prompt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpstudy.tracking.store import RunStore
from tests.bench import CLI
from tests.bench.trials import times_of


def main() -> None:
    """Prints a line a round: seconds of the command, and the shares of its parts."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__)
    parser.add_argument("study", nargs="?", default="quickstart", metavar="NAME", help="a study by name (quickstart)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times that it runs (3)")
    args = parser.parse_args()
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="hpstudy-bench-") as folder:
            print(measure(args.study, Path(folder)), flush=True)


def measure(study: str, runs: Path) -> str:
    """Runs a study with W&B offline, and says where its time went."""
    start = time.time()
    command = [*CLI, "run", study, "--runs", str(runs), "--wandb", "offline"]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, check=False)
    seconds = time.time() - start
    if done.returncode:
        sys.exit(done.stderr)
    times = times_of(RunStore(runs / study))
    whole = times.workers * seconds
    before, after = (times.begun - start) / seconds, (start + seconds - times.ended) / seconds
    trained = times.trained / whole
    return (
        f"{seconds:.0f} s with {times.workers} workers: {trained:.1%} training, {before:.1%} before the first run, "
        f"{1 - trained - before - after:.1%} between the runs, {after:.1%} after the last one"
    )


if __name__ == "__main__":
    main()
