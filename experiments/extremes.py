"""Where GWA means something else: epochs with two modes (Fig. 10) and random labels (Fig. 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.criteria import kept, regret
from experiments.store import Result, column, history, name_of
from experiments.tables import markdown
from gwa_offline.figures.style import BAD, CHOSEN, GWA, METRIC, MUTED

__all__ = ["TABLES", "bands", "health", "legend", "random_labels"]

#: Sarle's coefficient of a uniform distribution; above it there are two modes.
TWO_MODES = 5 / 9


def _unhealthy(run: Result) -> int:
    return sum(not summary.healthy for summary in history(run))


def two_modes(results: list[Result]) -> str:
    """Fig. 10 in numbers: the runs with epochs of two modes, and with unhealthy ones."""
    rows = []
    for run in results:
        bimodality = column(run, "bimodality")
        count, unhealthy = int((bimodality > TWO_MODES).sum()), _unhealthy(run)
        if not (count or unhealthy) or run["settings"]["labels"] == "random":
            continue
        cells = []
        for name in ("largest separation", "GWA, the paper's rule", "last epoch"):
            k = kept(run, name)
            cells.append("none" if k is None else f"{k}, −{regret(run, [k])[0]:.1f}")
        rows.append(
            [
                f"`{name_of(run)}`",
                str(len(bimodality)),
                str(count),
                str(unhealthy),
                f"{np.nanmin(column(run, 'denominator')):.2f}",
                f"{np.nanmax(abs(column(run, 'gwa'))):.3f}",
                *cells,
            ]
        )
    head = ["run", "epochs", "two modes", "unhealthy", "smallest denominator", "largest \\|GWA\\|"]
    head += ["separation keeps", "GWA keeps", "last epoch"]
    return markdown(head, rows) if rows else ""


def bands(ax: Any, run: Result) -> None:
    """Draw the middle eight tenths of the scores of right and of wrong labels over the epochs."""
    for side, colour in {"right": GWA, "wrong": BAD}.items():
        if f"{side}_middle" in run["epochs"]:
            low, middle, high = (column(run, f"{side}_{at}") for at in ("low", "middle", "high"))
            ax.fill_between(range(len(middle)), low, high, color=colour, alpha=0.25, lw=0)
            ax.plot(middle, color=colour, label=f"{side} labels: median, 10 to 90 %")
    ax.axhline(0, color=MUTED, lw=0.8)


def health(runs: list[Result]) -> Any:
    """Fig. 10: the scores of runs with unhealthy epochs, and the denominator of GWA below them."""
    chosen = [r for r in runs if r["settings"]["percent"] == 100 and _unhealthy(r)][:4]
    chosen = chosen or runs[:1]
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(max(3.1 * len(chosen) + 0.3, 7.0), 4.6), layout="constrained",
        squeeze=False, sharex="col",
    )  # fmt: skip
    for (above, below), run in zip(axes.T, chosen, strict=True):
        bands(above, run)
        denominator = column(run, "denominator")
        below.plot(denominator, color=MUTED)
        ill = np.flatnonzero(~(denominator > 0))
        below.plot(ill, denominator[ill], ".", color=BAD, label="unhealthy")
        below.axhline(0, color=MUTED, lw=0.8)
        below.set_xlabel("epoch")
        s = run["settings"]
        rate = ", constant rate" if s["schedule"] == "constant" else ""
        above.set_title(f"{s['study']}, {s['labels']}{rate}")
    axes[0, 0].set_ylabel("alignment γ")
    axes[1, 0].set_ylabel("kurtosis + 1.2")
    legend(figure, axes.flat)
    return figure


def random_labels(runs: list[Result]) -> Any:
    """Fig. 11: a network that learns random labels by heart."""
    run = runs[0]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), layout="constrained")
    shown = {"gwa": ("GWA", GWA), "mean": ("mean", GWA), "test_accuracy": ("test accuracy", METRIC)}
    for ax, (name, (title, colour)) in zip(axes, shown.items(), strict=True):
        ax.plot(column(run, name), color=colour, label=title)
        ax.set_xlabel("epoch")
    axes[0].set_ylabel("GWA")
    axes[1].set_ylabel("mean")
    right = axes[1].twinx()
    right.plot(column(run, "kurtosis"), color=BAD, label="kurtosis, right axis")
    axes[2].plot(
        column(run, "label_probability"), color=CHOSEN, label="probability of the given label"
    )
    legend(figure, [axes[1], right, axes[2]])
    return figure


def legend(figure: Any, axes: Iterable[Any], columns: int = 4) -> None:
    """Name each kind of line once, also one that only some of the axes have."""
    named = {
        label: line
        for ax in axes
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside upper left", ncols=columns)


#: By name: what makes the table.
TABLES: dict[str, Callable[[list[Result]], str]] = {"two-modes": two_modes}
