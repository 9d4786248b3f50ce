"""A study's space as Optuna's distributions, and points of one as points of the other."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from hpstudy.study import Choices, Dimension, FloatRange, Value

Space = dict[str, Dimension]
Params = dict[str, Any]
"""A point as Optuna keeps it; a "log1m" dimension of beta1 is there as log-uniform 1-beta1."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """What each of Optuna's parameters is drawn from, in the order of the study file."""
    return {_parameter(key, dimension): _distribution(dimension) for key, dimension in space.items()}


def encode(space: Space, values: dict[str, Value]) -> Params:
    """A point of the space as Optuna's parameters."""
    return {_parameter(key, d): 1 - float(values[key]) if _log1m(d) else values[key] for key, d in space.items()}


def decode(space: Space, params: Params) -> dict[str, Value]:
    """The point that `encode` made the parameters from, up to rounding; always within low and high.

    Exact for a "log1m" value of at least 0.5, where 1 - value loses no bit.
    """
    values: dict[str, Value] = {}
    for key, dimension in space.items():
        param = params[_parameter(key, dimension)]
        if isinstance(dimension, FloatRange):
            value = 1 - param if _log1m(dimension) else param
            values[key] = min(max(value, dimension.low), dimension.high)
        else:
            values[key] = param
    return values


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if _log1m(dimension):
        return FloatDistribution(1 - dimension.high, 1 - dimension.low, log=True)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.scale == "log")


def _log1m(dimension: Dimension) -> bool:
    return isinstance(dimension, FloatRange) and dimension.scale == "log1m"


def _parameter(key: str, dimension: Dimension) -> str:
    return f"1-{key}" if _log1m(dimension) else key
