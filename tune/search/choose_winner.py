"""Which configuration wins: finalists trained again with other seeds and compared pair by pair.

The best of many trials is partly lucky on eval. New seeds are not: their mean decides. Knows no
Ray; the records say what was run, so a search that was killed goes on where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_train.reference import prompt_keys
from dpo_train.scoring import metrics
from dpo_train.scoring.bootstrap import bootstrap_interval, standard_error
from dpo_train.storage import mirror
from tune.config.objective import Objective
from tune.config.schema import SearchConfig
from tune.run_folder import exports
from tune.run_folder.confirmation import Confirmation, Finalist, Run, evaluations
from tune.run_folder.records import ENDED, Records, TrialRecord


@dataclass(frozen=True)
class _Entry:
    """A finalist with its runs' values for each held-out pair."""

    finalist: Finalist
    pairs: metrics.Floats | None
    """Mean over the runs, of shape (held-out pairs,)."""


def finalists(config: SearchConfig, records: Records) -> list[TrialRecord]:
    """The best trials of the search; with two objectives its front from the best in the first on,
    then the next front."""
    if config.confirm is None:
        return []
    measured = [
        record
        for record in records.searched
        if record.metrics and not record.warm and record.state in ENDED
    ]
    ranked = records.objective.ranked(measured, lambda record: record.metrics)
    return ranked[: config.confirm.finalists]


def next_run(config: SearchConfig, records: Records) -> tuple[str, dict[str, Any]] | None:
    """The finalist to train again, and its point with a new seed; None if all were."""
    if config.confirm is None:
        return None
    there = {(run.confirms, run.config["seed"]) for run in records.confirmations}
    best = finalists(config, records)
    # Seed by seed, so that a budget that ends leaves all finalists with equally many.
    for seed in _seeds(config):
        for record in best:
            if (record.id, seed) not in there:
                return record.id, {**record.config, "seed": seed}
    return None


def next_evaluation(
    config: SearchConfig, records: Records, tried: set[str]
) -> tuple[str, Path] | None:
    """A run of a finalist that the user's own function has not seen, and its exported folder."""
    if config.confirm is None or config.confirm.evaluate is None:
        return None
    known = evaluations(records.folder).keys() | tried
    exported = exports.exports(records.folder, records.objective)
    wanted = {record.id for record in finalists(config, records)}
    for folder, stamp in exported:
        if exports.configuration(stamp) in wanted and stamp["trial"] not in known:
            return stamp["trial"], folder
    return None


def choose(config: SearchConfig, records: Records) -> tuple[str | None, Confirmation | None]:
    """The trial whose configuration wins, and how that was confirmed.

    None lets the best export win; without a confirmation, or if a budget ended before its first
    round had.
    """
    if confirmation := _confirm(config, records):
        return confirmation.winner, confirmation
    if config.select == "best":
        return None, None
    exported = [stamp for _, stamp in exports.exports(records.folder, records.objective)]
    if not exported:
        return None, None
    best = exported[0]
    error = _standard_error(np.array(records.trials[best["trial"]].held_out), records)
    metric = records.objective.metric
    near = [
        stamp
        for stamp in exported
        if abs(best["report"][metric] - stamp["report"][metric]) <= error
    ]
    least = max(near, key=lambda stamp: records.objective.key(stamp["report"])[1])
    return exports.configuration(least), None


