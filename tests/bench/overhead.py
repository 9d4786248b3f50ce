"""Measures what logging costs: tokens/s with each W&B mode against `--wandb disabled`, in turns, on all cores.

`python -m tests.bench.overhead` prints the ratios. Online logs to a loopback server in a process of its own, which
takes time from the same cores; a real server would not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hpstudy.tracking.store import RunStore
from tests.bench import CLI, ROOT
from tests.helpers.loopback import Loopback

ROUNDS = 5
MODES = ("disabled", "offline", "online")
STUDY = """\
question = "What does logging cost?"
format = 1

[trainer]
model = "gpt-2x64"
tokenizer = "gpt2:512"
context = 128
tokens = 300_000
evals = 2
val_tokens = 8192

[hparams]
batch_tokens = 512
batch_ramp_fraction = 0.0

[search]
lr = { low = 3e-4, high = 3e-2, scale = "log" }

[budget]
trials = 4
parallel = 4
sampler = { name = "random" }

[confirm]
seeds = []
"""  # a step takes about 10 ms on one thread


def tok_per_sec(mode: str, home: Path, url: str) -> float:
    """Median tokens/s over the runs of one study, run by the command line."""
    (home / "overhead.toml").write_text(STUDY)
    environment = os.environ | {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        **{f"WANDB_{name}": str(home) for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR")},
    }
    subprocess.run(
        [*CLI, "run", str(home / "overhead.toml"), "--runs", str(home), "--wandb", mode],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    views = RunStore(home / "overhead").runs()
    return statistics.median(view.result.tok_per_sec or 0.0 for view in views if view.result)


def measure(url: str, rounds: int) -> None:
    """Prints each mode's ratio to `disabled` within a round: the median over the rounds, the lowest, the highest."""
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
    for number in range(rounds):
        speed = {}
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            with tempfile.TemporaryDirectory() as folder:
                speed[mode] = tok_per_sec(mode, Path(folder), url)
        print(" ".join(f"{mode} {speed[mode]:,.0f}" for mode in MODES), "tok/s", flush=True)
        for mode, found in ratios.items():
            found.append(speed[mode] / speed["disabled"])
    for mode, found in ratios.items():
        print(f"{mode}/disabled: {statistics.median(found):.1%} ({min(found):.1%}..{max(found):.1%})")


def main() -> None:
    """Serves W&B's requests here, and measures in a child process, so that the two share no interpreter."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds of all modes ({ROUNDS})")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        measure(args.url, args.rounds)
        return
    with Loopback() as server:
        child = [sys.executable, "-m", "tests.bench.overhead", "--rounds", str(args.rounds), "--url", server.url]
        subprocess.run(child, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
