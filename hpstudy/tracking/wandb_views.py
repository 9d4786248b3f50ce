"""A study's workspace and report on W&B: built without network, saved on request.

wandb-workspaces comes with the extra `wandb-report` and imports wandb. Both are imported when views are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpstudy.errors import UserError
from hpstudy.hparams import MEASURES
from hpstudy.records import BASELINE, GLOSSARY
from hpstudy.study import Choices, MetricName, Study
from hpstudy.tracking.wandb_read import answered

BLACK, ACCENT = "#000000", "#0a63d8"  # the baseline and the winner, as in the report's figures
MOST_RUNS = 60  # lines of a plot, the baseline always among them
TITLE = 128  # characters of a W&B report's title
LOSSES = (GLOSSARY["val_loss"].name, GLOSSARY["loss"].name)
X_AXES = ("Step", GLOSSARY["tokens"].name)  # "Step" is W&B's own name
TRAINING = tuple(GLOSSARY[key].name for key in ("grad_norm", "clipped", "lr", "update_to_weight", "tok_per_sec"))
NOISY = {GLOSSARY["loss"].name: 0.5, GLOSSARY["grad_norm"].name: 0.8, GLOSSARY["tok_per_sec"].name: 0.8}
"""Metrics of single batches -> W&B's weight of smoothing, 0 to 1; the unsmoothed line stays visible, faint."""
LOG_Y = frozenset(GLOSSARY[key].name for key in ("grad_norm", "update_to_weight"))
SUMMARY: dict[MetricName, str] = {"val/loss": "result/val_loss", "train/tok_per_sec": "result/tok_per_sec"}
REPORT_COLUMNS, ROWS = 24, 8  # of a report's grid, and the height of a panel
SEARCHED, FRESH = "search", "fresh seeds"  # the two workspaces of a study
CANDIDATE = "candidate"  # the entry of the config that the runs of one set of values share


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Workspaces and a report that are not on W&B yet.

    W&B filters and groups a workspace as a whole, so the search and the runs on fresh seeds have one each.
    """

    search: Any  # wandb_workspaces.workspaces.Workspace
    fresh: Any  # the same, with the seeds of a set of values as one line
    report: Any  # wandb_workspaces.reports.v2.Report

    def spec(self) -> dict[str, Any]:
        """All as the JSON that `save` sends."""
        made = {"search": self.search, "fresh": self.fresh, "report": self.report}
        models = {name: view._to_model() for name, view in made.items()}
        return {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}

    def save(self) -> list[str]:
        """Saves all as new views. Returns the addresses of the two workspaces and the report.

        Raises MachineError if W&B fails.
        """
        with answered("saving the workspaces and the report"):
            report = self.report.save()  # first, because it creates a missing project
            return [str(view.url) for view in (self.search.save(), self.fresh.save(), report)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What stands out: the baseline black, the winner blue. Runs are W&B ids."""

    baselines: Sequence[str]  # the first is the one that deltas are to: on the search's seed, if it has trained
    winner: str | None = None  # the candidate: "search-0003"
    winners: Sequence[str] = ()  # its runs

    @property
    def runs(self) -> dict[str, str]:
        """Run -> colour."""
        return dict.fromkeys(self.baselines, BLACK) | dict.fromkeys(self.winners, ACCENT)

    @property
    def candidates(self) -> dict[str, str]:
        """Candidate -> colour, for runs that are grouped."""
        return {BASELINE: BLACK} | ({self.winner: ACCENT} if self.winner else {})


def default_entity() -> str:
    """The entity that the login here writes to. Raises MachineError if W&B does not answer."""
    import wandb

    with answered("W&B"):
        return str(wandb.Api().default_entity)


def build(study: Study, *, sentence: str, shown: Shown, project: str, entity: str) -> Views:
    """The views of a study: curves against step and tokens, what the search tried, and the runs on fresh seeds.

    `sentence` is the verdict. Raises UserError if wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise UserError(
            "wandb-workspaces is not installed here; it comes with: pip install 'hpstudy[wandb-report]'"
        ) from error
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    summary, config = SUMMARY[study.metrics[0]], expr.Config
    best_first = [expr.Ordering(expr.Summary(summary), ascending=study.directions[0] == "minimize")]
    columns = [*(f"summary:{key}" for key in SUMMARY.values()), *(f"config:{key}.value" for key in study.space)]
    of_study = config("study") == study.name
    searched = [of_study, config("phase") == "search"]
    fresh = [
        of_study,
        config("phase").isin(["baseline", "confirm"]),
        config("seed") != study.spec.seed,
        config("fraction") == 1,
    ]
    colours = {run: ws.RunSettings(color=colour) for run, colour in shown.runs.items()}
    settings = ws.WorkspaceSettings(x_axis=X_AXES[1], max_runs=MOST_RUNS)

    def workspace(name: str, sections: list[Any], runset: Any) -> Any:
        return ws.Workspace(
            entity=entity,
            project=project,
            name=f"{study.name}: {name}",
            auto_generate_panels=False,
            sections=sections,
            settings=settings,
            runset_settings=runset,
        )

    def sections(*between: Any) -> list[Any]:
        return [
            ws.Section(name="Loss", panels=_curves(LOSSES, X_AXES, shown), is_open=True, pinned=True),
            *between,
            ws.Section(name="Training", panels=_curves(TRAINING, X_AXES[1:], shown)),
        ]

    one_wide = ws.SectionLayoutSettings(columns=1, rows=1)
    wide = [
        ws.Section(name="Trials", panels=[panel], is_open=True, layout_settings=one_wide) for panel in _trials(study)
    ]
    report = wr.Report(
        entity=entity,
        project=project,
        title=f"{study.name}: {study.question}"[:TITLE],
        description=study.question,
        width="fluid",
        blocks=[
            wr.P(sentence),
            *_grid(
                "Fresh seeds, the baseline black",
                _curves(LOSSES, X_AXES, shown),
                wr.Runset(name=FRESH, filters=fresh, groupby=[f"config.{CANDIDATE}"]),
                _group_colours(shown),
            ),
            *_grid(
                "The search, one seed each",
                [*_trials(study), *_search_panels(study), *_curves(LOSSES, X_AXES[1:], shown)],
                wr.Runset(name=SEARCHED, filters=searched, run_settings=_report_colours(shown)),
            ),
            *_grid(
                "The training",
                _curves(TRAINING, X_AXES[1:], shown),
                wr.Runset(name=study.name, filters=[of_study], run_settings=_report_colours(shown)),
            ),
        ],
    )
    return Views(
        search=workspace(
            SEARCHED,
            sections(*wide, ws.Section(name="Search", panels=_search_panels(study), is_open=True)),
            ws.RunsetSettings(
                filters=searched,
                order=best_first,
                run_settings=colours,
                pinned_columns=columns,
                baseline_run=shown.baselines[0] if shown.baselines else None,
            ),
        ),
        fresh=workspace(
            FRESH,
            sections(),
            ws.RunsetSettings(
                filters=fresh,
                groupby=[config(CANDIDATE)],
                group_colors=dict(shown.candidates),
                order=best_first,
                pinned_columns=columns,
            ),
        ),
        report=report,
    )


def _group_colours(shown: Shown) -> dict[Any, str]:
    """The colours of the report's lines of fresh seeds, one for each candidate."""
    import wandb_workspaces.reports.v2 as wr

    return {
        wr.RunsetGroup(runset_name=FRESH, keys=(wr.RunsetGroupKey(key=wr.Config(CANDIDATE), value=name),)): colour
        for name, colour in shown.candidates.items()
    }


