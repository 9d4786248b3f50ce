"""The sizes of a new study, from its corpus and a few timed steps, so that it ends in about the time asked for.

The model is the preset whose runs come nearest to Chinchilla's 20 tokens per parameter in that time. A run repeats its
text MAX_EPOCHS times at most.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from hpstudy.data.corpus import load_corpus
from hpstudy.errors import HpstudyError, MachineError, UserError
from hpstudy.hparams import fitting_batch
from hpstudy.running.capacity import trainings_at_once, trainings_per_device
from hpstudy.running.executors import Worker, wait_until_ready
from hpstudy.running.local import LocalExecutor
from hpstudy.running.messages import Setup, Timed, TimeSteps
from hpstudy.spec import (
    PRESETS,
    ModelShape,
    fitting_tokenizer,
    flops_per_token,
    takes_any_tokenizer,
    vocab_size,
)
from hpstudy.study import parse_study
from hpstudy.study.template import CHINCHILLA, LOOKS, MAX_EPOCHS, Sizes, study_text

ENOUGH_STEPS = 200  # of a run
LEAST_SEQUENCES = 2  # of a batch
FIRST_TOKENS = {"cpu": 2048, "cuda": 32_768}  # of the batch that is timed before the run's tokens are known
PASS_TOKENS = 32_768  # of one forward pass on a GPU
LEAST_VAL, MOST_VAL, TIMED_VAL = 1024, 65_536, 4096  # tokens
VAL_SHARE = 0.05  # of the corpus, for each of the two slices
EVAL_SHARE = 0.15  # of a run's seconds
LONG_MINUTES = 30  # from which a study has more trials
EXPECTED_LOOKS = 2  # after so many a race is decided if the values matter
FEW_STEPS, TIMED_SECONDS, MOST_STEPS = 3, 3.0, 50
REPORT_SECONDS = 5.0  # from the last run to the verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast the trainings of a study are beside one another."""

    tok_per_sec: float  # of one training
    eval_seconds: float  # per validation token
    ready_seconds: float  # until all workers are ready
    workers: int
    kind: str  # "cpu" or "cuda"


def size_study(corpus: str, *, minutes: float, device: str, model: str | None, say: Callable[[str], None]) -> Sizes:
    """The sizes of a study of about `minutes` minutes on this machine; `model` is a preset, or None to choose one.

    Raises UserError if the corpus is too small or the time too short, MachineError if nothing can be timed.
    """
    names, found = list(PRESETS), list[Sizes]()
    place, end = names.index(model) if model else 0, len(names)
    while place < end:
        try:
            sizes = _timed_sizes(names[place], corpus, minutes, device, say)
        except HpstudyError:
            if not found:
                raise
            end, place = place, place - 1  # too large or too slow: the one before it, unless it was timed
            if names[place] == found[-1].model:
                break
            continue
        found.append(sizes)
        say(
            f"{sizes.model}: {sizes.tok_per_sec:,.0f} tokens/s a worker, so {sizes.tokens:,} tokens a run, "
            f"{sizes.tokens_per_param:.2g} per parameter"
        )
        if model or sizes.tokens_per_param <= CHINCHILLA:
            break
        place = max(place + 1, _surely_enough(sizes, names[:end]))
    return min(found, key=lambda sizes: abs(math.log(sizes.tokens_per_param / CHINCHILLA)))


def _surely_enough(timed: Sizes, names: list[str]) -> int:
    """The place of the largest model that gets Chinchilla's tokens if it does no more FLOP a second than the timed."""
    seconds = (1 - EVAL_SHARE) * 60 * timed.minutes / runs_in_a_row(timed.trials, timed.workers)
    flops = seconds * timed.tok_per_sec * flops_per_token(PRESETS[timed.model], timed.tokenizer, timed.context)
    enough = [0]
    for place, name in enumerate(names):
        shape, tokenizer, context = PRESETS[name], fitting_tokenizer(PRESETS[name]), context_for(PRESETS[name])
        tokens = min(flops / flops_per_token(shape, tokenizer, context), MAX_EPOCHS * timed.train_tokens)
        if tokens >= CHINCHILLA * shape.num_params(vocab_size(tokenizer), context):
            enough.append(place)
    return max(enough)


