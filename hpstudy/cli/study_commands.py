"""`check`, `run`, `confirm` and `sync`."""

from __future__ import annotations

import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from hpstudy.cli.app import RUNS
from hpstudy.cli.consoles import err, out
from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import GPT3
from hpstudy.progress import StudyProgress, duration
from hpstudy.running.confirming import baseline_run_id, planned
from hpstudy.running.cost import Cost, estimate
from hpstudy.running.driver import make_sink, run_study
from hpstudy.running.interface import Interrupted, Options, StopRequest
from hpstudy.search import num_trials
from hpstudy.study import Choices, Study, load_study, parse_study, study_name
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import ModeFlag, resolve_mode, whereabouts
from hpstudy.training.corpus import check_size, load_corpus

if TYPE_CHECKING:
    from hpstudy.analysis.results import StudyResults

RESULTS = "hpstudy.report"  # what a run needs at its end, and all that this imports
SYNC_SECONDS = 24 * 3600.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def check(name: str, runs: Path, device: str, trials: int | None) -> None:
    """Validates a study and prints the resolved space and the cost."""
    study = load_study(name)
    console = out()
    corpus = load_corpus(study.spec.corpus, study.spec.tokenizer, study.spec.val_tokens)
    check_size(corpus, study.spec.context, study.largest_batch_tokens)
    console.print(f"{study.name}: {study.question}", style="bold")
    console.print(_space_table(study))
    for line in _departures(study):
        console.print(f"  {line}")
    for warning in study.warnings:
        err().print(f"warning: {warning}")
    plan = planned(study, trials)
    shares = [share for phase in plan.values() for share in phase]
    with tempfile.TemporaryDirectory() as folder:
        cost = estimate(study, device, shares, Path(folder) / "worker.log", err().print)
    _print_cost(console, study, cost, corpus.num_train_tokens)
    console.print(f"         {', '.join(f'{len(phase)} {name}' for name, phase in plan.items())}")
    if (runs / study.name / "study.json").exists() and (noise := _load(study.name, runs).noise):
        console.print(f"noise    {noise}", soft_wrap=True)


def run(name: str, runs: Path, device: str, wandb: ModeFlag, workers: int | None, trials: int | None) -> None:
    """Runs or resumes a study, writes its report and prints the comparison and the verdict."""
    study = load_study(name)
    console = err()
    for warning in study.warnings:
        console.print(f"warning: {warning}")
    console.print(f"{study.name}: {study.question}")
    options = Options(runs=runs, device=device, wandb=wandb, workers=workers, trials=trials)
    progress = StudyProgress(study, console)
    Thread(target=import_module, args=(RESULTS,)).start()  # a second or two, while a worker starts
    with _stop_on_signals(console) as stop:
        try:
            with progress.shown():
                store = run_study(study, options, progress, stop)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted(f"stopped; every finished run is kept. Go on with: {_command(name, options)}") from error
    _print_result(study, store, runs, _command(name, replace(options, trials=None)))


def confirm(name: str, runs: Path, device: str, wandb: ModeFlag, workers: int | None) -> None:
    """What `run` does once the search is done; refuses to search."""
    study, store = load_study(name), RunStore(runs / study_name(name))
    wanted = num_trials(study, None)
    done = sum(view.header.run.phase == "search" and view.result is not None for view in store.runs())
    if done < wanted:
        raise UserError(
            f"{store.root}: {done} of {wanted} trials of the search are done, and the winner is known after the last; "
            f"`hpstudy run {name}` does them all, then confirms"
        )
    if not study.confirm.seeds:
        raise UserError(f"{study.path}: [confirm] seeds: must hold fresh seeds to confirm on, but is empty; add some")
    run(name, runs, device, wandb, workers, None)


def _command(name: str, options: Options) -> str:
    """The command that goes on with a study: its name and each flag that is not at its default."""
    default = Options(runs=RUNS, device="auto", wandb="auto")
    flags = [field.name for field in fields(options) if getattr(options, field.name) != getattr(default, field.name)]
    given = [word for flag in flags for word in (f"--{flag}", str(getattr(options, flag)))]
    return shlex.join(["hpstudy", "run", name, *given])


