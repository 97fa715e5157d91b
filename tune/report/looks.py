"""Defines how figures look: a colour and a symbol for each state, and a light and a dark theme.

Knows no trials. `page.js` applies the theme that the reader's system prefers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

LOOKS = {
    "finished": ("#2986C4", "circle"),
    "stopped": ("#7B8794", "x"),
    "failed": ("#D55E00", "triangle-down"),
    "running": ("#CC79A7", "circle-open"),
    "winner": ("#009E73", "star"),
    "base": ("#8C6D1F", "diamond"),
}
"""Colours close to Okabe and Ito's palette, which colour-blind people can tell apart; the symbols
differ too. On white and on dark pages each has a contrast of at least 3, as WCAG requires."""
GREY = "#808890"
_MANY = 200
SHADES = 8
"""Colour steps between the worst and the best line of parallel coordinates."""

Marker = Mapping[str, object]
"""How a point or a bar looks, as Plotly takes it."""


class Theme(TypedDict):
    """What differs between a light page and a dark one."""

    template: Mapping[str, object]
    """A Plotly template."""
    shades: list[str]
    """Colours of lines, the worst first."""


def marker(look: str, count: int = 1) -> Marker:
    """Returns the marker of a look; many points are drawn small."""
    colour, symbol = LOOKS[look]
    size = 14 if look == "winner" else 7 if count < _MANY else 4
    return {"color": colour, "symbol": symbol, "size": size}


def opacity(count: int) -> float:
    """Returns the opacity of lines; many lines are drawn more transparent."""
    return 0.7 if count < _MANY else 0.3


def themes() -> dict[str, Theme]:
    """Returns the themes by the names of `prefers-color-scheme`."""
    return {
        "light": _theme("#1a1a1a", "#e5e5e5", "#ffffff", ("#c6d0d9", "#0b3d66")),
        "dark": _theme("#e8e8e8", "#363c43", "#15181c", ("#3d4852", "#c4e2ff")),
    }


def _theme(ink: str, grid: str, ground: str, shades: tuple[str, str]) -> Theme:
    # The layout of all figures.
    axis = {
        "gridcolor": grid,
        "zeroline": False,
        "automargin": True,
        "ticklabelstandoff": 5,
        "exponentformat": "e",
        "title": {"standoff": 8},
    }
    scale = [_mixed(*shades, step / (SHADES - 1)) for step in range(SHADES)]
    layout = {
        "colorway": [colour for colour, _ in LOOKS.values()],
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": ink},
        "plot_bgcolor": "rgba(0,0,0,0)",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": ground,
            "bordercolor": GREY,
            "font": {"color": ink},
            "align": "left",
            "namelength": -1,
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ink},
        "margin": {"l": 10, "r": 16, "t": 28, "b": 10},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "annotationdefaults": {
            "font": {"color": ink},
            "showarrow": False,
            "bgcolor": f"{ground}cc",  # lines pass below
            "borderpad": 0,
        },
        "xaxis": axis,
        "yaxis": axis,
    }
    # The colours of contours.
    contour = {
        "colorscale": [[step / (SHADES - 1), colour] for step, colour in enumerate(scale)],
        "colorbar": {"outlinewidth": 0, "thickness": 12},
    }
    return {"template": {"layout": layout, "data": {"contour": [contour]}}, "shades": scale}


def _mixed(low: str, high: str, share: float) -> str:
    """Returns the colour at a share of the way from low to high, all as `#rrggbb`."""
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (low, high)]
    channels = [round(one + share * (other - one)) for one, other in zip(*ends, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in channels)
