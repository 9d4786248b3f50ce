"""Where a study stands, and the one step that comes next."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpstudy.analysis import stats
from hpstudy.analysis.answers import Contrast, by_speed, deciding, found_nothing
from hpstudy.analysis.ranges import at_ends
from hpstudy.analysis.results import StudyResults
from hpstudy.files import command
from hpstudy.records import trial_run_id
from hpstudy.running.confirm import Selection, read_selections, select
from hpstudy.running.opponents import tuned_lr
from hpstudy.statistics.race import Answer
from hpstudy.study import num_trials
from hpstudy.tracking.lease import Lease, holder

MOST_MORE_SEEDS = 40  # that are proposed at once; beyond it, more seeds are no way to decide


class Stage(enum.StrEnum):
    """Where a study stands."""

    RUNNING = "running"  # a driver has it now
    STOPPED = "stopped"  # something is left to train, and no driver has it
    UNDECIDED = "undecided"  # all has trained, and fresh seeds did not decide
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A study's stage and progress, and what to do next."""

    stage: Stage
    holder: Lease | None  # of the driver that has it
    trials: int  # of the search, that have ended
    planned: int  # trials of the search in all
    advice: str  # the next step in one sentence
    command: str  # the command of that step

    def __str__(self) -> str:
        """`running since 21:04 UTC by pid 17 on host`, or the stage."""
        if self.holder is None:
            return str(self.stage)
        since = f" since {self.holder.since[11:16]} UTC" if self.holder.since else ""
        return f"running{since} by {self.holder}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commands:
    """Writes the commands that name the study."""

    study: str
    given: str  # what `run` calls it: its name, or the path of its file
    runs: Path
    flags: Sequence[str]  # of every `run`

    def __call__(self, verb: str, *more: str) -> str:
        if verb == "run":
            return command(verb, self.given, self.runs, *self.flags, *more)
        return command(verb, self.study, self.runs, *more)


def state(results: StudyResults, given: str | None = None, *, flags: Sequence[str] = ()) -> State:
    """Where a study in a run store stands.

    Commands that run it call it `given`, such as the path of its file, and have `flags`.
    """
    assert results.store is not None
    commands = _Commands(
        study=results.study.name, given=given or results.study.name, runs=results.frames.runs, flags=flags
    )
    study, trials, root = results.study, results.trials, results.store.root
    searched = trials[trials["phase"] == "search"]
    planned = max(num_trials(study), len(searched))
    now = holder(root)
    if now is not None:
        stage, advice, line = Stage.RUNNING, "it is running now", commands("status")
    elif left := _left(results, planned):
        stage, advice, line = Stage.STOPPED, f"{left}; resume it", commands("run")
    else:
        stage, advice, line = _after(results, commands)
    ended = int(searched["outcome"].notna().sum())
    return State(stage=stage, holder=now, trials=ended, planned=planned, advice=advice, command=line)


def _left(results: StudyResults, planned: int) -> str:
    """What is left to train, in words; empty if nothing is."""
    study, trials, fresh = results.study, results.trials, results.fresh
    assert results.store is not None
    ended = set(trials.loc[trials["outcome"].notna(), "run_id"].astype("str"))
    searched = sum(trial_run_id("search", number) in ended for number in range(planned))
    if searched < planned:
        return f"{planned - searched} of {planned} trials are left"
    if study.baseline_run_id not in ended:
        return "the baseline has not been trained"
    if "tuned-lr" in study.also:
        wanted = num_trials(tuned_lr(study), planned)
        tuned = sum(trial_run_id("tuned-lr", number) in ended for number in range(wanted))
        if tuned < wanted:
            return f"{wanted - tuned} of {wanted} trials of the tuned-lr opponent are left"
    selections = read_selections(results.store)
    if study.seeds and _is_new(select(study, results.store.runs()), selections):
        return "the winner has not been confirmed on fresh seeds"
    candidates = {name for selection in selections for name in selection.candidates}
    if candidates - set(fresh.candidates):
        return "the winner has not been confirmed on fresh seeds"
    if missing := fresh.unfinished:
        return f"{len(missing)} runs on fresh seeds are left" if len(missing) > 1 else f"{missing[0]} is left"
    shorter = trials.loc[trials["outcome"].isna() & (trials["fraction"] < 1), "run_id"]
    return f"{len(shorter)} shorter runs are left" if len(shorter) else ""


