"""Optuna's own plots, over a study in memory that is rebuilt from the results.

Knows no HTML and no Ray. In place of a plot that would say nothing stands the sentence why.
"""

from __future__ import annotations

import html
import math
import re
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from tune.config.objective import Objective
from tune.config.space import Axis, to_optuna
from tune.run_folder.optuna_states import OPTUNA_STATES
from tune.run_folder.results import Results

Drawn = list[go.Figure] | str

_NO_SPACE = "This results.json does not say what was searched: an earlier version wrote it."
_TOP_TRIALS = 5
"""PED-ANOVA compares the best with all; Optuna advises at least so many best ones."""


def plot(results: Results) -> dict[str, Drawn]:
    """`history`, `parallel`, `importance` and `slices`; one figure an axis in the last, and with
    two objectives those of the second after those of the first."""
    # Who draws each, and how many finished trials that needs.
    makers = {
        "history": (_history, 1),
        "parallel": (_parallel, 2),
        "importance": (_importance, 4),
        "slices": (_slices, 2),
    }
    if not results.search:
        return dict.fromkeys(makers, _NO_SPACE)
    studies = [(_study(results, part), part.metric) for part in results.objective.parts]
    there = sum(trial.state == "finished" for trial in results.trials)
    drawn: dict[str, Drawn] = {}
    for name, (make, fewest) in makers.items():
        if there < fewest:
            drawn[name] = f"This needs {fewest} finished trials; there are {there}."
            continue
        made = [make(study, metric) for study, metric in studies]
        figures = [figure for each in made if isinstance(each, list) for figure in each]
        drawn[name] = figures or made[0]
    return drawn


def _study(results: Results, objective: Objective) -> optuna.Study:
    """The search as Optuna saw it, by one objective; its trials keep their numbers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction: Any = f"{objective.mode}imize"
    study = optuna.create_study(direction=direction)
    space = results.search["space"]
    distributions = {path: _distribution(Axis.model_validate(axis)) for path, axis in space.items()}
    names = _names(list(space))
    study.add_trials(
        optuna.trial.create_trial(
            state=OPTUNA_STATES[trial.state],
            value=trial.metrics[objective.metric] if trial.state == "finished" else None,
            params={names[path]: _scalar(value) for path, value in trial.config.items()},
            distributions={names[path]: distributions[path] for path in trial.config},
        )
        for trial in results.trials
    )
    return study


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    if axis.choice is None:
        return axis.distribution()
    return optuna.distributions.CategoricalDistribution([_scalar(value) for value in axis.choice])


def _scalar(value: Any) -> Any:
    """As Optuna takes it; escaped, for Plotly reads tags in what it writes on a figure."""
    scalar = to_optuna(value)
    return html.escape(scalar, quote=False) if isinstance(scalar, str) else scalar


def _names(paths: list[str]) -> dict[str, str]:
    """The last part of each path where that is enough to tell them apart."""
    last = [path.rpartition(".")[2] for path in paths]
    return {
        path: html.escape(name if last.count(name) == 1 else path, quote=False)
        for path, name in zip(paths, last, strict=True)
    }


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _history(study: optuna.Study, metric: str) -> Drawn:
    return [visualization.plot_optimization_history(study, target_name=metric)]


def _parallel(study: optuna.Study, metric: str) -> Drawn:
    figure = visualization.plot_parallel_coordinate(study, target_name=metric)
    # The first axis is the objective, by which the lines are coloured: a bar would say it twice.
    figure.data[-1].marker.showscale = False
    # A phone has room for a word an axis, not for its whole name.
    labels = [re.sub("([/_.])", r"\1<br>", label) for label in figure.layout.xaxis.ticktext]
    figure.update_xaxes(ticktext=labels, tickangle=0, tickfont_size=11)
    return [figure.update_layout(margin_l=50)]


def _importance(study: optuna.Study, metric: str) -> Drawn:
    finished = _finished(study)
    names = sorted({name for trial in finished for name in trial.params})
    having = {name: sum(name in trial.params for trial in finished) for name in names}
    # A single trial with a conditional axis, or without, says nothing, and Optuna warns of it.
    telling = [name for name in names if having[name] > 1 and len(finished) - having[name] != 1]
    if len(telling) < 2:
        return "With fewer than two axes there is nothing to compare."
    best = max(min(_TOP_TRIALS, len(finished) // 2), math.ceil(len(finished) / 10))
    values = sorted(
        (float(trial.value or 0) for trial in finished),
        reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE,
    )
    if values[best - 1] == values[-1]:
        return "The finished trials are too alike to tell what made the best ones so."
    figure = visualization.plot_param_importances(
        study,
        evaluator=PedAnovaImportanceEvaluator(target_quantile=(best - 0.5) / len(finished)),
        params=telling,
        target_name=metric,
    )
    title = f"importance for {metric}"
    return [figure.update_layout(xaxis_title=title, yaxis_title=None, margin_r=45)]


def _slices(study: optuna.Study, metric: str) -> Drawn:
    names = sorted({name for trial in _finished(study) for name in trial.params})
    figures = [visualization.plot_slice(study, params=[name], target_name=metric) for name in names]
    # The darker, the later: the text says it, a bar beside each would take its width.
    return [
        figure.update_traces(marker_showscale=False).update_xaxes(nticks=5) for figure in figures
    ]
