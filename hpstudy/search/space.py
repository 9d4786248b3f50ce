"""A study's space as Optuna's distributions, and conversions between points of the two."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpstudy.study import Choices, Dimension, FloatRange, OrderedChoices, Value

Space = dict[str, Dimension]
Params = dict[str, Any]
"""A point as Optuna stores it. A "log1m" dimension of beta1 is stored as a log-uniform 1-beta1, and of numbers to
choose from "lr#" stores the place in ascending order, from 0."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The distribution of each Optuna parameter, in the order of the study file."""
    return {_parameter(key, dimension): _distribution(dimension) for key, dimension in space.items()}


def encode(space: Space, values: dict[str, Value]) -> Params:
    """A point of the space as Optuna's parameters."""
    return {_parameter(key, dimension): _encoded(dimension, values[key]) for key, dimension in space.items()}


def decode(space: Space, params: Params) -> dict[str, Value]:
    """The inverse of `encode`, up to rounding, and always within low and high.

    Exact for "log1m" values of at least 0.5, because 1 - value is exact there.
    """
    values: dict[str, Value] = {}
    for key, dimension in space.items():
        param = params[_parameter(key, dimension)]
        if isinstance(dimension, FloatRange):
            value = 1 - param if _log1m(dimension) else param
            values[key] = min(max(value, dimension.low), dimension.high)
        else:
            values[key] = sorted(dimension.values)[param] if isinstance(dimension, OrderedChoices) else param
    return values


def _encoded(dimension: Dimension, value: Value) -> Value:
    if isinstance(dimension, OrderedChoices):
        return sorted(dimension.values).index(value)
    return 1 - float(value) if _log1m(dimension) else value


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, OrderedChoices):
        return IntDistribution(0, len(dimension.values) - 1)
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if _log1m(dimension):
        return FloatDistribution(1 - dimension.high, 1 - dimension.low, log=True)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.scale == "log")


def _log1m(dimension: Dimension) -> bool:
    return isinstance(dimension, FloatRange) and dimension.scale == "log1m"


def _parameter(key: str, dimension: Dimension) -> str:
    if isinstance(dimension, OrderedChoices):
        return f"{key}#"
    return f"1-{key}" if _log1m(dimension) else key
