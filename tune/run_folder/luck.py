"""How much of the best trial's number is luck: the best of many is partly the luckiest on the pairs
by which it was chosen.

A bootstrap over prompts repeats the choice itself: in each draw the best trial is chosen anew, by
the rule of `winner_rule.py`, and what it has there above its own number is luck (the optimism of
Efron 1983). The mean of that is taken off the number that is printed.
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
"""Trials that are chosen among in each draw; those far behind are never the best."""


class Luck(BaseModel):
    largest: float
    """The largest value of the objective at any report of the search; of an objective that is
    minimised the smallest."""
    chosen: float
    """The value of the best trial."""
    expected: float
    """What the best trial is expected to have on new prompts."""
    interval: list[float]
    """The 95 % interval of that."""


@dataclass(frozen=True)
class Reports:
    """All reports of a search, k of them, on the same N held-out pairs."""

    values: Floats
    """Shape (k, N): of the objective for each pair, the larger the better."""
    margins: Floats | None
    """Shape (k, N): what a share is the share of; None of another objective."""
    others: Floats | None
    """Shape (k, N): the same of the other share."""
    trials: NDArray[np.intp]
    """Shape (k,): the number of each report's trial."""
    pairs_seen: Floats
    """Shape (k,)."""
    clusters: NDArray[np.intp]
    """Shape (N,): the number of each pair's prompt."""


def estimate(records: Records) -> Luck | None:
    """Of the trials of a search. None with two objectives, of which one number is not the best, of
    an objective that isn't kept for each pair, and where fewer than two trials were measured."""
    reports = _reports(records)
    if reports is None:
        return None
    sign = 1 if records.objective.mode == "max" else -1
    found = expected(reports)
    ends = sorted(sign * end for end in found.interval)
    numbers = {name: sign * getattr(found, name) for name in ("largest", "chosen", "expected")}
    return Luck(**numbers, interval=ends)


def expected(reports: Reports) -> Luck:
    """The larger the better."""
    reports = _contenders(reports)
    all_pairs = np.arange(reports.values.shape[1])
    winner = _choose(reports, all_pairs, reports.clusters)
    own = reports.values.mean(axis=1)
    luck = [
        reports.values[best, pairs].mean() - own[best]
        for pairs, clusters in _draws(reports.clusters)
        for best in [_choose(reports, pairs, clusters)]
    ]
    optimism = float(np.mean(luck))
    likely = float(own[winner]) - optimism
    values = reports.values[winner]
    if reports.margins is None:
        error = math.hypot(float(standard_errors(values[None], reports.clusters)[0]), optimism / 2)
        interval = [likely - 1.96 * error, likely + 1.96 * error]
    else:
        likely = min(1.0, max(0.0, likely))
        interval = jeffreys(likely, effective_prompts(values, reports.clusters))
    return Luck(
        largest=float(own.max()), chosen=float(own[winner]), expected=likely, interval=interval
    )


def _choose(reports: Reports, pairs: NDArray[np.intp], clusters: NDArray[np.intp]) -> int:
    """The index of the best trial's best report on some of the pairs."""
    values = reports.values[:, pairs].mean(axis=1)
    candidates = Candidates(values, reports.pairs_seen)
    if reports.margins is not None:
        margins = reports.margins[:, pairs]
        others = None if reports.others is None else reports.others[:, pairs]
        candidates = Candidates.of_margins(values, reports.pairs_seen, margins, clusters, others)
    of_each = [np.flatnonzero(reports.trials == trial) for trial in np.unique(reports.trials)]
    best = np.array([own[best_first(candidates.rows(own))[0]] for own in of_each])
    return int(best[best_first(candidates.rows(best))[0]])


def _draws(clusters: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Always the same: pairs of prompts drawn with replacement, and the numbers of those prompts.
    One that is drawn twice counts as two."""
    rng, count = np.random.default_rng(0), int(clusters.max()) + 1
    members = [np.flatnonzero(clusters == number) for number in range(count)]
    draws = []
    for _ in range(_DRAWS):
        drawn = [members[number] for number in rng.integers(count, size=count)]
        numbers = np.repeat(np.arange(count), [len(each) for each in drawn])
        draws.append((np.concatenate(drawn), numbers))
    return draws


def _contenders(reports: Reports) -> Reports:
    """The reports of the best trials, as many as are chosen among."""
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
    """Shape (k,): which of the reports with these values, by the number of their trial, are of a
    trial that is chosen among."""
    best = np.full(int(trials.max()) + 1, -np.inf)
    np.maximum.at(best, trials, values)
    return np.isin(trials, np.argsort(-best, kind="stable")[:_CONTENDERS])


def _reports(records: Records) -> Reports | None:
    """The reports of the best trials: what is far behind is not read."""
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
