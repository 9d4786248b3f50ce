"""A study's answer as a badge and one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpstudy.analysis.answers import Contrast, Relative, Reply, by_speed, deciding, found_nothing
from hpstudy.analysis.departures import departures
from hpstudy.analysis.measured import ONE_SEED_DIGITS, Measured, measured
from hpstudy.analysis.numbers import decimals, interval_decimals, listed
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.state import Stage, State
from hpstudy.hparams import raw_key
from hpstudy.records import Outcome, trial_phase
from hpstudy.statistics.race import Answer
from hpstudy.study import Study

Tone = Literal["good", "bad", "open"]
"""good: a yes, or better values; bad: a no; open: nothing is decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InShort:
    """The answer for whoever reads one line."""

    badge: str
    tone: Tone
    sentence: str


def opponent(study: Study) -> str:
    """How tables name the baseline: GPT-3 if it has GPT-3's value of every searched key, else baseline."""
    own = {departure.key for departure in departures(study)} | {"micro_batch"}  # GPT-3's paper states none
    return "baseline" if own & set(map(raw_key, study.space)) else "GPT-3"


def found_name(results: StudyResults) -> str:
    """How tables name the found values: tuned if they are better, else best found; best so far before a verdict."""
    contrasts = results.verdict().contrasts
    if not contrasts:
        return "best so far"
    return "tuned" if deciding(contrasts[0], results.study) in (Answer.BETTER, Answer.FASTER) else "best found"


def role_name(candidate: str) -> str:
    """What figures call a candidate: another opponent by what it tunes, a trial by its id."""
    match trial_phase(candidate):
        case "tuned-lr":
            return "only lr tuned"
        case "batch":
            return "only its batch"
        case _:
            return candidate


def in_a_word(results: StudyResults, now: State) -> str:
    """`yes, better`, `nothing better` or `equivalent`; of a study without an answer, where it stands."""
    study, verdict = results.study, results.verdict()
    if now.stage is not Stage.DONE:
        return str(now.stage)
    if not verdict.contrasts:
        return "not confirmed" if study.space else "reference"
    first = verdict.contrasts[0]
    if found_nothing(first, study):
        return "nothing faster" if by_speed(study) else "nothing better"
    answer = str(deciding(first, study))
    return f"{verdict.reply}, {answer}" if verdict.reply else answer


def in_short(results: StudyResults, now: State) -> InShort:
    """The answer so far. `now` is where the study stands."""
    study, verdict = results.study, results.verdict()
    baseline, best = measured(results)
    if not study.space:
        sentence = f"The baseline reaches {baseline} nats." if baseline.seeds else "The baseline has not been trained."
        return InShort(badge="Reference", tone="open", sentence=sentence)
    if not verdict.contrasts or best is None:
        return InShort(badge=_interim(now), tone="open", sentence=_so_far(results, now, baseline, best))
    first = verdict.contrasts[0]
    answer = deciding(first, study)
    badge = {"yes": "Yes", "no": "No", "undecided": "Undecided", "nothing better found": "Nothing better"}.get(
        verdict.reply or "", str(answer).capitalize()
    )
    tone = _tone(verdict.reply, answer)
    return InShort(badge=badge, tone=tone, sentence=_sentence(study, first, answer, baseline, best, results))


def _tone(reply: Reply | None, answer: Answer) -> Tone:
    """By the reply; without one only what is better or faster is good, and nothing is bad."""
    if reply is None:
        return "good" if answer in (Answer.BETTER, Answer.FASTER) else "open"
    return "good" if reply == "yes" else "open" if reply == "undecided" else "bad"


def _interim(now: State) -> str:
    return f"{now.trials} of {now.planned} trials" if now.trials < now.planned else "No verdict yet"


def _so_far(results: StudyResults, now: State, baseline: Measured, best: Measured | None) -> str:
    study, name = results.study, opponent(results.study)
    if best is None or best.val_loss is None:
        return "No trial is complete yet." if now.trials < now.planned else _no_candidate(results)
    if by_speed(study):
        return f"The fastest trial so far trains {best.tok_per_sec or 0:,.0f} tokens a second; one seed, no verdict."
    beside = f", {name}'s values {baseline}" if baseline.val_loss is not None else ""
    return f"The best trial so far reaches {best} nats{beside}; one seed each, no verdict."


def _no_candidate(results: StudyResults) -> str:
    """Why a search that has ended has no trial to confirm."""
    trials = results.trials
    own = trials["run_id"] == results.study.baseline_run_id
    ends = trials.loc[(trials["phase"] == "search") & ~own, "outcome"].value_counts()
    if ends.get(Outcome.COMPLETE.value, 0):
        return "No other trial is as fast as the baseline."
    counted = listed([f"{count} {str(outcome).replace('_', ' ')}" for outcome, count in ends.items() if count])
    return f"No trial can be confirmed: {counted}." if counted else "No other values than the baseline's were tried."


def _sentence(
    study: Study, c: Contrast, answer: Answer, baseline: Measured, best: Measured, results: StudyResults
) -> str:
    theirs = f"{opponent(study)}'s" if opponent(study) == "GPT-3" else "the baseline's"
    if by_speed(study):
        return _on_speed(c, answer, theirs)
    digits = shared_digits(baseline, best)
    ours = "diverge" if best.diverged else f"reach {c.mean:.{digits}f} nats"
    reference = "diverge" if baseline.diverged else f"reach {c.baseline_mean:.{digits}f}"
    note = "" if not c.diverged or best.diverged or baseline.diverged else " Diverged runs count as a uniform guess."
    size = f"{abs(c.difference):.{interval_decimals(c.low, c.high)}f}"
    if found_nothing(c, study):
        best_of = best_trial(results.fresh.num_trials)
        singular = ours.replace("diverge", "diverges").replace("reach", "reaches")
        return f"The {best_of} {singular} where {theirs} values {reference}.{note}"
    match answer:
        case Answer.BETTER:
            pace = f", at {_times(c.speed)} the speed" if c.speed else ""
            return f"Tuned values {ours} where {theirs} {reference}{pace}.{note}"
        case Answer.WORSE:
            return f"The best values found {ours} where {theirs} {reference}.{note}"
        case Answer.EQUIVALENT:
            loss = f"{c.baseline_mean:.{digits}f} nats, within {c.margin:.2g}"
            return f"The best values found and {theirs} reach the same loss, {loss}."
        case _:
            word = "worse" if c.difference > 0 else "better"
            return f"The best values found are {size} nats {word} than {theirs}, which {c.n} seeds do not show.{note}"


def best_trial(trials: int) -> str:
    """`best of 12 trials`, or `only trial`."""
    return f"best of {trials} trials" if trials > 1 else "only trial"


def _on_speed(c: Contrast, answer: Answer, theirs: str) -> str:
    if c.speed is None:
        return "Too few runs on fresh seeds measured their speed."
    times = _times(c.speed)
    if answer is Answer.UNDECIDED:
        return f"The best values found train at {times} the speed of {theirs}, which {c.n} seeds do not show."
    return f"{'Tuned' if answer is Answer.FASTER else 'The best'} values train at {times} the speed of {theirs}."


def _times(speed: Relative) -> str:
    return f"{speed.ratio:.{interval_decimals(speed.low, speed.high)}f} times"


def shared_digits(*sides: Measured) -> int:
    """The digits that both errors allow."""
    return min((decimals(side.se) for side in sides if side.se is not None), default=ONE_SEED_DIGITS)
