"""Reads `places.jsonl` of a run: which trial held which GPU, and how many at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.run_records import records_of


def placements(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `places.jsonl`."""
    file = run / "places.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def most_at_once(run: Path) -> dict[tuple[str, str], int]:
    """Return for every (node, GPU) the largest number of trials that held it at the same time.

    A trial holds its GPU until it takes another one or ends, or until its driver ends.
    """
    sessions = json.loads((run / "run.json").read_text())["sittings"]
    ended = {record.id: record.ended or 0.0 for record in records_of(run)}
    taken = placements(run)
    held: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, placement in enumerate(taken):
        until = next(
            (later["at"] for later in taken[number + 1 :] if later["trial"] == placement["trial"]),
            ended[placement["trial"]],
        )
        driven = max(seen for began, seen in sessions if began <= placement["at"])
        span = (placement["at"], min(until, driven))
        held.setdefault((placement["node"], placement["gpus"]), []).append(span)
    return {
        gpu: max(sum(a <= began < b for a, b in spans) for began, _ in spans)
        for gpu, spans in held.items()
    }
