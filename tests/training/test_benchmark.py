"""A benchmark measures paces beside the fastest matrix product, and whether steps repeat."""

from __future__ import annotations

from hpstudy.training.benchmark import benchmark
from tests.helpers.training import HPARAMS, curve, make_trainer, run


def test_a_benchmark_has_a_pace_for_each_round_and_leaves_the_trainer_as_it_was() -> None:
    trainer = make_trainer()
    expected = curve(trainer, run())
    figures = benchmark(trainer, HPARAMS, rounds=3, turn_seconds=0.05)
    assert len(figures.steps_per_second) == 3
    assert all(pace > 0 for pace in figures.steps_per_second)
    assert figures.flops_per_second > 1e9
    assert figures.peak_gib > 0
    assert figures.repeats
    assert curve(trainer, run()) == expected
