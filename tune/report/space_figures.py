"""Draws the figures of the axes: parallel coordinates, importance, slices, and a contour of two.

Each shows the whole searched range of an axis, with stopped and finished trials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from tune.config.objective import Objective
from tune.report.importance import Scores, importances
from tune.report.looks import LOOKS, SHADES, marker, opacity
from tune.report.scale import Scale, Tick
from tune.report.scene import UNMEASURED, Drawn, Numbered, Scene, lines, points, short
from tune.run_folder.wording import value_text

_NO_SPACE = "An earlier version wrote this results.json, which does not say what was searched."
_NO_AXES = "No axis was searched."
_INACTIVE = -0.12
"""The height at which a line crosses an axis that its trial does not have."""
_GRID = 30
"""Cells of a contour along each axis."""
_WIDTH = 0.1
"""Width of the smoothing kernel, as a share of an axis."""
_NEAR = 0.25
"""The largest distance from a trial at which the contour is drawn, as a share of an axis."""
_FEWEST_OF_A_CONTOUR = 4

_Floats = NDArray[np.float64]


def draw_space(scene: Scene) -> dict[str, Drawn]:
    """Returns the figures of each section; with two objectives those of the first come first."""
    names = ("importance", "parallel", "slices", "contour")
    if not scene.results.search:
        return dict.fromkeys(names, _NO_SPACE)
    if not scene.scales:
        return dict.fromkeys(names, _NO_AXES)
    if not scene.measured:
        return dict.fromkeys(names, UNMEASURED)
    objectives = scene.results.objective.parts
    scored = [(objective, importances(scene, objective)) for objective in objectives]
    return {
        "importance": _figures_or_reason([_importance(scene, *each) for each in scored]),
        "parallel": [_parallel(scene, objective) for objective in objectives],
        "slices": [
            _slice(scene, scale, objective) for objective in objectives for scale in scene.scales
        ],
        "contour": _figures_or_reason([_contour(scene, *each) for each in scored]),
    }


def _figures_or_reason(drawn: Sequence[go.Figure | str]) -> Drawn:
    figures = [each for each in drawn if not isinstance(each, str)]
    return figures or str(drawn[0])


def _importance(scene: Scene, objective: Objective, scores: Scores) -> go.Figure | str:
    if isinstance(scores, str):
        return scores
    labels = {scale.path: scale.label for scale in scene.scales}
    figure = go.Figure()
    figure.add_bar(
        x=short(list(scores.values())),
        y=[labels[path] for path in scores],
        orientation="h",
        text=[f"{value:.2f}" if value >= 0.01 else "<0.01" for value in scores.values()],
        textposition="outside",
        cliponaxis=False,
        marker={"color": LOOKS["finished"][0]},
        hoverinfo="skip",
    )
    # The axis is longer than the longest bar, so that the number behind the bar fits.
    return figure.update_layout(
        xaxis={
            "title": f"importance for {objective.metric}",
            "range": [0, 1.15 * max(scores.values())],
        },
        yaxis={"autorange": "reversed"},
        margin={"r": 30},
    )


def _parallel(scene: Scene, objective: Objective) -> go.Figure:
    """Draws one line a trial through the objective and its values.

    The best trials have the strongest colour. Lines of trials that did not finish are dotted.
    """
    trials = scene.measured
    values = {number: trial.metrics[objective.metric] for number, trial in trials.items()}
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    # One trace for each shade, solid and dotted.
    order = sorted(values, key=values.__getitem__, reverse=objective.mode == "min")
    shades = {number: rank * SHADES // len(order) for rank, number in enumerate(order)}
    figure = go.Figure()
    for shade in range(SHADES):
        for is_whole in (False, True):
            some = [number for number in order if shades[number] == shade
                    and (trials[number].state == "finished") == is_whole]  # fmt: skip
            if not some:
                continue
            paths = [
                [
                    (values[number] - low) / span,
                    *(
                        scale.unit(trials[number].config[scale.path])
                        if scale.path in trials[number].config
                        else _INACTIVE
                        for scale in scene.scales
                    ),
                ]
                for number in some
            ]
            trace = lines(
                [at for path in paths for at in [*range(len(path)), None]],
                [at for path in paths for at in [*path, None]],
                [
                    at
                    for number, path in zip(some, paths, strict=True)
                    for at in [*[number] * len(path), None]
                ],
            )
            line = {"width": 1.5, "dash": "solid" if is_whole else "dot"}
            trace.update(
                meta=shade,
                line=line,
                opacity=min(1, 1.4 * opacity(len(order))),
                hovertemplate="%{text}<extra></extra>",
            )
            figure.add_trace(trace)
    # The values beside the axes.
    ends = [Tick(0, value_text(low)), Tick(1, value_text(high))] if high > low else []
    ticks = [ends or [Tick(0, value_text(low))], *(scale.ticks() for scale in scene.scales)]
    for axis, marks in enumerate(ticks):
        for tick in marks:
            _write_beside(figure, axis, tick)
    for axis, scale in enumerate(scene.scales, 1):
        if any(scale.path not in trial.config for trial in trials.values()):
            _write_beside(figure, axis, Tick(_INACTIVE, "–"))
    # On a phone only one word fits below an axis, so we break its name into lines.
    labels = [
        re.sub("([/_.])", r"\1<br>", label)
        for label in [objective.metric, *(scale.label for scale in scene.scales)]
    ]
    last = len(scene.scales)
    return figure.update_layout(
        xaxis={"tickvals": list(range(last + 1)), "ticktext": labels, "tickangle": 0,
               "tickfont": {"size": 11}, "range": [-0.6, last + 0.15]},
        yaxis={"showgrid": False, "showticklabels": False, "range": [_INACTIVE - 0.06, 1.06]},
        margin={"t": 10},
    )  # fmt: skip


def _write_beside(figure: go.Figure, axis: int, tick: Tick) -> None:
    """Writes a value on the left of an axis."""
    figure.add_annotation(
        x=axis, y=tick.at, text=tick.text, xanchor="right", xshift=-4, font={"size": 10}
    )


def _slice(scene: Scene, scale: Scale, objective: Objective) -> go.Figure:
    """Draws the objective against one axis."""
    figure = go.Figure()
    for look, trials in scene.by_look.items():
        having = _having(trials, scale)
        if not having:
            continue
        x = [scale.at(trial.config[scale.path]) for trial in having.values()]
        y = [trial.metrics[objective.metric] for trial in having.values()]
        trace = points(x, y, having, look)
        trace.update(hovertemplate="%{text}<br>%{y:.4~g}<extra></extra>")
        figure.add_trace(trace)
    return figure.update_layout(
        xaxis={"title": scale.label, **scale.settings()},
        yaxis={"title": objective.metric, "nticks": 6},
        showlegend=False,
    )


def _having(trials: Numbered, *scales: Scale) -> Numbered:
    """Returns the trials that have all of these axes."""
    return {
        number: trial
        for number, trial in trials.items()
        if all(scale.path in trial.config for scale in scales)
    }


def _contour(scene: Scene, objective: Objective, scores: Scores) -> go.Figure | str:
    """Draws the objective over two numeric axes, averaged over nearby trials.

    The axes are those that most trials have, and among these the most important ones.
    """
    # The two axes, and the trials that have both.
    ranges = [scale for scale in scene.scales if not scale.choices]
    if len(ranges) < 2:
        return "This needs two axes that are ranges of numbers."
    importance = {} if isinstance(scores, str) else scores
    having = {scale.path: len(_having(scene.measured, scale)) for scale in ranges}
    ranges.sort(key=lambda scale: (having[scale.path], importance.get(scale.path, 0)), reverse=True)
    chosen = across, up = ranges[:2]
    trials = _having(scene.measured, across, up)
    if len(trials) < _FEWEST_OF_A_CONTOUR:
        return (
            f"This needs {_FEWEST_OF_A_CONTOUR} measured trials with {across.label} and {up.label};"
            f" there are {len(trials)}."
        )
    # The surface.
    at = np.array(
        [[axis.unit(trial.config[axis.path]) for axis in chosen] for trial in trials.values()]
    )
    values = np.array([trial.metrics[objective.metric] for trial in trials.values()])
    steps = np.linspace(0, 1, _GRID)
    smooth = smoothed(at, values, steps)
    figure = go.Figure()
    figure.add_contour(
        x=short([across.value(step) for step in steps]),
        y=short([up.value(step) for step in steps]),
        z=[short([None if np.isnan(each) else float(each) for each in row]) for row in smooth],
        contours={"coloring": "heatmap"},
        line={"width": 0.5, "smoothing": 1},
        reversescale=objective.mode == "min",
        hoverinfo="skip",
        colorbar={"title": {"text": objective.metric, "side": "right"}},
    )
    # The trials.
    for look, of_look in scene.by_look.items():
        drawn = {number: trial for number, trial in of_look.items() if number in trials}
        if drawn:
            x, y = ([axis.at(t.config[axis.path]) for t in drawn.values()] for axis in chosen)
            trace = points(x, y, drawn, look)
            outline = {"color": "#ffffff", "width": 1}
            trace.update(marker={**marker(look, len(drawn)), "line": outline})
            figure.add_trace(trace)
    return figure.update_layout(
        xaxis={"title": across.label, **across.settings()},
        yaxis={"title": up.label, **up.settings()},
    )


def smoothed(at: _Floats, values: _Floats, steps: _Floats) -> _Floats:
    """Returns the mean of the values near each cell of a square grid, NaN where none is near.

    The weights are a Gaussian kernel (Nadaraya and Watson, 1964). `at` has shape (N, 2), between 0
    and 1 along both axes, `values` (N,), and `steps` (G,), the cells' positions along each axis.
    The result has shape (G, G), with rows along the second axis.
    """
    cells = np.stack(np.meshgrid(steps, steps), axis=-1)
    distances = ((cells[:, :, None, :] - at) ** 2).sum(axis=-1)
    weights = np.exp(-distances / (2 * _WIDTH**2))
    means = (weights * values).sum(axis=-1) / weights.sum(axis=-1)
    is_far = distances.min(axis=-1) > _NEAR**2
    return np.where(is_far, np.nan, means)
