"""What `grasp-rl dashboard` puts on Weights & Biases: one workspace for a project, one report for a grid.

Both are built by wandb-workspaces from what WandbTracker logs, and replaced, not doubled, when they are made again: a
workspace by a name derived from its title, a report by its title.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Record

STEP = "global_step"
"""The x-axis of everything that a run logs: optimizer steps, also where a run was interrupted and went on."""
TITLE = "grasp_rl"


@dataclass(frozen=True)
class Panel:
    """One line plot."""

    title: str
    metrics: tuple[str, ...] = ()
    regex: str | None = None
    """Of the metrics' names, in place of a list."""


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("reward: training and validation", ("reward", "val/reward")),
        Panel("gIoU and cIoU of the validation split", ("val/giou", "val/ciou")),
        Panel("box IoU of the validation split", ("val/box_iou",)),
        Panel("no-target accuracy", ("val/no_target_accuracy",)),
    ),
    "Reward terms": (
        Panel("mean of each term", regex=r"^term/.*/mean$"),
        Panel("spread of each term within a group", regex=r"^term/.*/group_std$"),
        Panel("share of each term in the advantage", regex=r"^term/.*/advantage_share$"),
        Panel("correlation of reward and IoU", ("val/reward_iou_correlation",)),
    ),
    "Format": (
        Panel("parse statuses, shares of the completions", regex=r"^parse/"),
        Panel("read in the validation split", ("val/parsed",)),
        Panel("completion tokens", ("length", "val/length")),
        Panel("cut off", ("truncated", "val/truncated")),
    ),
    "Training health": (
        Panel("KL to the reference", ("kl",)),
        Panel("entropy", ("entropy",)),
        Panel("clipped tokens", ("clip_fraction",)),
        Panel("gradient norm", ("grad_norm",)),
        Panel("groups without a difference", ("zero_variance",)),
        Panel("steps and groups lost", ("skipped", "groups_missing", "groups_not_finite", "segmenter_failed")),
    ),
}
OVERLAYS = ("test_before", "test_after")
"""Image keys of the tests."""


def config_key(axis: str) -> str:
    """Where WandbTracker puts the override ``axis`` in a run's W&B config, whose keys are nested at dots."""
    return f"overrides.{axis.lstrip('+~').replace('.', '/')}"


def load(module: str) -> Any:
    """A module of wandb-workspaces.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"dashboard: {error}; pip install 'grasp-rl[track]'") from error


def _plots(reports: Any, panels: Sequence[Panel], *, grouped: str | None = None) -> list[Any]:
    by = {} if grouped is None else {"groupby": grouped, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        reports.LinePlot(title=panel.title, x=STEP, y=list(panel.metrics), metric_regex=panel.regex, **by)
        for panel in panels
    ]


def workspace(entity: str, project: str, title: str = TITLE) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace`` with a section for each of SECTIONS, the overlays and the system."""
    spaces, reports = load("wandb_workspaces.workspaces"), load("wandb_workspaces.reports.v2")
    sections = [
        spaces.Section(name=name, panels=_plots(reports, panels), is_open=True) for name, panels in SECTIONS.items()
    ]
    sections.append(
        spaces.Section(
            name="Overlays",
            panels=[reports.MediaBrowser(title=key, media_keys=[key], num_columns=4) for key in OVERLAYS],
        )
    )
    seconds = [reports.LinePlot(title="seconds a step, by phase", x=STEP, metric_regex=r"^seconds/")]
    sections.append(spaces.Section(name="System", panels=seconds))
    made = spaces.Workspace(
        entity=entity, project=project, name=title, sections=sections, settings=spaces.WorkspaceSettings(x_axis=STEP)
    )
    made._internal_name = f"nw-{sha256(title.encode()).hexdigest()[:11]}-v"
    return made


def report(entity: str, project: str, grid: str, axes: Sequence[str], description: str = "") -> Any:
    """A ``wandb_workspaces.reports.v2.Report`` on the runs of the group ``grid``.

    Args:
        entity: user or team.
        project: where the runs are.
        grid: the W&B group of the runs, which is the name of the sweep's folder.
        axes: config keys that differ between the runs.
        description: under the title.
    """
    reports = load("wandb_workspaces.reports.v2")
    runs = reports.Runset(entity=entity, project=project, name=grid, filters=f"Group = {json.dumps(grid)}")
    columns = [reports.ParallelCoordinatesPlotColumn(metric=reports.Config(config_key(axis))) for axis in axes]
    columns.append(reports.ParallelCoordinatesPlotColumn(metric="test_after/giou"))
    blocks = [
        reports.TableOfContents(),
        reports.H1(text="What was reached"),
        reports.PanelGrid(
            runsets=[runs],
            panels=[
                reports.BarPlot(title="gIoU of the test split after training", metrics=["test_after/giou"]),
                reports.ParallelCoordinatesPlot(columns=columns),
                reports.ScatterPlot(title="reward against gIoU", x="test_after/reward", y="test_after/giou"),
            ],
        ),
    ]
    for name, panels in SECTIONS.items():
        blocks += [reports.H1(text=name), reports.PanelGrid(runsets=[runs], panels=_plots(reports, panels))]
    overlays = [reports.MediaBrowser(title=key, media_keys=[key], num_columns=4) for key in OVERLAYS]
    blocks += [reports.H1(text="Overlays"), reports.PanelGrid(runsets=[runs], panels=overlays)]
    return reports.Report(
        entity=entity,
        project=project,
        title=f"{TITLE}: {grid}"[:128],
        description=description,
        blocks=blocks,
        width="fluid",
    )


def spec(made: Any) -> Record:
    """What would be sent: the package's own model of a workspace or report, without what changes from call to call.

    Run sets are shown without their project, whose number the package asks the server for.
    """
    shown = copy.deepcopy(made)
    for runset in (runset for block in getattr(shown, "blocks", ()) for runset in getattr(block, "runsets", ())):
        runset.entity = runset.project = ""
    model = shown._to_model()
    return _still(json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)))  # type: ignore[no-any-return]


def _still(node: Any) -> Any:
    """``node`` without the random ids that the package gives panels and run sets."""
    if isinstance(node, dict):
        return {key: _still(value) for key, value in node.items() if key not in ("__id__", "id", "ref", "runSetId")}
    return [_still(item) for item in node] if isinstance(node, list) else node


def save_workspace(made: Any) -> str:
    """Create the workspace, or replace the one that was made before under its title; its address."""
    internal = load("wandb_workspaces.workspaces.internal")
    try:
        made._internal_id = internal.View.from_name(made.entity, made.project, made._internal_name).id
    except ValueError:  # none yet
        made._internal_id = ""
    return str(made.save().url)


def save_report(made: Any) -> str:
    """Create the report, or replace the one of the same title; its address."""
    api = importlib.import_module("wandb").Api()
    for known in api.reports(f"{made.entity}/{made.project}"):
        if known.display_name == made.title:
            made.id = known.id
    return str(made.save().url)


def failures() -> tuple[type[Exception], ...]:
    """What wandb and wandb-workspaces raise for a server that refuses or is silent, and where nobody is logged in."""
    return (load("wandb").errors.Error, OSError, ValueError)
