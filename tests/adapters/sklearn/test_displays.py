"""Displays show what they were given, by scikit-learn's conventions."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")
mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from gwa_core import GWATracker
from gwa_sklearn import (
    AlignmentDisplay,
    GWACurveDisplay,
    GWAEarlyStoppingClassifier,
    LabelIssuesDisplay,
    alignment_scores,
)

X, Y = load_digits(return_X_y=True)
X, Y = X[:400] / 16, Y[:400]
IMAGES = X.reshape(-1, 8, 8)
SCORES = np.asarray([0.3, 0.2, 0.25, -0.4, np.nan, 0.1])


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    return GWAEarlyStoppingClassifier(max_epochs=6, random_state=0).fit(X, Y)


def history(*rows):
    """Summaries of made-up epochs, each from its own scores."""
    tracker = GWATracker()
    for row in rows:
        tracker.update(np.asarray(row, dtype=float))
        tracker.end_epoch()
    return tracker.history


HISTORY = history(
    [0.0, 0.1, 0.15, 0.4], [0.2, 0.3, 0.35, 0.6], [0.1, 0.2, 0.25, 0.5], [0.1, 0.2, 0.2, 0.5]
)
TWO_MODES = [-0.3, 0.3] * 10


def heights(ax):
    """The counts of the histograms, from the steps that were drawn."""
    return [patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")]


DISPLAYS = {
    "alignment": lambda **options: AlignmentDisplay.from_scores(SCORES, **options),
    "curve": lambda **options: GWACurveDisplay.from_history(HISTORY, best_epoch=1, **options),
    "issues": lambda **options: LabelIssuesDisplay.from_scores(SCORES, threshold=0.0, **options),
}


@pytest.mark.parametrize("name", DISPLAYS)
def test_they_draw_where_they_are_told(name):
    figure, (left, right) = plt.subplots(1, 2)
    display = DISPLAYS[name](ax=left)
    assert display.ax_ is left
    assert display.figure_ is figure
    assert left.has_data()
    assert not right.has_data()
    again = display.plot()
    assert again is display
    assert display.figure_ is not figure
    display.figure_.canvas.draw()


def test_without_matplotlib_they_say_how_to_get_it(monkeypatch, model):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **options)

    display = AlignmentDisplay(scores=SCORES)
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", missing)
    words = r"pip install matplotlib"
    with pytest.raises(ImportError, match=f"AlignmentDisplay.plot requires matplotlib.*{words}"):
        display.plot()
    with pytest.raises(ImportError, match=f"GWACurveDisplay.from_estimator requires.*{words}"):
        GWACurveDisplay.from_estimator(model)


# Histogram


def test_a_histogram_counts_every_finite_score_once():
    ax = AlignmentDisplay.from_scores(SCORES, bins=7).ax_
    total = sum((data.values - data.baseline).sum() for data in heights(ax))
    assert total == 5
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("alignment", "samples")
    assert ax.get_legend() is None


def test_wrong_labels_have_their_own_colour():
    wrong = np.asarray([False, False, False, True, True, False])
    ax = AlignmentDisplay.from_scores(SCORES, wrong=wrong).ax_
    marked, others = heights(ax)
    assert (marked.values - marked.baseline).sum() == 1
    assert (others.values - others.baseline).sum() == 4
    low, high = marked.edges[:-1][marked.values > marked.baseline], -0.3
    assert low.max() < high
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "known to be wrong",
        "others",
    ]
    with pytest.raises(ValueError, match="`wrong` must be a boolean mask"):
        AlignmentDisplay.from_scores(SCORES, wrong=np.asarray([3, 4, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        AlignmentDisplay.from_scores(SCORES, wrong=wrong[:3])


def test_classes_are_stacked_in_order():
    ax = AlignmentDisplay.from_scores(SCORES, labels=list("bbaacc")).ax_
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["c", "b", "a"]  # from below
    full = [data for data in heights(ax) if data.values.max() > data.baseline.min()]
    assert [float(np.min(data.baseline)) for data in full] == [0.0, 1.0, 2.0]
    assert all(data.values.max() <= np.min(data.baseline) + 0.9 + 1e-9 for data in full)


def test_of_many_classes_the_lowest_are_shown():
    labels = np.repeat(np.arange(30), 4)
    scores = 0.01 * labels - 0.1
    ax = AlignmentDisplay.from_scores(scores, labels=labels).ax_
    assert sorted(int(text.get_text()) for text in ax.get_yticklabels()) == list(range(20))


def test_from_estimator_scores_the_estimator(model):
    by_hand = alignment_scores(model, X, Y)
    display = AlignmentDisplay.from_estimator(model, X, Y)
    np.testing.assert_array_equal(display.scores, by_hand)
    weight = np.where(Y == 3, 0.0, 1.0)
    left_out = AlignmentDisplay.from_estimator(
        LogisticRegression(max_iter=20, tol=1.0).fit(X, Y), X, Y,
        by_class=True, sample_weight=weight,
    )  # fmt: skip
    names = {text.get_text() for text in left_out.ax_.get_yticklabels()}
    assert names == set("012456789")


# Curve


def test_a_curve_shows_its_signal_and_the_best_epoch():
    labels = {"gwa": "GWA", "mean": "mean alignment"}
    for signal in ("gwa", "mean", "bimodality", "separation"):
        ax = GWACurveDisplay.from_history(HISTORY, best_epoch=2, signal=signal).ax_
        line = ax.lines[0]
        values = [getattr(summary, signal) for summary in HISTORY]
        np.testing.assert_allclose(line.get_ydata(), values)
        assert ax.get_ylabel() == labels.get(signal, signal)
        assert len(ax.collections) == (signal in ("gwa", "mean"))
        star = next(line for line in ax.lines if line.get_marker() == "*")
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, values[2])
        assert star.get_label() == "best: epoch 2"


def test_the_band_is_two_standard_errors():
    for signal, error in (
        ("gwa", [summary.gwa_standard_error for summary in HISTORY]),
        ("mean", [np.sqrt(summary.variance / summary.count) for summary in HISTORY]),
    ):
        ax = GWACurveDisplay.from_history(HISTORY, signal=signal).ax_
        outline = ax.collections[0].get_paths()[0].vertices
        values = np.array([getattr(summary, signal) for summary in HISTORY])
        at_0 = outline[outline[:, 0] == 0, 1]
        np.testing.assert_allclose(at_0.max(), values[0] + 2 * error[0])
        np.testing.assert_allclose(at_0.min(), values[0] - 2 * error[0])


def test_an_epoch_without_meaning_is_a_cross_inside_the_picture():
    with_pole = history([0.1, 0.2, 0.3, 0.9], TWO_MODES, [0.1, 0.2, 0.3, 0.8])
    assert not with_pole[1].healthy
    ax = GWACurveDisplay.from_history(with_pole).ax_
    assert np.isnan(ax.lines[0].get_ydata()[1])
    cross = next(line for line in ax.lines if line.get_marker() == "X")
    low, high = ax.get_ylim()
    assert cross.get_xdata().tolist() == [1]
    assert low <= cross.get_ydata()[0] <= high
    # Its mean is as good as any.
    mean = GWACurveDisplay.from_history(with_pole, signal="mean").ax_
    assert np.isfinite(mean.lines[0].get_ydata()).all()


def test_a_run_of_one_epoch_or_of_unhealthy_ones_can_be_drawn():
    for rows in (([0.1, 0.2, 0.4],), (TWO_MODES, TWO_MODES), ([0.2, 0.2, 0.2],)):
        display = GWACurveDisplay.from_history(history(*rows), best_epoch=0)
        display.figure_.canvas.draw()
        assert np.isfinite(display.ax_.get_ylim()).all()


def test_the_run_of_an_estimator(model):
    display = GWACurveDisplay.from_estimator(model, signal="separation")
    assert display.history is model.history_
    assert display.best_epoch == model.best_epoch_
    pipeline = make_pipeline(MinMaxScaler(), GWAEarlyStoppingClassifier(max_epochs=2))
    shown = GWACurveDisplay.from_estimator(pipeline.fit(X, Y))
    assert len(shown.history) == 2
    with pytest.raises(TypeError, match="SGDClassifier without `history_`"):
        GWACurveDisplay.from_estimator(SGDClassifier())
    with pytest.raises(ValueError, match="`signal` must be one of gwa"):
        GWACurveDisplay.from_estimator(model, signal="accuracy")
    with pytest.raises(ValueError, match="at least one epoch"):
        GWACurveDisplay.from_history([])


# Label quality


def test_qualities_are_in_order_and_issues_are_marked():
    quality = np.asarray([0.7, 0.2, np.nan, 0.9, 0.4])
    ax = LabelIssuesDisplay.from_scores(quality, threshold=0.5).ax_
    line, dots, threshold = ax.lines
    assert line.get_ydata().tolist() == [0.2, 0.4, 0.7, 0.9]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert dots.get_xdata().tolist() == [1, 2]
    assert dots.get_label() == "2 issues"
    assert set(threshold.get_ydata()) == {0.5}
    chosen = np.asarray([True, False, False, False, True])
    ax = LabelIssuesDisplay.from_scores(quality, issues=chosen).ax_
    assert ax.lines[1].get_ydata().tolist() == [0.4, 0.7]
    assert len(ax.lines) == 2


def test_a_million_qualities_are_a_line_of_few_points():
    quality = np.random.default_rng(0).random(1_000_000)
    ax = LabelIssuesDisplay.from_scores(quality).ax_
    shown = ax.lines[0].get_ydata()
    assert len(shown) <= 2000
    assert (shown[0], shown[-1]) == (quality.min(), quality.max())


def test_the_most_suspicious_images_stand_above():
    quality = np.linspace(1, 0, 400)
    display = LabelIssuesDisplay.from_scores(
        quality, images=IMAGES, labels=[f"${y}" for y in Y], k=3
    )
    panels = display.ax_.child_axes
    assert len(panels) == 3
    for panel, row in zip(panels, (399, 398, 397), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), IMAGES[row])
        assert panel.get_title() == rf"\${Y[row]}"
    display.figure_.canvas.draw()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LabelIssuesDisplay.from_scores(quality, images=IMAGES[:5])


def test_it_draws_what_an_estimator_found():
    class Found:
        label_quality_ = np.asarray([0.9, 0.1, 0.8])
        issues_ = np.asarray([False, True, False])

    display = LabelIssuesDisplay.from_estimator(Found())
    assert display.ax_.lines[1].get_label() == "1 issue"
    with pytest.raises(TypeError, match="fitted LabelIssues, got SGDClassifier"):
        LabelIssuesDisplay.from_estimator(SGDClassifier())
