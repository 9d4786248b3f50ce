"""Curves say whose they are and where they end, and no stray run sets their axes."""

from __future__ import annotations

import numpy as np
import pytest

from hpstudy.report.curve_figures import difference_curve, differences, loss_curves, speed_curve, training_curves
from hpstudy.report.curves import evaluated, shown_runs
from hpstudy.report.first_screen import X_AXES


def test_curves_are_named_at_their_ends_with_their_last_value(gallery) -> None:
    results = gallery("decided")
    shown = shown_runs(results)
    first = results.verdict().contrasts[0]
    for axis in X_AXES:
        plot = loss_curves(results, shown, evaluated(results, shown), axis).plot
        names = [note.text for note in plot.layout.annotations]
        assert names == [f"tuned <b>{first.mean:.3f}</b>", f"GPT-3 <b>{first.baseline_mean:.3f}</b>"]


def test_the_axes_of_tokens_steps_and_seconds_end_where_training_does(gallery) -> None:
    results = gallery("decided")
    shown = shown_runs(results)
    runs = evaluated(results, shown)
    ends = {axis: loss_curves(results, shown, runs, axis).plot.layout.xaxis.range[1] for axis in X_AXES}
    full = results.fresh.full(results.tuned.run_id)
    assert ends["tokens"] == full["tokens"].max()
    assert ends["steps"] == full["steps"].max()
    assert ends["seconds"] == pytest.approx(
        max(full["train_seconds"].mean(), results.fresh.full("baseline")["train_seconds"].mean())
    )


def test_the_difference_curve_ends_at_the_verdicts_difference(gallery) -> None:
    results = gallery("decided")
    shown = shown_runs(results)
    plot = difference_curve(results, shown, evaluated(results, shown)).plot
    assert plot.data[-1].y[-1] == pytest.approx(results.verdict().contrasts[0].difference)


def test_the_strip_of_differences_has_interval_margin_and_every_pair(gallery) -> None:
    results = gallery("decided")
    first = results.verdict().contrasts[0]
    rings, dot = differences(results, shown_runs(results)).plot.data
    ours, theirs = results.fresh.sides(first.candidate)
    assert sorted(rings.x) == pytest.approx(sorted(ours - theirs))
    assert dot.x[0] == first.difference
    assert dot.x[0] + dot.error_x.array[0] == pytest.approx(first.high)
    assert dot.x[0] - dot.error_x.arrayminus[0] == pytest.approx(first.low)
    margin = next(
        shape for shape in differences(results, shown_runs(results)).plot.layout.shapes if shape.type == "rect"
    )
    assert (margin.x0, margin.x1) == (-first.margin, first.margin)


def test_a_study_of_speed_shows_ratios_of_tokens_per_second(gallery) -> None:
    results = gallery("speed")
    speed = results.verdict().contrasts[0].speed
    _, dot = differences(results, shown_runs(results)).plot.data
    assert dot.x[0] == speed.ratio
    shown = shown_runs(results)
    names = {note.text.partition(" <b>")[0] for note in speed_curve(results, shown).plot.layout.annotations}
    assert len(names) == 2


def test_a_diverged_trial_flattens_no_axis(gallery) -> None:
    results = gallery("failures")
    diverged = results.steps[results.steps["run_id"].isin(results.trials.query("outcome == 'diverged'")["run_id"])]
    assert diverged["train/grad_norm"].max() > 1e10
    shown = shown_runs(results)
    by_title = {figure.title: figure.plot for figure in training_curves(results, shown)}
    assert by_title["Gradient norm"].layout.yaxis.range[1] < 4  # of the exponent of ten
    assert by_title["Training loss"].layout.yaxis.range[1] < 20
    assert by_title["Learning rate"].layout.yaxis.type == "log"
    assert max(loss_curves(results, shown, evaluated(results, shown)).plot.layout.yaxis.range) < 20


@pytest.mark.parametrize("name", ["decided", "pruned", "failures", "interim"])
def test_every_trial_that_ended_is_behind_the_curves(gallery, name: str) -> None:
    results = gallery(name)
    shown = shown_runs(results)
    trials = results.trials
    ended = trials[(trials["phase"] == "search") & trials["outcome"].notna()]["run_id"].astype("str")
    assert set(ended) - {results.study.baseline_run_id} <= {*shown.all, results.tuned.run_id}
    plot = loss_curves(results, shown, evaluated(results, shown)).plot
    lost = trials[trials["outcome"].isin(["pruned", "diverged"])]["run_id"].astype("str")
    dotted = {trace.hovertemplate.split(" (")[0] for trace in plot.data if trace.line.dash == "dot"}
    assert set(lost) & set(evaluated(results, shown)) <= dotted
    assert all(np.isfinite(np.asarray(trace.y, float)).all() for trace in plot.data)
