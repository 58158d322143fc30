"""The Matplotlib displays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from adapters.offline.reports import BEST, SICK, N, T, make_report
from adapters.offline.test_curves import COLUMNS, run
from PIL import Image

from gwa_offline.figures.displays import (
    DecisionDisplay,
    DistributionDisplay,
    GWACurveDisplay,
    MomentsDisplay,
    SamplesDisplay,
    SignalsDisplay,
    save_figures,
)
from gwa_offline.store import FeaturesError

IMAGES = np.random.default_rng(0).integers(0, 255, (N, 12, 12), dtype=np.uint8)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def line(ax: Any, label: str) -> Any:
    return next(found for found in ax.get_lines() if found.get_label().startswith(label))


def test_curve_shows_band_choice_and_unhealthy_epochs() -> None:
    report = make_report()
    display = GWACurveDisplay.from_report(report, metric="test_accuracy")
    assert display.plot() is display
    ax = display.ax_
    assert display.figure_ is ax.figure
    summaries = [record.summary for record in report.epochs]
    drawn = line(ax, "GWA").get_ydata()
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [SICK]
    assert drawn[BEST] == summaries[BEST].gwa
    assert line(ax, "best epoch").get_xydata().tolist() == [[BEST, summaries[BEST].gwa]]
    crosses = line(ax, "unhealthy epoch").get_xydata()
    assert crosses[:, 0].tolist() == [SICK]
    assert ax.get_ylim()[0] < crosses[0, 1] < ax.get_ylim()[1]
    corners = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    at_choice = corners[corners[:, 0] == BEST, 1]
    assert np.ptp(at_choice) == pytest.approx(4 * summaries[BEST].gwa_standard_error)
    assert display.metric_ax_.get_lines()[0].get_ydata()[0] == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"`metric` must be one of \['test_accuracy'"):
        GWACurveDisplay.from_report(report, metric="accuracy")


def test_shares_are_bars_below_the_curve() -> None:
    report = make_report()
    ax = GWACurveDisplay.from_report(report).plot().ax_
    (bars,) = ax.containers
    heights = [bar.get_height() for bar in bars]
    assert heights == pytest.approx(0.12 * report.average_shares / report.average_shares.max())
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(range(T))
    # The curve is above them.
    lowest = ax.transData.transform((0, np.nanmin(line(ax, "GWA").get_ydata())))
    assert ax.transAxes.inverted().transform(lowest)[1] > 0.12
    nothing = replace(report, average_shares=np.zeros(T))
    assert not GWACurveDisplay.from_report(nothing).plot().ax_.containers


def test_curve_survives_a_pole_and_no_choice() -> None:
    display = GWACurveDisplay(
        epochs=np.arange(4), gwa=np.array([0.1, -1e9, np.nan, 0.2]),
        standard_error=np.array([0.01, 1e9, np.nan, 0.01]),
        healthy=np.array([True, False, False, True]), metric=np.full(4, np.nan),
        metric_name="_hidden $x$",
    )  # fmt: skip
    ax = display.plot().ax_
    low, high = ax.get_ylim()
    assert -1 < low < 0.1 < 0.2 < high < 1
    assert not any(found.get_label().startswith("best") for found in ax.get_lines())
    display.figure_.canvas.draw()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert r"_hidden \$x\$" in texts[-1]


def test_given_axes_keep_their_style() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    before = dict(mpl.rcParams)
    display = GWACurveDisplay.from_report(make_report()).plot(left)
    assert (display.ax_, display.figure_) == (left, figure)
    moments = MomentsDisplay.from_report(make_report()).plot(right)
    assert [ax.figure for ax in moments.axes_] == [figure, figure]
    assert left.spines["right"].get_visible()
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="`ax` must be made by"):
        MomentsDisplay.from_report(make_report()).plot(figure.add_axes((0, 0, 1, 1)))


def test_distribution_over_epochs_and_at_one() -> None:
    report = make_report()
    display = DistributionDisplay.from_report(report).plot()
    cells = display.ax_.collections[0].get_array().reshape(-1, T)
    assert cells.max(axis=0).tolist() == [1.0] * T
    display.plot(epoch=SICK)
    heights = [bar.get_height() for bar in display.ax_.patches]
    assert sum(heights) == report.histograms[SICK].sum() == N
    colours = {bar.get_facecolor() for bar in display.ax_.patches}
    assert len(colours) == 2
    assert {bar.get_x() + bar.get_width() / 2 < 0 for bar in display.ax_.patches} == {True, False}
    with pytest.raises(ValueError, match="`epoch` must be one of"):
        display.plot(epoch=T)


def test_moments_stand_apart() -> None:
    report = make_report()
    above, below = MomentsDisplay.from_report(report).plot().axes_
    summaries = [record.summary for record in report.epochs]
    curves = [next(c for c in ax.get_lines() if len(c.get_xdata()) == T) for ax in (above, below)]
    assert curves[0].get_ydata().tolist() == [s.mean for s in summaries]
    assert curves[1].get_ydata().tolist() == [s.kurtosis for s in summaries]
    assert above.get_ylim() != below.get_ylim()
    assert -report.beta in [found.get_ydata()[0] for found in below.get_lines()]


def test_signals_have_a_panel_each_beside_gwa_and_the_metric() -> None:
    display = SignalsDisplay.from_report(run(COLUMNS), metric="accuracy").plot()
    assert [ax.get_title("left") for ax in display.axes_] == [c.name for c in display.curves]
    for ax, curve in zip(display.axes_, display.curves, strict=True):
        curves = [line(ax, label) for label in ("the signal", "GWA, Pearson", "accuracy")]
        for drawn, known in zip(curves, (curve, display.gwa, display.metric), strict=True):
            np.testing.assert_array_equal(drawn.get_ydata(), known.values)
        stars = [one.get_xdata() for one in ax.get_lines() if one.get_marker() == "*"]
        assert [int(x[0]) for x in stars if len(x)] == [
            display.metric.best_index, display.gwa.best_index, curve.best_index,
        ]  # fmt: skip
    display.figure_.canvas.draw()
    boxes = [
        text.get_window_extent()
        for ax in display.axes_
        for text in (ax.title, ax._left_title, *ax.texts)
        if text.get_text()
    ]
    boxes.append(display.figure_.axes[1].get_legend().get_window_extent())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    alone = SignalsDisplay(epochs=display.epochs, curves=display.curves[:1]).plot()
    assert len(alone.axes_) == 1


def test_the_curve_that_decided_shows_what_the_rule_saw() -> None:
    report = make_report()
    ax = DecisionDisplay.from_report(report, metric="test_accuracy").plot().ax_
    values = [record.summary.gwa for record in report.epochs]
    drawn = line(ax, "gwa").get_ydata()
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [SICK]
    assert line(ax, "best epoch").get_xydata().tolist() == [[BEST, values[BEST]]]
    near = [BEST - 2, BEST - 1, BEST + 1, BEST + 2]
    assert line(ax, "about as good").get_xydata().tolist() == [[i, values[i]] for i in near]
    corners = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    error = report.decision.standard_errors[BEST]
    assert np.ptp(corners[corners[:, 0] == BEST, 1]) == pytest.approx(4 * error)
    (grey,) = [patch for patch in ax.patches if patch.get_label() == "warm-up"]
    assert (grey.get_x(), grey.get_width()) == (0, 1.5)
    low, high = ax.get_ylim()
    judged = [value for i, value in enumerate(values) if i >= 2 and i != SICK]
    assert low < min(judged) < max(judged) < high
    unknown = replace(
        report.decision, signal="test_accuracy", standard_errors=np.full(T, np.nan),
        tied=np.zeros(T, bool), warmup=0,
    )  # fmt: skip
    bare = (
        DecisionDisplay.from_report(replace(report, decision=unknown, best_index=None)).plot().ax_
    )
    assert not bare.collections
    assert not bare.patches
    assert bare.get_legend_handles_labels()[1] == ["test_accuracy"]
    with pytest.raises(ValueError, match="`metric` must be one of"):
        DecisionDisplay.from_report(report, metric="accuracy")


def test_the_contact_sheet_is_the_samples_that_were_asked_for(tmp_path: Path) -> None:
    report = make_report()
    ids = [9, 250, 3, *range(20, 31)]
    ax = SamplesDisplay.from_report(report, IMAGES, ids).plot().ax_
    pictures = ax.get_images()
    for picture, sample in zip(pictures, ids, strict=True):
        np.testing.assert_array_equal(picture.get_array(), IMAGES[sample])
    # Rows of ten, in the order of the list; the words of a sample are at its image.
    places = [(int(p.get_extent()[0]), p.get_extent()[3]) for p in pictures]
    assert [x for x, _ in places] == [*range(10), *range(4)]
    assert places[9][1] < places[10][1]
    texts = [(text.get_text(), int(text.get_position()[0])) for text in ax.texts]
    assert [t for t in texts if t[0].isdigit()] == [
        (str(i), x) for i, (x, _) in zip(ids, places, strict=True)
    ]
    words = [text for text, _ in texts]
    for i in ids:
        start = words.index(str(i))
        names = [report.class_names[labels[i]] for labels in (report.targets, report.predictions)]
        for text, kind, name in zip(words[start + 1 :], ("label", "model"), names, strict=False):
            assert text.replace("\\$", "$") in (f"{kind} {name}", f"{kind} {name[:9]}…")
    default = SamplesDisplay.from_report(report, IMAGES)
    assert default.ids == report.rank(40).tolist()
    for sample in (3, 5):
        Image.fromarray(IMAGES[sample]).save(tmp_path / f"{sample}.png")
    some = SamplesDisplay.from_report(report, tmp_path, [3, 4, 5]).plot()
    assert [picture is None for picture in some.images] == [False, True, False]
    assert len(some.ax_.get_images()) == 2
    with pytest.raises(FeaturesError, match="must be 300"):
        SamplesDisplay.from_report(report, IMAGES[1:])


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_save_figures(tmp_path: Path, format: str, start: bytes) -> None:  # noqa: A002
    report = make_report(targets=None)  # one row of images
    paths = save_figures(report, tmp_path / "a" / "b", images=IMAGES, format=format)
    names = ["decision", "gwa", "moments", "distribution", "histogram", "samples"]
    assert [path.name for path in paths] == [f"{name}.{format}" for name in names]
    assert all(path.read_bytes().startswith(start) for path in paths)
    assert plt.get_fignums() == []
    again = save_figures(report, tmp_path / "c", images=IMAGES, format=format)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_signals_are_saved_where_a_run_has_them(tmp_path: Path) -> None:
    paths = save_figures(run(COLUMNS), tmp_path, metric="test_loss", mode="min")
    assert "signals.png" in [path.name for path in paths]
    with pytest.raises(ValueError, match="`metric`"):
        save_figures(run(COLUMNS), tmp_path, metric="acc")


def test_save_figures_with_little_to_show(tmp_path: Path) -> None:
    nothing = np.full(N, np.nan, dtype=np.float32)
    report = make_report(1, scores=nothing, label_quality=nothing, targets=None)
    paths = save_figures(report, tmp_path, images=IMAGES)
    assert [path.name for path in paths] == ["histogram.png"]
    assert len(np.unique(np.asarray(Image.open(paths[0]).convert("L")))) > 5
    with pytest.raises(ValueError, match="`format`"):
        save_figures(report, tmp_path, format="pdf")


def test_matplotlib_is_asked_for_only_when_drawing() -> None:
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "sys.modules['PIL'] = None\n"
        "from gwa_offline.figures.displays import MomentsDisplay\n"
        "display = MomentsDisplay(epochs=[0], mean=[0.0], kurtosis=[0.0])\n"
        "try:\n    display.plot()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "pip install 'gwa-core[report]'" in done.stdout