def sync(name: str, runs: Path) -> None:
    """Sends every finished run that W&B does not have online, each step once."""
    store = RunStore(runs / study_name(name))
    frozen = store.root / "study.toml"
    if not frozen.exists():
        raise UserError(f"{store.root}: no study has begun there; start it with `hpstudy run {name}`")
    text = frozen.read_text(encoding="utf-8", errors="replace")  # a damaged one is no TOML then, which is told
    study = parse_study(text, name=store.root.name, path=frozen)  # as it began
    if resolve_mode("auto") != "online":
        raise UserError("W&B: no key or login here; set WANDB_API_KEY or run `wandb login`")
    said: list[str] = []
    with store.locked():
        sink = make_sink(study, store, "online", said.append)
        finished = [view for view in store.runs() if view.result]
        for view in finished:
            sink.replay(view)
        sink.close(timeout=SYNC_SECONDS)
    if said:
        raise MachineError(said[0])
    out().print(f"W&B has all {len(finished)} finished runs: {whereabouts(store.root, study.name)}", soft_wrap=True)


def _load(name: str, runs: Path) -> StudyResults:
    from hpstudy.analysis.results import load  # scipy takes a second to import

    return load(name, runs)


def _print_result(study: Study, store: RunStore, runs: Path, command: str) -> None:
    from hpstudy.analysis.comparison import comparison, comparison_table
    from hpstudy.cli.data_commands import report_page

    results = _load(study.name, runs)
    page = report_page(results, store)
    console = out()
    table = comparison(results.frames, study, baseline_run_id=baseline_run_id(study))
    console.print(comparison_table(table, study.name, width=console.width, noise=results.noise))
    console.print(f"\n{results.verdict().sentence}\n", style="bold")
    export = shlex.join(["hpstudy", "export", study.name, *([] if runs == RUNS else ["--runs", str(runs)])])
    for what, where in (
        ("files", store.root),
        ("report", page),
        ("W&B runs", whereabouts(store.root, study.name)),
        ("next", export),
        ("", f"{command} --trials {2 * study.budget.trials}"),
    ):
        console.print(f"{what:<8} {where}", soft_wrap=True)


def _space_table(study: Study) -> Table:
    """What varies, and where the baseline stands in it."""
    baseline = study.baseline_hparams(study.spec.tokens)
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


def _departures(study: Study) -> Iterator[str]:
    """One line per value in which the study's baseline is not GPT-3's."""
    baseline, gpt3 = asdict(study.baseline_hparams(study.spec.tokens)), asdict(GPT3)
    if study.auto_micro_batch:
        del baseline["micro_batch"]  # not known yet
    changed = [f"{key} {value} (GPT-3: {gpt3[key]})" for key, value in baseline.items() if value != gpt3[key]]
    if changed:
        yield f"baseline departs from GPT-3 in: {', '.join(changed)}"


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
    batch = study.baseline_hparams(spec.tokens).batch_tokens
    for size, measured in cost.speeds.items():
        speed = measured.speed
        if speed is None:
            console.print(f"speed    micro-batch {size}: {measured.message}", soft_wrap=True)
            continue
        console.print(
            f"speed    micro-batch {size}: {1000 * speed.step_seconds:,.1f} ms a step, "
            f"{batch / speed.step_seconds:,.0f} tok/s; {speed.eval_seconds:.2f} s an evaluation",
            markup=False,
        )
    most = "up to " if cost.tokens < cost.runs * cost.run_tokens else ""
    console.print(
        f"cost     {cost.runs} runs of {most}{cost.steps:,} steps, {cost.tokens:,} tokens in all, "
        f"about {duration(cost.seconds)} on one worker",
        markup=False,
    )


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM asks the driver to stop; a second Ctrl-C stops at once."""
    stop = StopRequest()

    def ask(_signum: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        console.print("stopping: closing the sinks (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
