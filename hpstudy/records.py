"""What one run is, what one step measured, how a run ended, and the glossary of every metric."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from hpstudy.hparams import HParams

Phase = Literal["search", "baseline", "confirm", "tuned-lr", "batch"]
OPPONENTS: tuple[Phase, ...] = ("tuned-lr", "batch")  # whose trials are no candidates of the search
PHASES: tuple[Phase, ...] = get_args(Phase)
BASELINE = "baseline"  # the candidate that the others are compared with


class Outcome(enum.StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"


MEASURED = frozenset({Outcome.COMPLETE, Outcome.DIVERGED})  # the loss counts; a diverged run's as a uniform guess
SETTLING_STEPS = 5  # at the full batch, left out of a run's tokens per second: they allocate, compile and capture
BROKEN = frozenset({Outcome.OUT_OF_MEMORY, Outcome.FAILED})  # says nothing about the hyperparameters' loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: one set of hyperparameters, one seed, one budget of tokens."""

    run_id: str  # the name of its folder: search-0007, baseline-s101, confirm-0007-s101
    phase: Phase
    trial: int | None  # Optuna's number; None for runs that are not trials
    seed: int
    tokens: int  # budget
    hparams: HParams
    of: str | None = None  # phase confirm: the id of the trial that this run repeats
    fraction: float = 1.0  # of the study's full budget; below 1 in the runs that measure a speed-up

    @property
    def candidate(self) -> str:
        """The trial whose values it trains, or "baseline". Runs that differ only in seed or budget share it."""
        return self.of or (BASELINE if self.trial is None else self.run_id)


def baseline_run_id(seed: int) -> str:
    """The id of a run of the baseline that is not a trial: baseline-s101."""
    return f"baseline-s{seed}"


def confirm_run_id(of: str, seed: int, fraction: float = 1.0) -> str:
    """The id of the run that repeats a trial on a fresh seed: confirm-0007-s101, confirm-0007-s101-t50 at a half."""
    shorter = f"-t{round(100 * fraction)}" if fraction < 1 else ""
    return f"confirm-{of.removeprefix('search-')}-s{seed}{shorter}"


def trial_run_id(phase: Phase, number: int) -> str:
    """The id of a trial's run: search-0007, tuned-lr-0007, batch-0007."""
    return f"{phase}-{number:04d}"


_CONFIRM_ID = re.compile(r"confirm-(?P<phase>tuned-lr-|batch-)?(?P<trial>\d+)-s\d+(?:-t(?P<percent>\d+))?")


def repeats(run_id: str) -> tuple[str | None, float]:
    """`Run.of` and `Run.fraction` from an id, for runs of versions that kept them nowhere else."""
    if not (found := _CONFIRM_ID.fullmatch(run_id)):
        return None, 1.0
    return (found["phase"] or "search-") + found["trial"], int(found["percent"] or 100) / 100


def trial_phase(run_id: str) -> Phase:
    """The phase of a trial from its id, for tables that lack the trial's own row."""
    return next((phase for phase in OPPONENTS if run_id.startswith(f"{phase}-")), "search")


def run_order(run: Run) -> tuple[int, int, int]:
    """The key that sorts runs by phase, then trial, then seed."""
    return PHASES.index(run.phase), -1 if run.trial is None else run.trial, run.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What is known before step 1. Written first, as header.json."""

    run: Run
    study: str
    wandb_id: str
    derived: dict[str, float]  # half-lives in tokens, decay timescale in steps, searched coordinates
    num_params: int
    started: str  # ISO 8601, UTC
    kind: str | None = None  # of the machine that began it; versions before 0.4 wrote none


def _metric(name: str, unit: str, doc: str) -> dict[str, str]:
    return {"metric": name, "unit": unit, "doc": doc}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one optimizer step measured. The last four fields are None on steps without an evaluation."""

    step: int = field(metadata=_metric("step", "steps", "optimizer updates done, from 1"))
    tokens: int = field(metadata=_metric("tokens", "tokens", "training tokens seen, this step included"))
    loss: float = field(metadata=_metric("train/loss", "nats", "mean cross-entropy over the whole accumulated batch"))
    grad_norm: float = field(metadata=_metric("train/grad_norm", "", "global gradient norm before clipping"))
    clipped: bool = field(metadata=_metric("train/clipped", "", "whether clipping scaled any gradient down"))
    lr: float = field(metadata=_metric("train/lr", "", "learning rate of this update"))
    update_to_weight: float = field(
        metadata=_metric("train/update_to_weight", "", "‖update‖ / ‖weights‖ over all parameters")
    )
    batch_tokens: int = field(metadata=_metric("train/batch_tokens", "tokens", "tokens in this step's batch"))
    micro_batch: int = field(metadata=_metric("train/micro_batch", "sequences", "sequences in one forward pass"))
    accumulation: int = field(metadata=_metric("train/accumulation", "micro-batches", "micro-batches in this step"))
    step_seconds: float = field(
        metadata=_metric("train/step_seconds", "s", "wall time of the step, evaluation excluded")
    )
    tok_per_sec: float = field(metadata=_metric("train/tok_per_sec", "tokens/s", "batch_tokens / step_seconds"))
    val_loss: float | None = field(
        default=None, metadata=_metric("val/loss", "nats", "mean cross-entropy over the validation tokens")
    )
    eval_index: int | None = field(
        default=None, metadata=_metric("val/index", "", "point of the evaluation grid, from 1 to evals")
    )
    eval_seconds: float | None = field(
        default=None, metadata=_metric("val/seconds", "s", "wall time of the evaluation")
    )
    bf16_lost: float | None = field(
        default=None,
        metadata=_metric(
            "val/bf16_lost", "", "share of this step's non-zero updates that bf16 weights would round away"
        ),
    )

    @property
    def evaluated(self) -> bool:
        """Whether an evaluation followed this step."""
        return self.val_loss is not None

    def may_be_pruned(self, evals: int) -> bool:
        """Whether a pruner may end a run of so many evaluations here: after each of them but the last."""
        return self.evaluated and self.eval_index != evals


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the glossary."""

    name: str
    unit: str
    doc: str


GLOSSARY: dict[str, Metric] = {
    f.name: Metric(name=f.metadata["metric"], unit=f.metadata["unit"], doc=f.metadata["doc"])
    for f in fields(StepRecord)
}
"""StepRecord field -> metric. The metric's name is the key in steps.jsonl, on W&B and in the steps table."""

