"""The commands and their flags. The bodies are imported when a command runs, so that `--help` answers at once."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hpstudy import __version__
from hpstudy.errors import HpstudyError, UserError
from hpstudy.tracking.wandb_sink import ModeFlag

app = typer.Typer(
    name="hpstudy",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hyperparameter studies for language-model training, compared with the GPT-3 baseline.",
    epilog="Example: hpstudy run quickstart",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A study in studies/, or a path to a .toml file.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run stores.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Wandb = Annotated[ModeFlag, typer.Option("--wandb", help="auto: online where a key or login exists, else offline.")]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, metavar="N", help="Trials in all; more extend the search."),
]

Workers = Annotated[str, typer.Option("--workers", metavar="N|auto", help="Trainings side by side; changes no result.")]

RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False
) -> None:
    """Prints the version, or the help when no command is given."""
    if version:
        typer.echo(f"hpstudy {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: hpstudy check quickstart")
def check(name: Name, runs: Runs = RUNS, device: Device = "auto", trials: Trials = None) -> None:
    """Validates a study; prints its space, what is fixed, and what it will cost before anything runs."""
    from hpstudy.cli import study_commands

    study_commands.check(name, runs, device, trials)


@app.command(epilog="Example: hpstudy run quickstart --wandb offline")
def run(
    name: Name,
    runs: Runs = RUNS,
    device: Device = "auto",
    wandb: Wandb = "auto",
    workers: Workers = "auto",
    trials: Trials = None,
) -> None:
    """Searches, trains the baseline, confirms the winner on fresh seeds and reports; run it again to resume."""
    from hpstudy.cli import study_commands

    study_commands.run(name, runs, device, wandb, _num_workers(workers), trials)


@app.command(epilog="Example: hpstudy confirm quickstart")
def confirm(
    name: Name, runs: Runs = RUNS, device: Device = "auto", wandb: Wandb = "auto", workers: Workers = "auto"
) -> None:
    """Trains winner and baseline on the fresh seeds of a study whose search is done, as after adding seeds."""
    from hpstudy.cli import study_commands

    study_commands.confirm(name, runs, device, wandb, _num_workers(workers))


@app.command(epilog="Example: hpstudy status quickstart")
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A study; all of them when left out.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Prints what is done, unfinished and failed."""
    from hpstudy.cli import data_commands

    data_commands.status(name, runs)


@app.command(epilog="Example: hpstudy export quickstart --format csv")
def export(
    name: Name,
    runs: Runs = RUNS,
    format: Annotated[Literal["parquet", "csv"], typer.Option("--format", help="File format.")] = "parquet",
) -> None:
    """Writes every trial and every step as two tables, and prints their paths."""
    from hpstudy.cli import data_commands

    data_commands.export(name, runs, format)


@app.command(epilog="Example: hpstudy report quickstart")
def report(name: Name, runs: Runs = RUNS) -> None:
    """Writes the report as HTML and Markdown, and prints the path of the page."""
    from hpstudy.cli import data_commands

    data_commands.report(name, runs)


@app.command(epilog="Example: hpstudy sync quickstart")
def sync(name: Name, runs: Runs = RUNS) -> None:
    """Sends W&B every finished run that it does not have online, each step exactly once."""
    from hpstudy.cli import study_commands

    study_commands.sync(name, runs)


@app.command(epilog="Example: hpstudy compare betas weight-decay")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Two studies that have begun, or more.")],
    runs: Runs = RUNS,
) -> None:
    """Several studies side by side: a table, and a page with one figure for all; prints the page's path."""
    from hpstudy.cli import view_commands

    view_commands.compare(names, runs)


@app.command(epilog="Example: hpstudy results betas clipping > RESULTS.md")
def results(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Studies that have begun; all when left out.")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Prints the answers of studies as Markdown: a table of all, then each with its numbers and how to repeat it."""
    from hpstudy.cli import view_commands

    view_commands.results(names or [], runs)


@app.command(epilog="Example: hpstudy workspace quickstart --save")
def workspace(
    name: Name,
    runs: Runs = RUNS,
    save: Annotated[bool, typer.Option("--save", help="Saves both on W&B, each as a new view.")] = False,
) -> None:
    """Builds a W&B workspace and a W&B report of a study; prints them as JSON, or with --save their addresses."""
    from hpstudy.cli import view_commands

    view_commands.workspace(name, runs, save)


@app.command(epilog="Example: hpstudy replay quickstart search-0003")
def replay(
    name: Name,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, such as search-0003.")],
    runs: Runs = RUNS,
    device: Device = "auto",
) -> None:
    """Trains one run again in a fresh process and compares every step; exit code 1 if it is not the same."""
    from hpstudy.cli import replay_command

    replay_command.replay(name, run, runs, device)


@app.command(epilog="Example: hpstudy dashboard quickstart --port 8081")
def dashboard(
    name: Name,
    runs: Runs = RUNS,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
) -> None:
    """Serves optuna-dashboard on the study's storage until Ctrl-C."""
    from hpstudy.cli import data_commands

    data_commands.dashboard(name, runs, host, port)


@app.command(epilog="Example: hpstudy corpora")
def corpora() -> None:
    """Lists what may stand in a study's `corpus`."""
    from hpstudy.cli import machine_commands

    machine_commands.corpora()


@app.command(epilog="Example: hpstudy prepare asv --tokenizer gpt2:2048")
def prepare(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="asv, fineweb-edu, text:PATH or shards:GLOB.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="gpt2, gpt2:N or bytes.")] = "gpt2",
    shards: Annotated[int, typer.Option("--shards", min=1, max=99, help="Shards of 100M tokens to download.")] = 10,
) -> None:
    """Tokenizes or downloads a corpus into shards, and prints their paths."""
    from hpstudy.cli import machine_commands

    machine_commands.prepare(corpus, tokenizer, shards)


@app.command(epilog="Example: hpstudy doctor --device cuda")
def doctor(runs: Runs = RUNS, device: Device = "auto") -> None:
    """Says what this machine has, and what is missing here; exit code 1 if a study could not run."""
    from hpstudy.cli import machine_commands

    machine_commands.doctor(runs, device)


@app.command(epilog="Example: hpstudy bench --peers --quick")
def bench(
    device: Device = "auto",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each training.")] = 1,
    peers: Annotated[bool, typer.Option("--peers", help="Against other trainers, by turns.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Trials per hour against a process per trial.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Short turns, and no gpt-125m.")] = False,
    preset: Annotated[str | None, typer.Option("--preset", help="This model alone.", metavar="NAME")] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials of --study.")] = 8,
    tokens: Annotated[int, typer.Option("--tokens", min=20_480, help="Tokens of each trial of --study.")] = 300_000,
) -> None:
    """Measures the speed of training on this machine against its limit, other trainers, or sweep agents."""
    from hpstudy.cli import bench_command

    bench_command.bench(
        device=device,
        threads=threads,
        peers=peers,
        study=study,
        quick=quick,
        preset=preset,
        trials=trials,
        tokens=tokens,
    )


def _num_workers(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"--workers {text}: must be a whole number from 1, or auto")


def main() -> None:
    """Runs the command line; every foreseen failure is a message and its exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows a question mark
    try:
        app()
    except HpstudyError as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(error.exit_code)
    except OSError as error:  # a closed pipe, a full disk, a file that cannot be read
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  what is buffered can go nowhere
        typer.secho(str(error), err=True, fg="red")
        sys.exit(1)
