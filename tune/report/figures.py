"""The figures of a report, from the results alone: Optuna's, those it lacks, one style for all.

Knows no HTML and no Ray.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.pareto import front_numbers
from tune.config.schema import StoppingConfig
from tune.report.facts import saved
from tune.report.optuna_figures import Drawn, plot
from tune.run_folder.records import STATES, TrialRecord
from tune.run_folder.results import UNTRAINED, Results
from tune.run_folder.wording import describe

# Okabe and Ito's palette, which the colour-blind can tell apart; the symbols differ as well.
_LOOKS = {
    "finished": ("#0072B2", "circle"),
    "stopped": ("#E69F00", "x"),
    "failed": ("#D55E00", "triangle-down"),
    "running": ("#CC79A7", "circle-open"),
    "winner": ("#009E73", "star"),
    "base": ("#000000", "diamond"),
}
_GREY = "#999999"
_AXIS = {
    "gridcolor": "#e5e5e5",
    "zeroline": False,
    "automargin": True,
    "ticklabelstandoff": 5,
    "exponentformat": "e",
}
_STYLE = go.layout.Template(
    layout={
        "colorway": [colour for colour, _ in _LOOKS.values()],
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "hovermode": "closest",
        "margin": {"l": 10, "r": 16, "t": 28, "b": 10},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
_Marker = Mapping[str, object]
"""How a point or a bar looks, as Plotly takes it."""
_UNMEASURED = "No trial was measured so far."


def draw(results: Results) -> dict[str, Drawn]:
    """The figures of each section, by its name and in the page's order; or the sentence that stands
    in their place."""
    metrics = [part.metric for part in results.objective.parts]
    drawn = plot(results)
    if isinstance(drawn["history"], list):
        for figure, metric in zip(drawn["history"], metrics, strict=True):
            _complete_history(results, figure, metric)
    if isinstance(drawn["importance"], list):
        for figure in drawn["importance"]:
            figure.update_traces(marker_color=_LOOKS["finished"][0])
    slices = drawn.pop("slices")
    drawn["curves"] = _curves(results, metrics)
    stopping = results.search.get("stopping", {"name": "none"})
    if stopping["name"] != "none" and stopping["metric"] not in metrics:
        drawn["compared"] = _curves(results, [stopping["metric"]]) if _rungs(results) else ""
    drawn |= {"pareto": _pareto(results), "slices": slices, "cost": _cost(results)}
    for figures in drawn.values():
        for figure in figures if isinstance(figures, list) else []:
            figure.update_layout(template=_STYLE, title=None)
    return drawn


def _complete_history(results: Results, figure: go.Figure, metric: str) -> None:
    """Adds the stopped trials, which Optuna leaves out."""
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(name="best so far", line={"color": _LOOKS["winner"][0], "shape": "hv"})
        else:
            trace.update(name="finished", marker=_marker("finished"))
    stopped = [i for i, t in enumerate(results.trials) if t.state == "stopped" and t.metrics]
    if stopped:
        some = [results.trials[number] for number in stopped]
        values = [trial.metrics[metric] for trial in some]
        figure.add_trace(_points(stopped, values, some, "stopped", "stopped: best until then"))


def _curves(results: Results, metrics: list[str]) -> Drawn:
    if not any(trial.curve for trial in results.trials):
        return _UNMEASURED
    return [_curves_of(results, metric) for metric in metrics]


def _curves_of(results: Results, metric: str) -> go.Figure:
    """The metric against pairs_seen, with the rungs, and a mark where each trial ended."""
    figure = go.Figure()
    for look, trials in _by_look(results).items():
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in trials:  # one trace for all curves, with gaps between: hundreds draw slowly
            x += [*(report["pairs_seen"] for report in trial.curve), None]
            y += [*(report[metric] for report in trial.curve), None]
            text += [_hover(trial)] * (len(trial.curve) + 1)
        thick = {"width": 3} if look == "winner" else {"width": 1}
        figure.add_scatter(
            x=x,
            y=y,
            text=text,
            mode="lines",
            name=look,
            legendgroup=look,
            showlegend=False,
            line={"color": _LOOKS[look][0], **thick},
            opacity=1 if look == "winner" else 0.5,
        )
        ends = [trial.metrics if look == "winner" else trial.curve[-1] for trial in trials]
        at = [report["pairs_seen"] for report in ends]
        figure.add_trace(_points(at, [report[metric] for report in ends], trials, look, look))
    for rung in _rungs(results):
        figure.add_vline(
            rung,
            line={"color": _GREY, "dash": "dot", "width": 1},
            annotation={"text": f"rung {rung}", "textangle": -90, "font": {"size": 10}},
            annotation_position="bottom left",
        )
    figure.update_layout(
        xaxis={"title": "pairs trained on", "rangemode": "tozero"}, yaxis_title=metric
    )
    return figure


def _rungs(results: Results) -> list[int]:
    """As far as any trial came; none where results.json does not say what was searched."""
    if not results.search:
        return []
    reached = max((trial.pairs_seen for trial in results.trials), default=0)
    return StoppingConfig.model_validate(results.search["stopping"]).rungs(reached)


def _pareto(results: Results) -> Drawn:
    """Each trial's best report: the two objectives, or of one alone accuracy against drift."""
    looks = _by_look(results)
    if not looks:
        return _UNMEASURED
    plane = results.objective.plane
    x, y = plane.other.metric, plane.metric
    base = _base(results)
    points = [trial.metrics for trials in looks.values() for trial in trials]
    points += [base] if {x, y} <= base.keys() else []
    front = [
        point
        for point, number in zip(points, front_numbers([plane.key(p) for p in points]), strict=True)
        if number == 0
    ]
    front.sort(key=lambda point: point[x])
    figure = go.Figure()
    figure.add_scatter(
        x=[point[x] for point in front],
        y=[point[y] for point in front],
        mode="lines",
        # Steps: between two trials nothing was reached that one of them does not have.
        line={"color": _GREY, "shape": "hv" if plane.other.mode == "min" else "vh"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for look, trials in looks.items():
        at = [trial.metrics[x] for trial in trials]
        values = [trial.metrics[y] for trial in trials]
        figure.add_trace(_points(at, values, trials, look, look))
    if base in points:
        marker = _marker("base")
        figure.add_scatter(x=[base[x]], y=[base[y]], mode="markers", name="base", marker=marker)
    units = {each.name: f"{each.name}, {each.unit}" for each in metrics.METRICS if each.unit}
    figure.update_layout(xaxis_title=units.get(x, x), yaxis_title=units.get(y, y))
    return [figure]


def _base(results: Results) -> dict[str, float]:
    """What is known of the base on the held-out pairs."""
    known = {metrics.PREFIX + name: value for name, value in UNTRAINED.items()}
    measured = results.base.get("eval", Numbers()).metrics
    return {**known, **{metrics.PREFIX + name: value for name, value in measured.items()}}


def _cost(results: Results) -> Drawn:
    spent = {
        state: sum(run.seconds for run in results.runs if run.state == state) for state in STATES
    }
    total = sum(spent.values())
    if not total:
        return _UNMEASURED
    gpus = results.cost.gpu_seconds / total
    unit, seconds = ("hours", 3600) if total > 10800 else ("minutes", 60)
    scale = (gpus or 1) / seconds
    figure = go.Figure()
    for state, length in spent.items():
        if length:
            colour = _LOOKS.get(state, (_GREY, ""))[0]
            _add_bar(figure, state, "spent", length * scale, {"color": colour})
    if estimate := saved(results):
        look = {"color": "#dddddd", "pattern": {"shape": "/"}}
        _add_bar(figure, "never trained", "saved (estimate)", estimate.seconds * scale, look)
    figure.update_layout(
        barmode="stack",
        legend_traceorder="normal",
        xaxis_title=f"{'GPU' if gpus else 'trial'}-{unit}",
        yaxis={"autorange": "reversed"},
    )
    return [figure]


def _add_bar(figure: go.Figure, name: str, row: str, length: float, marker: _Marker) -> None:
    hover = f"{name}: %{{x:.3g}}<extra></extra>"
    figure.add_bar(
        x=[length], y=[row], name=name, orientation="h", marker=marker, hovertemplate=hover
    )


def _by_look(results: Results) -> dict[str, list[TrialRecord]]:
    """The measured trials by state, the winner apart and last, so that it lies on top."""
    looks: dict[str, list[TrialRecord]] = {}
    won = results.winner.trial if results.winner else ""
    for look in ("stopped", "failed", "running", "finished", "winner"):
        for trial in results.trials:
            # A trial that was interrupted, or waits to go on, has a curve already.
            state = trial.state if trial.has_ended else "running"
            if trial.curve and look == ("winner" if trial.id == won else state):
                looks.setdefault(look, []).append(trial)
    return looks


def _points(
    x: Sequence[float], y: list[float], trials: list[TrialRecord], look: str, name: str
) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        text=[_hover(trial) for trial in trials],
        mode="markers",
        name=name,
        legendgroup=look,
        marker=_marker(look),
    )


def _marker(look: str) -> _Marker:
    colour, symbol = _LOOKS[look]
    return {"color": colour, "symbol": symbol, "size": 14 if look == "winner" else 7}


def _hover(trial: TrialRecord) -> str:
    """Escaped, for Plotly reads tags in what it writes on a figure."""
    lines = [trial.id, describe(trial.config), trial.error or ""]
    return "<br>".join(html.escape(line, quote=False) for line in lines if line)