def _timed_sizes(model: str, corpus: str, minutes: float, device: str, say: Callable[[str], None]) -> Sizes:
    """The sizes for one model, from its speed on this machine."""
    shape = PRESETS[model]
    tokenizer = fitting_tokenizer(shape) if takes_any_tokenizer(corpus) else "gpt2"
    say(f"timing {model} on {corpus}, read with {tokenizer}")
    num_tokens = load_corpus(corpus, tokenizer, 1).num_train_tokens + 2
    context = context_for(shape)
    draft = Sizes(
        corpus=corpus,
        model=model,
        tokenizer=tokenizer,
        context=context,
        batch_tokens=FIRST_TOKENS["cpu"],
        micro_batch=None,
        tokens=10**9,  # not known yet
        val_tokens=min(largest_val(corpus, num_tokens), TIMED_VAL),
        trials=16 if minutes >= LONG_MINUTES else 12,
        minutes=minutes,
        train_tokens=num_tokens,
    )
    with _trainings(draft, device) as time_batch:
        speed = time_batch(None, FEW_STEPS)
        guess = fitted(draft, num_tokens, speed)
        steps = TIMED_SECONDS * speed.tok_per_sec / guess.batch_tokens
        speed = time_batch(guess, min(max(FEW_STEPS, round(steps)), MOST_STEPS))
    return fitted(draft, num_tokens, speed)


