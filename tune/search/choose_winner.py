"""Chooses the winning configuration: finalists are trained again with other seeds and compared.

The best of many trials is partly lucky on eval; its results with new seeds are not. Finalists are
compared by the same rule as trials (`winner_rule.py`). This module knows no Ray. The records say
what was run, so a search that was killed continues where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpo_train.evaluation.test_report import Difference
from dpo_train.scoring import metrics
from dpo_train.scoring.intervals import difference_interval
from tune.config.objective import Report
from tune.config.schema import SearchConfig
from tune.config.space import Point
from tune.run_folder import exports
from tune.run_folder.confirmation import Confirmation, Finalist, Run, evaluations
from tune.run_folder.records import Records
from tune.run_folder.trial_record import TrialRecord
from tune.run_folder.winner_rule import Candidates, best_first


@dataclass(frozen=True)
class _Entry:
    """A finalist, with the means over its runs."""

    finalist: Finalist
    means: Report
    """The runs' mean of each objective, of the drift, and of each bounded metric. It is empty if a
    seed failed, since such a configuration is not reliable."""
    values: metrics.Floats | None = None
    """The objective of each held-out pair, averaged over the runs, of shape (N,)."""
    soft: float | None = None
    """The runs' mean soft share."""


def finalists(config: SearchConfig, records: Records) -> list[TrialRecord]:
    """Return the best trials that may win, best first; with two objectives front by front."""
    if config.confirm is None:
        return []
    best = records.standings.leaders.first(config.confirm.finalists, finalists=True)
    return [records.trials[trial_id] for trial_id in best]


def next_run(config: SearchConfig, records: Records) -> tuple[str, Point] | None:
    """Return the finalist to train next, and its point with a new seed; None if all runs exist."""
    if config.confirm is None:
        return None
    existing = {(run.confirms, run.config["seed"]) for run in records.confirmations}
    best = finalists(config, records)
    # If a budget ends in between, all finalists should have the same number of runs, so we go
    # seed by seed.
    for seed in _seeds(config):
        for record in best:
            if (record.id, seed) not in existing:
                return record.id, {**record.config, "seed": seed}
    return None


def next_evaluation(
    config: SearchConfig, records: Records, tried: set[str]
) -> tuple[str, Path] | None:
    """Return a finalist's run that the user's own function has not evaluated, and its export."""
    if config.confirm is None or config.confirm.evaluate is None:
        return None
    known = evaluations(records.folder).keys() | tried
    exported = exports.exports(records)
    finalist_ids = {record.id for record in finalists(config, records)}
    for each in exported:
        if each.stamp.searched in finalist_ids and each.stamp.trial not in known:
            return each.stamp.trial, each.folder
    return None


def choose(config: SearchConfig, records: Records) -> Confirmation | None:
    """Compare the finalists by their new seeds, and return which configuration wins.

    Return None without `confirm:`, or if a budget ended before every finalist had one run. Then the
    best export wins.
    """
    entries = _entries(config, records)
    if not entries:
        return None
    searched = entries[0].finalist.trial
    entries = _order(entries, records)
    winner = entries[0]
    compared = [_behind(winner, entry, records) for entry in entries]
    tied = [each.trial for each in compared if each.behind and each.behind.interval[0] <= 0]
    runs = len(winner.finalist.runs)
    decided_by = f"the mean of {records.objective.metric} over {runs} seed{'s' * (runs > 1)}"
    if tied:
        decided_by = f"no more than luck: in {decided_by} it is tied with {', '.join(tied)}"
    return Confirmation(
        winner=winner.finalist.trial,
        searched=searched,
        decided_by=decided_by,
        tied=tied,
        finalists=compared,
    )


def _order(entries: list[_Entry], records: Records) -> list[_Entry]:
    """Sort the finalists' means by the rule for trials. Those with a failed seed are last."""
    whole = [entry for entry in entries if entry.means]
    if not whole:
        return entries
    objective = records.objective
    values = np.array([objective.worth(entry.means) for entry in whole])
    pairs = [entry.values for entry in whole if entry.values is not None]
    soft = [entry.soft for entry in whole if entry.soft is not None]
    candidates = Candidates(values, np.zeros(len(whole)))
    if len(soft) == len(whole):
        clusters = records.held_out.clusters(len(pairs[0]))
        candidates = replace(
            candidates, right=np.stack(pairs), soft=np.array(soft), clusters=clusters
        )
    fronts = objective.front_numbers([entry.means for entry in whole])
    order = sorted(best_first(candidates).tolist(), key=fronts.__getitem__)
    return [whole[index] for index in order] + [entry for entry in entries if not entry.means]


def _entries(config: SearchConfig, records: Records) -> list[_Entry]:
    """Return the finalists, each with as many runs as the one that has fewest; [] if that is 0."""
    best = finalists(config, records)
    runs = {
        record.id: [
            run
            for run in records.confirmations
            if run.confirms == record.id and run.state in ("finished", "failed")
        ]
        for record in best
    }
    rounds = min(map(len, runs.values()), default=0)
    if rounds == 0:
        return []
    known = evaluations(records.folder)
    evaluation_of = {
        each.stamp.searched: known[each.stamp.trial]
        for each in exports.exports(records)
        if each.stamp.trial in known
    }
    return [
        _entry(record, runs[record.id][:rounds], records, evaluation_of.get(record.id, {}))
        for record in best
    ]


def _entry(
    record: TrialRecord, runs: list[TrialRecord], records: Records, evaluation: dict[str, float]
) -> _Entry:
    # --- the means, if no seed failed ---
    objective = records.objective
    whole = [run for run in runs if run.state == "finished"]
    all_whole = len(whole) == len(runs)
    names = {each.metric for each in objective.parts} | {"eval/drift", *objective.bounds}
    means = {name: float(np.mean([run.metrics[name] for run in whole])) for name in names
             if all_whole}  # fmt: skip

    # --- what results.json says of the finalist ---
    finalist = Finalist(
        trial=record.id,
        config=record.config,
        searched=record.metrics[objective.metric],
        runs=[
            Run(
                id=run.id,
                seed=run.config["seed"],
                value=run.metrics[objective.metric] if run.state == "finished" else None,
                error=run.error,
            )
            for run in runs
        ],
        mean=means.get(objective.metric),
        drift=means.get("eval/drift"),
        second=means.get(objective.second.metric) if objective.second else None,
        evaluation=evaluation,
    )

    # --- the values of each held-out pair, if they are stored ---
    kept = [records.held_out.of(run.id).get(int(run.metrics["pairs_seen"])) for run in whole]
    values = [each.values(objective.metric) for each in kept if each is not None]
    known = [each for each in values if each is not None]
    if not all_whole or len(known) < len(runs):
        return _Entry(finalist, means)
    reports = [(run.id, run.metrics) for run in whole]
    soft = records.judge.candidates(reports).soft
    return _Entry(
        finalist, means, np.mean(known, axis=0), None if soft is None else float(soft.mean())
    )


def _behind(winner: _Entry, entry: _Entry, records: Records) -> Finalist:
    if entry is winner or winner.values is None or entry.values is None:
        return entry.finalist
    difference = winner.values - entry.values
    if records.objective.mode == "min":
        difference = -difference
    interval = difference_interval(difference, records.held_out.clusters(len(difference)))
    behind = Difference(difference=float(difference.mean()), interval=interval)
    return entry.finalist.model_copy(update={"behind": behind})


def _seeds(config: SearchConfig) -> list[int]:
    """Return the seeds of all finalists, which are not the search's own."""
    assert config.confirm is not None
    return [config.seed + 1 + number for number in range(config.confirm.seeds)]
