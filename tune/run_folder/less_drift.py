"""Finds the best report that stays near the base, to compare with a winner that does not."""

from __future__ import annotations

from pydantic import BaseModel

from tune.run_folder.records import Records

MOST_DRIFT = 1.5
"""It is in nats per token. A winner with more gets a warning."""


class LessDrift(BaseModel):
    """A report with a drift of at most MOST_DRIFT."""

    trial: str
    pairs_seen: int
    value: float
    """The objective's value."""
    drift: float


def find(records: Records) -> LessDrift | None:
    """Returns the best report near the base, by the rule of the winner; None if there is none."""
    reports = [
        (trial.id, report)
        for trial in records.searched
        for report in trial.curve
        if report.get("eval/drift", 0.0) <= MOST_DRIFT and records.objective.allows(report)
    ]
    if not reports:
        return None
    trial, report = reports[records.judge.best_first(reports)[0]]
    return LessDrift(
        trial=trial,
        pairs_seen=int(report["pairs_seen"]),
        value=report[records.objective.metric],
        drift=report.get("eval/drift", 0.0),
    )
