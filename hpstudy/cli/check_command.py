"""`check`: a study's space, baseline, cost and noise, before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hpstudy.analysis.numbers import duration
from hpstudy.cli.common import out, print_json, say
from hpstudy.cli.layout import Column, as_table, say_fact
from hpstudy.data.corpus import check_size, corpus_of
from hpstudy.hparams import raw_key
from hpstudy.records import Phase
from hpstudy.running.capacity import num_workers
from hpstudy.running.confirm import planned
from hpstudy.running.cost import Cheaper, Cost, cheaper, estimate
from hpstudy.running.interface import Options
from hpstudy.running.local import LocalExecutor
from hpstudy.running.warm_start import Gathered, gather, is_kept
from hpstudy.search.rule_trials import RuleTrial, rule_trials
from hpstudy.study import Choices, Study, as_begun, load_study, num_trials, seeds_of_others, study_name
from hpstudy.tracking.store import RunStore, begun_studies

if TYPE_CHECKING:
    from hpstudy.analysis.answers import Noise
    from hpstudy.analysis.together import PooledNoise

SEARCHES: tuple[Phase, ...] = ("search", "tuned-lr")  # phases that are one after the other
MUCH = 1 / 3  # of a run's time, above which `check` says what would lower it

CHECK: dict[str, str] = {
    "study": "its name",
    "question": "what it asks",
    "space": "per searched key: `key`, `low`, `high` and `scale`, or `choices`; and the `baseline`'s value",
    "baseline": "every hyperparameter of the baseline by its key",
    "departures": "per key in which the baseline is not GPT-3's: `key`, `value`, `gpt3`",
    "model": "`parameters` of the model, `context` (tokens) and `tokenizer`",
    "data": "`corpus`, its `train_tokens`, and the `epochs` of one run",
    "warm_start": "per source: `source`, its `finished` trials, how many are `used` and how many `outside` the space; "
    "empty once the study has begun",
    "device": "what it would run on: `kind`, `name`, `precision`",
    "speed": "per micro-batch: `micro_batch`, `step_seconds`, `tok_per_sec`, `eval_seconds`; null if it does not fit",
    "cost": "`runs`, the `steps` of one, `tokens` and `seconds` of all on so many `workers`; upper bounds in a race",
    "plan": "phase -> its runs",
    "evaluation": "its `share` of a run's time; `cheaper`, if that is much: `values`, and `eval_share` with them",
    "noise": "of the study's `own` baseline and of `similar` studies: `sd` (nats) and `runs`; null if it is unknown",
    "rules": "per trial that a published rule proposes: its number as `trial`, `rule`, `values`, `sources`, and "
    "sentences on what was `moved` into the range and on sizes `outside` of those that it was fitted to",
    "warnings": "what is legal but probably not meant",
}
"""Key -> what it holds, for `hpstudy check --json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What `check` has found out."""

    study: Study
    cost: Cost
    plan: Mapping[Phase, Sequence[float]]
    workers: int
    train_tokens: int
    begun: bool
    noise: Noise | None
    pooled: PooledNoise | None
    rules: Mapping[int, RuleTrial]  # the trials that published rules propose
    warnings: tuple[str, ...]
    warm_start: Sequence[Gathered]

    @property
    def seconds(self) -> float:
        """Of all runs. Baseline and winner train side by side on fresh seeds."""
        searches = [shares for phase, shares in self.plan.items() if phase in SEARCHES]
        fresh = [share for phase, shares in self.plan.items() if phase not in SEARCHES for share in shares]
        return self.cost.seconds([*searches, fresh], self.workers)

    @property
    def cheaper(self) -> Cheaper | None:
        """The values of [trainer] that make evaluation cheaper, if it takes much and the study may still change."""
        return cheaper(self.cost, self.study.spec) if self.cost.eval_share > MUCH and not self.begun else None


def check(name: str, runs: Path, device: str, trials: int | None, *, as_json: bool = False) -> None:
    """Validates a study and prints its space, its baseline and its cost."""
    study = as_begun(load_study(name), runs / study_name(name))
    gathered = [] if is_kept(RunStore(runs / study.name)) else gather(study, runs)
    corpus = corpus_of(study.spec)
    check_size(corpus, study.spec.context, study.largest_batch_tokens)
    if not as_json:
        _print_space(out(), study)
        for each in gathered:
            say_fact(out(), "warm", str(each))
    plan = planned(study, trials)
    shares = [share for phase in plan.values() for share in phase]
    with tempfile.TemporaryDirectory() as folder:
        cost = estimate(study, device, shares, LocalExecutor(Path(folder)), say)
    options = Options(runs=runs, device=device, wandb="disabled")
    noise, pooled = _noise(study, runs)
    checked = _Checked(
        study=study,
        cost=cost,
        plan=plan,
        workers=num_workers(study, cost.environment, options, lambda _line: None),
        train_tokens=corpus.num_train_tokens,
        begun=study.name in begun_studies(runs),
        noise=noise,
        pooled=pooled,
        rules={number: trial for number, trial in rule_trials(study).items() if number < num_trials(study, trials)},
        warnings=(*study.warnings, *seeds_of_others(study, runs)),
        warm_start=gathered,
    )
    if as_json:
        print_json(_as_json(checked))
        return
    _print_cost(out(), checked)
    _print_rules(out(), checked)
    for warning in checked.warnings:
        say(f"warning: {warning}")


def _noise(study: Study, runs: Path) -> tuple[Noise | None, PooledNoise | None]:
    """The noise of the study's own baseline, and of other studies' runs that are like it."""
    if not (begun := begun_studies(runs)):
        return None, None
    from hpstudy.analysis.together import pooled_noise  # scipy takes a second to import
    from hpstudy.cli.loading import readable

    found = {results.name: results for results in readable(begun, runs)}
    own = found[study.name].noise if study.name in found else None
    return own, pooled_noise(study, list(found.values()))


def _print_space(console: Console, study: Study) -> None:
    """The question, what varies, and the baseline."""
    from hpstudy.analysis.departures import departures_sentence  # pandas takes half a second to import
    from hpstudy.analysis.numbers import plain

    console.print(f"{study.name}: {study.question}", style="bold")
    rows = []
    for key, dimension in study.space.items():
        value = plain(study.value(study.baseline, key))
        if isinstance(dimension, Choices):
            rows.append((key, "choices", ", ".join(map(plain, dimension.values)), value))
        else:
            scale = "log of 1 - value" if dimension.scale == "log1m" else dimension.scale
            rows.append((key, scale, f"{plain(dimension.low)} to {plain(dimension.high)}", value))
    if rows:
        headings = ("searched", "scale", "values", "baseline")
        cells = zip(headings, zip(*rows, strict=True), strict=True)
        console.print(as_table([Column(heading=heading, cells=column) for heading, column in cells]))
    else:
        console.print("nothing is searched: the baseline alone")
    console.print(departures_sentence(study), soft_wrap=not console.is_terminal)


def _print_cost(console: Console, found: _Checked) -> None:
    study, cost, environment = found.study, found.cost, found.cost.environment
    spec, batch = study.spec, study.baseline.batch_tokens
    epochs = cost.run_tokens / found.train_tokens
    say_fact(console, "model", f"{cost.num_params:,} parameters, {spec.context} tokens of context, {spec.tokenizer}")
    say_fact(console, "data", f"{spec.corpus}: {found.train_tokens:,} training tokens ({epochs:.2f} epochs a run)")
    device = f"{environment['device']} ({environment['device_name']}), {environment['precision']}"
    say_fact(console, "device", f"{device}: {environment['reason']}")
    if spec.ranks_named:
        say_fact(console, "", spec.ranks_named)
    for size, timed in cost.timed.items():
        if (step := timed.median_step) is None:
            say_fact(console, "speed", f"micro-batch {size}: {timed.message}")
            continue
        speed = f"{1000 * step:,.3g} ms a step, {batch / step:,.0f} tok/s; {timed.eval_seconds:.2g} s an evaluation"
        say_fact(console, "speed", f"micro-batch {size}: {speed}")
    upper = "up to " if study.confirm.looks else ""
    most = "up to " if cost.tokens < cost.runs * cost.run_tokens else ""
    workers = "one worker" if found.workers == 1 else f"{found.workers} workers"
    say_fact(
        console,
        "cost",
        f"{upper}{cost.runs} runs of {most}{cost.steps:,} steps, {cost.tokens:,} tokens in all, about "
        f"{duration(found.seconds)} on {workers}",
    )
    counts = [f"{len(phase)} {name}" for name, phase in found.plan.items()]
    if looks := study.confirm.looks:
        least = f"{looks[0]} to " if len(looks) > 1 else ""
        counts[-1] += f"; the race stops after {least}{looks[-1]} seeds a side"
    say_fact(console, "", ", ".join(counts))
    if cost.eval_share > MUCH:
        better = found.cheaper
        remedy = f"; `{better}` in [trainer] would make it {better.eval_share:.0%}" if better else ""
        say_fact(console, "", f"evaluation takes {cost.eval_share:.0%} of it{remedy}")
    for noise in (found.noise, found.pooled):
        if noise:
            say_fact(console, "noise", str(noise))


def _print_rules(console: Console, found: _Checked) -> None:
    """Which trials published rules propose: values of the keys that they speak about, then sizes outside of theirs."""
    from hpstudy.analysis.numbers import plain
    from hpstudy.analysis.rules import moved, outside

    study, lines = found.study, list[str]()
    for number, trial in found.rules.items():
        keys = [key for key in trial.values if any(raw_key(key) in rule.keys for rule in trial.used)]
        values = ", ".join(f"{key} {plain(trial.values[key])}" for key in keys)
        lines += [f"trial {number}, {trial.rule}: {values}", *(f"  {sentence}" for sentence in moved(study, trial))]
    lines += dict.fromkeys(sentence for trial in found.rules.values() for sentence in outside(study, trial))
    for place, line in enumerate(lines):
        say_fact(console, "" if place else "rules", line)


def _as_json(found: _Checked) -> dict[str, Any]:
    """The keys of CHECK."""
    from hpstudy.analysis.departures import departures
    from hpstudy.analysis.overview import finite
    from hpstudy.analysis.rules import moved, outside

    study, cost, environment = found.study, found.cost, found.cost.environment
    baseline, batch = asdict(study.baseline), study.baseline.batch_tokens
    made: dict[str, Any] = {
        "study": study.name,
        "question": study.question,
        "space": [
            {"key": key, "baseline": study.value(study.baseline, key)}
            | ({"choices": list(d.values)} if isinstance(d, Choices) else asdict(d))
            for key, d in study.space.items()
        ],
        "baseline": baseline,
        "departures": [{"key": d.key, "value": d.value, "gpt3": d.gpt3} for d in departures(study)],
        "model": {
            "parameters": cost.num_params,
            "context": study.spec.context,
            "tokenizer": study.spec.tokenizer,
        },
        "data": {
            "corpus": study.spec.corpus,
            "train_tokens": found.train_tokens,
            "epochs": cost.run_tokens / found.train_tokens,
        },
        "warm_start": [
            {
                "source": each.prior.source,
                "finished": each.found,
                "used": len(each.prior.trials),
                "outside": each.outside,
            }
            for each in found.warm_start
        ],
        "device": {
            "kind": environment["device"],
            "name": environment["device_name"],
            "precision": environment["precision"],
        },
        "speed": [
            {
                "micro_batch": size,
                "step_seconds": timed.median_step,
                "tok_per_sec": batch / timed.median_step if timed.median_step else None,
                "eval_seconds": timed.eval_seconds,
            }
            for size, timed in cost.timed.items()
        ],
        "cost": {
            "runs": cost.runs,
            "steps": cost.steps,
            "tokens": cost.tokens,
            "seconds": found.seconds,
            "workers": found.workers,
        },
        "plan": {str(phase): len(shares) for phase, shares in found.plan.items()},
        "evaluation": {"share": cost.eval_share, "cheaper": asdict(found.cheaper) if found.cheaper else None},
        "noise": {
            "own": {"sd": found.noise.sd, "runs": found.noise.n} if found.noise else None,
            "similar": {"sd": found.pooled.sd, "runs": found.pooled.runs} if found.pooled else None,
        },
        "rules": [
            {
                "trial": number,
                "rule": trial.rule,
                "values": trial.values,
                "sources": list(dict.fromkeys(rule.source for rule in trial.used)),
                "moved": list(moved(study, trial)),
                "outside": list(outside(study, trial)),
            }
            for number, trial in found.rules.items()
        ],
        "warnings": list(found.warnings),
    }
    return {key: finite(made[key]) for key in CHECK}
