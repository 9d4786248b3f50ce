"""Measures what logging costs: tokens/s with each W&B mode against `--wandb disabled`, in turns, all cores training.

`python -m tests.tracking.overhead` prints the ratios. Online goes to a loopback server in a process of its own, which
takes time from the same cores; a real server would not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hpstudy.tracking.store import RunStore
from tests.tracking.loopback import Loopback

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
"""  # about 10 ms a step, one thread


def tok_per_sec(mode: str, home: Path, url: str) -> float:
    """Median tokens/s over the runs of one study, as the user calls it."""
    (home / "overhead.toml").write_text(STUDY)
    environment = os.environ | {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        **{f"WANDB_{name}": str(home) for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR")},
    }
    command = [sys.executable, "-c", "import hpstudy.cli; hpstudy.cli.main()", "run", str(home / "overhead.toml")]
    subprocess.run(
        [*command, "--runs", str(home), "--wandb", mode],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    views = RunStore(home / "overhead").runs()
    return statistics.median(view.result.tok_per_sec or 0.0 for view in views if view.result)


def main() -> None:
    """Prints each mode's ratio to `disabled`, of each round's pair: the median, the lowest and the highest."""
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
    url = sys.stdin.readline().strip()
    for number in range(ROUNDS):
        speed = {}
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            with tempfile.TemporaryDirectory() as folder:
                speed[mode] = tok_per_sec(mode, Path(folder), url)
        print(" ".join(f"{mode} {speed[mode]:,.0f}" for mode in MODES), "tok/s", flush=True)
        for mode, found in ratios.items():
            found.append(speed[mode] / speed["disabled"])
    for mode, found in ratios.items():
        print(f"{mode}/disabled: {statistics.median(found):.1%} ({min(found):.1%}..{max(found):.1%})")


if __name__ == "__main__":
    if "--measure" in sys.argv:
        main()
    else:
        with Loopback() as server:  # here, and the measuring in a child, whose threads it then does not share
            subprocess.run([sys.executable, "-m", __spec__.name, "--measure"], input=server.url, text=True, check=True)
