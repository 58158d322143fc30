"""Plotly figures of a report, for its HTML page."""

from __future__ import annotations

from typing import Any

import numpy as np

from gwa_offline.analysis.curves import SignalCurve, SignalCurves
from gwa_offline.analysis.findings import Findings
from gwa_offline.analysis.view import (
    column,
    curve_limits,
    epoch_numbers,
    format_number,
    healthy_epochs,
    lowest_classes,
    metric_names,
    metric_values,
    occupied_bins,
    unit,
)
from gwa_offline.figures.interactive_style import (
    add_band,
    clean,
    escape,
    line,
    shade_warmup,
    style,
)

try:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ImportError as error:
    raise ImportError("the HTML report needs plotly: pip install 'gwa-core[report]'") from error

__all__ = ["BARS", "TITLES", "make_figures"]

BARS = 20  # classes in the bar chart; the lowest ones where there are more
LARGEST = 2.0  # standard errors in half a band
FEW = 10  # epochs of which each has its tick
SHARES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # ticks that a reader knows, in per cent
TITLES = {"gwa": "GWA"}  # of signals that are not written as their columns are

Figures = dict[str, go.Figure]


def make_figures(report: Findings, signals: SignalCurves | None = None) -> Figures:
    """Return the figures of the page by name.

    Parameters
    ----------
    report : Report
        T >= 1 epochs; the figures over epochs are left out where T = 1.
    signals : SignalCurves or None
        A figure for each signal of them, ``signal-NAME``.

    Returns
    -------
    dict of str to plotly.graph_objects.Figure
        Their colours are names of CSS variables, such as "var(--gwa)".
    """
    figures = _epoch_figures(report, signals) if len(report.epochs) > 1 else {}
    figures["histogram"] = _histogram(report)
    if len(lowest_classes(report, BARS)):
        figures["classes"] = _class_bars(report)
    return figures


def _epoch_figures(report: Findings, signals: SignalCurves | None) -> Figures:
    epochs, name, shown = epoch_numbers(report), unit(report.epochs), report.shown
    figures = {
        "decision": _decision(report, epochs, name),
        "curve": _curve(report, epochs, name),
        "moments": make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06),
        "distribution": _distribution(report, epochs, name),
    }
    for row, (field, title) in enumerate([("mean", "mean"), ("kurtosis", "excess kurtosis")], 1):
        trace = line(epochs, column(report, field), "gwa", title, showlegend=False)
        figures["moments"].add_trace(trace, row=row, col=1)
        figures["moments"].update_yaxes(title_text=title, row=row, col=1)
    limits = {"denominator": 0.0, "bimodality": 5 / 9, "separation": None}
    limits |= {"negative_fraction": None, "omitted": None}
    for field, limit in limits.items():
        values = column(report, field)
        trace = line(epochs, values, "gwa", field, showlegend=False)
        if field == "omitted":
            trace = go.Bar(x=epochs, y=clean(values), marker={"color": "var(--bad)"})
        figure = figures[field] = style(go.Figure(trace), 170, top=8)
        figure.update_yaxes(nticks=5, rangemode="tozero").update_xaxes(title_text=name)
        if limit is not None:
            figure.add_hline(limit, line={"color": "var(--bad)", "width": 1.5, "dash": "dot"})
    figures["moments"].add_hline(
        -report.beta, row=2, col=1, line={"color": "var(--bad)", "width": 1.5, "dash": "dot"}
    )
    figures["moments"].update_xaxes(title_text=name, row=2, col=1)
    style(figures["moments"], 420, top=8, hovermode="x unified")
    if signals is not None:
        for signal in signals.signals:
            figures[f"signal-{signal.name}"] = _signal(epochs, name, signal, signals)
    pad = 0.02 * (epochs[-1] - epochs[0])
    half = (epochs[-1] - epochs[0]) / (2 * len(epochs) - 2)
    for key, figure in figures.items():
        if key != "distribution":  # its cells reach half an epoch further
            more = max(pad, half) if key == "decision" else pad  # and so do the bars of the shares
            figure.update_xaxes(range=[epochs[0] - more, epochs[-1] + more], zeroline=False)
        if len(epochs) <= FEW:
            # There is no half of an epoch.
            figure.update_xaxes(tickvals=epochs)
        figure.update_xaxes(exponentformat="none", separatethousands=True)
        if report.best_index is not None:
            figure.add_vline(
                epochs[shown], line={"color": "var(--best)", "width": 1.5, "dash": "dash"}
            )
    return figures


