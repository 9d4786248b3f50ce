"""`bench`: how fast this machine trains, as ratios of figures measured side by side."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from hpstudy.benching.race import QUICK, SETTINGS, Name, Race, Setting, Spread, peers_here, race, spread
from hpstudy.benching.trials import Bout, Side, bouts
from hpstudy.cli.consoles import err, out
from hpstudy.errors import UserError

TURN_SECONDS, QUICK_TURN_SECONDS = 1.0, 0.25


def bench(
    *,
    device: str,
    threads: int,
    peers: bool,
    study: bool,
    quick: bool,
    preset: str | None,
    trials: int,
    tokens: int,
) -> None:
    """Prints the table of trainings, and with `study` the table of whole studies, alone or after the other."""
    if peers or not study:
        races = _races(device, threads, peers, quick, preset)
        built = races[0].gemm.built
        out().print(f"{built.device}, {built.precision}, {threads} thread{'s' if threads > 1 else ''}", markup=False)
        out().print(race_table(races))
        repeats = all(each.results["hpstudy"].built.repeats for each in races)
        out().print(f"the same numbers, to the last bit, when trained again: {'yes' if repeats else 'no'}")
    if study:
        with tempfile.TemporaryDirectory(prefix="hpstudy-bench-") as folder:
            rounds = 1 if quick else 3
            found = list(bouts(Path(folder), rounds=rounds, trials=trials, tokens=tokens, device=device, say=_say))
        out().print(bout_table(found))


def _races(device: str, threads: int, peers: bool, quick: bool, preset: str | None) -> list[Race]:
    settings = [setting for setting in SETTINGS if setting.name == preset] if preset else QUICK if quick else SETTINGS
    if not settings:
        raise UserError(f"--preset {preset}: must be one of {', '.join(setting.name for setting in SETTINGS)}")
    for name in peers_here(settings[0])[1] if peers else ():
        _say(f"{name} is not installed and left out; it comes with: pip install 'hpstudy[peers]'")
    turn_seconds = QUICK_TURN_SECONDS if quick else TURN_SECONDS
    return [
        race(setting, _field(setting, peers), device=device, threads=threads, turn_seconds=turn_seconds, say=_say)
        for setting in settings
    ]


def _field(setting: Setting, peers: bool) -> list[Name]:
    return ["hpstudy", *(peers_here(setting)[0] if peers else [])]


def race_table(races: Sequence[Race]) -> Table:
    """A row per contender; the limit is what the fastest large matrix product of that race reached."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    table.add_column("trainer")
    for heading in ("tok/s", "MFU", "limit GFLOP/s", "peak GiB", "hpstudy/peer", "min..max"):
        table.add_column(heading, justify="right")
    for each in races:
        for place, (name, result) in enumerate(each.results.items()):
            table.add_row(
                f"{each.setting.name} at {each.setting.context}" if place == 0 else "",
                name,
                f"{result.tok_per_sec:,.0f}",
                f"{each.mfu(name):.1%}",
                f"{each.limit / 1e9:,.0f}" if place == 0 else "",
                f"{result.peak_memory_gib:.2f}",
                *(("", "") if name == "hpstudy" else _ratio(each.speedup(name))),
            )
    return table


def bout_table(found: Sequence[Bout]) -> Table:
    """A row per way to run the trials, with medians over the rounds."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("trials")
    for heading in ("trials/hour", "outside training", "median val loss", "hpstudy/agents", "min..max"):
        table.add_column(heading, justify="right")
    ours = [bout.hpstudy for bout in found]
    outside = statistics.median([side.outside for side in ours if side.outside is not None])
    table.add_row("hpstudy run", *_side_cells(ours, f"{outside:.1%}"), "", "")
    for way in found[0].agents:
        ratio = _ratio(spread([bout.speedup(way) for bout in found]))
        table.add_row(way, *_side_cells([bout.agents[way] for bout in found], ""), *ratio)
    return table


def _side_cells(sides: Sequence[Side], outside: str) -> tuple[str, str, str]:
    hourly, loss = ([getattr(side, name) for side in sides] for name in ("trials_per_hour", "median_val_loss"))
    return f"{spread(hourly).median:,.0f}", outside, f"{spread(loss).median:.3f}"


def _ratio(found: Spread) -> tuple[str, str]:
    return f"{found.median:.2f}", f"{found.low:.2f}..{found.high:.2f}"


def _say(line: str) -> None:
    err().print(line, markup=False)