def _confirm(config: SearchConfig, records: Records) -> Confirmation | None:
    entries = _entries(config, records)
    if not entries:
        return None
    objective = records.objective
    searched = entries[0].finalist.trial
    entries.sort(key=lambda e: _rank(objective, e.finalist), reverse=True)
    best = entries[0]
    decided_by = f"the mean of {objective.metric} over {len(best.finalist.runs)} seeds"
    assert config.confirm is not None
    if wanted := config.confirm.decide_by:
        if all(wanted in entry.finalist.evaluation for entry in entries):
            entries.sort(
                key=lambda e: (e.finalist.mean is not None, e.finalist.evaluation[wanted]),
                reverse=True,
            )
            decided_by = f"{wanted} of {config.confirm.evaluate}"
        else:
            print(
                f"warning: confirm.decide_by: {config.confirm.evaluate} gave no {wanted!r} for "
                f"every finalist; {decided_by} decides",
                flush=True,
            )
    elif config.select == "one_standard_error" and best.pairs is not None:
        error = _standard_error(best.pairs, records)
        near = [entry for entry in entries if _gap(best, entry) <= error]
        entries.sort(key=lambda e: (e in near, _rank(objective, e.finalist)[1][1]), reverse=True)
        other = f"best {objective.second.metric}" if objective.second else "least drift"
        decided_by = (
            f"the {other} among those within one standard error ({error:.4f}) of the best mean"
        )
    winner = entries[0]
    return Confirmation(
        winner=winner.finalist.trial,
        searched=searched,
        decided_by=decided_by,
        finalists=[_behind(winner, entry, records) for entry in entries],
    )


def _entries(config: SearchConfig, records: Records) -> list[_Entry]:
    """The finalists with as many runs as all of them have; none if one has none."""
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
    said = {
        exports.configuration(stamp): known[stamp["trial"]]
        for _, stamp in exports.exports(records.folder, records.objective)
        if stamp["trial"] in known
    }
    return [
        _entry(record, runs[record.id][:rounds], records.objective, said.get(record.id, {}))
        for record in best
    ]


def _entry(
    record: TrialRecord,
    runs: list[TrialRecord],
    objective: Objective,
    evaluation: dict[str, float],
) -> _Entry:
    whole = [run for run in runs if run.state == "finished"]
    all_whole = len(whole) == len(runs)
    means = {
        metric: float(np.mean([run.metrics[metric] for run in whole])) if all_whole else None
        for metric in (objective.metric, objective.other.metric, "eval/drift")
    }
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
        mean=means[objective.metric],
        drift=means["eval/drift"],
        second=means[objective.second.metric] if objective.second else None,
        evaluation=evaluation,
    )
    told = all_whole and all(run.held_out for run in whole)
    return _Entry(finalist, np.mean([run.held_out for run in whole], axis=0) if told else None)


def _rank(objective: Objective, finalist: Finalist) -> tuple[bool, tuple[float, float]]:
    """Larger is better. A seed that failed says that the configuration is not to be relied on."""
    if finalist.mean is None or finalist.drift is None:
        return False, (0, 0)
    other = finalist.drift if finalist.second is None else finalist.second
    return True, objective.key({objective.metric: finalist.mean, objective.other.metric: other})


def _gap(best: _Entry, other: _Entry) -> float:
    if other.finalist.mean is None or best.finalist.mean is None:
        return float("inf")
    return abs(best.finalist.mean - other.finalist.mean)


def _behind(winner: _Entry, entry: _Entry, records: Records) -> Finalist:
    if entry is winner or winner.pairs is None or entry.pairs is None:
        return entry.finalist
    difference = winner.pairs - entry.pairs
    interval = bootstrap_interval(difference, _prompts(records, len(difference)))
    told = {"difference": float(difference.mean()), "interval": interval}
    return entry.finalist.model_copy(update={"behind": told})


def _standard_error(pairs: metrics.Floats, records: Records) -> float:
    return standard_error(pairs, _prompts(records, len(pairs))) if len(pairs) else 0.0


def _prompts(records: Records, pairs: int) -> list[str]:
    """Pairs of one prompt are not independent: the prompts of the held-out pairs, in their order.
    Of a simulated search each pair is its own."""
    prepared = records.run.prepared_folder
    if not mirror.fetch_once(prepared / "eval.arrow").is_file():
        return [str(number) for number in range(pairs)]
    return prompt_keys(prepared, "eval")


def _seeds(config: SearchConfig) -> list[int]:
    """Others than the search's own, and the same for every finalist."""
    assert config.confirm is not None
    return [config.seed + 1 + number for number in range(config.confirm.seeds)]
