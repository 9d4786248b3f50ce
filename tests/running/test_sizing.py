"""The sizes of a new study: they end in time, see no text too often, and suit the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.errors import MachineError, UserError
from hpstudy.running import sizing
from hpstudy.running.sizing import Speed, batch_for, context_for, fitted, largest_val, runs_in_a_row, size_study
from hpstudy.spec import PRESETS, embedding_share, fitting_tokenizer, flops_per_token, vocab_size
from hpstudy.study import parse_study
from hpstudy.study.template import Sizes, study_text
from tests.helpers.study_files import PLACE

DRAFT = Sizes(
    corpus="text:my.txt",
    model="gpt-2x64",
    tokenizer="gpt2:512",
    context=128,
    batch_tokens=2048,
    micro_batch=None,
    tokens=10**9,
    val_tokens=4096,
    trials=12,
    minutes=10,
    train_tokens=2_000_000,
)
SPEED = Speed(tok_per_sec=50_000, eval_seconds=5e-6, ready_seconds=3.0, workers=2, kind="cpu")


def test_a_study_takes_its_minutes() -> None:
    """11 runs in a row of (600 - 3 - 5) / 11 = 53.8 s, of which ten evaluations of 65,536 tokens take 3.3 s."""
    sizes = fitted(DRAFT, 20_000_000, SPEED)
    assert (sizes.val_tokens, sizes.batch_tokens, sizes.limit) == (65_536, 2048, "time")
    assert sizes.tokens == pytest.approx((592 / 11 - 3.277) * 50_000, abs=2048)
    assert sizes.study_seconds == pytest.approx(600, abs=2)


@given(
    st.floats(0.5, 600),
    st.floats(1e3, 1e7),
    st.integers(20_480, 10**9),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["cpu", "cuda"]),
)
def test_every_sized_study_is_in_proportion(
    minutes: float, tok_per_sec: float, num_tokens: int, workers: int, kind: str
) -> None:
    speed = Speed(
        tok_per_sec=tok_per_sec, eval_seconds=0.3 / tok_per_sec, ready_seconds=4.0, workers=workers, kind=kind
    )
    try:
        sizes = fitted(replace(DRAFT, minutes=minutes), num_tokens, speed)
    except UserError:  # too short a time, or too small a text
        assert 60 * minutes * tok_per_sec < 2e7 or num_tokens < 30_000
        return
    assert sizes.study_seconds <= 60 * minutes
    assert sizes.limit == "text" or sizes.study_seconds >= 0.85 * 60 * minutes
    assert sizes.steps >= 200
    assert sizes.epochs <= 4
    assert sizes.eval_share <= 0.2
    assert sizes.train_tokens + 2 * sizes.val_tokens + 1 == num_tokens
    assert sizes.val_tokens <= 0.05 * num_tokens
    study = parse_study(study_text(sizes), name="x", path=PLACE)
    assert study.warnings == ()
    assert (study.spec.tokens, study.baseline.batch_tokens) == (sizes.tokens, sizes.batch_tokens)


def test_a_time_that_is_too_short_names_one_that_is_enough() -> None:
    slow = replace(SPEED, tok_per_sec=1000, eval_seconds=3e-4)
    with pytest.raises(UserError) as caught:
        fitted(replace(DRAFT, model="gpt-4x128", minutes=2), 10**6, slow)
    assert str(caught.value).startswith("--minutes 2: a run must have at least 200 steps, but gpt-4x128 makes ")
    assert str(caught.value).endswith(", or a smaller --model")
    enough = float(str(caught.value).partition("take --minutes ")[2].partition(",")[0])
    assert fitted(replace(DRAFT, minutes=enough), 10**6, slow).steps >= 200


def test_a_text_that_cannot_spare_text_to_validate_on_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        largest_val("text:my.txt", 9250)
    assert str(caught.value) == (
        'corpus "text:my.txt": must hold at least 20,480 tokens, of which 10% validate, but holds 9,250; take a longer '
        "text"
    )
    assert (largest_val("asv", 20_480), largest_val("asv", 2_000_000)) == (1024, 65_536)


@pytest.mark.parametrize(("workers", "runs"), [(1, 12 + 10), (2, 6 + 3 + 2), (4, 3 + 2 + 1)])
def test_a_worker_trains_its_share_of_the_search_and_of_a_race_of_five_seeds(workers: int, runs: int) -> None:
    assert runs_in_a_row(12, workers) == runs


@pytest.mark.parametrize(
    ("tokens", "context", "batch"),
    [(75_000, 128, 256), (10**6, 128, 2048), (2.5e9, 1024, 131_072), (10**4, 1024, 2048)],
)
def test_the_batch_follows_the_published_formula_and_leaves_200_steps(tokens: float, context: int, batch: int) -> None:
    assert batch_for(tokens, context) == batch


def test_the_vocabulary_of_a_model_is_at_most_a_quarter_of_it() -> None:
    names = {name: fitting_tokenizer(shape) for name, shape in PRESETS.items()}
    assert list(names.values()) == ["gpt2:512", "gpt2:2048", "gpt2:4096", "gpt2:16384", "gpt2", "gpt2"]
    for name in list(PRESETS)[:4]:
        assert embedding_share(PRESETS[name], vocab_size(names[name]), 128) <= 0.25
    assert [context_for(shape) for shape in PRESETS.values()] == [128, 128, 256, 512, 512, 1024]


# The choice of the model


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes workers compute so many FLOP a second on a text of so many tokens; returns the models that were timed."""

    def make(flops: float, num_tokens: int = 10**10, *, too_large: str = "") -> list[str]:
        timed: list[str] = []

        @contextmanager
        def trainings(draft: Sizes, _device: str) -> Iterator[Callable[[Sizes | None, int], Speed]]:
            timed.append(draft.model)
            if draft.model == too_large:
                raise MachineError("out of memory")
            speed = flops / flops_per_token(PRESETS[draft.model], draft.tokenizer, draft.context)
            yield lambda _sizes, _steps: replace(SPEED, tok_per_sec=speed, eval_seconds=0.3 / speed)

        monkeypatch.setattr(sizing, "_trainings", trainings)
        monkeypatch.setattr(sizing, "load_corpus", lambda *_: SimpleNamespace(num_train_tokens=num_tokens))
        return timed

    return make