@contextmanager
def _trainings(draft: Sizes, device: str) -> Iterator[Callable[[Sizes | None, int], Speed]]:
    """As many workers as share a device in a study, and a function that times steps on all of them at once."""
    study = parse_study(study_text(draft), name="new", path=Path("new.toml"))
    setup, workers = Setup(spec=study.spec, device=device, base=Path.cwd()), list[Worker]()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        executor = LocalExecutor(logs)
        stack.callback(executor.stop, workers)
        start = time.monotonic()
        workers.append(executor.start(setup, 0))
        environment = wait_until_ready(workers[0]).environment
        beside = trainings_per_device(study, environment)
        workers += [executor.start(setup, number) for number in range(1, beside)]
        for worker in workers[1:]:
            wait_until_ready(worker)
        ready_seconds, kind = time.monotonic() - start, environment["device"]

        def time_batch(sizes: Sizes | None, steps: int) -> Speed:
            tokens = sizes.batch_tokens if sizes else FIRST_TOKENS[kind]
            micro_batch = passes(tokens, draft.context, kind) or min(16, tokens // draft.context)
            hparams = replace(study.baseline, batch_tokens=tokens, micro_batch=micro_batch)
            for worker in workers:
                worker.send(TimeSteps(hparams=hparams, steps=steps, evaluate=True))
            reports = [worker.receive() for worker in workers]
            timed = [report for report in reports if isinstance(report, Timed) and report.median_step]
            if len(timed) < len(workers):
                why = next((report.message for report in reports if isinstance(report, Timed)), "a worker died")
                raise MachineError(f"{draft.model} does not run here: {why}; take a smaller --model")
            return Speed(
                tok_per_sec=tokens / mean(report.median_step or 0.0 for report in timed),
                eval_seconds=mean(report.eval_seconds or 0.0 for report in timed) / draft.val_tokens,
                ready_seconds=ready_seconds,
                workers=trainings_at_once(study, environment, device),
                kind=kind,
            )

        yield time_batch


def fitted(draft: Sizes, num_tokens: int, speed: Speed) -> Sizes:
    """The sizes at which the study ends in its minutes on a corpus of `num_tokens` tokens, or has used up its text.

    Raises UserError if a run then has fewer than ENOUGH_STEPS steps.
    """
    waits, rounds = speed.ready_seconds + REPORT_SECONDS, runs_in_a_row(draft.trials, speed.workers)
    seconds = max(60 * draft.minutes - waits, 0.0) / rounds
    per_val_token = draft.evals * speed.eval_seconds
    val_tokens = largest_val(draft.corpus, num_tokens)
    while val_tokens > LEAST_VAL and val_tokens * per_val_token > EVAL_SHARE * seconds:
        val_tokens //= 2
    train_tokens, eval_seconds = num_tokens - 2 * val_tokens - 1, val_tokens * per_val_token
    by_time, by_text = (seconds - eval_seconds) * speed.tok_per_sec, MAX_EPOCHS * train_tokens
    budget = min(by_time, by_text)
    batch_tokens = batch_for(budget, draft.context)
    if (steps := int(budget) // batch_tokens) < ENOUGH_STEPS:
        if by_text < by_time:
            raise too_small(draft.corpus, num_tokens)
        needed = ENOUGH_STEPS * batch_tokens / speed.tok_per_sec + eval_seconds
        raise UserError(
            f"--minutes {draft.minutes:g}: a run must have at least {ENOUGH_STEPS} steps, but {draft.model} makes "
            f"{max(steps, 0)} of {batch_tokens} tokens here; take --minutes {math.ceil((needed * rounds + waits) / 60)}"
            f"{'' if draft.model == next(iter(PRESETS)) else ', or a smaller --model'}"
        )
    run_seconds = steps * batch_tokens / speed.tok_per_sec + eval_seconds
    return replace(
        draft,
        batch_tokens=batch_tokens,
        micro_batch=passes(batch_tokens, draft.context, speed.kind),
        tokens=steps * batch_tokens,
        val_tokens=val_tokens,
        limit="text" if by_text < by_time else "time",
        train_tokens=train_tokens,
        tok_per_sec=speed.tok_per_sec,
        run_seconds=run_seconds,
        eval_share=eval_seconds / run_seconds,
        study_seconds=waits + rounds * run_seconds,
        workers=speed.workers,
    )


def runs_in_a_row(trials: int, workers: int) -> int:
    """Runs that each worker trains one after another: the search, and a race that ends at its second look."""
    looks = LOOKS[:EXPECTED_LOOKS]
    added = [look - before for before, look in zip((0, *looks), looks, strict=False)]
    return math.ceil(trials / workers) + sum(math.ceil(2 * seeds / workers) for seeds in added)


def largest_val(corpus: str, num_tokens: int) -> int:
    """The largest slice, a power of two, that a corpus can hold out twice. Raises UserError if it is too small."""
    most = min(VAL_SHARE * num_tokens, MOST_VAL)
    if most < LEAST_VAL:
        raise too_small(corpus, num_tokens)
    return 1 << int(math.log2(most))


def too_small(corpus: str, num_tokens: int) -> UserError:
    """Says that a corpus cannot spare text to validate on."""
    return UserError(
        f'corpus "{corpus}": must hold at least {round(LEAST_VAL / VAL_SHARE):,} tokens, of which '
        f"{2 * VAL_SHARE:.0%} validate, but holds {num_tokens:,}; take a longer text"
    )


def batch_for(tokens: float, context: int) -> int:
    """The batch in tokens for a run of `tokens` tokens; small enough for ENOUGH_STEPS steps, if one can be."""
    batch = fitting_batch(tokens, LEAST_SEQUENCES * context)
    while batch > LEAST_SEQUENCES * context and tokens < ENOUGH_STEPS * batch:
        batch //= 2
    return batch


def passes(batch_tokens: int, context: int, kind: str) -> int | None:
    """Sequences of one forward pass on a GPU, a divisor of the batch; None on a CPU, where the default is fast."""
    return None if kind == "cpu" else min(batch_tokens, max(PASS_TOKENS, context)) // context


def context_for(shape: ModelShape) -> int:
    """Tokens of a sequence: as many as the model is wide, a power of two between 128 and 1024."""
    return min(max(1 << int(math.log2(shape.width)), 128), 1024)
