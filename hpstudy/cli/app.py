"""The commands and their flags. A command's body is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from hpstudy import __version__
from hpstudy.errors import HpstudyError, UserError
from hpstudy.files import RUNS
from hpstudy.spec import MAX_TRIALS
from hpstudy.tracking.wandb_settings import ModeFlag

if TYPE_CHECKING:
    from hpstudy.running.interface import Options


class _Commands(TyperGroup):
    """Lists each command with its whole text, where the library cuts it at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])


app = typer.Typer(
    name="hpstudy",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes and colours would double the time that a help page takes
    help="Hyperparameter studies for language-model training, compared with the GPT-3 baseline.",
    epilog="Example: hpstudy run quickstart",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A study by name, or a path to a .toml file.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run stores.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Wandb = Annotated[ModeFlag, typer.Option("--wandb", help="auto: online with a key or login, else offline.")]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, max=MAX_TRIALS, metavar="N", help="Trials in all; more extend the search."),
]
Json = Annotated[bool, typer.Option("--json", help="Prints one JSON object, for scripts; see `hpstudy reference`.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="auto|ADDRESS", help="Train on a Ray cluster; on equal nodes it changes no result."
    ),
]
Workers = Annotated[str, typer.Option("--workers", metavar="N|auto", help="Trainings side by side; changes no result.")]

AcceptEnvironment = Annotated[
    bool,
    typer.Option("--accept-environment", help="Resume although what numbers depend on has changed; reports say so."),
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False
) -> None:
    """Prints the version, or the help if there is no command."""
    if version:
        typer.echo(f"hpstudy {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: hpstudy new mine --corpus text:my.txt --minutes 10")
def new(
    name: Name,
    corpus: Annotated[
        str, typer.Option("--corpus", metavar="CORPUS", help="text:PATH, a file or a folder; or as in `prepare`.")
    ],
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, max=100_000, metavar="N", help="How long the study may take here.")
    ] = 10.0,
    device: Device = "auto",
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="Such as gpt-4x128; else chosen for the time.")
    ] = None,
) -> None:
    """Writes a study of a corpus, sized to this machine and the time, with the reason beside each value."""
    from hpstudy.cli import new_command

    new_command.new(name, corpus, minutes, device, model)


@app.command(epilog="Example: hpstudy check quickstart")
def check(name: Name, runs: Runs = RUNS, device: Device = "auto", trials: Trials = None, as_json: Json = False) -> None:
    """Validates a study; prints its space, its baseline, and its cost before anything runs."""
    from hpstudy.cli import check_command
    from hpstudy.study.ladder import is_ladder

    if is_ladder(name):
        from hpstudy.cli import ladder_command

        if trials is not None:
            raise UserError("--trials: a ladder's trials are those of [ladder] trials; change them there")
        ladder_command.check(name, runs, device, as_json=as_json)
        return
    check_command.check(name, runs, device, trials, as_json=as_json)


@app.command(epilog="Example: hpstudy run quickstart --wandb offline")
def run(
    name: Name,
    runs: Runs = RUNS,
    device: Device = "auto",
    wandb: Wandb = "auto",
    workers: Workers = "auto",
    cluster: Cluster = None,
    trials: Trials = None,
    accept_environment: AcceptEnvironment = False,
    as_json: Json = False,
) -> None:
    """Searches, trains the baseline, confirms the winner on fresh seeds, and reports. Run it again to resume."""
    from hpstudy.study.ladder import is_ladder

    options = _options(runs, device, wandb, workers, cluster, trials, accept_environment)
    if is_ladder(name):
        from hpstudy.cli import ladder_run

        ladder_run.run(name, options, as_json=as_json)
    else:
        from hpstudy.cli import study_commands

        study_commands.run(name, options, as_json=as_json)


