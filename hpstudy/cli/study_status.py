"""What `status` says of a study that has begun: its line in the list, or all of it with its next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpstudy.analysis.answers import by_speed
from hpstudy.analysis.drift import drift
from hpstudy.analysis.in_short import in_a_word, opponent, shared_digits
from hpstudy.analysis.measured import Measured, measured
from hpstudy.analysis.numbers import listed, short
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.state import Stage, State, state
from hpstudy.cli.layout import Column, as_table, say_fact, say_table
from hpstudy.cli.loading import loaded, warn
from hpstudy.errors import HpstudyError
from hpstudy.records import Outcome
from hpstudy.running.worker_states import Doing, Workers, read_workers
from hpstudy.study import Study
from hpstudy.study.schema import LEAST_LOOK

UNREADABLE = "unreadable"
MOST_WORKERS = 16  # with a row each; more are counted by node


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A study in the list."""

    name: str
    state: str
    trials: str = "-"
    best: str = "-"
    baseline: str = "-"
    step: str = "-"
    command: str = "-"
    question: str = ""
    running: str = ""  # since when and by whom


def study_lines(begun: Sequence[str], runs: Path) -> Iterator[Line]:
    """The line of each study, with a warning for each that cannot be read."""
    for name in begun:
        try:
            results = loaded(name, runs)
            yield _line(results, state(results))
        except HpstudyError as error:
            warn(f"{name}: {error}")
            yield Line(name=name, state=UNREADABLE)


def _line(results: StudyResults, now: State) -> Line:
    baseline, best = measured(results)
    digits = shared_digits(*(side for side in (baseline, best) if side))
    return Line(
        name=results.name,
        state=in_a_word(results, now),
        trials=f"{now.trials} of {now.planned}",
        best=_score(best, results.study, digits) if best else "-",
        baseline=_score(baseline, results.study, digits),
        step=now.step.brief,
        command=now.command,
        question=results.study.question,
        running=str(now) if now.stage is Stage.RUNNING else "",
    )


def _score(side: Measured, study: Study, digits: int) -> str:
    """What a side reached, without its error."""
    if not by_speed(study):
        return "-" if side.val_loss is None else f"{side.val_loss:.{digits}f}"
    return "-" if side.tok_per_sec is None else f"{short(side.tok_per_sec)}/s"


def layouts(lines: Sequence[Line]) -> Iterator[list[Column]]:
    """The columns of the list, from the fullest to the narrowest."""
    name = Column(heading="study", cells=[line.name for line in lines])
    stands = Column(heading="state", cells=[line.state for line in lines])
    trials = Column(heading="trials", cells=[line.trials for line in lines], right=True)
    best = Column(heading="best", cells=[line.best for line in lines], right=True)
    baseline = Column(heading="baseline", cells=[line.baseline for line in lines], right=True)
    step = Column(heading="next", cells=[line.step for line in lines])
    whole = Column(heading="command", cells=[line.command for line in lines])
    question = Column(heading="question", cells=[line.question for line in lines])
    core = [name, stands, trials, best, baseline]
    yield [*core, step, whole, question]
    yield [*core, step, whole]
    yield [*core, step]
    yield [name, stands, trials, step]
    yield [name, stands, step]


def print_study(console: Console, results: StudyResults) -> None:
    """A study's phases, its answer so far, and its next step."""
    from hpstudy.analysis.foreseen import running_forecasts

    study, verdict, now = results.study, results.verdict(), state(results)
    console.print(f"{study.name}: {study.question}", style="bold")
    console.print(_phases(results))
    say_fact(console, "state", f"{now}; {now.trials} of {now.planned} trials have ended")
    assert results.store is not None
    if (workers := read_workers(results.store, now.holder)) is not None and workers.workers:
        _print_workers(console, workers)
    if begun := _unfinished(results):
        say_fact(console, "begun", f"{listed(begun)} {'have' if len(begun) > 1 else 'has'} begun and not ended")
    for run, forecast in running_forecasts(results).items():
        say_fact(console, "forecast", f"{run}: {forecast}")
    say_fact(console, "best", _best(results))
    if verdict.contrasts or now.stage is not Stage.RUNNING:  # what is missing now is being trained
        say_fact(console, "answer", verdict.sentence)
    if verdict.noise and (verdict.noise.pairs or verdict.noise.n >= LEAST_LOOK):
        say_fact(console, "noise", str(verdict.noise))
    if drifted := drift(results):
        say_fact(console, "drift", f"{drifted}; {drifted.warning}" if drifted.warning else str(drifted))
    say_fact(console, "next", now.advice)
    say_fact(console, "", now.command, whole=True)


