import mpmath
import numpy as np
import oracles
import pytest
from backends import require
from scenarios import HOOKED, LABELS, SOFT, C, N

from gwa_core import residual

LOGITS, TARGETS = HOOKED["logits"], HOOKED["targets"]
BINARY = {"loss": "binary_cross_entropy"}


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (TARGETS, {}),
        (TARGETS, {"label_smoothing": 0.1}),
        (SOFT, {}),
        (SOFT, {"label_smoothing": 0.5}),
        (LABELS, BINARY),
        (TARGETS, {**BINARY, "label_smoothing": 0.2}),
    ],
    ids=["hard", "smoothed", "soft", "soft-smoothed", "bce", "bce-smoothed"],
)
def test_textbook_difference_in_float64(targets, options):
    got = residual(logits=LOGITS, targets=targets, **options)
    np.testing.assert_allclose(
        got, oracles.residual(LOGITS, targets, **options), rtol=1e-11, atol=1e-15
    )


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_gradient_of_the_real_loss(targets, smoothing):
    torch = require("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets), reduction="sum", label_smoothing=smoothing
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    got = residual(logits=LOGITS, targets=targets, label_smoothing=smoothing)
    np.testing.assert_allclose(got, -gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("gap", [1.0, 20.0, 60.0])
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_every_entry_is_right_where_float32_saturates(gap, label, loss):
    logits = np.asarray([[gap, 0.5, -gap]], "f4")
    got = residual(logits=logits, targets=np.asarray([label]), loss=loss)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(v)) for v in logits[0]]
        total = mpmath.fsum(mpmath.exp(v) for v in exact)
        for j in range(3):
            if loss == "cross_entropy":
                own = mpmath.exp(exact[j]) / total
                rest = mpmath.fsum(mpmath.exp(v) for k, v in enumerate(exact) if k != j) / total
            else:
                own, rest = 1 / (1 + mpmath.exp(-exact[j])), 1 / (1 + mpmath.exp(exact[j]))
            want = float(rest if j == label else -own)
            assert got[0, j] == pytest.approx(want, rel=1e-5)


def test_rows_of_softmax_sum_to_zero_and_stay_in_range():
    logits = np.random.default_rng(0).normal(size=(200, 7)).astype("f4") * 30
    for targets in (np.arange(200) % 7, np.eye(7, dtype="f4")[np.arange(200) % 7]):
        r = residual(logits=logits, targets=targets, label_smoothing=0.05)
        np.testing.assert_allclose(r.sum(axis=1), 0.0, atol=3e-7)
        assert np.abs(r).max() <= 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["hard", "soft", "bce"])
def test_a_non_finite_row_is_nan_and_the_others_are_not(backend, bad, kind):
    targets = {"hard": TARGETS, "soft": SOFT, "bce": LABELS}[kind]
    options = BINARY if kind == "bce" else {}
    logits = LOGITS.copy()
    logits[3, 1] = bad
    got = backend.call(
        lambda a: residual(**a, **options), backend.arrays(logits=logits, targets=targets)
    )
    got = backend.read(got)
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()


def test_blocks_of_rows_change_nothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(700, 1000)), rng.integers(0, 1000, 700)
    whole = residual(logits=logits, targets=labels)
    np.testing.assert_allclose(
        whole[350:351], residual(logits=logits[350:351], targets=labels[350:351]), rtol=1e-12
    )
    np.testing.assert_allclose(whole, oracles.residual(logits, labels), rtol=1e-11, atol=1e-16)


def test_one_sigmoid_output():
    logits, labels = np.linspace(-2, 2, N)[:, None], np.arange(N) % 2
    want = labels[:, None] - oracles.sigmoid(logits)
    for targets in (labels, labels.astype(float), labels[:, None]):
        got = residual(logits=logits, targets=targets, **BINARY)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert got.shape == (N, 1)


def test_targets_of_many_classes_need_no_matrix_of_gradients():
    # (N, C) is all that may be held: with the (N, C, C) of a careless oracle this would be 8 GB.
    logits = np.zeros((1000, 1000), "f4")
    got = residual(logits=logits, targets=np.zeros(1000, int))
    assert got[0, 0] == pytest.approx(0.999)
    assert C < 1000
