"""`run`, `confirm` and `replay`: all that trains a study's runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType

from rich.console import Console

from hpstudy.cli.common import err, out, print_json
from hpstudy.cli.progress import StudyProgress
from hpstudy.errors import MachineError, UserError
from hpstudy.files import RUNS, command
from hpstudy.running.driver import run_study
from hpstudy.running.interface import STOP_SIGNALS, Interrupted, Options, StopRequest
from hpstudy.running.replay import replay as train_again
from hpstudy.study import Study, as_begun, load_frozen, load_study, num_trials, seeds_of_others, study_name
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import whereabouts


def run(name: str, options: Options, *, as_json: bool = False) -> None:
    """Runs or resumes a study, writes its report, and prints the comparison and the verdict, or what `status` knows."""
    study = as_begun(load_study(name), options.runs / study_name(name))
    console = err()
    for warning in (*study.warnings, *seeds_of_others(study, options.runs)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print(f"{study.name}: {study.question}")
    progress = StudyProgress(study, console)
    ahead = Thread(target=import_ahead)
    ahead.start()  # takes a second or two, while a worker starts
    with _stop_on_signals(console) as stop:
        try:
            with progress.shown():
                store = run_study(study, options, progress, stop)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted(f"stopped; every finished run is kept. Resume with: {_resume(name, options)}") from error
    ahead.join()  # two threads that import the same modules can get in each other's way
    if as_json:
        _print_overview(study, options.runs)
    else:
        _print_result(study, store, options.runs, _resume(name, replace(options, trials=None)))


def import_ahead() -> None:
    """Imports what the end of a run needs. If the process ends meanwhile, the import fails, and nothing is lost."""
    with suppress(Exception):
        import_module("hpstudy.report")


def confirm(name: str, options: Options, *, as_json: bool = False) -> None:
    """Does what `run` does once the search is done. Refuses to search."""
    study, store = load_study(name), RunStore(options.runs / study_name(name))
    wanted = num_trials(study, None)
    done = sum(view.header.run.phase == "search" and view.result is not None for view in store.runs())
    if done < wanted:
        raise UserError(
            f"{store.root}: {done} of {wanted} trials of the search are done, and the winner is known after the last; "
            f"`{command('run', name, options.runs)}` finishes the search, then confirms"
        )
    if not study.confirm.seeds:
        raise UserError(f"{study.path}: [confirm] seeds: must hold fresh seeds to confirm on, but is empty; add some")
    run(name, options, as_json=as_json)


def replay(name: str, run_id: str, runs: Path, device: str) -> None:
    """Prints how a run repeats. Raises MachineError if it does not."""
    store = RunStore(runs / study_name(name))
    found = train_again(load_frozen(store.root), store, run_id, device)
    console = out()
    if found.first is None:
        console.print(f"{run_id}: {found.steps} of {found.steps} steps repeat bitwise", soft_wrap=True)
    else:
        console.print(
            f"{run_id}: does not repeat bitwise; first difference at {found.first}\n"
            f"largest difference of a loss over {found.steps} steps: {found.largest:.3g} nats "
            f"(tolerance between machines: {found.tolerance:g})",
            markup=False,
            soft_wrap=True,
        )
    for change in found.changed:
        console.print(f"changed since it was recorded: {change}", markup=False, soft_wrap=True)
    if found.damage is not None:
        raise MachineError(found.damage)
    if not found.good:
        rule = "beyond the tolerance" if found.changed else "though nothing that numbers depend on has changed"
        raise MachineError(f"{run_id}: does not repeat, {rule}; the record was edited, or this machine makes errors")


def _resume(name: str, options: Options) -> str:
    """The command that resumes a study, with each flag that is not at its default."""
    default = Options(runs=RUNS, device="auto", wandb="auto")
    flags = ((flag, getattr(options, flag)) for flag in ("device", "wandb", "workers", "trials"))
    given = [word for flag, v in flags if v != getattr(default, flag) for word in (f"--{flag}", str(v))]
    return command("run", name, options.runs, *given)


def _print_overview(study: Study, runs: Path) -> None:
    from hpstudy.analysis.overview import overview
    from hpstudy.cli.report_commands import loaded, report_page

    results = loaded(study.name, runs)
    report_page(results)
    print_json(overview(results))


def _print_result(study: Study, store: RunStore, runs: Path, resume: str) -> None:
    from hpstudy.analysis.results import load
    from hpstudy.cli.report_commands import report_page
    from hpstudy.report.leaderboard import leaderboard
    from hpstudy.report.terminal import leaderboard_table

    results = load(study.name, runs)
    page = report_page(results)
    console = out()
    console.print(leaderboard_table(leaderboard(results), study.name, width=console.width, noise=results.noise))
    console.print(f"\n{results.verdict().sentence}\n", style="bold")
    lines = [
        ("files", store.root),
        ("report", page),
        ("W&B runs", whereabouts(store.root, study.name)),
        ("next", command("export", study.name, runs)),
    ]
    searched = int((results.trials["phase"] == "search").sum())
    if (more := num_trials(study, 2 * searched)) > searched:
        lines.append(("", f"{resume} --trials {more}"))
    for what, value in lines:
        console.print(f"{what:<8} {value}", soft_wrap=True)


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[StopRequest]:
    """The first of STOP_SIGNALS asks the driver to stop; a second stops at once.

    A signal that was ignored before, as nohup does with SIGHUP, stays ignored. Outside the main thread, which alone
    may handle signals, nothing is changed.
    """
    stop = StopRequest()
    if current_thread() is not main_thread():
        yield stop
        return

    def ask(_signum: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        console.print("stopping: saving checkpoints and closing the sinks (Ctrl-C again stops at once)")

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
