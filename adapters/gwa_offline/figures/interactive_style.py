"""Style of the figures of the HTML page, and the parts that several of them have."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

try:
    import plotly.graph_objects as go
except ImportError as error:
    raise ImportError("the HTML report needs plotly: pip install 'gwa-core[report]'") from error

__all__ = ["add_band", "clean", "escape", "line", "shade_warmup", "style"]


# Colours are CSS variables of the page, whose script puts in the values of the light or dark
# scheme; so each colour is written once, in the template.
def style(figure: go.Figure, height: int, *, top: int = 36, **layout: Any) -> go.Figure:
    """Return a figure in the style of the page."""
    axis = {
        "automargin": True,
        "gridcolor": "var(--grid)",
        "zerolinecolor": "var(--axis)",
        "linecolor": "var(--axis)",
        "title_standoff": 8,
        "ticks": "",
        "exponentformat": "power",  # not "20µ"
    }
    figure.update_xaxes(axis).update_yaxes(axis)
    return figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": top, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "var(--text)"},
        hoverlabel={
            "bgcolor": "var(--card)",
            "bordercolor": "var(--axis)",
            "font_color": "var(--text)",
        },
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        **layout,
    )


def escape(text: str) -> str:
    """Escape what Plotly would read as its HTML or, between dollars, as TeX."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def clean(values: Iterable[float]) -> list[float | None]:
    """Return numbers as JSON has them: None where not finite."""
    return [float(v) if math.isfinite(v) else None for v in values]


def line(x: Any, y: Any, color: str, name: str, **options: Any) -> go.Scatter:
    """Return a line with dots, unless it is long."""
    return go.Scatter(
        x=x,
        y=clean(y),
        name=name,
        mode="lines+markers" if len(x) <= 50 else "lines",
        line={"color": f"var(--{color})", "width": 2.5},
        marker={"size": 5},
        hovertemplate="%{y:.4g}",
        **options,
    )


def add_band(figure: go.Figure, epochs: list[int], values: Any, half: Any, known: Any) -> None:
    """Draw a band of +- half around each stretch of known values."""
    band_x: list[float | None] = []
    band_y: list[float | None] = []
    for run in np.split(np.arange(len(values)), np.flatnonzero(np.diff(known)) + 1):
        if known[run[0]]:  # one closed outline for each stretch of known epochs
            band_x += [*(epochs[i] for i in run), *(epochs[i] for i in run[::-1]), None]
            band_y += [*(values + half)[run].tolist(), *(values - half)[run[::-1]].tolist(), None]
    figure.add_scatter(
        x=band_x,
        y=band_y,
        fill="toself",
        fillcolor="var(--band)",
        line={"width": 0},
        mode="lines",
        name="±2 standard errors",
        hoverinfo="skip",
    )


def shade_warmup(figure: go.Figure, epochs: list[int], warmup: int, words: str = "") -> None:
    """Draw the warm-up on grey, with words."""
    if 0 < warmup < len(epochs):
        end = (epochs[warmup - 1] + epochs[warmup]) / 2
        label = {
            "text": words,
            "textposition": "top left",
            "font": {"size": 12, "color": "var(--muted)"},
        }
        figure.add_vrect(
            epochs[0], end, fillcolor="var(--grid)", line_width=0, layer="below", label=label
        )