def _report_colours(shown: Shown) -> dict[str, Any]:
    import wandb_workspaces.reports.v2 as wr

    return {run: wr.RunSettings(color=colour) for run, colour in shown.runs.items()}


def _grid(heading: str, panels: list[Any], runset: Any, colours: dict[Any, str] | None = None) -> list[Any]:
    """A heading of a report and its panels, two beside each other; parallel coordinates take the width."""
    import wandb_workspaces.reports.v2 as wr

    x = y = 0
    for panel in panels:
        width = REPORT_COLUMNS if isinstance(panel, wr.ParallelCoordinatesPlot) else REPORT_COLUMNS // 2
        if x + width > REPORT_COLUMNS:
            x, y = 0, y + ROWS
        panel.layout = wr.Layout(x=x, y=y, w=width, h=ROWS)
        x += width
    return [wr.H2(heading), wr.PanelGrid(runsets=[runset], panels=panels, custom_run_colors=colours or {})]


def _curves(metrics: Sequence[str], x_axes: Sequence[str], shown: Shown) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels = []
    for metric in metrics:
        colours = {f"{run}:{metric}": colour for run, colour in shown.runs.items()}
        black = [line for line, colour in colours.items() if colour == BLACK]
        smoothing = NOISY.get(metric)
        panels += [
            wr.LinePlot(
                title=f"{metric} against {x.lower()}",
                x=x,
                y=[metric],
                log_y=metric in LOG_Y or None,
                smoothing_type="exponentialTimeWeighted" if smoothing else "none",
                smoothing_factor=smoothing,
                smoothing_show_original=True if smoothing else None,
                line_colors=colours,
                line_marks=dict.fromkeys(black, "dashed"),
                line_widths=dict.fromkeys(colours, 2.0),
                max_runs_to_show=MOST_RUNS,
            )
            for x in x_axes
        ]
    return panels


def _trials(study: Study) -> list[Any]:
    """Parallel coordinates of what was searched; empty if nothing was."""
    import wandb_workspaces.reports.v2 as wr

    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(axis.name), display_name=axis.title, log=axis.log)
        for axis in _axes(study)
    ]
    outcomes = [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(SUMMARY[metric])) for metric in study.metrics]
    return [wr.ParallelCoordinatesPlot(columns=[*columns, *outcomes], title="Trials")] if columns else []


def _search_panels(study: Study) -> list[Any]:
    """Importance, and a scatter plot per searched key; of two objectives also their scatter."""
    import wandb_workspaces.reports.v2 as wr

    outcomes = [SUMMARY[metric] for metric in study.metrics]
    panels: list[Any] = [wr.ParameterImportancePlot(with_respect_to=outcomes[0])] if study.space else []
    panels += [
        wr.ScatterPlot(title=axis.title, x=wr.Config(axis.name), y=wr.SummaryMetric(outcomes[0]), log_x=axis.log)
        for axis in _axes(study)
    ]
    if len(outcomes) > 1:
        x, y = map(wr.SummaryMetric, reversed(outcomes))
        panels.append(wr.ScatterPlot(title="One objective against the other", x=x, y=y))
    return panels


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis shows."""

    title: str
    name: str  # of the entry in the config
    log: bool


def _axes(study: Study) -> list[Axis]:
    """An axis per searched key.

    W&B has no axis for the log of 1 - beta, so a beta is shown by the log of its half-life, nearly the same scale.
    """
    axes = []
    for key, dimension in study.space.items():
        scale = None if isinstance(dimension, Choices) else dimension.scale
        if scale == "log1m" and key in MEASURES:
            name, measure, unit = MEASURES[key]
            axes.append(Axis(title=f"{measure} of {key} ({unit})", name=name, log=True))
        else:
            axes.append(Axis(title=key, name=key, log=scale == "log"))
    return axes
