"""The rules that stop weak trials: Ray's ASHA and median rule, and ASHA for two objectives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from dpo_train.scoring.metrics import objectives
from tune.config.objective import Objective
from tune.config.pareto import ValuePair, front_numbers, spread
from tune.config.schema import SearchConfig, StoppingConfig


@dataclass(frozen=True)
class TrialKey:
    """All that a rule reads of a Tune trial: its id. Here it is the id that this project gave."""

    trial_id: str


def make_stopping_rule(config: SearchConfig, most_pairs: int) -> Any:
    """Return the configured rule. No trial trains on more than `most_pairs`."""
    stopping = config.stopping
    if stopping.name == "asha" and config.goal.second:
        return ParetoAsha(Objective.of((stopping.metric, config.goal.second.metric)), stopping)
    options = {
        "time_attr": "pairs_seen",
        "metric": stopping.metric,
        "mode": objectives()[stopping.metric],
    }
    if stopping.name == "asha":
        return AsyncHyperBandScheduler(
            **options,
            # ASHA stops a trial at max_t, but ours end by themselves, so max_t is out of reach.
            max_t=max(most_pairs, stopping.grace_pairs) + 1,
            grace_period=stopping.grace_pairs,
            reduction_factor=stopping.reduction,
            brackets=stopping.brackets,
        )
    if stopping.name == "median":
        return MedianStoppingRule(
            **options,
            grace_period=stopping.grace_pairs,
            # With this the rule never pauses a trial to let others catch up.
            min_time_slice=float("inf"),
        )
    return FIFOScheduler()


class ParetoAsha(FIFOScheduler):
    """ASHA for two objectives: at each rung 1 of every `reduction` trials goes on, first those of
    the first Pareto front, then those of the next. If not all of a front can go on, the trials that
    cover it best do.

    This is MO-ASHA (Schmucker et al. 2021, arXiv:2106.12639), which ranks a rung by non-domination
    and then by an epsilon-net. As in Ray's ASHA, a trial that reaches a rung is compared with those
    that reached it before, and goes on or is stopped at once.
    """

    def __init__(self, objective: Objective, stopping: StoppingConfig) -> None:
        super().__init__()
        self._objective = objective
        self._stopping = stopping
        self._bracket_of: dict[str, int] = {}
        self.rungs: defaultdict[tuple[int, int], dict[str, ValuePair]] = defaultdict(dict)
        """By bracket and pairs_seen, the values of each trial there, in order of arrival."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Draw the trial's bracket.

        As in Ray's ASHA, each bracket is drawn e times less often than the bracket before it, whose
        first rung is earlier.
        """
        weights = np.exp(-np.arange(self._stopping.brackets))
        drawn = np.random.choice(len(weights), p=weights / weights.sum())
        self._bracket_of[trial.trial_id] = int(drawn)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, float]) -> str:
        """Compare the trial at the last rung that it reached; return CONTINUE or STOP."""
        bracket = self._bracket_of[trial.trial_id]
        reached = self._stopping.rungs(int(result["pairs_seen"]))[bracket:]
        if not reached or trial.trial_id in self.rungs[bracket, reached[-1]]:
            return str(TrialScheduler.CONTINUE)
        rung = self.rungs[bracket, reached[-1]]
        rung[trial.trial_id] = self._objective.key(result)
        goes_on = _rank_of_last(list(rung.values())) * self._stopping.reduction < len(rung)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, float]) -> None:
        """Add the last report to the rungs."""
        self.on_trial_result(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing: the rungs keep the trial's values."""


def _rank_of_last(values: list[ValuePair]) -> int:
    """Return how many trials of a rung rank before the one that came last."""
    fronts = front_numbers(values)
    peers = [each for each, front in zip(values, fronts, strict=True) if front == fronts[-1]]
    before = sum(front < fronts[-1] for front in fronts)
    return before + spread(peers).index(len(peers) - 1)
