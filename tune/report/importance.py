"""How much each axis decides, by Optuna's PED-ANOVA over a study in memory. Knows no Plotly."""

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
from tune.run_folder.records import TrialRecord

_TOP_TRIALS = 5
"""PED-ANOVA compares the best with all; Optuna advises at least so many best ones."""
_FEWEST = 4


def importances(scene: Scene, part: Objective) -> Mapping[str, float] | str:
    """By path, the largest first; or the sentence why there are none.

    Each trial counts by its best report, the stopped ones too: with ASHA they are most, and what
    is left of an axis after them no longer shows why the others were stopped.
    """
    trials = [
        trial for trial in scene.measured.values() if math.isfinite(trial.metrics[part.metric])
    ]
    if len(trials) < _FEWEST:
        return f"This needs {_FEWEST} measured trials; there are {len(trials)}."
    having = Counter(path for trial in trials for path in trial.config)
    # A single trial with a conditional axis, or without, says nothing, and Optuna warns of it.
    telling = [path for path, count in having.items() if count > 1 and len(trials) - count != 1]
    if len(telling) < 2:
        return "With fewer than two axes there is nothing to compare."
    best = max(min(_TOP_TRIALS, len(trials) // 2), math.ceil(len(trials) / 10))
    values = sorted((trial.metrics[part.metric] for trial in trials), reverse=part.mode == "max")
    if values[best - 1] == values[-1]:
        return "The trials are too alike to tell what made the best ones so."
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(best - 0.5) / len(trials))
    study = _study(scene, part, trials)
    return get_param_importances(study, evaluator=evaluator, params=telling)


def _study(scene: Scene, part: Objective, trials: list[TrialRecord]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction: Any = f"{part.mode}imize"
    study = optuna.create_study(direction=direction)
    space = scene.results.search["space"]
    distributions = {
        path: _distribution(Axis.model_validate(axis), trials, path) for path, axis in space.items()
    }
    study.add_trials(
        optuna.trial.create_trial(
            value=trial.metrics[part.metric],
            params={path: to_optuna(value) for path, value in trial.config.items()},
            distributions={path: distributions[path] for path in trial.config},
        )
        for trial in trials
    )
    return study


def _distribution(
    axis: Axis, trials: list[TrialRecord], path: str
) -> optuna.distributions.BaseDistribution:
    """As searched; of a choice with what a person asked for beside it."""
    if axis.choice is None:
        return axis.distribution()
    tried = [trial.config[path] for trial in trials if path in trial.config]
    options = dict.fromkeys(to_optuna(value) for value in [*axis.choice, *tried])
    return optuna.distributions.CategoricalDistribution(list(options))
