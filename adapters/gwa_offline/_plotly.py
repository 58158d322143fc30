"""What the interactive figures share: style, lines, and texts that Plotly reads as they are."""

from __future__ import annotations

import html
import math
from typing import Any

try:
    import plotly.graph_objects as go
except ImportError as error:
    raise ImportError("the HTML report needs plotly: pip install 'gwa-core[report]'") from error

__all__ = ["clean", "escape", "line", "style"]


# Colours are CSS variables of the page, whose script puts in the values of the light or dark
# scheme; so each colour is written once, in the template.
def style(figure: go.Figure, height: int, *, top: int = 36, **layout: Any) -> go.Figure:
    axis = {
        "automargin": True,
        "gridcolor": "var(--grid)",
        "zerolinecolor": "var(--axis)",
        "linecolor": "var(--axis)",
        "title_standoff": 8,
        "ticks": "",
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


def clean(values: Any) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


def line(x: Any, y: Any, color: str, name: str, **options: Any) -> go.Scatter:
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
