"""Draws the figures of a report from the results alone. Knows no HTML and no Ray.

This file has the figures of metrics; `space_figures.py` has those of the axes, `timeline.py` the
devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.objective import Objective
from tune.config.pareto import front_numbers
from tune.config.schema import StoppingConfig
from tune.report.facts import TRAIN_LOSS, saved
from tune.report.looks import GREY, LOOKS, Marker, marker, opacity
from tune.report.scale import whole_ticks
from tune.report.scene import UNMEASURED, Drawn, Scene, lines, points, short
from tune.report.space_figures import draw_space
from tune.report.timeline import draw_timeline
from tune.run_folder.results import UNTRAINED, Results
from tune.run_folder.trial_record import STATES

_PAIRS = {"title": "pairs trained on", "rangemode": "tozero", "tickformat": ",d"}


def draw(scene: Scene) -> dict[str, Drawn]:
    """Returns the figures of each section by its name, or a sentence that says why it has none."""
    results = scene.results
    names = [objective.metric for objective in results.objective.parts]
    drawn: dict[str, Drawn] = {
        "curves": _curves(scene, names),
        "history": [_history(scene, objective) for objective in results.objective.parts]
        if scene.measured
        else UNMEASURED,
        "pareto": _pareto(scene),
        "cost": _cost(results),
        "timeline": draw_timeline(scene),
        **draw_space(scene),
    }
    if any(TRAIN_LOSS in trial.metrics for trial in scene.measured.values()):
        drawn["losses"] = _curves(scene, [TRAIN_LOSS, "eval/loss"])
    stopping = results.search.get("stopping", {"name": "none"})
    if stopping["name"] != "none" and stopping["metric"] not in names:
        drawn["compared"] = _curves(scene, [stopping["metric"]]) if _rungs(results) else ""
    return drawn


def _history(scene: Scene, objective: Objective) -> go.Figure:
    """Draws each trial's best report in the order of the trials, and the best one so far."""
    # The line of the best report so far.
    results = scene.results
    best, x, y = -math.inf, [], []
    for number, trial in enumerate(results.trials):
        may_win = results.objective.allows(trial.metrics)
        worth = objective.worth(trial.metrics) if may_win else -math.inf
        if worth > best:
            best = worth
            x.append(number)
            y.append(trial.metrics[objective.metric])
    if x:
        x.append(len(results.trials) - 1)
        y.append(y[-1])
    figure = go.Figure()
    figure.add_scatter(
        x=x,
        y=short(y),
        mode="lines",
        name="best so far",
        hoverinfo="skip",
        line={"color": LOOKS["winner"][0], "shape": "hv", "width": 1.5},
    )
    # The points of the trials.
    for look, trials in scene.by_look.items():
        values = [trial.metrics[objective.metric] for trial in trials.values()]
        figure.add_trace(points(list(trials), values, trials, look))
    count = len(results.trials)
    ends = [-0.5 - count / 50, count - 0.5 + count / 50]
    figure.update_layout(
        xaxis={"title": "trial", "range": ends, **whole_ticks(count)}, yaxis_title=objective.metric
    )
    return figure


def _curves(scene: Scene, names: list[str]) -> Drawn:
    return [_curves_of(scene, name) for name in names] if scene.measured else UNMEASURED


