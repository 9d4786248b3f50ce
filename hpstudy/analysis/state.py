"""Where a study stands, and the one step that comes next."""

from __future__ import annotations

import enum
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hpstudy.analysis import stats
from hpstudy.analysis.answers import Contrast, by_speed, deciding, found_nothing
from hpstudy.analysis.frames import DAMAGED
from hpstudy.analysis.numbers import listed
from hpstudy.analysis.ranges import at_ends
from hpstudy.analysis.results import StudyResults
from hpstudy.files import command
from hpstudy.records import Run, trial_run_id
from hpstudy.running.confirm import Selection, is_new, read_selections, select
from hpstudy.running.opponents import tuned_lr
from hpstudy.running.race_queue import RaceQueue
from hpstudy.spec import MAX_TRIALS
from hpstudy.statistics.race import Answer, Race
from hpstudy.study import Choices, Study, num_trials, run_command, study_argument, study_file
from hpstudy.study.frozen import STUDY_FILE
from hpstudy.study.load import FIXED_SEEDS, LOCAL
from hpstudy.study.schema import LEAST_LOOK, MAX_LOOKS, other_seed
from hpstudy.tracking.lease import Lease, holder
from hpstudy.tracking.store import RunView

MOST_MORE_SEEDS = 40  # that are proposed at once; beyond it, more seeds are no way to decide
FIRST_SEED = 101  # of those that are proposed for a study without any
MAX_NAME = 64  # characters of a study's name


class Stage(enum.StrEnum):
    """Where a study stands."""

    NOT_BEGUN = "not begun"
    RUNNING = "running"  # a driver has it now
    STOPPED = "stopped"  # something is left to train, and no driver has it
    UNDECIDED = "undecided"  # all has trained, and fresh seeds did not decide
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What comes next."""

    brief: str  # in a word or two
    advice: str  # in one sentence
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A study's stage and progress, and what to do next."""

    stage: Stage
    holder: Lease | None  # of the driver that has it
    trials: int  # of the search, that have ended
    planned: int  # trials of the search in all
    step: Step

    @property
    def advice(self) -> str:
        """The next step in one sentence."""
        return self.step.advice

    @property
    def command(self) -> str:
        """The command of the next step."""
        return self.step.command

    def __str__(self) -> str:
        """`running since 21:04 UTC by pid 17 on host`, or the stage."""
        if self.holder is None:
            return str(self.stage)
        return f"running{_since(self.holder.since)} by {self.holder}"


def _since(time: str) -> str:
    """` since 21:04 UTC`, with the date if it is not today's; empty if the time is unknown."""
    if not time:
        return ""
    today = time.startswith(datetime.now(UTC).date().isoformat())
    return f" since {time[11:16] if today else time[:16].replace('T', ' ')} UTC"


def state(results: StudyResults, *, flags: Sequence[str] = ()) -> State:
    """Where a study in a run store stands. A command that runs it has `flags`."""
    assert results.store is not None
    study, trials, root = results.study, results.trials, results.store.root
    searched = trials[trials["phase"] == "search"]
    planned = max(num_trials(study), len(searched))
    now = holder(root)
    if now is not None:
        watch = command("status", study.name, root.parent)
        stage, step = Stage.RUNNING, Step(brief="wait", advice="it is running now; ask again later", command=watch)
    elif damaged := trials.loc[trials["outcome"] == DAMAGED, "run_id"].astype("str").tolist():
        stage, step = Stage.STOPPED, _repair(root, damaged)
    elif left := _left(results, planned):
        stage, step = Stage.STOPPED, Step(brief="resume", advice=f"{left}; resume it", command=run_command(root))
    else:
        stage, step = _after(results)
    if study.part_of and stage in (Stage.DONE, Stage.UNDECIDED):
        ladder = command("ladder", study.part_of, root.parent)
        step = Step(brief="ladder", advice=f"it is a part of the ladder {study.part_of}", command=ladder)
    ended = int(searched["outcome"].notna().sum())
    if flags and "hpstudy run " in step.command:
        step = replace(step, command=f"{step.command} {shlex.join(flags)}")
    return State(stage=stage, holder=now, trials=ended, planned=planned, step=step)


def _repair(root: Path, damaged: list[str]) -> Step:
    folders = "their folders" if len(damaged) > 1 else "its folder"
    advice = f"{listed(damaged)} changed on disk after training; restore {folders} from a copy, or remove and resume"
    return Step(brief="repair", advice=advice, command=run_command(root))


