"""`bench`: how fast this machine trains."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.table import Table

from hpstudy.cli.common import out, say
from hpstudy.errors import UserError
from hpstudy.running.bench import QUICK, SETTINGS, BenchResult
from hpstudy.running.bench import bench as measure

ROUNDS = 5
TURN_SECONDS, QUICK_TURN_SECONDS = 1.0, 0.25


def bench(*, device: str, threads: int, quick: bool, preset: str | None) -> None:
    """Prints one row per model."""
    settings = [setting for setting in SETTINGS if setting.name == preset] if preset else QUICK if quick else SETTINGS
    if not settings:
        raise UserError(f"--preset {preset}: must be one of {', '.join(setting.name for setting in SETTINGS)}")
    turn_seconds = QUICK_TURN_SECONDS if quick else TURN_SECONDS
    found = []
    with tempfile.TemporaryDirectory(prefix="hpstudy-bench-") as folder:
        for setting in settings:
            say(f"measuring {setting.name}")
            log = Path(folder) / f"{setting.name}.log"
            found.append(
                measure(setting, device=device, threads=threads, rounds=ROUNDS, turn_seconds=turn_seconds, log=log)
            )
    out().print(f"{found[0].device_name}, {found[0].precision}, {threads} thread{'s' if threads > 1 else ''}")
    out().print(bench_table(found))
    repeats = all(result.figures.repeats for result in found)
    out().print(f"the same numbers to the last bit when trained again: {'yes' if repeats else 'no'}")


def bench_table(found: list[BenchResult]) -> Table:
    """A row per model. The limit is the fastest large matrix product in the training's precision."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    for heading in ("tok/s", "MFU", "limit GFLOP/s", "peak GiB"):
        table.add_column(heading, justify="right")
    for result in found:
        table.add_row(
            f"{result.setting.name} at {result.setting.context}",
            f"{result.tok_per_sec:,.0f}",
            f"{result.mfu:.1%}",
            f"{result.figures.flops_per_second / 1e9:,.0f}",
            f"{result.figures.peak_gib:.2f}",
        )
    return table
