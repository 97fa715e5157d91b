"""Draws when each trial ran and on which device: one bar for each stay of a trial on a device.

Nodes are numbered and not named, since a report may be published.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypedDict, cast

import plotly.graph_objects as go

from dpo_train.storage import mirror
from tune.report.looks import LOOKS
from tune.report.scene import Drawn, Scene, look_of
from tune.run_folder.results import Results
from tune.run_folder.run_info import RunInfo
from tune.run_folder.trial_record import TrialRecord

_NO_TIMES = "It is not known when the trials ran."
_MOST_LABELS = 16
_EDGE = "rgba(255,255,255,0.6)"


@dataclass(frozen=True)
class Stay:
    """A time during which a trial held a device."""

    run: TrialRecord
    device: str
    """For example `node 2, GPU 0`; empty if it is not known."""
    began: float
    """Unix time."""
    ended: float
    lane: int = 0
    """The row of the figure. Trials that share a device at the same time are in several rows."""


def draw_timeline(scene: Scene) -> Drawn:
    """Returns the figure of all stays, or a sentence that says why there is none."""
    found = stays(scene.results)
    if not found:
        return _NO_TIMES
    # The axis of time, and the trials' numbers and looks.
    first = min(stay.began for stay in found)
    last = max(stay.ended for stay in found)
    unit, seconds = ("hours", 3600) if last - first > 10800 else ("minutes", 60)
    winner = scene.results.winner.trial if scene.results.winner else ""
    numbers = {trial.id: number for number, trial in enumerate(scene.results.trials)}
    # One trace for each look.
    figure = go.Figure()
    for look in LOOKS:
        drawn = [
            stay
            for stay in found
            if numbers.get(stay.run.confirms or stay.run.id) in scene.shown
            and look_of(stay.run, winner) == look
        ]
        if not drawn:
            continue
        figure.add_bar(
            base=[round((stay.began - first) / seconds, 4) for stay in drawn],
            x=[round((stay.ended - stay.began) / seconds, 4) for stay in drawn],
            y=[stay.lane for stay in drawn],
            customdata=[numbers[stay.run.confirms or stay.run.id] for stay in drawn],
            text=["with another seed" if stay.run.confirms else "" for stay in drawn],
            textposition="none",
            hovertemplate=f"%{{text}}<br>%{{x:.3~g}} {unit}<extra></extra>",
            orientation="h",
            name=look,
            width=0.85,
            # Without an outline, consecutive trials would look like one.
            marker={
                "color": LOOKS[look][0],
                "line": {"width": 1, "color": "rgba(255,255,255,0.6)"},
            },
        )
    # The names of the devices, each at the middle of its rows.
    lanes: dict[str, list[int]] = defaultdict(list)
    for stay in found:
        lanes[stay.device].append(stay.lane)
    middles = {device: (min(each) + max(each)) / 2 for device, each in lanes.items()}
    named = {device: at for device, at in middles.items() if device}
    step = -(-len(named) // _MOST_LABELS) or 1
    figure.update_layout(
        barmode="overlay",
        xaxis={"title": f"{unit} since the first trial began", "rangemode": "tozero"},
        yaxis={
            "tickvals": list(named.values())[::step],
            "ticktext": list(named)[::step],
            "autorange": "reversed",
            "title": "" if named else "devices",
        },
    )
    return [figure]


def stays(results: Results) -> list[Stay]:
    """Returns the stays by `places.jsonl` of the run folder.

    A trial that is not in this file has one stay, from its start to its end.
    """
    sessions = _sessions(results)
    now = max((seen for _, seen in sessions), default=0.0)
    runs = {run.id: run for run in results.runs}
    found = [*_recorded_stays(results, runs, now)]
    known = {stay.run.id for stay in found}
    found += [
        Stay(run, "", run.began, run.ended or max(now, run.began))
        for run in results.runs
        if run.began is not None and run.id not in known
    ]
    return _in_lanes(_cut_at_session_end(stay, sessions) for stay in found)


def _sessions(results: Results) -> list[tuple[float, float]]:
    """Returns the driver sessions; none for published results, which have no run folder."""
    try:
        return RunInfo.read(results.folder).driver_sessions
    except (OSError, ValueError):
        return []


class _Line(TypedDict):
    """A line of `places.jsonl`."""

    at: float
    trial: str
    node: str
    gpus: str
    pid: int


def _parsed(text: str) -> _Line | None:
    """Returns a line of `places.jsonl`; None for one that a killed driver left incomplete."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    is_complete = isinstance(content, dict) and content.keys() >= _Line.__required_keys__
    return cast(_Line, content) if is_complete else None


def _recorded_stays(results: Results, runs: dict[str, TrialRecord], now: float) -> Iterable[Stay]:
    try:
        text = mirror.read_text(results.folder.placements)
    except (OSError, UnicodeDecodeError):
        return
    lines = [line for each in text.splitlines() if (line := _parsed(each)) is not None]
    nodes = {node: number for number, node in enumerate(dict.fromkeys(x["node"] for x in lines), 1)}
    by_trial: dict[str, list[_Line]] = defaultdict(list)
    for line in lines:
        by_trial[line["trial"]].append(line)
    for trial, own_lines in by_trial.items():
        if (run := runs.get(trial)) is None:
            continue
        ends = [*(line["at"] for line in own_lines[1:]), run.ended or now]
        for line, end in zip(own_lines, ends, strict=True):
            device = f"GPU {line['gpus']}" if line["gpus"] else "CPU"
            if len(nodes) > 1:
                device = f"node {nodes[line['node']]}, {device}"
            yield Stay(run, device, line["at"], max(end, line["at"]))


def _cut_at_session_end(stay: Stay, sessions: list[tuple[float, float]]) -> Stay:
    """Returns the stay, ended at the latest with the driver session in which it began."""
    for began, seen in sessions:
        if began <= stay.began <= seen:
            return replace(stay, ended=min(stay.ended, seen))
    return stay


def _in_lanes(found: Iterable[Stay]) -> list[Stay]:
    """Assigns each stay to the first free lane of its device; the devices are below each other."""
    by_device: dict[str, list[Stay]] = defaultdict(list)
    for stay in sorted(found, key=lambda stay: stay.began):
        by_device[stay.device].append(stay)
    placed: list[Stay] = []
    first = 0
    for _, on_device in sorted(by_device.items()):
        free_at: list[float] = []
        for stay in on_device:
            lane = next((n for n, at in enumerate(free_at) if at <= stay.began), len(free_at))
            free_at[lane : lane + 1] = [stay.ended]
            placed.append(replace(stay, lane=first + lane))
        first += len(free_at)
    return placed