def _left(results: StudyResults, planned: int) -> str:
    """What a resumed study would train, in words; empty if nothing."""
    study, trials, store = results.study, results.trials, results.store
    assert store is not None
    ended = set(trials.loc[trials["outcome"].notna(), "run_id"].astype("str"))
    searched = sum(trial_run_id("search", number) in ended for number in range(planned))
    if searched < planned:
        return f"{_are_left(planned - searched, 'trial', planned)}"
    if study.baseline_run_id not in ended:
        return "the baseline has not been trained"
    if "tuned-lr" in study.also:
        wanted = num_trials(tuned_lr(study), len(trials[trials["phase"] == "search"]))
        tuned = sum(trial_run_id("tuned-lr", number) in ended for number in range(wanted))
        if tuned < wanted:
            return f"{_are_left(wanted - tuned, 'trial', wanted)} of the tuned-lr opponent"
    views = store.runs()
    selections, chosen = read_selections(store), select(study, views)
    if study.seeds and is_new(chosen, selections):
        return "the winner has not been confirmed on fresh seeds"
    fresh = [run for run in _fresh_runs(study, selections, views) if run.run_id not in ended]
    return _are_left(len(fresh), "run", 0) + " on fresh seeds" if fresh else ""


def _are_left(count: int, noun: str, of: int) -> str:
    """`3 of 12 trials are left`, or of an unknown number `1 run is left`."""
    total = f"{count} of {of}" if of else f"{count}"
    return f"{total} {noun}{'s' if max(count, of) > 1 else ''} {'are' if count > 1 else 'is'} left"


def _fresh_runs(study: Study, selections: Sequence[Selection], views: Sequence[RunView]) -> list[Run]:
    """The runs on fresh seeds of all looks so far, trained or not."""
    wanted: list[Run] = []

    def keep(_race: Race, runs: Sequence[Run], _most: int) -> None:
        wanted[:] = runs

    RaceQueue(study, selections, views, keep)
    return wanted


def _after(results: StudyResults) -> tuple[Stage, Step]:
    """The stage and the next step of a study that has nothing left to train."""
    study, verdict = results.study, results.verdict()
    if not study.space:
        return Stage.DONE, _export(results, "nothing is searched; its runs are a reference for others")
    if len(study.seeds) < LEAST_LOOK:
        why = "nothing is compared without fresh seeds" if not study.seeds else f"a verdict takes {LEAST_LOOK} seeds"
        return Stage.UNDECIDED if study.seeds else Stage.DONE, _add_seeds(results, why, FIXED_SEEDS)
    if not verdict.contrasts:
        return Stage.UNDECIDED, _no_candidate(results)
    first = verdict.contrasts[0]
    if deciding(first, study) is Answer.UNDECIDED:
        return Stage.UNDECIDED, _decide(results, first)
    if not (first.is_opponent or found_nothing(first, study)) and (wider := _widen(results)):
        return Stage.DONE, wider
    more = "better values may exist" if found_nothing(first, study) else "a longer search may find still better values"
    return Stage.DONE, _longer(results, more) or _export(results, "every point is tried; its tables are for pandas")


def _export(results: StudyResults, advice: str) -> Step:
    line = command("export", results.name, results.frames.runs)
    return Step(brief="export", advice=advice, command=line)


def _longer(results: StudyResults, advice: str) -> Step | None:
    """A search of twice the trials, or of as many as there are; None if nothing is left to try."""
    study, root = results.study, results.frames.runs / results.name
    trials = results.trials[results.trials["phase"] == "search"]
    more = min(num_trials(study, 2 * len(trials)), MAX_TRIALS)
    choices = [len(values.values) for values in study.space.values() if isinstance(values, Choices)]
    tried = len(trials[list(study.space)].drop_duplicates())
    if more <= len(trials) or (len(choices) == len(study.space) and tried >= math.prod(choices)):
        return None
    return Step(brief="more trials", advice=advice, command=run_command(root, "--trials", str(more)))


def _no_candidate(results: StudyResults) -> Step:
    """The step of a study whose fresh seeds could compare nothing."""
    study, fresh = results.study, results.fresh
    if fresh.candidates:
        why = f"fewer than {LEAST_LOOK} seeds measured both sides"
        if study.confirm.looks is None:
            return _add_seeds(results, why, len(study.seeds) + FIXED_SEEDS)
        report = command("report", study.name, results.frames.runs)
        return Step(brief="see why", advice=f"{why}; the report says how their runs ended", command=report)
    longer = _longer(results, "no trial can be confirmed; a longer search may find one")
    return longer or _export(results, "no trial can be confirmed, and every point is tried")


