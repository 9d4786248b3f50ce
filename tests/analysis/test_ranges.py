"""Where values lie within a search's ranges, and best values at an end of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.analysis.ranges import at_ends, position
from hpstudy.hparams import GPT3
from hpstudy.study import Choices, FloatRange


def test_halfway_on_a_log1m_axis_is_the_geometric_mean_of_the_distances_to_1() -> None:
    dimension = FloatRange(low=0.9, high=0.999, scale="log1m")
    assert position(dimension, 0.99) == pytest.approx(0.5)
    assert position(Choices(values=("a", "b", "c")), "b") == 0.5


@pytest.mark.parametrize(
    ("lr", "side", "wider"),
    [(1e-4, "lower", 6e-6), (1.1e-4, "lower", 6e-6), (1e-3, None, None), (2.9e-2, "upper", 0.5)],
)
def test_a_best_value_near_an_end_of_its_range_has_a_warning_and_a_wider_range(
    tiny, lr: float, side: str | None, wider: float | None
) -> None:
    found = list(at_ends(tiny(), replace(GPT3, lr=lr, beta2=0.99)))
    assert [each.side for each in found] == ([side] if side else [])
    assert [each.wider.low if side == "lower" else each.wider.high for each in found] == ([wider] if wider else [])
    assert all(f"the {side} end" in str(each) for each in found)


def test_a_key_without_effect_has_no_warning(tiny) -> None:
    study = replace(tiny(), space={"grad_clip": FloatRange(low=0.1, high=1.0, scale="log")})
    assert [each.key for each in at_ends(study, replace(GPT3, grad_clip=1.0))] == ["grad_clip"]
    assert not list(at_ends(study, replace(GPT3, grad_clip=1.0, clip_mode="none")))


def test_a_range_that_cannot_be_wider_has_no_warning(tiny) -> None:
    study = replace(tiny(), space={"decay_fraction": FloatRange(low=0.5, high=1.0, scale="linear")})
    assert not list(at_ends(study, replace(GPT3, decay_fraction=1.0)))
