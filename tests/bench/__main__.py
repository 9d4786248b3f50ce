"""`python -m tests.bench`: races hpstudy against other trainers, or with --study against sweep agents."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from hpstudy.cli.common import out, say
from hpstudy.errors import HpstudyError, UserError
from hpstudy.running.bench import QUICK, SETTINGS
from tests.bench.race import Race, Spread, peers_here, race, spread
from tests.bench.trials import Side, StudyRace, study_races

TURN_SECONDS, QUICK_TURN_SECONDS = 1.0, 0.25


def main() -> None:
    """Runs the races that the flags ask for, and prints their tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a training")
    parser.add_argument("--peers", action="store_true", help="against other trainers, in turns")
    parser.add_argument("--study", action="store_true", help="trials per hour against a process per trial")
    parser.add_argument("--quick", action="store_true", help="short turns, and no gpt-125m")
    parser.add_argument("--preset", help="only this model")
    parser.add_argument("--trials", type=int, default=8, help="trials of --study")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens of each trial of --study")
    args = parser.parse_args()
    try:
        if args.peers or not args.study:
            _print_races(args)
        if args.study:
            _print_study_races(args)
    except HpstudyError as error:
        say(str(error))
        sys.exit(error.exit_code)


def _print_races(args: argparse.Namespace) -> None:
    settings = [s for s in SETTINGS if s.name == args.preset] if args.preset else QUICK if args.quick else SETTINGS
    if not settings:
        raise UserError(f"--preset {args.preset}: must be one of {', '.join(setting.name for setting in SETTINGS)}")
    peers, left_out = peers_here(args.device) if args.peers else ([], {})
    for name, why in left_out.items():
        say(f"{name} is left out: it {why}")
    races = [
        race(
            setting,
            ["hpstudy", *peers],
            device=args.device,
            threads=args.threads,
            turn_seconds=QUICK_TURN_SECONDS if args.quick else TURN_SECONDS,
            say=say,
        )
        for setting in settings
    ]
    gemm = races[0].gemm.built
    out().print(f"{gemm.device}, {gemm.precision}, {args.threads} thread{'s' if args.threads > 1 else ''}")
    out().print(race_table(races))
    repeats = all(each.results["hpstudy"].built.repeats for each in races)
    out().print(f"the same numbers to the last bit when trained again: {'yes' if repeats else 'no'}")


def _print_study_races(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="hpstudy-bench-") as folder:
        rounds = 1 if args.quick else 3
        found = study_races(
            Path(folder), rounds=rounds, trials=args.trials, tokens=args.tokens, device=args.device, say=say
        )
        out().print(study_race_table(list(found)))


def race_table(races: Sequence[Race]) -> Table:
    """A row per contender. The limit is the fastest large matrix product of that race, in the device's precision."""
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


def study_race_table(found: Sequence[StudyRace]) -> Table:
    """A row per way to run the trials, with medians over the rounds."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("trials")
    for heading in ("trials/hour", "outside training", "median val loss", "hpstudy/agents", "min..max"):
        table.add_column(heading, justify="right")
    ours = [each.hpstudy for each in found]
    outside = statistics.median([side.outside for side in ours if side.outside is not None])
    table.add_row("hpstudy run", *_side_cells(ours, f"{outside:.1%}"), "", "")
    for way in found[0].agents:
        ratio = _ratio(spread([each.speedup(way) for each in found]))
        table.add_row(way, *_side_cells([each.agents[way] for each in found], ""), *ratio)
    return table


def _side_cells(sides: Sequence[Side], outside: str) -> tuple[str, str, str]:
    hourly, loss = ([getattr(side, name) for side in sides] for name in ("trials_per_hour", "median_val_loss"))
    return f"{spread(hourly).median:,.0f}", outside, f"{spread(loss).median:.3f}"


def _ratio(found: Spread) -> tuple[str, str]:
    return f"{found.median:.2f}", f"{found.low:.2f}..{found.high:.2f}"


if __name__ == "__main__":
    main()
