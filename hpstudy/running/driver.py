"""Joins the arrows: proposals become runs, workers train them, records go to the sinks, results are told.

The driver is the only writer: it alone opens the Optuna storage, writes the run store and talks to W&B. The order of
writing is header, steps, result, tell, so that a study killed at any moment goes on from what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from hpstudy.errors import UserError
from hpstudy.hparams import HParams
from hpstudy.records import Phase, Run
from hpstudy.running.calibration import pack_size, settle_micro_batch, tokens_for
from hpstudy.running.confirming import baseline_run_id, confirm_runs, looks_so_far
from hpstudy.running.crew import Crew
from hpstudy.running.interface import Options, Progress, StopRequest
from hpstudy.running.sources import Fixed, Trials
from hpstudy.running.tuned_lr import JOURNAL, tuned_lr
from hpstudy.search import Search
from hpstudy.study import Study, changed_keys, question_sha256
from hpstudy.tracking.store import RunStore, RunView
from hpstudy.tracking.wandb_sink import Mode, WandbSink, resolve_mode, resolve_project
from hpstudy.training.corpus import check_size, load_corpus

CLOSE_SECONDS, STOP_SECONDS = 60.0, 2.0  # for W&B to take in what is left, at the end and when the study is stopped


def run_study(study: Study, options: Options, progress: Progress, stop: StopRequest) -> RunStore:
    """Searches, trains the baseline and confirms, or goes on where an earlier call was stopped; returns the run store.

    Raises UserError for wrong input before anything is trained, Interrupted on a stop request, MachineError when no
    worker can be kept alive.
    """
    spec = study.spec
    corpus = load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens)  # relative paths: from here
    check_size(corpus, spec.context, study.largest_batch_tokens)
    store = RunStore(options.runs / study.name)
    store.create()
    with store.locked():
        _refuse_edited(store, study)
        try:
            with closing(_Driver(study, store, options, progress, stop)) as driver:
                driver.welcome_workers()
                store.freeze_study(study.path.read_text(encoding="utf-8-sig"), study.resolved())
                driver.search()
                driver.baseline()
                driver.tuned_lr()
                driver.confirm()
                driver.deliver()
        finally:
            store.discard_unless_begun()
    return store


def _refuse_edited(store: RunStore, study: Study) -> None:
    """Raises UserError when the file was edited after its study began."""
    frozen = store.read_json("study.json")
    if frozen is not None and (changes := changed_keys(frozen, study.resolved())):
        remedy = "put the values back, or copy the file under another name for another study"
        raise UserError([f"{study.path}: changed after its study began: {line}; {remedy}" for line in changes])
    asked = (store.read_json("environment.json") or {}).get("study_sha256")
    if frozen is not None and asked not in (None, question_sha256(frozen)):
        raise UserError(
            f"{store.root / 'study.json'}: is not what the study asked when it began (its hash must be {asked}); "
            "put back what was edited, or start anew with another --runs folder"
        )


class _Driver:
    """One session of a study: its phases, its crew and its sinks."""

    def __init__(self, study: Study, store: RunStore, options: Options, progress: Progress, stop: StopRequest) -> None:
        self._study, self._store, self._progress, self._stop = study, store, progress, stop
        self._options = options
        self._wandb = make_sink(study, store, resolve_mode(options.wandb), progress.say)
        self._crew = Crew(study, store, self._wandb, options, progress, stop)

    def welcome_workers(self) -> None:
        """Waits for the first worker, whose environment tells how many there shall be, and starts the others."""
        environment = self._crew.welcome_first()
        say = self._progress.say
        say(
            f"training on {environment['device']} ({environment['device_name']}) in {environment['precision']}: "
            f"{environment['reason']}"
        )
        self._study = settle_micro_batch(self._study, self._store, self._crew, environment, say)
        at_once = min(trainings_at_once(self._study, environment, self._options.device), self._study.budget.parallel)
        pack = pack_size(self._study, self._store, self._crew, self._study.budget.parallel // at_once, say)
        self._crew.train_as_one(pack)
        self._crew.grow(num_workers(self._study, environment, self._options, pack, say))

    def search(self) -> None:
        """Trains every trial of the search and tells its result."""
        if self._wandb.live:
            self._replay_finished()  # what an earlier session was killed with
        self._search_phase(self._study, "optuna.journal", self._options.trials, "search")

    def deliver(self) -> None:
        """Waits until W&B has every finished run, those of earlier sessions too.

        Offline runs are written here, once nothing trains any more: a row takes W&B most of a millisecond of a core
        that a training could use.
        """
        if self._wandb.enabled and not self._wandb.live and any(map(self._wandb.lacks, self._finished())):
            self._progress.say("writing the W&B files from the run store")
        self._replay_finished()
        self._wandb.drain(self._crew.look)

    def _replay_finished(self) -> None:
        for view in self._finished():
            self._wandb.replay(view)

    def _finished(self) -> list[RunView]:
        return [view for view in self._store.runs() if view.result is not None]

    def baseline(self) -> None:
        """Trains the baseline at the search seed when it is no trial of the search."""
        if self._study.baseline_proposal() is not None:
            return
        spec = self._study.spec
        tokens = spec.tokens or self._tokens(self._study.baseline_hparams(None))
        run = Run(
            run_id=baseline_run_id(self._study),
            phase="baseline",
            trial=None,
            seed=spec.seed,
            tokens=tokens,
            hparams=self._study.baseline_hparams(tokens),
        )
        self._train_fixed("baseline", [run])

    def tuned_lr(self) -> None:
        """Searches the fairer opponent's lr, in as many trials as the search has."""
        if self._study.also == "tuned-lr":
            trials = sum(view.header.run.phase == "search" for view in self._store.runs())
            self._search_phase(tuned_lr(self._study), JOURNAL, trials, "tuned-lr")

    def confirm(self) -> None:
        """Trains the winner and the baseline again on fresh seeds."""
        looks = looks_so_far(self._study, self._store, self._progress.say)
        runs = confirm_runs(self._study, looks, {view.run_id: view.header.run for view in self._store.runs()})
        if runs:
            self._train_fixed("confirm", runs)

    def close(self) -> None:
        """Ends the workers, leaves runs in the air without a result, and closes the sinks."""
        try:
            self._crew.close()
        finally:
            self._wandb.close(STOP_SECONDS if self._stop.requested else CLOSE_SECONDS, hurried=self._stop.requested)

    def _begin_phase(self, phase: Phase, num_runs: int) -> None:
        """Tells the view what is to come, and what earlier sessions have finished of it."""
        views = (view for view in self._store.runs() if view.header.run.phase == phase)
        finished = [(view.header.run, view.result) for view in views if view.result is not None]
        self._progress.phase(phase, num_runs, finished)

    def _search_phase(self, study: Study, journal: str, trials: int | None, phase: Phase) -> None:
        """Trains every trial of a search, after a look at whether its journal and the run store agree."""
        search = Search(study, self._store.root / journal, trials=trials)
        if search.mended:
            self._progress.say(search.mended)
        for view in self._store.runs():
            number = view.header.run.trial
            if view.header.run.phase == phase and number is not None and number < search.num_asked:
                search.check(number, view.header.run.hparams, view.result)
        self._begin_phase(phase, max(search.num_trials, search.num_asked))
        self._crew.train(Trials(study, search, self._tokens, phase))

    def _train_fixed(self, phase: Phase, runs: Sequence[Run]) -> None:
        """Trains runs that are known beforehand."""
        results = ((run, self._store.result(run.run_id)) for run in runs)
        self._progress.phase(phase, len(runs), [(run, result) for run, result in results if result is not None])
        self._crew.train(Fixed(runs))

    def _tokens(self, hparams: HParams) -> int:
        return tokens_for(self._study, self._store, self._crew, hparams)


