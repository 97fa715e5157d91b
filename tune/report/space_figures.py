"""The figures of the axes: parallel coordinates, importance, slices, and a contour of two.

Each shows an axis as it was searched, and the stopped trials beside the finished ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from tune.config.objective import Objective
from tune.report.importance import importances
from tune.report.looks import LOOKS, SHADES, marker, opacity
from tune.report.scale import Scale, Tick
from tune.report.scene import UNMEASURED, Drawn, Numbered, Scene, lines, points, short
from tune.run_folder.wording import value_text

_NO_SPACE = "This results.json does not say what was searched: an earlier version wrote it."
_NO_AXES = "No axis was searched."
_INACTIVE = -0.12
"""Where a line crosses an axis that its trial did not have."""
_GRID = 30
"""Cells of a contour along each axis."""
_WIDTH = 0.1
"""Of the kernel, as a share of an axis."""
_NEAR = 0.25
"""How far from the next trial a contour is still drawn."""
_FEWEST_OF_A_CONTOUR = 4

_Floats = NDArray[np.float64]


def draw_space(scene: Scene) -> dict[str, Drawn]:
    """By section the figures, with two objectives those of the second after those of the first."""
    names = ("importance", "parallel", "slices", "contour")
    if not scene.results.search:
        return dict.fromkeys(names, _NO_SPACE)
    if not scene.scales:
        return dict.fromkeys(names, _NO_AXES)
    if not scene.measured:
        return dict.fromkeys(names, UNMEASURED)
    parts = scene.results.objective.parts
    found = [importances(scene, part) for part in parts]
    slices = [_slice(scene, scale, part) for part in parts for scale in scene.scales]
    return {
        "importance": _each(
            [_importance(scene, each, part) for each, part in zip(found, parts, strict=True)]
        ),
        "parallel": [_parallel(scene, part) for part in parts],
        "slices": slices,
        "contour": _each(
            [_contour(scene, each, part) for each, part in zip(found, parts, strict=True)]
        ),
    }


def _each(made: Sequence[go.Figure | str]) -> Drawn:
    figures = [each for each in made if not isinstance(each, str)]
    return figures or str(made[0])


def _importance(scene: Scene, found: Mapping[str, float] | str, part: Objective) -> go.Figure | str:
    if isinstance(found, str):
        return found
    labels = {scale.path: scale.label for scale in scene.scales}
    figure = go.Figure()
    figure.add_bar(
        x=short(list(found.values())),
        y=[labels[path] for path in found],
        orientation="h",
        text=[f"{value:.2f}" if value >= 0.01 else "<0.01" for value in found.values()],
        textposition="outside",
        cliponaxis=False,
        marker={"color": LOOKS["finished"][0]},
        hoverinfo="skip",
    )
    # Room for the number behind the longest bar.
    return figure.update_layout(
        xaxis={"title": f"importance for {part.metric}", "range": [0, 1.15 * max(found.values())]},
        yaxis={"autorange": "reversed"},
        margin={"r": 30},
    )


def _parallel(scene: Scene, part: Objective) -> go.Figure:
    """A line a trial through the objective and its values, the best in the strongest colour; that
    of a trial which did not finish is dotted."""
    trials = scene.measured
    values = {number: trial.metrics[part.metric] for number, trial in trials.items()}
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    order = sorted(values, key=values.__getitem__, reverse=part.mode == "min")
    shades = {number: place * SHADES // len(order) for place, number in enumerate(order)}
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
    ends = [Tick(0, value_text(low)), Tick(1, value_text(high))] if high > low else []
    ticks = [ends or [Tick(0, value_text(low))], *(scale.ticks() for scale in scene.scales)]
    for place, marks in enumerate(ticks):
        for tick in marks:
            _write_beside(figure, place, tick)
    for place, scale in enumerate(scene.scales, 1):
        if any(scale.path not in trial.config for trial in trials.values()):
            _write_beside(figure, place, Tick(_INACTIVE, "–"))
    # A phone has room for a word an axis, not for its whole name.
    labels = [
        re.sub("([/_.])", r"\1<br>", label)
        for label in [part.metric, *(scale.label for scale in scene.scales)]
    ]
    last = len(scene.scales)
    return figure.update_layout(
        xaxis={"tickvals": list(range(last + 1)), "ticktext": labels, "tickangle": 0,
               "tickfont": {"size": 11}, "range": [-0.6, last + 0.15]},
        yaxis={"showgrid": False, "showticklabels": False, "range": [_INACTIVE - 0.06, 1.06]},
        margin={"t": 10},
    )  # fmt: skip


def _write_beside(figure: go.Figure, place: int, tick: Tick) -> None:
    """A value on the left of an axis."""
    figure.add_annotation(
        x=place, y=tick.at, text=tick.text, xanchor="right", xshift=-4, font={"size": 10}
    )


def _slice(scene: Scene, scale: Scale, part: Objective) -> go.Figure:
    """The objective against one axis."""
    figure = go.Figure()
    for look, trials in scene.by_look.items():
        having = _having(trials, scale)
        if not having:
            continue
        x = [scale.at(trial.config[scale.path]) for trial in having.values()]
        y = [trial.metrics[part.metric] for trial in having.values()]
        trace = points(x, y, having, look)
        trace.update(hovertemplate="%{text}<br>%{y:.4~g}<extra></extra>")
        figure.add_trace(trace)
    return figure.update_layout(
        xaxis={"title": scale.label, **scale.settings()},
        yaxis={"title": part.metric, "nticks": 6},
        showlegend=False,
    )


def _having(trials: Numbered, *scales: Scale) -> Numbered:
    """The trials that have all of these axes."""
    return {
        number: trial
        for number, trial in trials.items()
        if all(scale.path in trial.config for scale in scales)
    }


def _contour(scene: Scene, found: Mapping[str, float] | str, part: Objective) -> go.Figure | str:
    """The objective over two ranges, smoothed over the trials near by: those that most trials have,
    and of these the ones that decide most."""
    ranges = [scale for scale in scene.scales if not scale.choices]
    if len(ranges) < 2:
        return "This needs two axes that are ranges of numbers."
    decides = {} if isinstance(found, str) else found
    having = {scale.path: len(_having(scene.measured, scale)) for scale in ranges}
    ranges.sort(key=lambda scale: (having[scale.path], decides.get(scale.path, 0)), reverse=True)
    chosen = across, up = ranges[:2]
    trials = _having(scene.measured, across, up)
    if len(trials) < _FEWEST_OF_A_CONTOUR:
        return (
            f"This needs {_FEWEST_OF_A_CONTOUR} measured trials with {across.label} and {up.label};"
            f" there are {len(trials)}."
        )
    at = np.array(
        [[axis.unit(trial.config[axis.path]) for axis in chosen] for trial in trials.values()]
    )
    values = np.array([trial.metrics[part.metric] for trial in trials.values()])
    steps = np.linspace(0, 1, _GRID)
    smooth = smoothed(at, values, steps)
    figure = go.Figure()
    figure.add_contour(
        x=short([across.value(step) for step in steps]),
        y=short([up.value(step) for step in steps]),
        z=[short([None if np.isnan(each) else float(each) for each in row]) for row in smooth],
        contours={"coloring": "heatmap"},
        line={"width": 0.5, "smoothing": 1},
        reversescale=part.mode == "min",
        hoverinfo="skip",
        colorbar={"title": {"text": part.metric, "side": "right"}},
    )
    for look, some in scene.by_look.items():
        there = {number: trial for number, trial in some.items() if number in trials}
        if there:
            x, y = ([axis.at(t.config[axis.path]) for t in there.values()] for axis in chosen)
            trace = points(x, y, there, look)
            outline = {"color": "#ffffff", "width": 1}
            trace.update(marker={**marker(look, len(there)), "line": outline})
            figure.add_trace(trace)
    return figure.update_layout(
        xaxis={"title": across.label, **across.settings()},
        yaxis={"title": up.label, **up.settings()},
    )


def smoothed(at: _Floats, values: _Floats, steps: _Floats) -> _Floats:
    """The mean of values near each cell of a square grid, weighted by a Gaussian kernel (Nadaraya
    and Watson, 1964); NaN where none is near.

    `at` has shape (N, 2), between 0 and 1 along both axes, `values` (N,), `steps` (G,): the
    places of the cells along each axis. Returns shape (G, G), rows along the second axis.
    """
    cells = np.stack(np.meshgrid(steps, steps), axis=-1)
    distances = ((cells[:, :, None, :] - at) ** 2).sum(axis=-1)
    weights = np.exp(-distances / (2 * _WIDTH**2))
    means = (weights * values).sum(axis=-1) / weights.sum(axis=-1)
    is_far = distances.min(axis=-1) > _NEAR**2
    return np.where(is_far, np.nan, means)
