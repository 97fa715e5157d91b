"""What stopping trials early saved: an estimate, from the results alone."""

from __future__ import annotations

from dataclasses import dataclass

from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results


@dataclass(frozen=True)
class Saved:
    pairs: int
    """That the stopped trials would have trained on."""
    seconds: float
    """Those pairs, at each trial's own measured seconds per pair."""


def saved(results: Results) -> Saved | None:
    """None where no trial was stopped, or results.json does not say how long one would be."""
    pairs, seconds = 0, 0.0
    for trial in results.trials:
        whole = most_pairs(results, trial)
        if trial.state == "stopped" and trial.pairs_seen and whole:
            left = max(0, whole - trial.pairs_seen)
            pairs += left
            seconds += left * trial.seconds / trial.pairs_seen
    return Saved(pairs, seconds) if pairs else None


def most_pairs(results: Results, trial: TrialRecord) -> int | None:
    """The pairs of a trial that is not stopped; None where results.json does not say."""
    search = results.search
    if search.get("trainer") == "simulated":
        pairs = search["simulated"]["pairs"]
    else:
        pairs = results.data.get("pairs", {}).get("train")
    epochs = trial.config.get("optim.epochs", search.get("optim", {}).get("epochs"))
    return int(pairs * epochs) if pairs and epochs else None
