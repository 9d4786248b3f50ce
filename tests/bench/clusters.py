"""A study on Ray clusters beside the same study on this machine: `python -m tests.bench.clusters`.

First the same study with several workers and on clusters of several nodes, whose trials, curves and verdict must be the
same. Then how fast a cluster of one node is, in turns with this machine: trials an hour from the first run's start to
the last one's end, what comes before that, and the driver's memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from hpstudy.analysis.results import load
from hpstudy.search import Search
from hpstudy.study import load_study
from hpstudy.tracking.store import RunStore
from tests.helpers.cluster import ROOT, Cluster
from tests.helpers.running import CLI, curves
from tests.helpers.tiny import TINY

SMALL = {"tokens = 5120": "tokens = 51_200", "parallel = 2": "parallel = 4"}  # 200 steps a run
FRESH = "\n[confirm]\nseeds = [7, 8, 9]\n"
TIMED = """
question = "How fast is a cluster?"
[trainer]
model = "gpt-2x64"
tokenizer = "gpt2:512"
context = 128
tokens = {tokens}
val_tokens = 8192
[hparams]
batch_tokens = 2048
[search]
lr = {{ low = 3e-4, high = 3e-2 }}
[budget]
trials = {trials}
[confirm]
seeds = []
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A study that ran from nothing to its end."""

    store: RunStore
    start_seconds: float  # until its first run began
    run_seconds: float  # from there to the last result
    peak_mib: float  # of the driver

    @property
    def runs(self) -> int:
        """How many runs it trained."""
        return len(self.store.runs())

    @property
    def records(self) -> int:
        """How many steps it recorded."""
        return sum(view.result.steps for view in self.store.runs() if view.result)

    def answer(self) -> object:
        """What must not depend on where it ran."""
        study = load_study(str(self.store.root.parent / f"{self.store.root.name}.toml"))
        trials = Search(study, self.store.root / "optuna.journal", read_only=True).trials()
        return list(map(repr, trials)), curves(self.store), load(study.name, self.store.root.parent).verdict().sentence


def session(folder: Path, text: str, workers: int, cluster: Cluster | None = None) -> Session:
    """Runs a study in a folder of its own. Raises CalledProcessError if it fails."""
    folder.mkdir()
    path = folder / "study.toml"
    path.write_text(text)
    command = ["run", str(path), "--runs", str(folder), "--wandb", "disabled", "--workers", str(workers)]
    if cluster is not None:
        command += ["--cluster", cluster.address]
    environment = dict(os.environ) if cluster is None else cluster.environment
    begun = time.time()
    process = subprocess.Popen(
        [sys.executable, "-c", CLI, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    store = RunStore(folder / "study")
    first = min((view.folder / "header.json").stat().st_mtime for view in store.runs())
    last = max((view.folder / "result.json").stat().st_mtime for view in store.runs())
    return Session(store=store, start_seconds=first - begun, run_seconds=last - first, peak_mib=usage.ru_maxrss / 1024)


def same(folder: Path, nodes: Sequence[int]) -> Table:
    """The same study in every way, and whether it is the same."""
    text = TINY.format(more="")
    for old, new in SMALL.items():
        text = text.replace(old, new)
    text += FRESH
    table = Table("where", box=None, header_style="", pad_edge=False)
    for column in ("seconds", "steps", "same trials, curves and verdict"):
        table.add_column(column, justify="right")
    reference: object = None
    for workers in (1, 2, 4):
        found = session(folder / f"local-{workers}", text, workers)
        reference = reference or found.answer()
        _add(table, f"this machine, {workers} worker{'s' * (workers > 1)}", found, found.answer() == reference)
    for count in nodes:
        with Cluster() as cluster:
            cluster.add(cpus=1)
            for number in range(1, count):
                cluster.add(f"n{number}", cpus=1)
            found = session(folder / f"cluster-{count}", text, count, cluster)
        _add(table, f"a cluster of {count} node{'s' * (count > 1)}", found, found.answer() == reference)
    return table


def _add(table: Table, where: str, found: Session, is_same: bool) -> None:
    table.add_row(where, f"{found.run_seconds:.1f}", f"{found.records:,}", "yes" if is_same else "NO")


def speed(folder: Path, rounds: int, trials: int, tokens: int) -> Table:
    """This machine and a cluster of one node in turns, two workers each."""
    text = TIMED.format(trials=trials, tokens=tokens)
    found: dict[str, list[Session]] = {"this machine": [], "a cluster of one node": []}
    with Cluster() as cluster:
        cluster.add(cpus=2)
        for number in range(rounds):
            for where, sessions in found.items():
                here = folder / f"{where.replace(' ', '-')}-{number}"
                sessions.append(session(here, text, 2, None if where == "this machine" else cluster))
    table = Table("where", box=None, header_style="", pad_edge=False)
    for column in ("trials an hour", "share", "records/s", "start (s)", "driver (MiB)"):
        table.add_column(column, justify="right")
    per_hour = {where: [3600 * one.runs / one.run_seconds for one in sessions] for where, sessions in found.items()}
    ratios = [theirs / ours for ours, theirs in zip(*per_hour.values(), strict=True)]
    for where, sessions in found.items():
        table.add_row(
            where,
            f"{median(per_hour[where]):,.0f}",
            "" if where == "this machine" else f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            f"{median(one.records / one.run_seconds for one in sessions):,.0f}",
            f"{median(one.start_seconds for one in sessions):.1f}",
            f"{max(one.peak_mib for one in sessions):.0f}",
        )
    return table


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clusters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each side (5)")
    parser.add_argument("--trials", type=int, default=8, metavar="N", help="of a timed study (8)")
    parser.add_argument("--tokens", type=int, default=300_000, metavar="N", help="of a timed run (300,000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        Console(width=100).print(same(Path(name), (1, 2, 3)))
        Console(width=100).print(speed(Path(name), args.rounds, args.trials, args.tokens))


if __name__ == "__main__":
    main()