def _curves_of(scene: Scene, metric: str) -> go.Figure:
    """Draws the metric against pairs_seen, with the rungs and a mark where each trial ended."""
    # The curves of each look as one trace, and their ends as another.
    figure = go.Figure()
    for look, trials in scene.by_look.items():
        x: list[float | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        ends, drawn = [], {}
        for number, trial in trials.items():
            curve = scene.thin([report for report in trial.curve if metric in report])
            if not curve:
                continue
            x += [*(report["pairs_seen"] for report in curve), None]
            y += [*(report[metric] for report in curve), None]
            numbers += [*[number] * len(curve), None]
            last = trial.metrics if look == "winner" else curve[-1]
            ends.append((last["pairs_seen"], last[metric]))
            drawn[number] = trial
        line = {"color": LOOKS[look][0], "width": 3 if look == "winner" else 1}
        trace = lines(x, y, numbers)
        line_opacity = 1 if look == "winner" else opacity(len(drawn))
        trace.update(name=look, legendgroup=look, line=line, opacity=line_opacity)
        figure.add_trace(trace)
        figure.add_trace(points([x for x, _ in ends], [y for _, y in ends], drawn, look))
    # The rungs.
    for rung in _rungs(scene.results):
        figure.add_vline(
            rung,
            line={"color": GREY, "dash": "dot", "width": 1},
            annotation={"text": f"rung {rung:,}", "textangle": -90, "font": {"size": 10}},
            annotation_position="bottom left",
        )
    figure.update_layout(xaxis=_PAIRS, yaxis_title=metric)
    return figure


def _rungs(results: Results) -> list[int]:
    """Returns the rungs that any trial reached; none if results.json has no search."""
    if not results.search:
        return []
    reached = max((trial.pairs_seen for trial in results.trials), default=0)
    return StoppingConfig.model_validate(results.search["stopping"]).rungs(reached)


def _pareto(scene: Scene) -> Drawn:
    """Draws each trial's best report in the plane of two objectives, or of accuracy and drift."""
    if not scene.measured:
        return UNMEASURED
    # The front.
    results = scene.results
    plane = results.objective.plane
    x, y = plane.other.metric, plane.metric
    base = _base(results)
    reports = [trial.metrics for trial in results.trials if trial.metrics]
    reports += [base] if {x, y} <= base.keys() else []
    numbers = front_numbers([plane.key(report) for report in reports])
    front = [report for report, number in zip(reports, numbers, strict=True) if number == 0]
    front.sort(key=lambda report: report[x])
    figure = go.Figure()
    figure.add_scatter(
        x=short([report[x] for report in front]),
        y=short([report[y] for report in front]),
        mode="lines",
        # The line has steps, since no trial reached the values between two trials.
        line={"color": GREY, "shape": "hv" if plane.other.mode == "min" else "vh"},
        name="Pareto front",
        hoverinfo="skip",
    )
    # The trials, and the base if it was measured.
    for look, trials in scene.by_look.items():
        at = [trial.metrics[x] for trial in trials.values()]
        values = [trial.metrics[y] for trial in trials.values()]
        figure.add_trace(points(at, values, trials, look))
    if base in reports:
        figure.add_scatter(
            x=[base[x]], y=[base[y]], mode="markers", name="base", marker=marker("base")
        )
    units = {each.name: f"{each.name}, {each.unit}" for each in metrics.METRICS if each.unit}
    figure.update_layout(xaxis_title=units.get(x, x), yaxis_title=units.get(y, y))
    return [figure]


def _base(results: Results) -> dict[str, float]:
    """Returns the base's metrics on the held-out pairs, measured or known by definition."""
    known = {metrics.PREFIX + name: value for name, value in UNTRAINED.items()}
    measured = results.base.get("eval", Numbers()).metrics
    return {**known, **{metrics.PREFIX + name: value for name, value in measured.items()}}


def _cost(results: Results) -> Drawn:
    spent = {
        state: sum(run.seconds for run in results.runs if run.state == state) for state in STATES
    }
    total = sum(spent.values())
    if not total:
        return UNMEASURED
    gpus = results.cost.gpu_seconds / total
    unit, seconds = ("hours", 3600) if total > 10800 else ("minutes", 60)
    scale = (gpus or 1) / seconds
    figure = go.Figure()
    for state, length in spent.items():
        if length:
            colour = LOOKS.get(state, (GREY, ""))[0]
            _add_bar(figure, [state, "spent"], length * scale, {"color": colour})
    if estimate := saved(results):
        look = {"color": GREY, "opacity": 0.6, "pattern": {"shape": "/"}}
        _add_bar(figure, ["never trained", "saved (estimate)"], estimate.seconds * scale, look)
    figure.update_layout(
        barmode="stack",
        legend_traceorder="normal",
        xaxis_title=f"{'GPU' if gpus else 'trial'}-{unit}",
        yaxis={"autorange": "reversed"},
    )
    return [figure]


def _add_bar(figure: go.Figure, words: Sequence[str], length: float, look: Marker) -> None:
    """Adds a segment to a bar; `words` are the names of the segment and of the bar."""
    name, row = words
    hover = f"{name}: %{{x:.3g}}<extra></extra>"
    figure.add_bar(
        x=[length], y=[row], name=name, orientation="h", marker=look, hovertemplate=hover
    )
