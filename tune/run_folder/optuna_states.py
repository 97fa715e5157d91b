"""Maps the states of trials to Optuna's."""

from __future__ import annotations

from optuna.trial import TrialState

from tune.run_folder.trial_record import State

OPTUNA_STATES: dict[State, TrialState] = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "pending": TrialState.WAITING,
    "interrupted": TrialState.RUNNING,
}