def _decision(report: Findings, epochs: list[int], axis: str) -> go.Figure:
    """Draw the curve that decided, with what the rule could not keep and could not tell apart."""
    seen, best = report.decision, report.best_index
    half = LARGEST * np.nan_to_num(seen.standard_errors)
    known = np.isfinite(seen.values)
    if seen.signal == "gwa":
        known &= healthy_epochs(report)
    values = np.where(known, seen.values, np.nan)
    figure = go.Figure()
    if half.any():
        add_band(figure, epochs, seen.values, half, known)
    title = TITLES.get(seen.signal, escape(seen.signal))
    figure.add_trace(line(epochs, values, "gwa", title).update(marker={"size": 4}))
    for name in metric_names(report):
        if name != seen.signal:
            numbers = metric_values(report, name)
            trace = line(epochs, numbers, "metric", escape(name), yaxis="y2", visible=False)
            figure.add_trace(trace.update(meta={"metric": name}, line={"dash": "dot", "width": 2}))
    near = np.setdiff1d(np.flatnonzero(seen.tied), [] if best is None else [best])
    kept = np.array([] if best is None else [best], np.intp)
    for places, name, symbol, size in [
        (near, "about as good", "circle", 9),
        (kept, f"best {axis}", "star", 18),
    ]:
        if len(places):
            figure.add_scatter(
                x=[epochs[i] for i in places],
                y=clean(values[i] for i in places),
                mode="markers",
                name=name,
                hoverinfo="skip",
                marker={
                    "symbol": symbol,
                    "size": size,
                    "color": "var(--best)",
                    "line": {"width": 1.5, "color": "var(--card)"},
                },
            )
    # What the rule does not keep must not flatten the rest.
    judged = known & (np.arange(len(epochs)) >= seen.warmup)
    judged = judged if judged.any() else known
    low, high = curve_limits(values[judged], half[judged])
    shade_warmup(figure, epochs, seen.warmup, "warm-up")
    figure.update_xaxes(title_text=axis).update_yaxes(title_text=title, range=[low, high])
    second = {"overlaying": "y", "side": "right", "showgrid": False, "zeroline": False}
    # Ticks of its own: those in step with the left axis would be odd numbers.
    second |= {"tickmode": "auto", "nticks": 8, "automargin": True, "title_standoff": 14}
    style(figure, 380, hovermode="x unified", yaxis2=second)
    return _add_shares(figure, report, epochs) if report.average_shares.any() else figure


def _curve(report: Findings, epochs: list[int], axis: str) -> go.Figure:
    gwa, error = column(report, "gwa"), column(report, "gwa_standard_error")
    healthy = healthy_epochs(report)
    half = LARGEST * np.nan_to_num(error)
    values = np.where(healthy, gwa, np.nan)
    figure = go.Figure()
    add_band(figure, epochs, gwa, half, healthy)
    figure.add_trace(line(epochs, values, "gwa", "GWA"))
    shade_warmup(figure, epochs, report.decision.warmup, "warm-up")
    low, high = curve_limits(values[healthy], half[healthy])
    if not healthy.all():
        sick, edge = np.flatnonzero(~healthy), 0.04 * (high - low)
        figure.add_scatter(
            x=[epochs[i] for i in sick],
            # A value near the pole of Eq. 2 would flatten the curve: it is drawn at the edge instead.
            y=np.clip(np.nan_to_num(gwa[sick], nan=low), low + edge, high - edge).tolist(),
            customdata=[format_number(float(gwa[i])) for i in sick],
            mode="markers",
            name=f"unhealthy {axis}",
            hovertemplate="%{customdata}",
            marker={"symbol": "x", "size": 11, "color": "var(--bad)"},
        )
    figure.update_xaxes(title_text=axis).update_yaxes(title_text="GWA", range=[low, high])
    return style(figure, 300, hovermode="x unified")


def _add_shares(figure: go.Figure, report: Findings, epochs: list[int]) -> go.Figure:
    """Draw the shares of the epochs in the average of the weights, in a strip below the curve."""
    figure.add_bar(
        x=epochs,
        y=(100 * report.average_shares).tolist(),
        yaxis="y3",
        name="share in the average of the weights",
        showlegend=False,
        marker={"color": "var(--best)", "line": {"width": 0}},
        hovertemplate="%{y:.3g} %",
    )
    most = 100 * float(report.average_shares.max())
    tick = max((x for x in SHARES if x <= most), default=most)
    strip: dict[str, Any] = {"domain": [0.0, 0.14], "title_text": "share", "title_standoff": 8}
    strip |= {"tickvals": [0, tick], "ticktext": ["0 %", f"{tick:.2g} %"]}
    strip |= {"rangemode": "tozero", "zeroline": False, "automargin": True}
    return figure.update_layout(
        yaxis={"domain": [0.22, 1.0]},
        yaxis3={**strip, "gridcolor": "var(--grid)"},
        xaxis={"anchor": "y3"},
        hoversubplots="axis",
    )


