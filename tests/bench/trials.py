"""Counts trials per hour: a study run by hpstudy against the same trials run as sweep agents run them.

An agent starts a new process for every trial, which trains the notebook's loop and logs each step to W&B. Agents run in
two ways: one agent whose trials use torch's default of a thread per core, as agents are usually started; and as many
agents side by side as hpstudy has workers, each with the study's threads, which is the fastest way to run agents. All
get the same cores, tokens, hyperparameters, initial weights and evaluations, find the corpus tokenized, and keep W&B
offline.
"""

from __future__ import annotations

import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hpstudy.data.corpus import corpus_of
from hpstudy.errors import MachineError
from hpstudy.records import Run
from hpstudy.spec import TrainerSpec
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from tests.bench import CLI, ROOT

STUDY = """\
question = "How many trials an hour does this machine train?"
format = 1

[trainer]
model = "gpt-2x64"
corpus = "asv"
tokenizer = "gpt2:512"
context = 128
tokens = {tokens}
evals = 10
val_tokens = 8192

[hparams]
batch_tokens = 2048
batch_ramp_fraction = 0.0

[search]
lr = {{ low = 3e-4, high = 3e-2, scale = "log" }}
beta1 = {{ low = 0.8, high = 0.98, scale = "log1m" }}
beta2 = {{ low = 0.9, high = 0.999, scale = "log1m" }}
weight_decay = {{ low = 1e-3, high = 1.0, scale = "log" }}

[budget]
trials = {trials}
sampler = {{ name = "tpe", startup = 6 }}

[confirm]
seeds = []
"""  # quickstart's search, without its other phases


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The input of an agent's process."""

    spec: TrainerSpec
    run: Run
    device: str
    folder: Path  # of its offline W&B run
    threads: int | None  # None: torch's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """How long one way to run the trials took, and what it reached."""

    seconds: float
    val_losses: tuple[float, ...]  # the last of each trial
    outside: float | None = None  # share of the workers' time that was neither training nor evaluation; None: unknown

    @property
    def trials_per_hour(self) -> float:
        """Trials per hour from the start of the first process to the end of the last one."""
        return 3600 * len(self.val_losses) / self.seconds

    @property
    def median_val_loss(self) -> float:
        """The median over the trials. All ways train the same, so their medians must agree."""
        return statistics.median(self.val_losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRace:
    """The same trials, run in every way one after the other."""

    hpstudy: Side
    agents: dict[str, Side]  # by way of running agents

    def speedup(self, agents: str) -> float:
        """How many times as many trials an hour hpstudy runs."""
        return self.hpstudy.trials_per_hour / self.agents[agents].trials_per_hour


def study_races(
    folder: Path,
    *,
    rounds: int = 3,
    trials: int = 8,
    tokens: int = 300_000,
    device: str = "auto",
    say: Callable[[str], None],
) -> Iterator[StudyRace]:
    """Runs the trials in every way, `rounds` times. Writes below `folder`. Raises MachineError if a process fails."""
    path = folder / "bench.toml"
    path.write_text(STUDY.format(trials=trials, tokens=tokens), encoding="utf-8")
    study = load_study(str(path))
    corpus_of(study.spec)  # tokenized once, for all
    for number in range(1, rounds + 1):
        home = folder / f"round-{number}"
        home.mkdir()
        say(f"study: round {number} of {rounds}, {trials} trials by hpstudy")
        ours, runs, workers = _run_study(study, home, device)
        agents = {}
        own = f"{workers} agents, own threads"
        ways = {"one agent, torch's threads": (1, None), own: (workers, study.spec.threads)}
        for way, (count, threads) in ways.items():
            say(f"study: round {number} of {rounds}, the same trials by {way}")
            agents[way] = _run_agents(study, runs, home, device, agents=count, threads=threads)
        yield StudyRace(hpstudy=ours, agents=agents)


def _run_study(study: Study, home: Path, device: str) -> tuple[Side, list[Run], int]:
    """(how long `hpstudy run` took, its runs, its number of workers)."""
    flags = ["--runs", str(home), "--device", device, "--wandb", "offline"]
    start = time.perf_counter()
    _succeed([*CLI, "run", str(study.path), *flags], home)
    seconds = time.perf_counter() - start
    store = RunStore(home / study.name)
    views = store.runs()
    losses = tuple(view.result.val_loss for view in views if view.result and view.result.val_loss is not None)
    workers = len(list(store.root.glob("worker-*.log")))
    ours = Side(seconds=seconds, val_losses=losses, outside=outside_training(store))
    return ours, [view.header.run for view in views], workers


def outside_training(store: RunStore) -> float:
    """Share of the workers' time, from the first run's start to the last one's end, outside steps and evaluations.

    That time is spent on proposals, records and tells, on waiting for them, and on waiting for the last runs of other
    workers.
    """
    times = times_of(store)
    return 1 - times.trained / (times.workers * (times.ended - times.begun))


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a study's runs were trained, and for how long."""

    begun: float  # when the first run began and the last one ended, seconds since 1970
    ended: float
    trained: float  # worker-seconds of steps and evaluations
    workers: int


def times_of(store: RunStore) -> Times:
    """From the files of a study that ran in one session."""
    views = store.runs()
    records = [record for view in views for record in view.records()]
    return Times(
        begun=min((view.folder / "header.json").stat().st_mtime for view in views),
        ended=max((view.folder / "result.json").stat().st_mtime for view in views),
        trained=sum(record.step_seconds + (record.eval_seconds or 0.0) for record in records),
        workers=len(list(store.root.glob("worker-*.log"))),
    )


def _run_agents(
    study: Study, runs: Sequence[Run], home: Path, device: str, *, agents: int, threads: int | None
) -> Side:
    """A process per trial, `agents` at a time."""

    def train(run: Run) -> float:
        trial = Trial(spec=study.spec, run=run, device=device, folder=home, threads=threads)
        printed = _succeed([sys.executable, "-m", "tests.bench.agent_main"], home, pickle.dumps(trial))
        return float(printed)

    start = time.perf_counter()
    with ThreadPoolExecutor(agents) as pool:
        losses = tuple(pool.map(train, runs))
    return Side(seconds=time.perf_counter() - start, val_losses=losses)


def _succeed(command: list[str], home: Path, stdin: bytes = b"") -> bytes:
    """The command's stdout. Raises MachineError if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=ROOT)
    if done.returncode:
        raise MachineError(f"{' '.join(command[1:4])} failed in {home}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout
