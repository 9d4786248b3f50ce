"""What users of other tools write, and how it is said here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpstudy.errors import did_you_mean

SYNONYMS = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "epsilon": "eps",
    "wd": "weight_decay",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "clip": "grad_clip",
    "max_grad_norm": "grad_clip",
    "micro_batch_size": "micro_batch",
    "per_device_train_batch_size": "micro_batch",
    "n_trials": "trials",
    "min": "low",
    "max": "high",
}
_STEPS = "[trainer] tokens is the budget: the number of steps times batch_tokens"
_WARMUP = "warmup_fraction is a share of the run's tokens: warm-up steps divided by all steps"
_BATCH = "batch_tokens counts tokens: sequences times context"
_SHAPE = "the shape is [trainer] model = { layers = 2, heads = 2, width = 64 }"
_SAMPLER = 'proposals come from [budget] sampler = "tpe"'
MEANINGS = {
    "log": 'a log scale is scale = "log"',
    "distribution": 'a range is { low = 1e-4, high = 1e-2, scale = "log" }',
    "step": "list the values as { choices = [1, 2] }",
    "values": "a list is { choices = [1, 2] }",
    "value": "a fixed value goes to [hparams], as in lr = 1e-3",
    "batch_size": _BATCH,
    "total_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "gradient_accumulation_steps": "it follows: batch_tokens divided by context times micro_batch",
    "betas": "state beta1 and beta2",
    "min_lr": "min_lr_fraction is a share of lr, such as 0.1",
    "warmup": _WARMUP,
    "warmup_steps": _WARMUP,
    "warmup_iters": _WARMUP,
    "warmup_tokens": _WARMUP,
    "warmup_ratio": _WARMUP,
    "lr_decay_iters": "decay_fraction is the share of the run's tokens at which the decay ends",
    "decay_lr": "the decay is a cosine down to min_lr_fraction; min_lr_fraction = 1 is none",
    "max_iters": _STEPS,
    "max_steps": _STEPS,
    "num_train_epochs": _STEPS,
    "steps": _STEPS,
    "num_steps": _STEPS,
    "train_steps": _STEPS,
    "epochs": f"{_STEPS}; `hpstudy check` says how many epochs they are",
    "minutes": "[trainer] seconds is the budget of one run; `hpstudy check` says how long the whole study takes",
    "device": "the device is a flag, as in `hpstudy run NAME --device cuda`",
    "eval_interval": "[trainer] evals is the number of evaluations of a run",
    "eval_iters": "[trainer] val_tokens is the size of the validation set",
    "block_size": "the length of a sequence is [trainer] context",
    "n_layer": _SHAPE,
    "n_head": _SHAPE,
    "n_embd": _SHAPE,
    "dropout": "the model has no dropout",
    "dtype": "the precision is [trainer] precision",
    "compile": "the trainer compiles what is faster compiled",
    "method": _SAMPLER,
    "sweep": _SAMPLER,
}


def hint(word: str, known: Iterable[str], tables: Mapping[str, Iterable[str]]) -> str:
    """`; did you mean "lr"?` for an unknown word of the file, or how another tool's word is said here.

    `tables` are all tables, by place, with their keys: a key of another table is sent there. Empty without a hint.
    """
    known = list(known)
    if word in MEANINGS:
        return f"; {MEANINGS[word]}"
    if (near := did_you_mean(SYNONYMS.get(word, word), known)) or word in known:
        return near
    owners = [table for table, keys in tables.items() if word in keys]
    return f"; it belongs to {owners[0]}" if len(owners) == 1 else ""
