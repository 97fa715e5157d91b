"""Computes how important each axis is, by Optuna's PED-ANOVA over a study in memory.

Knows no Plotly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from tune.config.objective import Objective
from tune.config.space import Axis, to_optuna
from tune.report.scene import Scene
from tune.run_folder.trial_record import TrialRecord

_TOP_TRIALS = 5
"""PED-ANOVA compares the best trials with all; Optuna advises at least so many best ones."""
_FEWEST = 4


Scores = Mapping[str, float] | str
"""The importance of each axis by its path, or a sentence that says why there is none."""


def importances(scene: Scene, objective: Objective) -> Scores:
    """Returns the importance of the axes, the largest first.

    Each trial counts by its best report, also if it was stopped. With ASHA most trials are stopped,
    and the axes of the others alone would not show why.
    """
    trials = [
        trial for trial in scene.measured.values() if math.isfinite(trial.metrics[objective.metric])
    ]
    if len(trials) < _FEWEST:
        return f"This needs {_FEWEST} measured trials; there are {len(trials)}."
    having = Counter(path for trial in trials for path in trial.config)
    # Optuna warns if only one trial has an axis or lacks it, so we skip such axes.
    telling = [path for path, count in having.items() if count > 1 and len(trials) - count != 1]
    if len(telling) < 2:
        return "There are fewer than two axes, so there is nothing to compare."
    best = max(min(_TOP_TRIALS, len(trials) // 2), math.ceil(len(trials) / 10))
    values = sorted(
        (trial.metrics[objective.metric] for trial in trials), reverse=objective.mode == "max"
    )
    if values[best - 1] == values[-1]:
        return "The trials are too similar to tell what made the best ones better."
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(best - 0.5) / len(trials))
    study = _study(scene, objective, trials)
    return get_param_importances(study, evaluator=evaluator, params=telling)


def _study(scene: Scene, objective: Objective, trials: list[TrialRecord]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction: Any = f"{objective.mode}imize"
    study = optuna.create_study(direction=direction)
    space = scene.results.search["space"]
    distributions = {
        path: _distribution(Axis.model_validate(axis), trials, path) for path, axis in space.items()
    }
    study.add_trials(
        optuna.trial.create_trial(
            value=trial.metrics[objective.metric],
            params={path: to_optuna(value) for path, value in trial.config.items()},
            distributions={path: distributions[path] for path in trial.config},
        )
        for trial in trials
    )
    return study


def _distribution(
    axis: Axis, trials: list[TrialRecord], path: str
) -> optuna.distributions.BaseDistribution:
    """Returns the axis's distribution; choices also include values that a user requested."""
    if axis.choice is None:
        return axis.distribution()
    tried = [trial.config[path] for trial in trials if path in trial.config]
    options = dict.fromkeys(to_optuna(value) for value in [*axis.choice, *tried])
    return optuna.distributions.CategoricalDistribution(list(options))