@app.command(epilog="Example: hpstudy ladder ladder")
def ladder(name: Name, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Shows what a ladder of studies has found, and writes its page and the study of its target."""
    from hpstudy.cli import ladder_command

    ladder_command.show(name, runs, as_json=as_json)


@app.command(epilog="Example: hpstudy confirm quickstart")
def confirm(
    name: Name,
    runs: Runs = RUNS,
    device: Device = "auto",
    wandb: Wandb = "auto",
    workers: Workers = "auto",
    cluster: Cluster = None,
    accept_environment: AcceptEnvironment = False,
    as_json: Json = False,
) -> None:
    """Trains winner and baseline on fresh seeds, once the search is done; for seeds that were added."""
    from hpstudy.cli import study_commands

    study_commands.confirm(
        name, _options(runs, device, wandb, workers, cluster, None, accept_environment), as_json=as_json
    )


@app.command(epilog="Example: hpstudy status quickstart")
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A study; without it, all of them.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Says where studies stand and what comes next: a line for each, or one study with its answer so far."""
    from hpstudy.cli import status_command

    status_command.status(name, runs, as_json=as_json)


@app.command(epilog="Example: hpstudy export quickstart --format csv")
def export(
    name: Name,
    runs: Runs = RUNS,
    format: Annotated[Literal["parquet", "csv"], typer.Option("--format", help="File format.")] = "parquet",
) -> None:
    """Writes every trial and every step as two tables, and prints their paths."""
    from hpstudy.cli import report_commands

    report_commands.export(name, runs, format)


@app.command(epilog="Example: hpstudy report quickstart")
def report(
    name: Name,
    runs: Runs = RUNS,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draws the figures of report.md; needs kaleido and Chromium.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes the report as HTML and Markdown, and prints the path of the page."""
    from hpstudy.study import study_name
    from hpstudy.tracking.store import begun_ladders

    if study_name(name) in begun_ladders(runs):
        from hpstudy.cli import ladder_command

        ladder_command.show(name, runs, as_json=as_json, figures=figures)
    else:
        from hpstudy.cli import report_commands

        report_commands.report(name, runs, figures=figures, as_json=as_json)


@app.command(epilog="Example: hpstudy sync quickstart")
def sync(
    name: Name,
    runs: Runs = RUNS,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also reads back, row by row, what was sent before.")
    ] = False,
) -> None:
    """Sends W&B every finished run that it does not have online, each step exactly once."""
    from hpstudy.cli import wandb_commands

    wandb_commands.sync(name, runs, verify)


@app.command(epilog="Example: hpstudy compare betas weight-decay")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Two studies that have begun, or more.")],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Shows several studies side by side: prints a table, writes a page, and prints its path."""
    from hpstudy.cli import report_commands

    report_commands.compare(names, runs, as_json=as_json)


@app.command(epilog="Example: hpstudy results betas clipping > RESULTS.md")
def results(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Studies that have begun; without it, all of them.")
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Prints the answers of studies as Markdown: a table of all, then each with its numbers and its command."""
    from hpstudy.cli import report_commands

    report_commands.results(names or [], runs, as_json=as_json)


@app.command(epilog="Example: hpstudy workspace quickstart --save")
def workspace(
    name: Name,
    runs: Runs = RUNS,
    save: Annotated[bool, typer.Option("--save", help="Saves both on W&B as new views.")] = False,
) -> None:
    """Builds two W&B workspaces and a W&B report of a study; prints them as JSON, or with --save their addresses."""
    from hpstudy.cli import wandb_commands

    wandb_commands.workspace(name, runs, save)


@app.command(epilog="Example: hpstudy replay quickstart search-0003")
def replay(
    name: Name,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, such as search-0003.")],
    runs: Runs = RUNS,
    device: Device = "auto",
) -> None:
    """Trains one run again in a fresh process and compares every step; exit code 1 if it differs."""
    from hpstudy.cli import study_commands

    study_commands.replay(name, run, runs, device)


@app.command(epilog="Example: hpstudy dashboard quickstart --port 8081")
def dashboard(
    name: Name,
    runs: Runs = RUNS,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Serves optuna-dashboard on the study until Ctrl-C, read-only."""
    from hpstudy.cli import report_commands

    report_commands.dashboard(name, runs, host, port)


@app.command(epilog="Example: hpstudy reference")
def reference() -> None:
    """Prints every key of a study file, every logged metric and every key of --json, as Markdown."""
    from hpstudy.cli.json_reference import json_markdown
    from hpstudy.study.reference import reference_markdown

    print(f"{reference_markdown()}\n{json_markdown()}", end="")


@app.command(epilog="Example: hpstudy schema > studies/.hpstudy.schema.json")
def schema() -> None:
    """Prints the JSON schema of a study file, with which editors complete and check it."""
    from hpstudy.study.json_schema import schema_text

    print(schema_text(), end="")


@app.command(epilog="Example: hpstudy corpora")
def corpora() -> None:
    """Lists the corpora that a study can train on."""
    from hpstudy.cli import data_commands

    data_commands.corpora()


@app.command(epilog="Example: hpstudy prepare asv --tokenizer gpt2:2048")
def prepare(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="asv, fineweb-edu, text:PATH, shards:GLOB or raw:GLOB.")
    ],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="gpt2, gpt2:N or bytes.")] = "gpt2",
    shards: Annotated[int, typer.Option("--shards", min=1, max=99, help="Shards of 100M tokens to download.")] = 10,
) -> None:
    """Tokenizes or downloads a corpus, and prints the paths of its shards."""
    from hpstudy.cli import data_commands

    data_commands.prepare(corpus, tokenizer, shards)