def _signal(epochs: list[int], axis: str, signal: SignalCurve, beside: SignalCurves) -> go.Figure:
    figure = go.Figure()
    drawn = [
        (beside.metric, "metric", {"dash": "dot"}),
        (beside.gwa, "gwa", {}),
        (signal, "text", {}),
    ]
    for curve, color, dash in drawn:
        if curve is None:
            continue
        name = "GWA" if curve is beside.gwa else escape(curve.name)
        trace = line(epochs, curve.values, color, name, showlegend=False)
        width = 2.5 if curve is signal else 1.5
        figure.add_trace(trace.update(mode="lines", line={"width": width, **dash}))
    for curve, color, _ in drawn:
        if curve is None or curve.best_index is None:
            continue
        figure.add_scatter(
            x=[epochs[curve.best_index]],
            y=[float(np.clip(curve.values[curve.best_index], 0.0, 1.0))],
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker={
                "symbol": "star",
                "size": 15 if curve is signal else 10,
                "color": f"var(--{color})",
                "line": {"width": 1, "color": "var(--card)"},
            },
        )
    shade_warmup(figure, epochs, beside.warmup)
    figure.update_xaxes(title_text=axis)
    figure.update_yaxes(range=[-0.12, 1.12], tickvals=[0, 1], zeroline=False)
    return style(figure, 190, top=8, hovermode="x unified")


def _distribution(report: Findings, epochs: list[int], axis: str) -> go.Figure:
    edges, used = report.histogram_edges, occupied_bins(report.histograms)
    counts = report.histograms[:, used]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    relative = share / np.maximum(share.max(axis=1, keepdims=True), 1e-12)
    figure = go.Figure()
    figure.add_heatmap(
        x=epochs,
        y=((edges[1:] + edges[:-1]) / 2)[used].tolist(),
        z=relative.T.tolist(),
        customdata=(100 * share.T).tolist(),
        showscale=False,
        colorscale=[[i / 4, f"var(--heat{i})"] for i in range(5)],
        hovertemplate=f"{axis} %{{x}}, alignment %{{y:.3g}}: %{{customdata:.3g}} %<extra></extra>",
    )
    mean = line(epochs, column(report, "mean"), "best", "mean", showlegend=True)
    figure.add_trace(mean.update(mode="lines", hoverinfo="skip", hovertemplate=None))
    figure.add_hline(0.0, line={"color": "var(--text)", "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text=axis, showgrid=False)
    figure.update_yaxes(title_text="alignment", showgrid=False, zeroline=False)
    return style(figure, 380)


def _histogram(report: Findings) -> go.Figure:
    edges, used = report.histogram_edges, occupied_bins(report.histograms)
    centres = ((edges[1:] + edges[:-1]) / 2)[used]
    figure = go.Figure()
    for name, sign, color in [("negative", -1, "bad"), ("positive", 1, "gwa")]:
        side = centres * sign >= 0
        figure.add_bar(
            x=centres[side].tolist(),
            y=report.histograms[report.shown, used][side].tolist(),
            width=np.diff(edges)[used][side].tolist(),
            name=name,
            marker={"color": f"var(--{color})", "line": {"width": 0}},
            hovertemplate="alignment %{x:.3g}: %{y} samples<extra></extra>",
        )
    figure.update_xaxes(title_text="alignment").update_yaxes(title_text="samples")
    return style(figure, 380, barmode="overlay", bargap=0)


def _class_bars(report: Findings) -> go.Figure:
    order = lowest_classes(report, BARS)
    # Plotly reads a little HTML in its texts: names are escaped for it too.
    names = [report.class_names[c] for c in order]
    short = [escape(name if len(name) <= 18 else name[:17] + "…") for name in names]
    mean = report.class_mean[report.shown, order]
    gwa = report.class_gwa[report.shown, order]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    panels = [("mean alignment", mean, "metric"), ("GWA", gwa, "gwa")]
    for col, (title, values, color) in enumerate(panels, 1):
        bars = go.Bar(
            x=clean(values),
            y=list(range(len(order))),
            orientation="h",
            customdata=[escape(name) for name in names],
            marker={"color": f"var(--{color})"},
            hovertemplate="%{customdata}: %{x:.4g}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, row=1, col=col)
        figure.update_xaxes(
            title_text=title, nticks=4, tickangle=0, tickfont_size=11, row=1, col=col
        )
    style(figure, 90 + 26 * len(order), top=8, bargap=0.3)
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        zeroline=False,
        tickvals=list(range(len(order))),
        ticktext=short,
    )
    return figure.update_yaxes(showticklabels=False, row=1, col=2)
