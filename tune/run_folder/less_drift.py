"""The best report that stays near the base, to stand beside a winner that does not."""

from __future__ import annotations

from pydantic import BaseModel

from tune.run_folder.records import Records

MOST_DRIFT = 1.5
"""Nats a token. A winner with more is warned of."""


class LessDrift(BaseModel):
    trial: str
    pairs_seen: int
    value: float
    """Of the objective."""
    drift: float


def find(records: Records) -> LessDrift | None:
    """The best by the same rule as the winner; None where every report is beyond."""
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
