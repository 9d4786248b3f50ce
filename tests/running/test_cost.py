"""What a study will cost: on how many workers, and how much of it evaluation takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.running.cost import Cost, cheaper
from hpstudy.study import Study, load_study


def cost(*, train: float, evaluations: float, steps: int = 400) -> Cost:
    return Cost(
        runs=1,
        steps=steps,
        run_tokens=1,
        tokens=1,
        train_seconds=train,
        eval_seconds=evaluations,
        timed={},
        environment={},
        num_params=1,
    )


def test_a_phase_waits_for_its_last_run_and_evaluation_is_not_shortened() -> None:
    found = cost(train=10, evaluations=2)
    full = [1.0] * 5
    assert found.seconds([full], 1) == 5 * 12
    assert found.seconds([full], 2) == 3 * 12
    assert found.seconds([full, [], [0.5]], 2) == 3 * 12 + 7
    assert found.eval_share == pytest.approx(2 / 12)


@pytest.fixture
def quickstart() -> Study:
    """20 evaluations of 65,536 tokens."""
    study = load_study("quickstart")
    return replace(study, spec=replace(study.spec, evals=20, val_tokens=65_536))


@pytest.mark.parametrize(
    ("train", "evaluations", "expected"),
    [
        (40, 10, ""),  # 20% already
        (40, 20, "evals = 10"),  # 10 s for evaluation at 1 s each
        (10, 10, "evals = 5"),  # 2.5 s at 0.5 s each
        (10, 20, "evals = 5 and val_tokens = 32768"),  # 2.5 s: half of 5 evaluations at 1 s each
        (1, 400, "evals = 5 and val_tokens = 8192"),  # not below, as it would measure too coarsely
    ],
)
def test_evaluation_gets_cheaper_by_fewer_evaluations_then_by_fewer_tokens(
    quickstart: Study, train: float, evaluations: float, expected: str
) -> None:
    found = cheaper(cost(train=train, evaluations=evaluations), quickstart.spec)
    assert (str(found) if found else "") == expected


def test_the_values_that_are_named_bring_evaluation_to_a_fifth(quickstart: Study) -> None:
    found = cheaper(cost(train=10, evaluations=20), quickstart.spec)
    assert found is not None
    assert found.values == {"evals": 5, "val_tokens": 32_768}
    assert found.eval_share == pytest.approx(0.2)  # 20 s * 5 / 20 / 2 = 2.5 s


def test_a_run_of_fewer_steps_than_evaluations_counts_its_steps(quickstart: Study) -> None:
    assert str(cheaper(cost(train=10, evaluations=10, steps=10), quickstart.spec)) == "evals = 5 and val_tokens = 32768"
