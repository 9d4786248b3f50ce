"""Trials per hour: a study run by hpstudy against the same trials run as sweep agents run them.

An agent starts a fresh process for every trial, which trains the notebook's loop and logs each step to W&B. One way is
how agents are started: one, whose trials take torch's default of a thread per core. The other is the best that an
agent's user can do: as many agents side by side as hpstudy has workers, each with the study's threads. All are given
the same cores, tokens, hyperparameters, first weights and evaluations, all begin with nothing but the tokenized corpus,
and all keep W&B offline.
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

from hpstudy.errors import MachineError
from hpstudy.records import Run
from hpstudy.spec import TrainerSpec
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from hpstudy.training.corpus import load_corpus

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
    """What an agent's process is told."""

    spec: TrainerSpec
    run: Run
    device: str
    folder: Path  # of its offline W&B run
    threads: int | None  # torch's default where None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """How one way to run the trials did."""

    seconds: float
    val_losses: tuple[float, ...]  # the last of each trial
    outside: float | None = None  # share of the workers' time that was neither training nor evaluation, where known

    @property
    def trials_per_hour(self) -> float:
        """From the first process's start to the last one's end."""
        return 3600 * len(self.val_losses) / self.seconds

    @property
    def median_val_loss(self) -> float:
        """Over the trials: the two ways shall agree, as they train the same."""
        return statistics.median(self.val_losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bout:
    """The same trials, run every way one after the other."""

    hpstudy: Side
    agents: dict[str, Side]  # by how they were started

    def speedup(self, agents: str) -> float:
        """How many times as many trials an hour hpstudy runs."""
        return self.hpstudy.trials_per_hour / self.agents[agents].trials_per_hour


def bouts(
    folder: Path,
    *,
    rounds: int = 3,
    trials: int = 8,
    tokens: int = 300_000,
    device: str = "auto",
    say: Callable[[str], None],
) -> Iterator[Bout]:
    """Runs the trials every way, `rounds` times; writes below `folder`. Raises MachineError when a process fails."""
    path = folder / "bench.toml"
    path.write_text(STUDY.format(trials=trials, tokens=tokens), encoding="utf-8")
    study = load_study(str(path))
    load_corpus(study.spec.corpus, study.spec.tokenizer, study.spec.val_tokens)  # tokenized once, for all
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
        yield Bout(hpstudy=ours, agents=agents)


def _run_study(study: Study, home: Path, device: str) -> tuple[Side, list[Run], int]:
    """`hpstudy run` as the user calls it; also the runs it did, and on how many workers."""
    command = "import hpstudy.cli; hpstudy.cli.main()"
    flags = ["--runs", str(home), "--device", device, "--wandb", "offline"]
    start = time.perf_counter()
    _succeed([sys.executable, "-c", command, "run", str(study.path), *flags], home)
    seconds = time.perf_counter() - start
    store = RunStore(home / study.name)
    views = store.runs()
    losses = tuple(view.result.val_loss for view in views if view.result and view.result.val_loss is not None)
    workers = len(list(store.root.glob("worker-*.log")))
    ours = Side(seconds=seconds, val_losses=losses, outside=outside_training(store))
    return ours, [view.header.run for view in views], workers


def outside_training(store: RunStore) -> float:
    """Share of the workers' time, from the first run's beginning to the last one's end, outside steps and evaluations.

    Proposals, records, tells, and what a worker waits for them or for the last runs of others. The seconds of a packed
    step, which its runs share and each records, count once.
    """
    views = store.runs()
    begun = min((view.folder / "header.json").stat().st_mtime for view in views)
    ended = max((view.folder / "result.json").stat().st_mtime for view in views)
    records = [record for view in views for record in view.records()]
    shared = {(record.step, record.step_seconds): record.eval_seconds or 0.0 for record in records}
    trained = sum(seconds + eval_seconds for (_, seconds), eval_seconds in shared.items())
    return 1 - trained / (len(list(store.root.glob("worker-*.log"))) * (ended - begun))


def _run_agents(
    study: Study, runs: Sequence[Run], home: Path, device: str, *, agents: int, threads: int | None
) -> Side:
    """A process per trial, `agents` at a time."""

    def train(run: Run) -> float:
        trial = Trial(spec=study.spec, run=run, device=device, folder=home, threads=threads)
        said = _succeed([sys.executable, "-m", "hpstudy.benching.agent_main"], home, pickle.dumps(trial))
        return float(said)

    start = time.perf_counter()
    with ThreadPoolExecutor(agents) as pool:
        losses = tuple(pool.map(train, runs))
    return Side(seconds=time.perf_counter() - start, val_losses=losses)


def _succeed(command: list[str], home: Path, stdin: bytes = b"") -> bytes:
    """The command's stdout. Raises MachineError when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise MachineError(f"{' '.join(command[1:4])} failed in {home}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout
