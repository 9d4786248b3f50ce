"""Figures of the search show every trial, with its true value."""

from __future__ import annotations

import pytest

from hpstudy.analysis.foreseen import foreseen
from hpstudy.report.curve_figures import role_names
from hpstudy.report.curves import shown_runs
from hpstudy.report.parallel import parallel_coordinates
from hpstudy.report.search_figures import (
    best_so_far,
    forecast_errors,
    hyperparameter_panels,
    importance_bars,
    pareto_front,
    shown_range,
)
from hpstudy.search.importance import Importance


@pytest.mark.parametrize("name", ["decided", "failures", "pruned", "hundred"])
def test_hover_shows_each_trials_true_loss_also_of_one_beyond_the_axis(gallery, name: str) -> None:
    results = gallery(name)
    losses = dict(zip(results.trials["run_id"].astype("str"), results.trials["val_loss"], strict=True))
    num_beyond = 0
    for panel in hyperparameter_panels(results, results.tuned.run_id):
        others, winner = panel.plot.data[:2]
        shown = {run: text for trace in (others, winner) for run, _, text in trace.customdata}
        assert shown == {run: f"{losses[run]:.4f} nats" for run in results.ranked()["run_id"]}
        top = max(panel.plot.layout.yaxis.range)
        assert all(y <= top for y in others.y)
        beyond = list(others.marker.symbol).count("triangle-up")
        noted = [note.text for note in panel.plot.layout.annotations]
        assert noted == ([f"{beyond} above"] if beyond else [])
        num_beyond += beyond
    assert num_beyond or name == "decided"


def test_trials_that_are_not_complete_stand_at_the_edge_with_their_ending(gallery) -> None:
    panel = next(hyperparameter_panels(gallery("failures"), None))
    lost = panel.plot.data[2]
    said = sorted(run_and_ending for run_and_ending, _ in lost.customdata)
    assert [text.partition(": ")[2].split(" at step")[0] for text in said] == ["diverged", "failed", "out of memory"]
    assert set(lost.marker.symbol) == {"x-thin"}
    pruned = next(hyperparameter_panels(gallery("pruned"), None)).plot.data[2]
    assert set(pruned.marker.symbol) == {"circle-open"}
    assert all("pruned at step" in text for text, _ in pruned.customdata)


def test_a_few_bad_trials_do_not_set_the_axis(gallery) -> None:
    losses = gallery("failures").ranked()["val_loss"]
    assert shown_range(losses, "val_loss")[0] == losses.min()
    worse = losses.copy()
    worse.iloc[-1] = 4e7
    assert shown_range(worse, "val_loss")[1] < losses.max() + 1


def test_trials_that_a_published_rule_proposed_have_its_name_in_the_figures(tiny, searched) -> None:
    results = searched(tiny(replace={"format = 1": "format = 4"}))
    plot = best_so_far(results).plot
    (named,) = [trace for trace in plot.data if trace.mode == "text"]
    assert dict(zip(named.x, named.text, strict=True)) == {1: "combined", 5: "step-law", 9: "half-life"}
    assert "search-0005, step-law" in [run for run, _ in plot.data[0].customdata]
    panel = next(hyperparameter_panels(results, None))
    assert "search-0005, step-law" in [run for run, *_ in panel.plot.data[0].customdata]
    assert "search-0005, step-law: " in parallel_coordinates(results, None)


def test_the_best_so_far_falls_to_the_best_trial_and_has_the_baselines_line(gallery) -> None:
    results = gallery("decided")
    plot = best_so_far(results).plot
    best = plot.data[2]
    assert list(best.y) == sorted(best.y, reverse=True)
    assert best.y[-1] == results.ranked()["val_loss"].min()
    (line,) = plot.layout.shapes
    baseline = results.trials.set_index("run_id").loc[results.study.baseline_run_id, "val_loss"]
    assert line.y0 == line.y1 == baseline
    assert [note.text for note in plot.layout.annotations] == ["GPT-3"]


def test_the_front_shows_both_sides_at_their_fresh_means(gallery) -> None:
    results = gallery("two-objectives")
    plot = pareto_front(results, role_names(results, shown_runs(results))).plot
    first = results.verdict().contrasts[0]
    by_name = {trace.text[0]: trace for trace in plot.data[2:]}
    assert by_name["<b>baseline</b>"].y[0] == pytest.approx(first.baseline_mean)
    assert by_name["<b>tuned</b>"].y[0] == pytest.approx(first.mean)
    assert all(low <= trace.y[0] <= high for trace in by_name.values() for low, high in [plot.layout.yaxis.range])


def test_importances_are_drawn_with_their_range() -> None:
    found = {"lr": Importance(share=0.6, low=0.2, high=0.8), "beta2": Importance(share=0.4, low=0.2, high=0.5)}
    (dots,) = importance_bars(found).plot.data
    assert list(dots.y) == ["beta2", "lr"]
    assert list(dots.error_x.array) == pytest.approx([0.1, 0.2])
    assert list(dots.error_x.arrayminus) == pytest.approx([0.2, 0.4])


def test_the_errors_of_forecasts_are_drawn_beside_both_comparisons(gallery) -> None:
    found = foreseen(gallery("foresight"))
    plot = forecast_errors(found).plot
    assert [list(trace.y) for trace in plot.data] == [
        [getattr(each, name) for each in found.errors] for name in ("current", "blind", "forecast")
    ]
    assert [note.text for note in plot.layout.annotations] == ["current loss", "schedule-blind fit", "forecast"]