def _widen(results: StudyResults) -> Step | None:
    """The wider ranges of the keys whose found value is at an end; None if no range can be wider."""
    study, found = results.study, results.tuned
    ends = list(at_ends(study, found.hparams)) if found else []
    if not ends:
        return None
    keys, wider = listed([end.key for end in ends]), listed([f"`{end.as_toml}`" for end in ends])
    at_end = f"the best trial is at the end of the range of {keys}"
    return _in_a_copy(results, "wider", "wider range", at_end, f"take {wider} in its [search]{_new_seeds(study)}")


def _new_seeds(study: Study) -> str:
    """How a copy of the study gets seeds that chose nothing, as the end of a sentence."""
    if study.derives_seeds:
        return ""  # they follow from the copy's name
    if study.format > 1:
        return ", and leave `seeds` out"
    return f", and other fresh seeds: `seeds = {list(_more_seeds(study, 2 * len(study.seeds)))[len(study.seeds) :]}`"


def _in_a_copy(results: StudyResults, suffix: str, brief: str, why: str, change: str) -> Step:
    """A step that takes another study: a copy of the study file with a change. If that has begun, how it stands."""
    root = results.frames.runs / results.name
    name = f"{results.name[: MAX_NAME - len(suffix) - 1]}-{suffix}"
    if (root.parent / name / STUDY_FILE).exists():
        advice = f"{why}; {name} asks again"
        return Step(brief=f"see {name}", advice=advice, command=command("status", name, root.parent))
    own = study_argument(root)
    folder = Path(own).parent if own and own.endswith(".toml") else LOCAL if LOCAL.is_dir() else Path()
    copy = folder / f"{name}.toml"
    advice = f"{why}; copy {root / STUDY_FILE} to {copy} and {change}"
    line = command("run", name if folder == LOCAL else str(copy), root.parent)
    return Step(brief=brief, advice=advice, command=line)


def _decide(results: StudyResults, c: Contrast) -> Step:
    """How an undecided comparison could be decided."""
    study, looks = results.study, results.study.confirm.looks
    trained = looks[-1] if looks else max(c.n, len(study.seeds))
    wanted = _seeds_for_speed(c) if by_speed(study) else _seeds_for_loss(c)
    if wanted is None or wanted - trained > MOST_MORE_SEEDS:
        count = f"more than {stats.MOST_SEEDS:,}" if wanted is None else f"about {wanted:,}"
        advice = f"to decide a difference this small takes {count} seeds a side; longer runs may show more"
        report = command("report", study.name, results.frames.runs)
        return Step(brief="longer runs", advice=advice, command=report)
    total = max(wanted, trained + 2)  # if fewer should have been enough, it was bad luck
    why = f"about {total} seeds a side would decide it"
    if not looks:
        return _add_seeds(results, why, total)
    change = f"take `looks = {[*looks[: MAX_LOOKS - 1], total]}` in its [confirm]{_new_seeds(study)}"
    return _in_a_copy(results, "longer", "more seeds", f"{why}, and the looks of a race are fixed", change)


def _add_seeds(results: StudyResults, why: str, total: int) -> Step:
    """More seeds in the study file itself, which may grow by them."""
    study, root = results.study, results.frames.runs / results.name
    own, here = study_file(root), str(root / f"{study.name}.toml")
    made = "" if own else f"copy {root / STUDY_FILE} to {here} and "
    advice = f"{why}; {made}set `seeds = {list(_more_seeds(study, total))}` in the [confirm] of {own or here}"
    line = command("run", study_argument(root) or here, root.parent)
    return Step(brief="more seeds", advice=advice, command=line)


def _more_seeds(study: Study, total: int) -> Iterator[int]:
    """The study's seeds and the next ones that it may have, so many in all."""
    taken, apart = {study.spec.seed, *study.seeds}, study.confirm.design == "independent"
    if apart:
        taken |= set(map(other_seed, study.seeds))
    yield from study.seeds
    seed = max(study.seeds, default=FIRST_SEED - 1)
    for _ in range(total - len(study.seeds)):
        new: set[int] = set()
        while not new or new & taken:
            seed = (seed + 1) % 2**32
            new = {seed, other_seed(seed)} if apart else {seed}
        taken |= new
        yield seed


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
