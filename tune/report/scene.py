"""What the figures of one report share: the trials that they show, by how they look, and the axes.

A point of a figure has its trial's number as `customdata`: `page.js` writes the trial beside the
pointer, and finds the trial's row and its other points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import plotly.graph_objects as go

from tune.config.objective import Report
from tune.report.looks import marker
from tune.report.scale import Scale, scales
from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results

MOST_TRIALS = 1000
"""That are drawn."""
MOST_POINTS = 20_000
"""Of all curves of one figure."""
_FEWEST_POINTS = 8
"""Of one curve."""

Drawn = list[go.Figure] | str
"""The figures of a section, or the sentence that stands in their place."""
Numbered = dict[int, TrialRecord]
"""Trials by their place in `results.trials`."""

UNMEASURED = "No trial was measured so far."


@dataclass(frozen=True)
class Scene:
    results: Results

    @cached_property
    def shown(self) -> Numbered:
        """All trials; of more than MOST_TRIALS the winner, the front, the running ones, the best,
        and of the others evenly many."""
        trials = self.results.trials
        if len(trials) <= MOST_TRIALS:
            return dict(enumerate(trials))
        numbers = {trial.id: number for number, trial in enumerate(trials)}
        won = [self.results.winner.trial] if self.results.winner else []
        running = [trial.id for trial in trials if not trial.has_ended]
        best = self.results.ranking[: MOST_TRIALS // 4]
        first = [*won, *self.results.front, *running[: MOST_TRIALS // 4], *best]
        kept = dict.fromkeys(numbers[trial] for trial in first[: MOST_TRIALS // 2])
        others = [number for number in range(len(trials)) if number not in kept]
        rest = MOST_TRIALS - len(kept)
        chosen = {*kept, *(others[place * len(others) // rest] for place in range(rest))}
        return {number: trials[number] for number in sorted(chosen)}

    @cached_property
    def measured(self) -> Numbered:
        """Of those that are shown."""
        return {number: trial for number, trial in self.shown.items() if trial.metrics}

    @cached_property
    def by_look(self) -> dict[str, Numbered]:
        """The measured trials by state, the winner apart and last, so that it lies on top."""
        won = self.results.winner.trial if self.results.winner else ""
        looks: dict[str, Numbered] = {}
        for look in ("stopped", "failed", "running", "finished", "winner"):
            some = {n: t for n, t in self.measured.items() if look_of(t, won) == look}
            if some:
                looks[look] = some
        return looks

    @cached_property
    def scales(self) -> list[Scale]:
        return scales(self.results)

    @property
    def reports_drawn(self) -> int:
        """The most reports that a curve is drawn with."""
        return max(_FEWEST_POINTS, MOST_POINTS // max(1, len(self.measured)))

    @property
    def thinned(self) -> str:
        """What of the search the figures leave out; empty if nothing."""
        total, shown = len(self.results.trials), len(self.shown)
        longest = max((len(trial.curve) for trial in self.shown.values()), default=0)
        told = []
        if shown < total:
            told.append(f"the figures show {shown:,} of {total:,} trials: the best, and others "
                        "evenly chosen")  # fmt: skip
        if longest > self.reports_drawn:
            told.append(f"curves are drawn with at most {self.reports_drawn} of their reports")
        return "; ".join(told)

    def thin(self, curve: list[Report]) -> list[Report]:
        """A curve as it is drawn: its first and its last report, and evenly many between."""
        most = self.reports_drawn
        if len(curve) <= most:
            return curve
        return [curve[place * (len(curve) - 1) // (most - 1)] for place in range(most)]


def look_of(trial: TrialRecord, winner: str) -> str:
    # A trial that waits to go on after a kill has a curve already.
    return "winner" if trial.id == winner else _LOOKS_OF_STATES.get(trial.state, "running")


_LOOKS_OF_STATES = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


def short(values: Sequence[float | None]) -> list[float | None]:
    """By five digits, which a figure shows and a page of thousands of trials can hold."""
    return [None if value is None else float(f"{value:.5g}") for value in values]


def points(x: Sequence[float], y: Sequence[float], trials: Numbered, look: str) -> go.Scatter:
    """A point for each of the trials."""
    return go.Scatter(
        x=short(x),
        y=short(y),
        customdata=list(trials),
        hovertemplate="%{text}<br>(%{x:.4~g}, %{y:.4~g})<extra></extra>",
        mode="markers",
        name=look,
        legendgroup=look,
        marker=marker(look, len(trials)),
    )


def lines(
    x: Sequence[float | None], y: Sequence[float | None], numbers: Sequence[int | None]
) -> go.Scatter:
    """All lines of one look as a single trace, with None where one ends: hundreds of traces draw
    slowly."""
    return go.Scatter(
        x=short(x),
        y=short(y),
        customdata=list(numbers),
        hovertemplate="%{text}<br>(%{x:.4~g}, %{y:.4~g})<extra></extra>",
        mode="lines",
        showlegend=False,
    )