LOSSES = ("train/loss", "val/loss")
ROUNDED = frozenset({"train/grad_norm", "train/clipped", "train/update_to_weight", "val/bf16_lost"})
LOSS_ROUNDING = 0.05  # nats, and of a loss above 1 its share
TIMES = frozenset({"train/step_seconds", "train/tok_per_sec", "val/seconds"})  # differ from training to training


def as_row(record: StepRecord) -> dict[str, Any]:
    """{metric name: value}, without the metrics of an evaluation that did not happen."""
    return {m.name: value for key, m in GLOSSARY.items() if (value := getattr(record, key)) is not None}


def from_row(row: dict[str, Any]) -> StepRecord:
    """The inverse of `as_row`. Unknown keys are ignored, so that newer stores still load."""
    return StepRecord(**{key: row[m.name] for key, m in GLOSSARY.items() if m.name in row})


def step_differences(before: StepRecord, again: StepRecord, *, exact: bool = True) -> str:
    """How a step trained again differs from its record; empty if it does not.

    For humans: "train/loss 3.25 where 3.125 was recorded". Times are left out, and so are metrics that the version
    which wrote the record did not have. `exact` compares to the last bit. Otherwise losses may differ by LOSS_ROUNDING,
    and norms and shares, which rounding moves more, are not compared.
    """
    old, new = as_row(before), as_row(again)
    if not exact:
        rounded = {name for name in LOSSES if losses_are_close(old.get(name), new.get(name))}
        old, new = ({name: row[name] for name in row if name not in rounded | ROUNDED} for row in (old, new))
    return ", ".join(
        f"{name} {new.get(name)} where {old.get(name)} was recorded"
        for name in dict.fromkeys([*old, "val/loss"])
        if name not in TIMES and repr(old.get(name)) != repr(new.get(name))  # repr: NaN equals NaN
    )


def losses_are_close(before: float | None, again: float | None) -> bool:
    """Whether two losses are equal up to LOSS_ROUNDING."""
    if before is None or again is None:
        return False
    return repr(before) == repr(again) or math.isclose(before, again, rel_tol=LOSS_ROUNDING, abs_tol=LOSS_ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended, and its summary figures. Written after the last step, as result.json."""

    outcome: Outcome
    steps: int
    tokens: int
    val_loss: float | None  # of the last evaluation, nats
    best_val_loss: float | None
    train_loss: float | None  # of the last step, nats
    tok_per_sec: float | None  # median over the full batches after the first 5 of them, evaluation excluded
    train_seconds: float  # sum of step seconds
    clipped_share: float | None  # of the steps
    message: str = ""  # why it failed, for humans


def bounded_loss(loss: float | None, vocab_size: int) -> float:
    """min(loss, ln(vocab_size)): a diverged run counts as a uniform guess, and no finite loss counts as worse."""
    ceiling = math.log(vocab_size)
    return ceiling if loss is None or not math.isfinite(loss) else min(loss, ceiling)


def counted_loss(outcome: str | None, loss: float | None, vocab_size: int) -> float | None:
    """The bounded loss of a run that measured one; None for any other outcome."""
    return bounded_loss(loss, vocab_size) if outcome in MEASURED else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFigures:
    """How fast a set of hyperparameters trains beside the device's fastest matrix product."""

    steps_per_second: tuple[float, ...]  # of each round
    flops_per_second: float  # of the fastest large matrix product, in the training's precision
    peak_gib: float  # memory
    repeats: bool  # whether the first steps, trained twice, gave the same numbers bitwise
    cold_start_seconds: float  # that those steps took longer the first time: compilation, capture, first use of memory
    shares: Mapping[str, float]  # of a step's time, by kind of work; empty if it could not be profiled
