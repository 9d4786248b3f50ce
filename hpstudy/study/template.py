"""A new study's file: the question whether GPT-3's values are right for a corpus, with the reason beside each value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from hpstudy.hparams import GPT3
from hpstudy.spec import PRESETS, vocab_size

SCHEMA_FILE = ".hpstudy.schema.json"  # beside the study files
CHINCHILLA = 20  # tokens per parameter; Hoffmann et al. 2022, arXiv:2203.15556
MAX_EPOCHS = 4  # up to which a repeated text teaches about as much as new text; Muennighoff et al. 2023
LOWEST_LR = 3e-4  # half of GPT-3's, so that the baseline lies inside the range
LR_SPAN = 8  # from the value that suits the width up to the end of the range
LOOKS = (3, 5, 8)  # seeds a side; fewer than by default, so that the study ends in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The values of a new study that depend on its corpus, its machine and its time."""

    corpus: str
    model: str  # a preset
    tokenizer: str
    context: int
    batch_tokens: int
    micro_batch: int | None  # sequences; None: the default
    tokens: int  # of one run
    evals: int = 10
    val_tokens: int
    trials: int
    # what they follow from
    minutes: float  # that were asked for
    train_tokens: int  # of the corpus, in one epoch
    limit: Literal["text", "time"] = "time"  # what keeps a run from having more tokens
    tok_per_sec: float = 0.0  # of one training beside the others
    run_seconds: float = 0.0  # of one run, evaluation included
    eval_share: float = 0.0  # of a run's seconds
    study_seconds: float = 0.0  # of search, baseline and a race of few seeds
    workers: int = 1

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        return PRESETS[self.model].num_params(vocab_size(self.tokenizer), self.context)

    @property
    def steps(self) -> int:
        """Steps of one run."""
        return self.tokens // self.batch_tokens

    @property
    def epochs(self) -> float:
        """How often a run sees the training text."""
        return self.tokens / self.train_tokens

    @property
    def tokens_per_param(self) -> float:
        """Tokens of one run per parameter."""
        return self.tokens / self.num_params


def study_text(sizes: Sizes) -> str:
    """The file of a study with these sizes."""
    shape, vocab = PRESETS[sizes.model], vocab_size(sizes.tokenizer)
    embeddings = (vocab + sizes.context) * shape.width / sizes.num_params
    center = GPT3.lr * PRESETS["gpt-125m"].width / shape.width
    trainer = [
        (f"model      = {_toml(sizes.model)}", f"{sizes.num_params:,} parameters; {_model_reason(sizes)}"),
        (
            f"corpus     = {_toml(sizes.corpus)}",
            f"{sizes.train_tokens:,} tokens to train on; {sizes.epochs:.2g} epochs",
        ),
        (f"tokenizer  = {_toml(sizes.tokenizer)}", f"{vocab:,} tokens: embeddings are {embeddings:.0%} of the model"),
        (f"context    = {sizes.context}", "tokens of one sequence"),
        (f"tokens     = {sizes.tokens:_}", f"of a run: {sizes.steps:,} steps, {_tokens_reason(sizes)}"),
        (f"evals      = {sizes.evals}", f"points of a curve; they take {sizes.eval_share:.0%} of a run's time"),
        (f"val_tokens = {sizes.val_tokens:_}", "held out twice: for the search, and for the runs on fresh seeds"),
    ]
    hparams = [
        (f"batch_tokens        = {sizes.batch_tokens}", _batch_reason(sizes)),
        ("batch_ramp_fraction = 0.0", "a run this short has no steps to spend on smaller batches"),
    ]
    if sizes.micro_batch is not None:
        hparams.append((f"micro_batch         = {sizes.micro_batch}", "sequences of one pass, which fit the memory"))
    high = float(f"{LR_SPAN * center:.1g}")
    search = [
        (
            f"lr           = {{ low = {LOWEST_LR:g}, high = {high:g} }}",
            f"on a log scale; GPT-3's {GPT3.lr:g} at width 768 is {center:.2g} at {shape.width}, as 1 / width",
        ),
        ("beta1        = { low = 0.8, high = 0.98 }", "on a log scale of 1 - beta1"),
        ("beta2        = { low = 0.9, high = 0.999 }", "on a log scale of 1 - beta2"),
        ("weight_decay = { low = 1e-3, high = 1.0 }", "on a log scale"),
    ]
    budget = [
        (f"trials  = {sizes.trials}", "the first has GPT-3's values"),
    ]
    looks = ", ".join(map(str, LOOKS))
    question = f"Are GPT-3's learning rate, betas and weight decay right for {sizes.model} on {sizes.corpus}?"
    return f"""\
#:schema ./{SCHEMA_FILE}
{_heading(sizes)}
question = {_toml(question)}
yes      = ["equivalent", "worse"]    # what the best of the search must be for a yes

[trainer]                             # the same in every run
{_lines(trainer)}

[hparams]                             # for baseline and trials alike; the rest has GPT-3's values
{_lines(hparams)}

[search]
{_lines(search)}

[budget]
{_lines(budget)}

[confirm]
looks = [{looks}]                     # seeds a side at which the race is judged; add 12 and 20 for small differences
"""


def _heading(sizes: Sizes) -> str:
    """What the sizes are made for, as comments."""
    speed = f"{sizes.workers} worker{'s' if sizes.workers > 1 else ''} of {sizes.tok_per_sec:,.0f} tokens/s"
    minutes, expected = _number(sizes.minutes), _number(sizes.study_seconds / 60)
    return (
        f"# Written by `hpstudy new` for {minutes} minutes. A search and a race of {LOOKS[0]} or {LOOKS[1]} seeds a "
        f"side, at most {LOOKS[-1]},\n"
        f"# take about {expected} minutes on {speed}. All keys: `hpstudy reference`."
    )


def _model_reason(sizes: Sizes) -> str:
    ratio = f"{sizes.tokens_per_param:.2g} tokens each"
    if CHINCHILLA / 2 <= sizes.tokens_per_param <= 2 * CHINCHILLA:
        return f"{ratio}, near Chinchilla's {CHINCHILLA}"
    if sizes.tokens_per_param > CHINCHILLA:
        return f"{ratio}, more than Chinchilla's {CHINCHILLA}"
    enough = f"{CHINCHILLA * sizes.num_params:,}"
    more = "a longer text" if sizes.limit == "text" else f"{_number(_minutes_for_chinchilla(sizes))} minutes"
    return f"{ratio}; Chinchilla's {CHINCHILLA} are {enough}, which need {more}"


def _minutes_for_chinchilla(sizes: Sizes) -> float:
    return sizes.study_seconds / 60 * CHINCHILLA / sizes.tokens_per_param


def _tokens_reason(sizes: Sizes) -> str:
    if sizes.limit == "text":
        return f"as many as the text gives: more than {MAX_EPOCHS} epochs teach little (arXiv:2305.16264)"
    return f"{sizes.run_seconds:.2g} s here"


def _batch_reason(sizes: Sizes) -> str:
    sequences = sizes.batch_tokens // sizes.context
    return f"{sequences} sequences, near 0.58 tokens^0.571 (arXiv:2503.04715); GPT-3 had {GPT3.batch_tokens:,}"


def _lines(pairs: list[tuple[str, str]]) -> str:
    width = max(len(code) for code, _ in pairs)
    return "\n".join(f"{code:<{width}}  # {why}" for code, why in pairs)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
