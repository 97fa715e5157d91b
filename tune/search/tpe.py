"""Optuna's TPE, kept fast in long searches."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune.config.pareto import front_numbers

LATEST = 1000
BEST = 250
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class WindowedTPE(TPESampler):
    """TPE that learns from the best and the latest trials of a study, once it has more than both.

    With 10,000 trials each proposal of Optuna's own TPE takes a quarter of a second. TPE compares
    the density of good points with that of all others. The good points are the 25 best, with two
    objectives the best tenth of what it sees, so we keep the `BEST` trials in TPE's order, however
    old they are. The weights of the others fall with age, so that the oldest hardly count, and we
    keep the `LATEST` trials that ended. Running trials are always seen. The study itself, and so
    the storage, keeps all trials.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(multivariate=True, group=True, seed=seed)
        self._looked = 0
        """How many of the study's trials were already looked at."""
        self._open: list[int] = []
        """The numbers of those trials among them that had not ended."""
        self._ended = 0
        self._best: list[FrozenTrial] = []
        self._latest: deque[FrozenTrial] = deque(maxlen=LATEST)
        self._window: _Window | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Choose the trials that the proposal is made from. For each new trial Optuna calls this
        before the other two methods, which then use the same window."""
        trials = study.get_trials(deepcopy=False)
        kept = self._kept(trials, [_sign(direction) for direction in study.directions])
        self._window = _Window(study, trial.number, kept) if len(kept) < len(trials) else None
        return super().infer_relative_search_space(self._seen(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the axes that are drawn together, from the trials in the window."""
        return super().sample_relative(self._seen(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one axis alone, from the trials in the window."""
        seen = self._seen(study, trial)
        return super().sample_independent(seen, trial, param_name, param_distribution)

    def _kept(self, trials: list[FrozenTrial], signs: Sequence[int]) -> list[FrozenTrial]:
        """Return the trials, sorted by number, that the next proposal is made from."""
        unknown = [*self._open, *range(self._looked, len(trials))]
        self._looked = len(trials)
        self._open = [number for number in unknown if not trials[number].state.is_finished()]
        new = [trials[number] for number in unknown if trials[number].state in _ENDED]
        self._ended += len(new)
        self._latest.extend(new)
        if new:
            found = [*self._best, *new]
            standings = _standings(found, signs)
            best = heapq.nsmallest(BEST, range(len(found)), key=standings.__getitem__)
            self._best = [found[index] for index in best]
        if self._ended <= LATEST + BEST:
            return trials
        kept = {trial.number: trial for trial in (*self._best, *self._latest)}
        kept.update((number, trials[number]) for number in self._open)
        return [kept[number] for number in sorted(kept)]

    def _seen(self, study: Study, trial: FrozenTrial) -> Study:
        window = self._window
        return study if window is None or window.number != trial.number else window


class _Window(Study):
    """A study with only some of its trials, made as Optuna makes one for a Hyperband bracket."""

    def __init__(self, study: Study, number: int, trials: list[FrozenTrial]) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self.number = number
        """The number of the trial for which the window was made."""
        self._kept = trials

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return [trial for trial in self._kept if states is None or trial.state in states]


def _standings(
    trials: Sequence[FrozenTrial], signs: Sequence[int]
) -> list[tuple[float, float, float]]:
    """Return sort keys that put trials into TPE's order, best first: trials that keep their bounds
    before the others, finished before stopped ones, and of these the one that came further first.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    losses = [[sign * v for sign, v in zip(signs, t.values, strict=True)] for t in complete]
    ranks = [own[0] for own in losses]
    if len(signs) > 1:
        ranks = [*map(float, front_numbers([(-first, -second) for first, second in losses]))]
    rank_of = {trial.number: rank for trial, rank in zip(complete, ranks, strict=True)}
    found = []
    for trial in trials:
        beyond = sum(excess for excess in trial.constraints.values() if excess > 0)
        if beyond > 0:
            found.append((2.0, beyond, 0.0))
        elif trial.state == TrialState.COMPLETE:
            found.append((0.0, rank_of[trial.number], 0.0))
        elif trial.intermediate_values:
            step, value = max(trial.intermediate_values.items())
            found.append((1.0, -step, signs[0] * value))
        else:
            found.append((1.0, 1.0, 0.0))
    return found


def _sign(direction: StudyDirection) -> int:
    return -1 if direction == StudyDirection.MAXIMIZE else 1
