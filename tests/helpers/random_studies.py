"""A Hypothesis strategy for valid study files that state every key."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from hpstudy.hparams import RAW_KEY, raw_key
from hpstudy.study.schema import RULE_KEYS

Tables = dict[str, Any]


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Tables]:
    """A table with any of these keys."""
    return st.fixed_dictionaries({}, optional=strategies)


COUNT = st.integers(1, 50)
SEED = st.integers(0, 2**32 - 1)
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
POWERS = st.sampled_from([1, 2, 4, 8, 16])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.floats(1e-6, 1e3),
    "beta1": st.floats(1e-3, 0.9999),
    "beta2": st.floats(1e-3, 0.9999),
    "eps": st.floats(1e-37, 1.0),
    "weight_decay": st.floats(1e-6, 1e6),
    "grad_clip": st.floats(1e-6, 1e6) | st.integers(1, 100),
    "clip_mode": st.sampled_from(["global", "per_tensor", "none"]),
    "warmup_fraction": st.floats(1e-6, 0.3),
    "decay_fraction": st.floats(0.4, 1.0),
    "min_lr_fraction": st.floats(1e-6, 1.0),
    "micro_batch": POWERS,
    "batch_ramp_fraction": st.floats(1e-6, 1.0),
    "batch_ramp_start": st.floats(1e-6, 1.0),
}
COORDINATES = {
    "lr_over_rule": st.floats(1e-3, 1e3),
    "beta1_halflife": st.floats(1e-2, 1.0),
    "beta2_halflife": st.floats(1e-2, 1.0),
    "weight_decay_timescale": st.floats(1e-3, 1e3),
}
SAMPLERS = st.sampled_from(["tpe", "gp", "random", "qmc"])
PRUNERS = st.sampled_from(["none", "median", "successive_halving"])


def dimension(key: str) -> st.SearchStrategy[Tables]:
    """Choices of a key, or a range if its values are continuous."""
    values = (VALUES | COORDINATES)[key]
    choices = st.lists(values, min_size=2, max_size=4, unique=True).map(lambda found: {"choices": found})
    if key in ("clip_mode", "micro_batch"):
        return choices
    scales = st.sampled_from(["linear", "log", *(["log1m"] if key in ("beta1", "beta2") else [])])
    ends = st.tuples(values, values).filter(lambda pair: pair[0] != pair[1]).map(sorted)
    return choices | st.builds(
        lambda pair, more: {"low": pair[0], "high": pair[1], **more}, ends, optional(scale=scales)
    )


@st.composite
def studies(draw: st.DrawFn, *, tiny: bool = False) -> Tables:
    """Any study that a file may state; a tiny one also trains quickly."""
    context = draw(st.sampled_from([8, 16]) if tiny else st.sampled_from([16, 128, 1024]))
    batch = 32 * context * draw(st.integers(1, 2))  # 16 and all smaller micro-batches divide it, for 2 ranks too
    shape = st.fixed_dictionaries({"layers": st.just(1), "heads": st.just(2), "width": st.sampled_from([8, 16])})
    budget = draw(st.just({"tokens": 4 * batch}) if tiny else budgets(batch))
    trainer = budget | {
        "model": draw(shape if tiny else shape | st.sampled_from(["gpt-2x64", "gpt-125m"])),
        "context": context,
        "val_tokens": 4 * context,
        "tokenizer": "bytes" if tiny else draw(st.sampled_from(["gpt2", "gpt2:256", "bytes"])),
    }
    precision = st.sampled_from(["auto", "fp32"])
    flags = {"deterministic": st.booleans(), "confirm_val": st.booleans()}
    trainer |= draw(optional(evals=st.integers(1, 4), seed=st.just(7), precision=precision, **flags))
    if not tiny and draw(st.booleans()):
        trainer |= {"corpus": "shards:*.bin"} | draw(optional(val=WORDS))
    elif not tiny:
        trainer |= draw(optional(corpus=st.just("asv") | WORDS.map(lambda path: f"text:{path}"), threads=COUNT))
    if not tiny:
        trainer |= draw(st.just({}) | st.sampled_from(["gpus", "processes"]).map(lambda key: {key: 2}))

    searched = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=4))
    converted = {RAW_KEY[key]: key for key in COORDINATES} if "tokens" in budget and draw(st.booleans()) else {}
    search = {key: draw(dimension(key)) for key in (converted.get(raw, raw) for raw in searched)}
    fixed = {key: values for key, values in VALUES.items() if key not in searched}
    overrides: Tables = {"warmup_fraction": 0.1} if "seconds" in budget and "warmup_fraction" in searched else {}
    hparams = {"batch_tokens": batch} | draw(optional(**fixed))

    parallel = draw(st.integers(1, 9))
    metric = draw(st.sampled_from(["val/loss", "train/tok_per_sec", ["train/tok_per_sec", "val/loss"]]))
    grid = bool(search) and all("choices" in found for found in search.values()) and draw(st.booleans())
    pruners = PRUNERS if metric == "val/loss" else st.just("none")
    listed = metric == "val/loss" and not grid and "tokens" in budget
    rules = [name for name, keys in RULE_KEYS.items() if set(keys) & set(map(raw_key, search))] if listed else []
    if metric == "val/loss" and "seconds" not in budget:
        pruners |= st.just("foresight")
    more = {
        "rules": st.sampled_from(["auto", rules]),
        "warm_start": st.just([]),  # no source has begun here
        "first": st.sampled_from(
            [[], [{key: found["choices"][0] if "choices" in found else found["low"] for key, found in search.items()}]]
            if search
            else [[]]
        ),
        "trials": st.integers(1, 50) if search else st.just(1),
        "pack": st.just(1) if {"gpus", "processes"} & set(trainer) else st.just("auto") | COUNT,  # of earlier versions
        "smaller_micro_batch": st.booleans(),
        "hang_seconds": st.floats(1e-3, 1e9),
        "sampler": st.just("grid") if grid else SAMPLERS | optional(name=SAMPLERS, startup=COUNT, seed=SEED),
        "pruner": pruners | optional(name=pruners, startup=COUNT, reduction=st.integers(2, 9)),
    }
    seeds = st.lists(st.integers(8, 2**32 - 1), unique=True, max_size=6)
    races = metric == "val/loss" and draw(st.booleans())
    looks = st.lists(st.integers(3, 9), unique=True, min_size=1).map(sorted)
    confirm = optional(
        **({"looks": looks} if races else {"seeds": seeds}),
        top=COUNT,
        margin=st.floats(0, 1),
        design=st.just("paired") if races else st.sampled_from(["paired", "independent"]),
        speedup=st.booleans(),
    )
    raw = set(map(raw_key, search))
    opponents = ["tuned-lr"] * bool(raw - {"lr"}) + ["batch"] * any(key.startswith("batch_") for key in search)
    also = optional(also=st.sampled_from([*opponents, opponents])) if opponents else st.just({})
    answers = (
        st.just("faster") if metric == "train/tok_per_sec" else st.sampled_from(["better", ["equivalent", "worse"]])
    )
    versions = draw(optional(format=st.sampled_from([1, 2, 3, 4])))
    whole = (
        (draw(optional(yes=answers)) if search else {})
        | versions
        | {
            "question": draw(WORDS),
            "trainer": trainer,
            "hparams": hparams,
            "search": search,
            "baseline": {"name": "gpt3", "overrides": overrides, **draw(also)},
            "objective": {"metric": metric},
            "budget": {"parallel": parallel, **draw(optional(**more))},
        }
    )
    cluster = optional(mixed=st.booleans())
    return whole | draw(optional(confirm=confirm, cluster=cluster, wandb=optional(project=WORDS, entity=WORDS)))


def budgets(batch: int) -> st.SearchStrategy[Tables]:
    """A run's budget in tokens, at least one batch, or in seconds."""
    return st.integers(batch, 10**6 * batch).map(lambda tokens: {"tokens": tokens}) | st.floats(1e-3, 1e6).map(
        lambda seconds: {"seconds": seconds}
    )
