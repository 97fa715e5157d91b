"""Holds what the figures of one report share: the trials that are drawn, their looks, and the axes.

Each point of a figure has its trial's number as `customdata`. With it `page.js` shows the trial
beside the pointer, and finds the trial's row and its other points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import plotly.graph_objects as go

from tune.config.objective import Report
from tune.report.looks import marker
from tune.report.scale import Scale, scales
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord

MOST_TRIALS = 1000
"""The most trials that figures show."""
MOST_POINTS = 20_000
"""The most points of all curves of one figure together."""
_FEWEST_POINTS = 8
"""The fewest points to which a curve is reduced."""

Drawn = list[go.Figure] | str
"""The figures of a section, or a sentence that says why there are none."""
Numbered = dict[int, TrialRecord]
"""Trials by their index in `results.trials`."""

UNMEASURED = "No trial was measured so far."


@dataclass(frozen=True)
class Scene:
    """The trials and axes of one report's figures."""

    results: Results

    @cached_property
    def shown(self) -> Numbered:
        """The trials that figures show: all of them, or a choice of MOST_TRIALS.

        The choice has the winner, the front, running trials, the best trials, and an even sample of
        the others.
        """
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
        chosen = {*kept, *(others[index * len(others) // rest] for index in range(rest))}
        return {number: trials[number] for number in sorted(chosen)}

    @cached_property
    def measured(self) -> Numbered:
        """The shown trials that have a report."""
        return {number: trial for number, trial in self.shown.items() if trial.metrics}

    @cached_property
    def by_look(self) -> dict[str, Numbered]:
        """The measured trials by look. The winner comes last, so that it is drawn on top."""
        won = self.results.winner.trial if self.results.winner else ""
        looks: dict[str, Numbered] = {}
        for look in ("stopped", "failed", "running", "finished", "winner"):
            some = {n: t for n, t in self.measured.items() if look_of(t, won) == look}
            if some:
                looks[look] = some
        return looks

    @cached_property
    def scales(self) -> list[Scale]:
        """The scales of all axes."""
        return scales(self.results)

    @property
    def reports_drawn(self) -> int:
        """The most reports with which a curve is drawn."""
        return max(_FEWEST_POINTS, MOST_POINTS // max(1, len(self.measured)))

    @property
    def omitted(self) -> str:
        """A sentence on what the figures omit; empty if they show everything."""
        total, shown = len(self.results.trials), len(self.shown)
        longest = max((len(trial.curve) for trial in self.shown.values()), default=0)
        sentences = []
        if shown < total:
            sentences.append(
                f"the figures show {shown:,} of {total:,} trials: the best ones and an even sample "
                "of the others"
            )
        if longest > self.reports_drawn:
            sentences.append(f"curves are drawn with at most {self.reports_drawn} of their reports")
        return "; ".join(sentences)

    def thin(self, curve: list[Report]) -> list[Report]:
        """Returns the reports of a curve that are drawn: the first, the last, and an even sample
        between them."""
        most = self.reports_drawn
        if len(curve) <= most:
            return curve
        return [curve[index * (len(curve) - 1) // (most - 1)] for index in range(most)]


def look_of(trial: TrialRecord, winner: str) -> str:
    """Returns the look of a trial, a key of `LOOKS`; `winner` is the id of the winner."""
    # A trial that waits to continue after a kill has a curve, so it is drawn as a running one.
    return "winner" if trial.id == winner else _LOOKS_OF_STATES.get(trial.state, "running")


_LOOKS_OF_STATES = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


def short(values: Sequence[float | None]) -> list[float | None]:
    """Returns values rounded to five digits: enough for a figure, and short for large pages."""
    return [None if value is None else float(f"{value:.5g}") for value in values]


def points(x: Sequence[float], y: Sequence[float], trials: Numbered, look: str) -> go.Scatter:
    """Returns a trace with one point for each trial."""
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
    """Returns all lines of one look as a single trace, with None between two lines.

    Plotly draws hundreds of traces slowly, so we draw one.
    """
    return go.Scatter(
        x=short(x),
        y=short(y),
        customdata=list(numbers),
        hovertemplate="%{text}<br>(%{x:.4~g}, %{y:.4~g})<extra></extra>",
        mode="lines",
        showlegend=False,
    )
