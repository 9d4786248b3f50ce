"""Runs a study: proposals become runs, workers train them, records go to the sinks, results are told.

The driver is the only writer: it alone opens the Optuna journal, writes records and talks to W&B; workers write only
the checkpoints that it orders, and the processes that write W&B's offline files write nothing else. The order of
writing is header, steps, result, tell, so that a study killed at any moment resumes from what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from hpstudy.data.corpus import check_size, corpus_of
from hpstudy.errors import MachineError
from hpstudy.files import take_notes
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Phase, Run, trial_run_id
from hpstudy.running import warm_start
from hpstudy.running.calibration import settle_micro_batch, tokens_for
from hpstudy.running.confirm import (
    control_of_best,
    expect_selections,
    fresh_run,
    is_new,
    read_selections,
    select,
    update_selections,
)
from hpstudy.running.environment import inexact, is_of_several_codes
from hpstudy.running.executors import Executor
from hpstudy.running.interface import Options, Progress, StopRequest
from hpstudy.running.local import LocalExecutor
from hpstudy.running.opponents import TUNED_LR_JOURNAL, tuned_lr
from hpstudy.running.pool import WorkerPool
from hpstudy.running.race_queue import RaceQueue, described
from hpstudy.running.run_queue import RunList, TrialQueue
from hpstudy.running.warm_start import Gathered
from hpstudy.search import JOURNAL, Search
from hpstudy.search.rule_trials import rule_runs
from hpstudy.search.warm_start import Prior
from hpstudy.statistics.race import BASELINE, Race, Rules
from hpstudy.study import Study, as_begun, frozen_text, refuse_changes
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore, RunView
from hpstudy.tracking.wandb_settings import resolve_mode
from hpstudy.tracking.wandb_sink import sink_for

CLOSE_SECONDS, STOP_SECONDS = 60.0, 2.0  # for W&B to deliver the rest, at the end and when the study is stopped


def run_study(study: Study, options: Options, progress: Progress, stop: StopRequest) -> RunStore:
    """Runs or resumes a study: search, baseline, confirmation. Returns the run store.

    Raises UserError for wrong input before anything is trained, Interrupted on a stop request, MachineError if no
    worker can be kept alive.
    """
    spec = study.spec
    corpus = corpus_of(spec, say=progress.say)  # relative paths start in the current folder
    check_size(corpus, spec.context, study.largest_batch_tokens)
    store = RunStore(options.runs / study.name)
    store.create()
    with store.locked(on_lost=partial(_lost_to_another, store, progress, stop)):
        study = as_begun(study, store.root)
        refuse_changes(study, store.root)
        store.refuse_damage()
        try:
            gathered = [] if warm_start.is_kept(store) else warm_start.gather(study, options.runs)
            with closing(_Driver(study, store, options, progress, stop)) as driver:
                driver.freeze()
                driver.warm_start(gathered)
                driver.search()
                driver.baseline()
                driver.tuned_lr()
                driver.batch_control()
                driver.confirm()
                driver.deliver()
        finally:
            store.discard_unless_begun()
    return store


def _lost_to_another(store: RunStore, progress: Progress, stop: StopRequest) -> None:
    progress.say(f"{store.root}: another hpstudy has taken over this study, because this one was held for too long")
    stop.requested = True


def executor_for(study: Study, options: Options, folder: Path, say: Callable[[str], None]) -> Executor:
    """What starts the workers of the study in `folder`: this machine, or a cluster.

    Raises UserError if there is no such cluster.
    """
    if options.cluster is None:
        return LocalExecutor(folder)
    from hpstudy.running.cluster.executor import RayExecutor

    return RayExecutor(options.cluster, study.spec, options.device, folder, say)


class _Driver:
    """One session of a study: its phases, its workers and its sinks."""

    def __init__(self, study: Study, store: RunStore, options: Options, progress: Progress, stop: StopRequest) -> None:
        self._study, self._store, self._progress, self._stop = study, store, progress, stop
        self._options, self._confirming = options, False
        self._earlier: tuple[Prior, ...] = ()
        mode = resolve_mode(options.wandb)
        self._wandb = sink_for(study, store.root, mode, progress.say, rules=rule_runs(study))
        executor = executor_for(study, options, store.root, progress.say)
        self._pool = WorkerPool(study, store, self._wandb, options, progress, stop, executor)

    def freeze(self) -> None:
        """Keeps the study as it is now, and measures the micro-batch if it leaves that open.

        A study that begins or has grown is kept once a worker is admitted, so that a refused one leaves no trace.
        Otherwise no worker starts before a run needs it.
        """
        study, store, say = self._study, self._store, self._progress.say
        self._progress.earlier([view.header.run for view in self._finished()])
        if store.read_json(ENVIRONMENT) is None or not store.keeps(study.resolved()):
            self._pool.first()
        store.freeze_study(frozen_text(study), study.resolved(), study.path)
        for line in take_notes():  # how a file system that lacks something is used nevertheless
            say(line)
        self._study = settle_micro_batch(study, store, self._pool, say)

    def warm_start(self, gathered: Sequence[Gathered]) -> None:
        """Keeps what a study that begins has gathered of others, and takes from then on what is kept."""
        if gathered:
            warm_start.keep(self._store, gathered)
        if not self._study.budget.warm_start:
            return
        for each in gathered:
            self._progress.say(f"warm start: {each}")
        self._earlier = warm_start.kept(self._store)

    def search(self) -> None:
        """Trains every trial of the search and tells its result."""
        if self._wandb.live:
            self._replay_finished()  # what an earlier session did not deliver
        self._search_phase(self._study, JOURNAL, self._options.trials, "search")

    def baseline(self) -> None:
        """Trains the baseline on the search seed, unless it is trial 0."""
        if self._study.baseline_proposal() is None:
            self._train_alone("baseline", self._baseline_alone())

    def _baseline_alone(self) -> Run:
        """The baseline on the search seed, if it is no trial."""
        spec = self._study.spec
        tokens = spec.tokens or self._tokens(self._study.baseline_hparams(None))
        return Run(
            run_id=self._study.baseline_run_id,
            phase="baseline",
            trial=None,
            seed=spec.seed,
            tokens=tokens,
            hparams=self._study.baseline_hparams(tokens),
        )

    def _certain(self) -> list[Run]:
        """Runs of later phases that have not ended, and that are trained whatever the search finds.

        These are the baseline, if it is no trial, and once it is complete the runs of its first fresh seeds. None, if
        the study measures speed or seconds.
        """
        study, store = self._study, self._store
        if study.measures_speed:
            return []
        result = store.result(study.baseline_run_id)
        if result is None:
            return [self._baseline_alone()] if study.baseline_proposal() is None else []
        if not study.seeds or result.outcome is not Outcome.COMPLETE:
            return []
        own = store.view(study.baseline_run_id).header.run
        expect_selections(store)
        runs = [fresh_run(study, BASELINE, own, place) for place in range(Rules.of(study).looks[0])]
        return [run for run in runs if store.result(run.run_id) is None]

    def tuned_lr(self) -> None:
        """Searches the lr of the tuned-lr opponent, in as many trials as the search has."""
        if "tuned-lr" in self._study.also:
            trials = sum(view.header.run.phase == "search" for view in self._store.runs())
            self._search_phase(tuned_lr(self._study), TUNED_LR_JOURNAL, trials, "tuned-lr")

    def batch_control(self) -> None:
        """Trains the baseline at the batch of the search's best trial, if it has another one."""
        if "batch" not in self._study.also:
            return
        if (run := control_of_best(self._study, self._store.runs())) is None:
            return
        self._train_alone("batch", run)
        result = self._store.result(run.run_id)
        if result is not None and result.outcome is not Outcome.COMPLETE:
            self._progress.say(f"{run.run_id}: {result.outcome}, so the winner's batch alone is not compared")

    def confirm(self) -> None:
        """Trains candidates and baseline again on fresh seeds."""
        now = select(self._study, self._store.runs())
        if now.seeds and is_new(now, read_selections(self._store)):
            self._pool.first()  # admitted before the selection is kept, which the verdict counts
        selections = update_selections(self._study, self._store, self._progress.say)
        self._pool.train(RaceQueue(self._study, selections, self._store.runs(), self._on_look))

    def _on_look(self, race: Race, runs: Sequence[Run], most: int) -> None:
        """Says what a look has found, and that a phase of these runs is under way, which may become `most`."""
        for found in race.findings.values():
            if found.seeds == max(each.seeds for each in race.findings.values()):
                self._progress.say(described(found))
        if self._confirming:
            self._progress.grow(len(runs), most)
        elif runs:
            self._confirming = True
            self._begin_phase("confirm", runs, most)

    def deliver(self) -> None:
        """Waits until W&B has every finished run, also those of earlier sessions.

        Offline, what was not written while others trained is written here, on all cores.
        """
        if self._wandb.enabled and not self._wandb.live and any(map(self._wandb.lacks, self._finished())):
            self._progress.say("writing the W&B files from the run store")
        self._replay_finished()
        self._wandb.drain(self._pool.raise_if_stopped)
        self._store.keep_source(self._study.path)

    def close(self) -> None:
        """Ends the workers, leaves active runs unfinished, and closes the sinks."""
        try:
            self._pool.close()
        finally:
            self._wandb.close(STOP_SECONDS if self._stop.requested else CLOSE_SECONDS, hurried=self._stop.requested)

    def _search_phase(self, study: Study, journal: str, trials: int | None, phase: Phase) -> None:
        """Trains every trial of a search, after checking that its journal and the run store agree."""
        earlier, later = (self._earlier, self._certain) if phase == "search" else ((), list[Run])
        search = Search(
            study,
            self._store.root / journal,
            trials=trials,
            warm_start=earlier,
            exact=lambda: not is_of_several_codes(self._store.read_json(ENVIRONMENT) or {}),
        )
        if search.repaired:
            self._progress.say(search.repaired)
        begun = [view for view in self._store.runs() if view.header.run.phase == phase]
        lost = self._lost(study, search, phase, {view.run_id for view in begun if view.result is not None})
        for view in begun:
            number = view.header.run.trial
            if number is not None and number < search.num_asked:
                search.check(number, view.header.run.hparams, view.result)
        finished = [(view.header.run, view.result) for view in begun if view.result is not None]
        if lost or len(finished) < search.num_trials:
            self._pool.first()  # admitted before a trial is asked for, which the journal keeps
        self._progress.phase(phase, max(search.num_trials, search.num_asked), finished)
        self._pool.train(TrialQueue(study, search, self._tokens, phase, lost, later))

    def _lost(self, study: Study, search: Search, phase: Phase, finished: Collection[str]) -> list[int]:
        """The finished trials whose runs are missing or incomplete. Raises MachineError if they cannot be retrained."""
        ended = [trial.number for trial in search.trials() if trial.state != "running"]
        lost = {n: run_id for n in ended if (run_id := trial_run_id(phase, n)) not in finished}
        speed = ["a speed cannot be measured twice"] if "train/tok_per_sec" in study.metrics else []
        if lost and (reasons := speed + inexact(study, self._pool.environment)):
            raise MachineError(
                f"{self._store.root}: the search has used the result of {', '.join(lost.values())}, but the run store "
                f"lacks it, and training again would give another ({'; '.join(reasons)}); restore the folder, or start "
                "again with another --runs folder"
            )
        if lost:
            self._progress.say(
                f"{', '.join(lost.values())}: the search has used the result, but the run store lacks it; trained again"
            )
        return list(lost)

    def _train_alone(self, phase: Phase, run: Run) -> None:
        """Trains the only run of a phase."""
        self._begin_phase(phase, [run])
        self._pool.train(RunList([run]))

    def _begin_phase(self, phase: Phase, runs: Sequence[Run], most: int | None = None) -> None:
        results = ((run, self._store.result(run.run_id)) for run in runs)
        finished = [(run, result) for run, result in results if result is not None]
        self._progress.phase(phase, len(runs), finished, most)

    def _tokens(self, hparams: HParams) -> int:
        return tokens_for(self._study, self._store, self._pool, hparams)

    def _replay_finished(self) -> None:
        for view in self._finished():
            self._wandb.replay(view)

    def _finished(self) -> list[RunView]:
        return [view for view in self._store.runs() if view.result is not None]
