"""`run`, `confirm` and `replay`: all that trains a study's runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from hpstudy.cli.common import err, out, print_json
from hpstudy.cli.progress import StudyProgress
from hpstudy.errors import MachineError, UserError
from hpstudy.files import RUNS, command
from hpstudy.processes import STOP_SIGNALS
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Interrupted, Options, StopRequest
from hpstudy.running.local import LocalExecutor
from hpstudy.running.replay import replay as train_again
from hpstudy.search import JOURNAL
from hpstudy.study import Study, as_begun, load_frozen, load_study, num_trials, seeds_of_others, study_name
from hpstudy.tracking.store import RunStore

if TYPE_CHECKING:
    from hpstudy.analysis.results import StudyResults


def run(name: str, options: Options, *, as_json: bool = False) -> None:
    """Runs or resumes a study, writes its report, and prints the comparison and the verdict, or what `status` knows."""
    store = train(name, options, resume=command("run", name, options.runs, *flags_of(options)))
    from hpstudy.analysis.results import load

    results, flags = load(store.root.name, options.runs), flags_of(replace(options, trials=None))
    if as_json:
        _print_overview(results, flags)
    else:
        _print_result(results, flags)


def train(name: str, options: Options, *, resume: str) -> RunStore:
    """Runs or resumes a study with a live view. `resume` is the command that a stopped one names."""
    study = as_begun(load_study(name), options.runs / study_name(name))
    console = err()
    for warning in (*study.warnings, *seeds_of_others(study, options.runs)):
        console.print(f"warning: {warning}")
    if options.trials and (most := num_trials(study, options.trials)) < options.trials:
        console.print(f"warning: --trials {options.trials}: the grid has {most} points, and no more can be tried")
    console.print(f"{study.name}: {study.question}")
    proposes = not study.measures_speed and not (options.runs / study.name / JOURNAL).exists()
    ahead = Thread(target=import_ahead, args=[study if proposes else None])
    if study.measures_speed:
        ahead.start()  # while workers start, and not beside a training
    progress = StudyProgress(
        study, console, options.trials, on_first_phase=lambda: None if ahead.ident else ahead.start()
    )
    with _stop_on_signals(console) as stop:
        try:
            with progress.shown():
                store = run_study(study, options, progress, stop)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted(f"stopped; every finished run is kept. Resume with:\n  {resume}") from error
    if ahead.ident:
        ahead.join()  # two threads that import the same modules can get in each other's way
    return store


def import_ahead(study: Study | None) -> None:
    """Imports what the proposals of a study that begins, and the end of any, need.

    If the process ends meanwhile, an import fails, and nothing is lost.
    """
    with suppress(Exception):
        if study is not None:
            import_module("hpstudy.search.sampling").rehearse(study)
        import_module("hpstudy.report")


def confirm(name: str, options: Options, *, as_json: bool = False) -> None:
    """Does what `run` does once the search is done. Refuses to search."""
    store = RunStore(options.runs / study_name(name))
    study = as_begun(load_study(name), store.root)
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
    with TemporaryDirectory() as folder:
        found = train_again(load_frozen(store.root), store, run_id, device, LocalExecutor(Path(folder)))
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


def flags_of(options: Options) -> list[str]:
    """The flags of `run` that are not at their default."""
    default = Options(runs=RUNS, device="auto", wandb="auto")
    given = ((flag, getattr(options, flag)) for flag in ("device", "wandb", "workers", "cluster", "trials"))
    return [word for flag, v in given if v != getattr(default, flag) for word in (f"--{flag}", str(v))]


def _print_overview(results: StudyResults, flags: Sequence[str]) -> None:
    """Writes the report, and prints what `status --json` knows."""
    from hpstudy.analysis.overview import overview
    from hpstudy.cli.report_commands import report_page

    report_page(results)
    print_json(overview(results, flags=flags))


def _print_result(results: StudyResults, flags: Sequence[str]) -> None:
    """Writes the report, and prints what the study found."""
    from hpstudy.analysis.state import state
    from hpstudy.cli.report_commands import report_page
    from hpstudy.report.terminal import last_screen

    page, console = report_page(results), out()
    height = console.height if console.is_terminal else None
    now = state(results, flags=flags)
    screen = last_screen(results, now, page, width=console.width, height=height, encoding=console.encoding)
    console.print(screen, soft_wrap=True)


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
        console.print("stopping: waiting for checkpoints and W&B (Ctrl-C again stops at once)")

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
