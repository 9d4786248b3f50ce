"""A study's workspace and report on W&B: built without network, saved on request.

wandb-workspaces comes with the extra `wandb-report` and imports wandb. Both are imported when views are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpstudy.errors import UserError
from hpstudy.records import GLOSSARY
from hpstudy.study import Choices, MetricName, Study
from hpstudy.tracking.wandb_read import answered

BLACK = "#000000"
MOST_RUNS = 60  # lines of a plot, the baseline always among them
TITLE = 128  # characters of a W&B report's title
LOSSES = (GLOSSARY["val_loss"].name, GLOSSARY["loss"].name)
X_AXES = ("Step", GLOSSARY["tokens"].name)  # "Step" is W&B's own name
TRAINING = tuple(GLOSSARY[key].name for key in ("grad_norm", "clipped", "lr", "update_to_weight", "tok_per_sec"))
SUMMARY: dict[MetricName, str] = {"val/loss": "result/val_loss", "train/tok_per_sec": "result/tok_per_sec"}
HALFLIVES = {"beta1": "beta1_halflife_tokens", "beta2": "beta2_halflife_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A workspace and a report that are not on W&B yet."""

    workspace: Any  # wandb_workspaces.workspaces.Workspace
    report: Any  # wandb_workspaces.reports.v2.Report

    def spec(self) -> dict[str, Any]:
        """Both as the JSON that `save` sends."""
        models = {"workspace": self.workspace._to_model(), "report": self.report._to_model()}
        return {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}

    def save(self) -> tuple[str, str]:
        """Saves both as new views. Returns the addresses of the workspace and the report.

        Raises MachineError if W&B fails.
        """
        with answered("saving the workspace and the report"):
            report = self.report.save()  # first, because it creates a missing project
            return str(self.workspace.save().url), str(report.url)


def default_entity() -> str:
    """The entity that the login here writes to. Raises MachineError if W&B does not answer."""
    import wandb

    with answered("W&B"):
        return str(wandb.Api().default_entity)


def build(study: Study, *, sentence: str, baselines: Sequence[str], project: str, entity: str) -> Views:
    """The views of a study: curves against step and tokens, what the search tried, and deltas to the baseline.

    `sentence` is the verdict. `baselines` are the W&B ids of the baseline's runs, black and dashed in every plot;
    deltas are to the first of them. Raises UserError if wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise UserError(
            "wandb-workspaces is not installed here; it comes with: pip install 'hpstudy[wandb-report]'"
        ) from error
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    summary = SUMMARY[study.metrics[0]]
    of_study = expr.Config("study") == study.name
    pinned = [*(f"summary:{key}" for key in SUMMARY.values()), *(f"config:{key}.value" for key in study.space)]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=study.name,
        auto_generate_panels=False,
        sections=[
            ws.Section(name="Loss", panels=_curves(LOSSES, X_AXES, baselines), is_open=True, pinned=True),
            ws.Section(name="Search", panels=_search_panels(study), is_open=True),
            ws.Section(name="Training", panels=_curves(TRAINING, X_AXES[1:], baselines)),
        ],
        settings=ws.WorkspaceSettings(x_axis=X_AXES[1], max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=[of_study],
            order=[expr.Ordering(expr.Summary(summary), ascending=study.directions[0] == "minimize")],
            run_settings={baseline: ws.RunSettings(color=BLACK) for baseline in baselines},
            pinned_columns=pinned,
            baseline_run=baselines[0] if baselines else None,
        ),
    )
    everything = wr.Runset(
        name=study.name,
        filters=[of_study],
        run_settings={baseline: wr.RunSettings(color=BLACK) for baseline in baselines},
    )
    search = wr.Runset(name="search", filters=[of_study, expr.Config("phase") == "search"])
    report = wr.Report(
        entity=entity,
        project=project,
        title=f"{study.name}: {study.question}"[:TITLE],
        description=study.question,
        width="fluid",
        blocks=[
            wr.P(sentence),
            wr.H2("Loss, the baseline black and dashed"),
            wr.PanelGrid(runsets=[everything], panels=_in_two_columns(_curves(LOSSES, X_AXES, baselines))),
            wr.H2("The search, one seed each"),
            wr.PanelGrid(runsets=[search], panels=_in_two_columns(_search_panels(study))),
            wr.H2("The training"),
            wr.PanelGrid(runsets=[everything], panels=_in_two_columns(_curves(TRAINING, X_AXES[1:], baselines))),
        ],
    )
    return Views(workspace=workspace, report=report)


def _curves(metrics: Sequence[str], x_axes: Sequence[str], baselines: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels = []
    for metric in metrics:
        lines = [f"{baseline}:{metric}" for baseline in baselines]
        panels += [
            wr.LinePlot(
                title=f"{metric} against {x.lower()}",
                x=x,
                y=[metric],
                line_colors=dict.fromkeys(lines, BLACK),
                line_marks=dict.fromkeys(lines, "dashed"),
                line_widths=dict.fromkeys(lines, 2.0),
                max_runs_to_show=MOST_RUNS,
            )
            for x in x_axes
        ]
    return panels


def _search_panels(study: Study) -> list[Any]:
    """Parallel coordinates, importance, and a scatter plot per searched key; of two objectives also their scatter."""
    import wandb_workspaces.reports.v2 as wr

    outcomes = [SUMMARY[metric] for metric in study.metrics]
    axes = {key: _axis(study, key) for key in study.space}
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), display_name=key, log=log)
        for key, (name, log) in axes.items()
    ]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(outcome)) for outcome in outcomes]
    panels: list[Any] = []
    if study.space:
        panels.append(wr.ParallelCoordinatesPlot(columns=columns, title="Trials"))
        panels.append(wr.ParameterImportancePlot(with_respect_to=outcomes[0]))
    panels += [
        wr.ScatterPlot(title=key, x=wr.Config(name), y=wr.SummaryMetric(outcomes[0]), log_x=log)
        for key, (name, log) in axes.items()
    ]
    if len(outcomes) > 1:
        x, y = map(wr.SummaryMetric, reversed(outcomes))
        panels.append(wr.ScatterPlot(title="One objective against the other", x=x, y=y))
    return panels


def _axis(study: Study, key: str) -> tuple[str, bool]:
    """The config entry that shows a key, and whether its axis is logarithmic.

    W&B has no axis for the log of 1 - beta. The log of the half-life in tokens is nearly the same scale.
    """
    dimension = study.space[key]
    if isinstance(dimension, Choices):
        return key, False
    if dimension.scale == "log1m" and key in HALFLIVES:
        return HALFLIVES[key], True
    return key, dimension.scale == "log"


def _in_two_columns(panels: list[Any]) -> list[Any]:
    """The panels, laid out on a report's grid of 24 columns."""
    import wandb_workspaces.reports.v2 as wr

    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (place % 2), y=8 * (place // 2), w=12, h=8)
    return panels