@app.command(epilog="Example: hpstudy doctor --device cuda")
def doctor(
    runs: Runs = RUNS,
    device: Device = "auto",
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="auto|ADDRESS", help="The nodes of a running Ray cluster.")
    ] = None,
) -> None:
    """Says what this machine has, or each node of a cluster; exit code 1 if a study could not run."""
    from hpstudy.cli import machine_commands

    if cluster is None:
        machine_commands.doctor(runs, device)
    else:
        from hpstudy.cli import doctor_cluster

        doctor_cluster.doctor(cluster, machine_commands.PROBE, runs, device)


@app.command(epilog="Example: hpstudy bench --quick")
def bench(
    device: Device = "auto",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of a training.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of a training.")] = 1,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes of a training on a CPU.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Short turns, and no gpt-125m.")] = False,
    preset: Annotated[str | None, typer.Option("--preset", help="Only this model.", metavar="NAME")] = None,
) -> None:
    """Measures tokens per second, MFU, memory and where a step's time goes, of training on this machine."""
    from hpstudy.cli import machine_commands

    machine_commands.bench(device=device, threads=threads, gpus=gpus, processes=processes, quick=quick, preset=preset)


def _options(
    runs: Path,
    device: str,
    wandb: ModeFlag,
    workers: str,
    cluster: str | None,
    trials: int | None,
    accept_environment: bool,
) -> Options:
    from hpstudy.running.interface import Options

    return Options(
        runs=runs,
        device=device,
        wandb=wandb,
        workers=_num_workers(workers),
        cluster=cluster,
        trials=trials,
        accept_environment=accept_environment,
    )


def _num_workers(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"--workers {text}: must be a whole number from 1, or auto")


def _complain(error: Exception) -> None:
    with suppress(OSError):  # the terminal may be gone
        typer.secho(str(error), err=True, fg="red")


def _open_standard_streams() -> None:
    """Sends what was closed before the start to /dev/null. Else the next file that opens would get its messages."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def main() -> None:
    """Runs the command line. Every expected failure is a message and its exit code, never a traceback."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character shows a question mark
    try:
        app()
    except HpstudyError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except OSError as error:  # a closed pipe, a full disk, an unreadable file
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  buffered output cannot go anywhere
        _complain(error)
        sys.exit(1)