def _print_workers(console: Console, found: Workers) -> None:
    kinds = {kind: number for number, kind in enumerate(_kinds(found), 1)}
    by = _by_worker if len(found.workers) <= MOST_WORKERS else _by_node
    say_fact(console, "workers", _in_all(found))
    say_table(console, by(found, kinds))
    for kind, number in kinds.items():
        say_fact(console, f"kind {number}", kind)


def _in_all(found: Workers) -> str:
    """`2 train, 1 waits for a place (each needs ...)`."""
    counts = Counter(worker.state for worker in found.workers)
    kinds = [f"{counts[doing]} {_verb(doing, counts[doing])}" for doing in Doing if counts[doing]]
    return ", ".join(kinds) + (f"; {found.room}" if found.room else "")


def _verb(doing: Doing, count: int) -> str:
    """What one or several workers do."""
    several = {Doing.WAITS: "wait for a place", Doing.STARTS: "start", Doing.TRAINS: "train", Doing.IDLE: "are idle"}
    return several[doing] if count > 1 else str(doing)


def _kinds(found: Workers) -> list[str]:
    """The kinds of the workers' machines, as far as they are known."""
    return list(dict.fromkeys(worker.kind for worker in found.workers if worker.kind))


def _by_worker(found: Workers, kinds: Mapping[str, int]) -> list[Column]:
    """A row per worker. `kinds`: the number of each kind."""
    workers = found.workers
    return [
        Column(heading="worker", cells=[str(worker.number) for worker in workers], right=True),
        Column(heading="node", cells=[worker.node or "-" for worker in workers]),
        Column(heading="kind", cells=[str(kinds.get(worker.kind, "-")) for worker in workers], right=True),
        Column(heading="state", cells=[str(worker.state) for worker in workers]),
        Column(heading="run", cells=[worker.run or "-" for worker in workers]),
        Column(heading="since (UTC)", cells=[worker.since[11:16] for worker in workers]),
    ]


def _by_node(found: Workers, kinds: Mapping[str, int]) -> list[Column]:
    """A row per node, of those that have a place. `kinds`: the number of each kind."""
    nodes: dict[tuple[str, str], Counter[Doing]] = {}
    for worker in found.workers:
        nodes.setdefault((worker.node, worker.kind), Counter())[worker.state] += 1
    placed = {node: counts for node, counts in nodes.items() if Doing.WAITS not in counts}
    return [
        Column(heading="node", cells=[node or "-" for node, _ in placed]),
        Column(heading="kind", cells=[str(kinds.get(kind, "-")) for _, kind in placed], right=True),
        *(
            Column(heading=_verb(doing, 2), cells=[str(counts[doing]) for counts in placed.values()], right=True)
            for doing in (Doing.TRAINS, Doing.STARTS, Doing.IDLE)
        ),
    ]


def _unfinished(results: StudyResults) -> list[str]:
    """The runs that have begun and will be resumed."""
    trials = results.trials
    wanted = trials["outcome"].isna() & ~trials["run_id"].isin(results.fresh.ahead)
    return trials.loc[wanted, "run_id"].astype("str").tolist()


def _best(results: StudyResults) -> str:
    """What both sides reached."""
    study = results.study
    baseline, best = measured(results)
    theirs = f"{opponent(study)} {_measure(baseline, study)}"
    if best is None:
        return f"{theirs} ({_seeds(baseline)})" if baseline.seeds else "nothing is measured yet"
    ours = f"{best.run_id} {_measure(best, study)}"
    return f"{ours}, {theirs} ({_seeds(best)})" if baseline.seeds else f"{ours} ({_seeds(best)})"


def _measure(side: Measured, study: Study) -> str:
    speed = f"{side.tok_per_sec:,.0f} tokens/s" if side.tok_per_sec is not None else "no speed"
    return speed if by_speed(study) else f"{side} nats"


def _seeds(side: Measured) -> str:
    return "one seed, that of the search" if side.seeds == 1 else f"{side.seeds} fresh seeds"


def _phases(results: StudyResults) -> Table:
    """The runs of each phase by outcome. An outcome that no run had is left out, if it is not `complete`."""
    phases = list(results.trials.groupby("phase", observed=True))
    columns = [
        Column(heading="phase", cells=[str(phase) for phase, _ in phases]),
        Column(heading="runs", cells=[str(len(runs)) for _, runs in phases], right=True),
    ]
    known = results.trials["outcome"]
    for outcome in dict.fromkeys([*map(str, Outcome), *known.dropna().astype("str")]):
        counts = [int((runs["outcome"] == outcome).sum()) for _, runs in phases]
        if any(counts) or outcome == Outcome.COMPLETE:
            columns.append(Column(heading=outcome.replace("_", " "), cells=list(map(str, counts)), right=True))
    unfinished = [int(runs["outcome"].isna().sum()) for _, runs in phases]
    if any(unfinished):
        columns.append(Column(heading="unfinished", cells=list(map(str, unfinished)), right=True))
    return as_table(columns)
