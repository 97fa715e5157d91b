"""The panels of a search in W&B, laid out as a saved view of its project. Needs an extra.

Of the runs of one search: what was reached, what it took, and which hyperparameters decided.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from dpo_train.errors import InputError, one_line
from dpo_train.storage import mirror
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.run_folder.folder import find_run

_CURVES = ("eval/nll", "eval/ranking", "eval/margin", "eval/drift", "train/loss")


def save(run: str | Path) -> str:
    """Saves the view of a search's runs and returns its address. Raises InputError."""
    folder = find_run(run)
    config = load_search(folder / "search.yaml")
    entity, project = _place(folder, config)
    goal = config.goal
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError(
            "a dashboard needs wandb-workspaces; type `pip install 'dpo-tune[dashboard]'`"
        )
    import wandb_workspaces.workspaces as ws

    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=config.name,
        sections=[ws.Section(name=name, panels=panels, is_open=True)
                  for name, panels in _sections(config).items()],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == config.name, ws.Metric("JobType") == "trial"],
            order=[ws.Ordering(ws.Summary(goal.metric), ascending=goal.mode == "min")],
            pinned_columns=[
                "summary:state",
                "summary:rung",
                f"summary:{goal.metric}",
                f"summary:{goal.other.metric}",
                *(f"config:{path}" for path in config.space),
            ],
        ),
    )  # fmt: skip
    try:
        workspace.save()
    except Exception as error:  # the client raises a dozen kinds
        raise InputError(f"W&B did not save the view: {one_line(error)}") from None
    return str(workspace.url)


def _place(folder: Path, config: SearchConfig) -> tuple[str, str]:
    memory = folder / "wandb.json"
    sweep = json.loads(memory.read_text()).get("sweep") if memory.exists() else None
    if sweep:
        entity, project, _ = sweep.split("/")
        return entity, project
    if config.wandb.entity is None:
        raise InputError(
            f"{mirror.shown(folder)}: W&B was not told of it from here, so whose project it is, is "
            f"not known; run it with `--set wandb.mode=online`, or set `wandb: {{entity: …}}`"
        )
    return config.wandb.entity, config.wandb.project


def _sections(config: SearchConfig) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    objective = config.goal.metric
    plane = config.goal.plane
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(path)) for path in config.space]
    result = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(objective))
    curves = [metric for metric in _CURVES if metric != objective]
    return {
        "What was reached": [
            wr.LinePlot(title=objective, x="pairs_seen", y=[objective]),
            wr.ScatterPlot(
                title=f"{plane.metric} against {plane.other.metric}",
                x=wr.SummaryMetric(plane.other.metric),
                y=wr.SummaryMetric(plane.metric),
            ),
        ],
        "What decided": [
            wr.ParallelCoordinatesPlot(columns=[*axes, result]),
            wr.ParameterImportancePlot(with_respect_to=objective),
        ],
        "Curves": [wr.LinePlot(title=metric, x="pairs_seen", y=[metric]) for metric in curves],
    }
