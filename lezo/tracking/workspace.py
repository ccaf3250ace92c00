"""The workspace of a project on wandb: its panels are listed here, wandb's own library builds and saves them.

To list them takes neither network nor account nor wandb-workspaces; their keys are those of `lezo.tracking.keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lezo.records import rows
from lezo.tracking.keys import PREDICTIONS

# A line of a plot is the mean over the runs of one group, its band their range: they differ in their seeds.
GROUPED_BY = (
    *("task.name", "data.name", "model.name", "job type", "optim.lr", "optim.eps", "optim.sparsity"),
    *("optim.objective", "eval.calibration", "task.demos"),
)
COLUMNS = ("test/score", "result/zero_shot", "result/dev", "result/dev_loss", "result/seconds/total")
SWEPT = ("optim.lr", "optim.eps", "optim.sparsity")  # settings beside what they led to
_SMOOTH = 0.9


class WorkspaceError(RuntimeError):
    """The workspace could not be made; the message says why, and what to do."""


@dataclass(frozen=True)
class Panel:
    """``keys`` against ``x`` in lines, each run's last values as bars or coordinates, runs or a table compared."""

    title: str
    kind: Literal["lines", "bars", "coordinates", "runs", "table"]
    keys: Sequence[str] = ()
    x: str | None = None
    smooth: bool = False


def _both_ways(what: str, key: str, *, smooth: bool = False) -> tuple[Panel, Panel]:
    """A key against wall-clock and against steps."""
    clock, steps = f"{what} against wall-clock (seconds)", f"{what} against steps"
    return Panel(clock, "lines", (key,), "seconds", smooth), Panel(steps, "lines", (key,), "step", smooth)


PHASES = tuple(f"time/{phase}" for phase in rows.PHASES)
SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Accuracy": (
        *_both_ways("dev score", "dev/score"),
        Panel("test score", "bars", ("test/score", "result/zero_shot")),
        *_both_ways("dev perplexity", "dev/perplexity"),
    ),
    "Loss": (
        *_both_ways("dev loss", "dev/loss"),
        Panel("dev loss against training forwards", "lines", ("dev/loss",), "forwards"),
        *_both_ways("train loss, smoothed", "train/loss", smooth=True),
    ),
    "Speed": (
        Panel("seconds a step by phase", "lines", PHASES, "step", smooth=True),
        Panel("median seconds a step", "bars", ("result/seconds/step_median",)),
        Panel("seconds of a dev evaluation", "lines", ("time/eval",), "step"),
    ),
    "Memory": (
        Panel("peak memory, GiB", "lines", ("memory/peak_gib",), "step"),
        Panel("peak memory at the end, GiB", "bars", ("memory/peak_gib",)),
    ),
    "Step": (
        Panel("projected gradient", "lines", ("train/g",), "step"),
        Panel("gradient norm", "lines", ("train/gradient_norm",), "step"),
        Panel("learning rate", "lines", ("train/lr",), "step"),
        Panel("skipped steps", "lines", ("train/skipped",), "step"),
    ),
    "Sweep": (
        Panel("settings and dev loss", "coordinates", ("result/dev_loss", "result/dev")),
        Panel("what the runs differ in", "runs"),
        Panel("test predictions", "table", (PREDICTIONS,)),
    ),
}


def describe(name: str, project: str) -> str:
    """The workspace in words, a panel a line."""
    panels = [panel for members in SECTIONS.values() for panel in members]
    width = max(len(panel.title) for panel in panels)
    lines = [
        f'workspace "{name}" of project {project}: {len(panels)} panels in {len(SECTIONS)} sections',
        f"runs grouped by {', '.join(GROUPED_BY)}: lines are means over seeds, bands their range",
        f"columns {', '.join(COLUMNS)}",
    ]
    for section, members in SECTIONS.items():
        lines += ["", section, *(f"  {panel.title:{width}}  {_in_words(panel)}" for panel in members)]
    return "\n".join(lines)


def _in_words(panel: Panel) -> str:
    over = f" against {panel.x}" if panel.x else ""
    swept = f"{', '.join(SWEPT)}, " if panel.kind == "coordinates" else ""
    what = f"{swept}{', '.join(panel.keys)}{over}" or "configuration and summary, differences only"
    return f"{panel.kind:11}  {what}"


def build(name: str, entity: str, project: str) -> Any:
    """The workspace as wandb_workspaces' own object; nothing is sent. Raises WorkspaceError without that library."""
    ws, _, expr = _library()
    sections = [
        ws.Section(name=section, panels=list(map(_built, members)), is_open=section != "Step")
        for section, members in SECTIONS.items()
    ]
    runs = ws.RunsetSettings(
        groupby=[expr.Metric("JobType") if key == "job type" else expr.Config(key) for key in GROUPED_BY],
        pinned_columns=[f"summary:{key}" for key in COLUMNS],
    )
    contents = {"sections": sections, "settings": ws.WorkspaceSettings(max_runs=30), "runset_settings": runs}
    return ws.Workspace(name=name, entity=entity, project=project, **contents)


def _built(panel: Panel) -> Any:
    _, wr, _ = _library()
    grouped = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if panel.kind == "lines":
        smooth = {"smoothing_type": "exponential", "smoothing_factor": _SMOOTH} if panel.smooth else {}
        return wr.LinePlot(title=panel.title, x=panel.x, y=list(panel.keys), **grouped, **smooth)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys), **grouped)
    if panel.kind == "coordinates":
        metrics = [*map(wr.Config, SWEPT), *map(wr.SummaryMetric, panel.keys)]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    if panel.kind == "runs":
        return wr.RunComparer(diff_only=True)
    (table,) = panel.keys
    return wr.WeavePanelSummaryTable(table_name=table)


def save(name: str, entity: str | None, project: str) -> str:
    """Create the workspace in the account's project; ``entity`` None is the account's own. Returns its address.

    Raises WorkspaceError without the library, an account or a way to the server, and where the server refuses.
    """
    _library()
    import wandb

    try:
        return str(build(name, entity or wandb.Api().default_entity, project).save().url)
    except Exception as error:  # the library's, its transport's and its server's, which have no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        ways = "wandb login sets up an account, a project begins with its first run"
        place = f"{entity or 'the account'}/{project}"
        raise WorkspaceError(f"{place}: no workspace made ({reason.rstrip('.')}); {ways}") from error


def _library() -> tuple[Any, Any, Any]:
    """Workspaces, panels and expressions of wandb_workspaces."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr
    except ImportError as error:
        ways = "pip install 'lezo[dashboard]'; board.dry_run=true needs neither it nor an account"
        raise WorkspaceError(f"wandb-workspaces is not installed; {ways}") from error
    return workspaces, panels, expr
