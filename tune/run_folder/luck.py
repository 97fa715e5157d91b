"""Estimates how much of the best trial's value is luck: the best of many trials is partly the one
that was luckiest on the pairs by which it was chosen.

A bootstrap over prompts repeats the choice: each draw chooses the best trial by the rule of
`winner_rule.py`. Its value in the draw minus its value on all pairs is luck (the optimism of Efron
1983). The mean luck is subtracted from the winner's value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from dpo_train.scoring.intervals import effective_prompts, jeffreys, standard_errors
from dpo_train.scoring.metrics import SHARES, Floats, nll, share_right
from tune.run_folder.records import Records
from tune.run_folder.winner_rule import Candidates, best_first

_DRAWS = 200
_CONTENDERS = 50
"""How many of the best trials each draw chooses from; the others are never the best."""


class Luck(BaseModel):
    """The estimate, in the objective's own sign."""

    largest: float
    """The best value of the objective at any report: the largest, or the smallest if minimised."""
    chosen: float
    """The value of the best trial."""
    expected: float
    """The expected value of the best trial on new prompts."""
    interval: list[float]
    """The 95 % interval of the expected value."""


@dataclass(frozen=True)
class Reports:
    """k reports of a search on the same N held-out pairs."""

    values: Floats
    """Shape (k, N): the objective for each pair, the larger the better."""
    margins: Floats | None
    """Shape (k, N): the margins; the objective is the share of them that is above 0. None if the
    objective is not a share."""
    others: Floats | None
    """Shape (k, N): the margins of the other share metric: of `ranking` if the objective is
    `accuracy`, and the reverse."""
    trials: NDArray[np.intp]
    """Shape (k,): the number of each report's trial."""
    pairs_seen: Floats
    """Shape (k,)."""
    clusters: NDArray[np.intp]
    """Shape (N,): the number of each pair's prompt."""


def estimate(records: Records) -> Luck | None:
    """Estimates the luck of a search's best trial.

    Returns None with two objectives, for an objective without values for each pair, and if fewer
    than two trials were measured.
    """
    reports = _reports(records)
    if reports is None:
        return None
    sign = 1 if records.objective.mode == "max" else -1
    found = expected(reports)
    ends = sorted(sign * end for end in found.interval)
    numbers = {name: sign * getattr(found, name) for name in ("largest", "chosen", "expected")}
    return Luck(**numbers, interval=ends)


def expected(reports: Reports) -> Luck:
    """Returns the estimate for values of which the largest is the best."""
    # The bootstrap.
    reports = _contenders(reports)
    all_pairs = np.arange(reports.values.shape[1])
    winner = _choose(reports, all_pairs, reports.clusters)
    mean_values = reports.values.mean(axis=1)
    luck = [
        reports.values[best, pairs].mean() - mean_values[best]
        for pairs, clusters in _draws(reports.clusters)
        for best in [_choose(reports, pairs, clusters)]
    ]
    optimism = float(np.mean(luck))
    # The expected value and its interval: Jeffreys' for a share, else a normal one.
    expectation = float(mean_values[winner]) - optimism
    values = reports.values[winner]
    if reports.margins is None:
        error = math.hypot(float(standard_errors(values[None], reports.clusters)[0]), optimism / 2)
        interval = [expectation - 1.96 * error, expectation + 1.96 * error]
    else:
        expectation = min(1.0, max(0.0, expectation))
        interval = jeffreys(expectation, effective_prompts(values, reports.clusters))
    return Luck(
        largest=float(mean_values.max()),
        chosen=float(mean_values[winner]),
        expected=expectation,
        interval=interval,
    )


def _choose(reports: Reports, pairs: NDArray[np.intp], clusters: NDArray[np.intp]) -> int:
    """Returns the index of the best trial's best report on some of the pairs."""
    values = reports.values[:, pairs].mean(axis=1)
    candidates = Candidates(values, reports.pairs_seen)
    if reports.margins is not None:
        margins = reports.margins[:, pairs]
        others = None if reports.others is None else reports.others[:, pairs]
        candidates = Candidates.of_margins(values, reports.pairs_seen, margins, clusters, others)
    by_trial = [np.flatnonzero(reports.trials == trial) for trial in np.unique(reports.trials)]
    best = np.array([of_trial[best_first(candidates.rows(of_trial))[0]] for of_trial in by_trial])
    return int(best[best_first(candidates.rows(best))[0]])


def _draws(clusters: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Returns the draws, which are the same each time.

    A draw has the pairs of prompts drawn with replacement, and the number of each pair's prompt. A
    prompt that is drawn twice counts as two.
    """
    rng, count = np.random.default_rng(0), int(clusters.max()) + 1
    members = [np.flatnonzero(clusters == number) for number in range(count)]
    draws = []
    for _ in range(_DRAWS):
        drawn = [members[number] for number in rng.integers(count, size=count)]
        numbers = np.repeat(np.arange(count), [len(each) for each in drawn])
        draws.append((np.concatenate(drawn), numbers))
    return draws


def _contenders(reports: Reports) -> Reports:
    """Returns the reports of the best _CONTENDERS trials."""
    kept = _of_best_trials(reports.values.mean(axis=1), reports.trials)
    return Reports(
        values=reports.values[kept],
        margins=None if reports.margins is None else reports.margins[kept],
        others=None if reports.others is None else reports.others[kept],
        trials=reports.trials[kept],
        pairs_seen=reports.pairs_seen[kept],
        clusters=reports.clusters,
    )


def _of_best_trials(values: Floats, trials: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which reports belong to the best _CONTENDERS trials.

    `values`, `trials` (the number of each report's trial) and the result all have shape (k,).
    """
    best = np.full(int(trials.max()) + 1, -np.inf)
    np.maximum.at(best, trials, values)
    return np.isin(trials, np.argsort(-best, kind="stable")[:_CONTENDERS])


def _reports(records: Records) -> Reports | None:
    """Returns the reports of the best trials; the pairs of the others are not read."""
    # All reports that may win, then those of the best trials.
    objective = records.objective
    found = [
        (number, trial.id, report)
        for number, trial in enumerate(records.searched)
        for report in trial.curve
        if objective.allows(report)
    ]
    if objective.second or len({number for number, _, _ in found}) < 2:
        return None
    values = np.array([objective.worth(report) for _, _, report in found])
    kept = _of_best_trials(values, np.array([number for number, _, _ in found]))
    found = [item for item, is_kept in zip(found, kept, strict=True) if is_kept]
    # Their values for each pair.
    reports = [(trial, report) for _, trial, report in found]
    margins = records.judge.margins(reports, objective.metric)
    if margins is None or objective.metric not in (*SHARES, "eval/nll", "eval/margin"):
        return None
    others = records.judge.margins(reports, objective.other_share) if objective.is_share else None
    values = share_right(margins) if objective.is_share else margins
    return Reports(
        values=-nll(margins) if objective.metric == "eval/nll" else values,
        margins=margins if objective.is_share else None,
        others=others,
        trials=np.array([number for number, _, _ in found]),
        pairs_seen=np.array([report["pairs_seen"] for _, report in reports]),
        clusters=records.held_out.clusters(margins.shape[1]),
    )
