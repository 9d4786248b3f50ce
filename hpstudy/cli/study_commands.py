"""`check`, `run`, `confirm` and `replay`: all that trains a study's runs."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from hpstudy.analysis.numbers import duration
from hpstudy.cli.common import err, out, say
from hpstudy.cli.progress import StudyProgress
from hpstudy.data.corpus import check_size, corpus_of
from hpstudy.errors import MachineError, UserError
from hpstudy.files import RUNS, command
from hpstudy.running.confirm import planned
from hpstudy.running.cost import Cost, estimate
from hpstudy.running.driver import run_study
from hpstudy.running.interface import STOP_SIGNALS, Interrupted, Options, StopRequest
from hpstudy.running.replay import replay as train_again
from hpstudy.study import Choices, Study, load_frozen, load_study, num_trials, seeds_of_others, study_name
from hpstudy.tracking.store import RunStore, begun_studies

if TYPE_CHECKING:
    from hpstudy.analysis.results import StudyResults
    from hpstudy.analysis.state import State


def check(name: str, runs: Path, device: str, trials: int | None) -> None:
    """Validates a study and prints its space, its baseline and its cost."""
    study = load_study(name)
    console = out()
    corpus = corpus_of(study.spec)
    check_size(corpus, study.spec.context, study.largest_batch_tokens)
    console.print(f"{study.name}: {study.question}", style="bold")
    console.print(_space_table(study))
    from hpstudy.analysis.departures import departures_sentence  # pandas takes half a second to import

    console.print(departures_sentence(study), soft_wrap=True)
    for warning in (*study.warnings, *seeds_of_others(study, runs)):
        say(f"warning: {warning}")
    plan = planned(study, trials)
    shares = [share for phase in plan.values() for share in phase]
    with tempfile.TemporaryDirectory() as folder:
        cost = estimate(study, device, shares, Path(folder) / "worker.log", say)
    _print_cost(console, study, cost, corpus.num_train_tokens)
    counts = [f"{len(phase)} {name}" for name, phase in plan.items()]
    if looks := study.confirm.looks:
        counts[-1] += f"; the race stops after {looks[0]} to {looks[-1]} seeds a side"
    console.print(f"         {', '.join(counts)}", soft_wrap=True)
    if begun := begun_studies(runs):
        from hpstudy.analysis.together import pooled_noise  # scipy takes a second to import
        from hpstudy.cli.report_commands import readable

        found = {results.name: results for results in readable(begun, runs)}
        if study.name in found and (noise := found[study.name].noise):
            console.print(f"noise    {noise}", soft_wrap=True)
        if pooled := pooled_noise(study, list(found.values())):
            console.print(f"noise    {pooled}", soft_wrap=True)


def run(name: str, options: Options) -> None:
    """Runs or resumes a study, writes its report, and prints the comparison and the verdict."""
    study = load_study(name)
    console = err()
    for warning in (*study.warnings, *seeds_of_others(study, options.runs)):
        console.print(f"warning: {warning}")
    console.print(f"{study.name}: {study.question}")
    progress = StudyProgress(study, console, options.trials)
    ahead = Thread(target=import_ahead)
    ahead.start()  # takes a second or two, while a worker starts
    with _stop_on_signals(console) as stop:
        try:
            with progress.shown():
                store = run_study(study, options, progress, stop)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted(
                f"stopped; every finished run is kept. Resume with:\n  {_resume(name, options)}"
            ) from error
    ahead.join()  # two threads that import the same modules can get in each other's way
    from hpstudy.analysis.results import load
    from hpstudy.analysis.state import state

    results = load(store.root.name, options.runs)
    _print_result(results, state(results, name, flags=_flags(replace(options, trials=None))))


def import_ahead() -> None:
    """Imports what the end of a run needs. If the process ends meanwhile, the import fails, and nothing is lost."""
    with suppress(Exception):
        import_module("hpstudy.report")


def confirm(name: str, options: Options) -> None:
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
    run(name, options)


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
    return command("run", name, options.runs, *_flags(options))


def _flags(options: Options) -> list[str]:
    """The flags of `run` that are not at their default."""
    default = Options(runs=RUNS, device="auto", wandb="auto")
    given = ((flag, getattr(options, flag)) for flag in ("device", "wandb", "workers", "trials"))
    return [word for flag, v in given if v != getattr(default, flag) for word in (f"--{flag}", str(v))]


def _print_result(results: StudyResults, now: State) -> None:
    """Writes the report, and prints what the study found."""
    from hpstudy.cli.report_commands import report_page
    from hpstudy.report.terminal import last_screen

    page, console = report_page(results), out()
    height = console.height if console.is_terminal else None
    screen = last_screen(results, now, page, width=console.width, height=height, encoding=console.encoding)
    console.print(screen, soft_wrap=True)


def _space_table(study: Study) -> Table:
    """What varies, and the baseline's values."""
    baseline = study.baseline
    table = Table("searched", "from", "to", "scale", "baseline", box=None, pad_edge=False, header_style="dim")
    for key, dimension in study.space.items():
        value = getattr(baseline, key)
        if isinstance(dimension, Choices):
            table.add_row(key, ", ".join(str(v) for v in dimension.values), "", "choices", f"{value}")
        else:
            scale = "log of 1 - value" if dimension.scale == "log1m" else dimension.scale
            table.add_row(key, f"{dimension.low:g}", f"{dimension.high:g}", scale, f"{value:g}")
    if not study.space:
        table.add_row("nothing: the baseline alone", "", "", "", "")
    return table


def _print_cost(console: Console, study: Study, cost: Cost, train_tokens: int) -> None:
    spec, environment = study.spec, cost.environment
    epochs = cost.run_tokens / train_tokens
    console.print(
        f"model    {cost.num_params:,} parameters, {spec.context} tokens of context, {spec.tokenizer}\n"
        f"data     {spec.corpus}: {train_tokens:,} training tokens ({epochs:.2f} epochs a run)\n"
        f"device   {environment['device']} ({environment['device_name']}), {environment['precision']}: "
        f"{environment['reason']}",
        markup=False,
        soft_wrap=True,
    )
    batch = study.baseline.batch_tokens
    for size, timed in cost.timed.items():
        if (step := timed.median_step) is None:
            console.print(f"speed    micro-batch {size}: {timed.message}", soft_wrap=True)
            continue
        console.print(
            f"speed    micro-batch {size}: {1000 * step:,.1f} ms a step, {batch / step:,.0f} tok/s; "
            f"{timed.eval_seconds:.2f} s an evaluation",
            markup=False,
        )
    upper = "up to " if study.confirm.looks else ""
    most = "up to " if cost.tokens < cost.runs * cost.run_tokens else ""
    console.print(
        f"cost     {upper}{cost.runs} runs of {most}{cost.steps:,} steps, {cost.tokens:,} tokens in all, "
        f"about {duration(cost.seconds)} on one worker",
        markup=False,
    )


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