def _is_new(now: Selection, before: Sequence[Selection]) -> bool:
    """Whether a resumed study would choose something else to confirm than it last did."""
    return not before or (before[-1].candidates, before[-1].seeds) != (now.candidates, now.seeds)


def _after(results: StudyResults, commands: _Commands) -> tuple[Stage, str, str]:
    """(stage, advice, command) of a study that has nothing left to train."""
    study, verdict = results.study, results.verdict()
    export = commands("export")
    searched = int((results.trials["phase"] == "search").sum())
    longer = commands("run", "--trials", str(num_trials(study, 2 * searched)))
    if not study.space:
        return Stage.DONE, "nothing is searched; its runs are a reference for others", export
    if not verdict.contrasts:
        tried_all = study.is_grid and num_trials(study, 2 * searched) <= searched
        if not study.seeds:
            return Stage.DONE, "[confirm] seeds is empty, so nothing is compared; state fresh seeds", export
        advice = "no trial can be confirmed" + ("" if tried_all else "; a longer search may find one")
        return Stage.UNDECIDED, advice, export if tried_all else longer
    first = verdict.contrasts[0]
    if deciding(first, study) is Answer.UNDECIDED:
        return Stage.UNDECIDED, *_more_seeds(results, first, commands)
    ends = list(at_ends(study, found.hparams)) if (found := results.tuned) else []
    if ends and not first.is_opponent:
        wider = ", ".join(end.as_toml for end in ends)
        keys = " and ".join(end.key for end in ends)
        advice = f"the best trial is at the end of the range of {keys}; in a copy of the study file, take {wider}"
        return Stage.DONE, advice, replace(commands, given=f"{study.name}-wider")("run")
    if num_trials(study, 2 * searched) <= searched:
        return Stage.DONE, "every point of the grid is tried; its tables are for pandas", export
    more = "better values may exist" if found_nothing(first, study) else "a longer search may find still better values"
    return Stage.DONE, more, longer


def _more_seeds(results: StudyResults, c: Contrast, commands: _Commands) -> tuple[str, str]:
    """How an undecided comparison could be decided, and the command."""
    study, looks = results.study, results.study.confirm.looks
    trained = looks[-1] if looks else max(c.n, len(study.seeds))
    wanted = _seeds_for_speed(c) if by_speed(study) else _seeds_for_loss(c)
    if wanted is None or wanted - trained > MOST_MORE_SEEDS:
        count = f"more than {stats.MOST_SEEDS:,}" if wanted is None else f"about {wanted:,}"
        advice = f"to decide a difference this small takes {count} seeds a side; longer runs may show more"
        return advice, commands("report")
    total = max(wanted, trained + 2)  # if fewer should have been enough, it was bad luck
    if looks:
        return (
            f"about {total} seeds a side would decide it; the looks of a race are fixed, so ask again in a copy of the "
            f"study file with `[confirm] looks = {[*looks, total]}`",
            replace(commands, given=f"{study.name}-longer")("run"),
        )
    seeds = [*study.seeds, *range(max(study.seeds) + 1, max(study.seeds) + 1 + total - len(study.seeds))]
    return (
        f"about {total} seeds a side would decide it: set `[confirm] seeds = {seeds}` in the study file",
        commands("run"),
    )


def _seeds_for_loss(c: Contrast) -> int | None:
    """Seeds a side that would detect the difference as measured, or show that it is within the margin."""
    inside = c.margin - abs(c.difference)
    sizes = [abs(c.difference), *([inside] if inside > 0 else [])]
    needed = (stats.seeds_to_detect(size, c.sd, comparisons=c.comparisons) for size in sizes)
    return min((seeds for seeds in needed if seeds is not None), default=None)


def _seeds_for_speed(c: Contrast) -> int | None:
    """Seeds a side that would detect the ratio of speeds as measured; None without one."""
    if c.speed is None:
        return None
    low, middle, high = map(math.log, (c.speed.low, c.speed.ratio, c.speed.high))
    sd = stats.sd_from_interval((high - low) / 2, c.n, c.speed.comparisons)
    return stats.seeds_to_detect(abs(middle), sd, comparisons=c.speed.comparisons)