def sized(minutes: float, model: str | None = None) -> Sizes:
    return size_study("text:my.txt", minutes=minutes, device="auto", model=model, say=lambda _: None)


@pytest.mark.parametrize(
    ("flops", "minutes", "model"),
    [(3e10, 10, "gpt-2x64"), (1e11, 10, "gpt-2x64"), (1e11, 600, "gpt-4x128"), (1e14, 60, "gpt-8x512")],
)
def test_the_model_is_the_one_nearest_to_20_tokens_per_parameter(machine, flops, minutes, model) -> None:
    machine(flops)
    chosen = sized(minutes)
    assert chosen.model == model
    distance = {name: abs(math.log(sized(minutes, name).tokens_per_param / 20)) for name in near(model)}
    assert min(distance, key=distance.__getitem__) == model


def near(model: str) -> list[str]:
    """The model, the next smaller and the next larger one."""
    names = list(PRESETS)
    place = names.index(model)
    return names[max(place - 1, 0) : place + 2]


def test_models_that_surely_get_enough_tokens_are_not_timed_one_by_one(machine) -> None:
    timed = machine(1e15)
    assert sized(600).model == "gpt-125m"
    assert timed == ["gpt-2x64", "gpt-125m", "gpt-350m"]


def test_a_model_that_does_not_fit_leaves_the_one_before_it(machine) -> None:
    machine(1e15, too_large="gpt-350m")
    assert sized(6000).model == "gpt-125m"


def test_a_text_limits_the_study_and_its_model(machine) -> None:
    machine(1e14, num_tokens=500_000)
    sizes = sized(600)
    assert (sizes.model, sizes.limit, round(sizes.epochs, 2)) == ("gpt-2x64", "text", 4.0)
    assert sizes.study_seconds < 600


def test_the_model_that_is_asked_for_is_taken(machine) -> None:
    timed = machine(1e11)
    assert sized(60, "gpt-6x256").model == "gpt-6x256"
    assert timed == ["gpt-6x256"]