def trainings_at_once(study: Study, environment: Mapping[str, Any], device: str) -> int:
    """Trainings that run side by side here: one per GPU that the device names, or one per `threads` cores."""
    num_gpus: int = 1 if device.startswith("cuda:") else environment["num_gpus"]
    cores: int = environment["cores"]
    return num_gpus or max(1, cores // study.spec.threads)


def num_workers(
    study: Study, environment: Mapping[str, Any], options: Options, pack: int, say: Callable[[str], None]
) -> int:
    """Workers to start: as many as asked for, else as many as there are trainings at once.

    Where speed is an objective one per device, and where it sets the budget one alone, which measures before it trains:
    trainings side by side would slow each other. Never more than there are packs among the trials that may be proposed
    ahead.
    """
    if study.spec.seconds is not None or any(o.metric == "train/tok_per_sec" for o in study.objectives):
        num_gpus = 1 if options.device.startswith("cuda:") else environment["num_gpus"]
        devices = 1 if study.spec.seconds is not None else min(num_gpus or 1, study.budget.parallel)
        if (options.workers or 1) > devices:
            alone = "one worker" if devices == 1 else "one worker per device"
            say(f"{alone}: this study measures speed, and trainings side by side slow each other")
        return min(options.workers or devices, devices)
    wanted = options.workers or trainings_at_once(study, environment, options.device)
    most = max(1, study.budget.parallel // pack)
    if wanted > most and (options.workers or pack > 1):
        packed = f", {pack} trials a worker" if pack > 1 else ""
        say(f"{most} worker{'s' if most > 1 else ''} of {wanted}: [budget] parallel is {study.budget.parallel}{packed}")
    return min(wanted, most)


def make_sink(study: Study, store: RunStore, mode: Mode, say: Callable[[str], None]) -> WandbSink:
    """The W&B sink of a study, whose every run has the study's fixed values in its config."""
    project, entity = resolve_project(study.project, study.entity)
    spec = study.spec
    extra = {
        "question": study.question,
        "model": asdict(spec.model),
        "corpus": spec.corpus,
        "tokenizer": spec.tokenizer,
        "context": spec.context,
        "precision": spec.precision,
        "threads": spec.threads,
    }
    return WandbSink(
        mode=mode,
        project=project,
        entity=entity,
        study=study.name,
        directory=store.root,
        extra=extra,
        say=say,
        live=mode == "online",
    )
