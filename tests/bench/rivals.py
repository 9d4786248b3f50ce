"""Other searches than Optuna's, each used as its manual says: Ax's Client and SMAC's optimizer of hyperparameters.

Each is left out where its package is not installed: `pip install ax-platform smac`. hpstudy needs neither.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from hpstudy.study import Dimension, FloatRange, Value

Values = Mapping[str, Value]
Ask = Callable[[], tuple[Any, Values]]
Tell = Callable[[Any, float], None]
Space = Mapping[str, Dimension]
Opened = contextlib.AbstractContextManager[tuple[Ask, Tell]]
Rival = Callable[[Space, int, int], Opened]
"""Opened for a space, a number of trials and a seed, it is asked for values and told losses."""


def rivals() -> Iterator[tuple[str, Rival]]:
    """Those that are installed, by name."""
    for name, module, opened in (("Ax", "ax", _ax), ("SMAC", "smac", _smac)):
        if find_spec(module):
            yield name, opened
        else:
            print(f"{name} is left out: it is not installed")


@contextlib.contextmanager
def _ax(space: Space, _trials: int, seed: int) -> Iterator[tuple[Ask, Tell]]:
    logging.disable(logging.ERROR)
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    client = Client(random_seed=seed)
    parameters: list[Any] = []
    for key, dimension in space.items():
        if isinstance(dimension, FloatRange):
            low, high = _bounds(dimension)
            scaling = None if dimension.scale == "linear" else "log"
            parameters.append(
                RangeParameterConfig(name=key, bounds=(low, high), parameter_type="float", scaling=scaling)
            )
        else:
            kind = "int" if all(isinstance(value, int) for value in dimension.values) else "float"
            parameters.append(
                ChoiceParameterConfig(name=key, values=list(dimension.values), parameter_type=kind, is_ordered=True)
            )
    client.configure_experiment(parameters=parameters)
    client.configure_optimization(objective="-loss")

    def ask() -> tuple[Any, Values]:
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        return index, _decoded(space, point)

    def tell(index: Any, loss: float) -> None:
        client.complete_trial(trial_index=index, raw_data={"loss": loss})

    yield ask, tell


@contextlib.contextmanager
def _smac(space: Space, trials: int, seed: int) -> Iterator[tuple[Ask, Tell]]:
    from ConfigSpace import ConfigurationSpace, Float, OrdinalHyperparameter
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    configs = ConfigurationSpace(seed=seed)
    for key, dimension in space.items():
        if isinstance(dimension, FloatRange):
            configs.add(Float(key, _bounds(dimension), log=dimension.scale != "linear"))
        else:
            configs.add(OrdinalHyperparameter(key, list(dimension.values)))
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(configs, n_trials=trials, deterministic=True, seed=seed, output_directory=folder)
        smac = HyperparameterOptimizationFacade(scenario, _never, overwrite=True, logging_level=50)

        def ask() -> tuple[Any, Values]:
            info = smac.ask()
            return info, _decoded(space, dict(info.config))

        def tell(info: Any, loss: float) -> None:
            smac.tell(info, TrialValue(cost=loss))

        yield ask, tell


def _never(_config: Any, seed: int = 0) -> float:
    """SMAC wants a function with these arguments, and never calls it where it is asked and told."""
    raise AssertionError(seed)


def _bounds(dimension: FloatRange) -> tuple[float, float]:
    """The ends of a range; of 1 - value where its scale is that."""
    low, high = dimension.low, dimension.high
    return (1 - high, 1 - low) if dimension.scale == "log1m" else (low, high)


def _decoded(space: Space, point: Mapping[str, Any]) -> Values:
    values: dict[str, Value] = {}
    for key, dimension in space.items():
        if isinstance(dimension, FloatRange):
            value = 1 - point[key] if dimension.scale == "log1m" else point[key]
            values[key] = min(max(float(value), dimension.low), dimension.high)
        else:
            values[key] = min(dimension.values, key=lambda known: abs(float(known) - float(point[key])))
    return values
