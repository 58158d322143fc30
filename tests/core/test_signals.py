"""The signals of a sample: exact where softmax saturates, and honest about what is not there."""

import mpmath
import numpy as np
import pytest
import signal_oracles
from backends import require
from hypothesis import given
from hypothesis import strategies as st
from scenarios import HEAD, HOOKED, LABELS, SOFT, C, D, N

from gwa_core import signals

LOGITS, TARGETS, LATENTS = HOOKED["logits"], HOOKED["targets"], HEAD["latents"]
OF_LOGITS = ("margin", "sample_loss", "label_probability", "el2n")
OF_BOTH = ("gradient_norm", "self_influence")


@pytest.mark.parametrize("name", OF_LOGITS)
def test_textbook_formula_in_float64(name):
    got = getattr(signals, name)(logits=LOGITS, targets=TARGETS)
    wanted = getattr(signal_oracles, name)(LOGITS, TARGETS)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (TARGETS, {}),
        (TARGETS, {"label_smoothing": 0.1}),
        (SOFT, {}),
        (LABELS, {"loss": "binary_cross_entropy"}),
    ],
    ids=["hard", "smoothed", "soft", "sigmoid"],
)
@pytest.mark.parametrize("name", OF_BOTH)
def test_explicit_gradients(name, targets, options):
    got = getattr(signals, name)(latents=LATENTS, logits=LOGITS, targets=targets, **options)
    wanted = getattr(signal_oracles, name)(LATENTS, LOGITS, targets, **options)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_gradients_and_hessians_of_autograd():
    torch = require("torch")
    z, w = torch.tensor(LATENTS), torch.tensor(HEAD["weight"])
    norms, traces = [], []
    for i in range(N):

        def loss(w, i=i):
            return torch.nn.functional.cross_entropy(
                (z[i] @ w.T)[None], torch.tensor(TARGETS[i : i + 1])
            )

        norms.append(torch.autograd.functional.vjp(loss, w)[1].norm())
        hessian = torch.autograd.functional.hessian(loss, w).reshape(C * D, C * D)
        traces.append(hessian.trace())
    logits = LATENTS @ HEAD["weight"].T
    got = signals.gradient_norm(latents=LATENTS, logits=logits, targets=TARGETS)
    np.testing.assert_allclose(got, np.array(norms), rtol=1e-10)
    got = signals.head_hessian_trace(latents=LATENTS, logits=logits)
    np.testing.assert_allclose(got, np.array(traces), rtol=1e-10)


@pytest.mark.parametrize("gap", [-200.0, -40.0, -17.0, 0.0, 17.0, 40.0, 80.0])
def test_digits_where_softmax_saturates(gap):
    # float32, in which 1 - p rounds to 0 or 1 from a gap of 17 on.
    logits = np.asarray([[gap, 0.0, -1.0, -30.0], [gap, -45.0, -60.0, 0.0]], "f4")
    targets = np.asarray([0, 0])
    latents = np.ones((2, 1), "f4")
    with mpmath.workdps(120):
        for i, row in enumerate(logits):
            e = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
            p = [x / sum(e) for x in e]
            r = [sum(p[1:]), *p[1:]]
            exact = {
                "sample_loss": -mpmath.log(p[0]),
                "el2n": mpmath.sqrt(sum(x * x for x in r)),
                "head_hessian_trace": sum(
                    p[k] * p[j] for k in range(4) for j in range(4) if j != k
                ),
            }
            got = {
                "sample_loss": signals.sample_loss(logits=logits, targets=targets),
                "el2n": signals.el2n(logits=logits, targets=targets),
                "head_hessian_trace": signals.head_hessian_trace(latents=latents, logits=logits),
            }
            for name, value in exact.items():
                if value > 1e-37:
                    assert got[name].dtype == np.float32
                    np.testing.assert_allclose(got[name][i], float(value), rtol=3e-6, err_msg=name)


@given(st.integers(2, 6), st.integers(1, 30), st.floats(0.1, 30.0), st.integers(0, 99))
def test_relations_between_them(classes, rows, scale, seed):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(rows, classes))
    labels, latents = rng.integers(0, classes, rows), rng.normal(size=(rows, 3))
    given = {"logits": logits, "targets": labels}
    margin, loss = signals.margin(**given), signals.sample_loss(**given)
    probability, error = signals.label_probability(**given), signals.el2n(**given)
    np.testing.assert_allclose(np.exp(-loss), probability, rtol=1e-9, atol=1e-12)
    # The label is predicted where its margin is positive, and then its loss is below log C.
    assert (loss[margin > 0] < np.log(classes) + 1e-12).all()
    assert ((margin > 0) == (logits.argmax(axis=1) == labels))[margin != 0].all()
    assert (error >= (1 - probability) * (1 - 1e-9) - 1e-15).all()
    assert (error <= np.sqrt(2.0) * (1 + 1e-12)).all()
    norms = signals.gradient_norm(latents=latents, **given)
    np.testing.assert_allclose(norms, error * np.linalg.norm(latents, axis=1), rtol=1e-12)
    influence = signals.self_influence(latents=latents, **given)
    np.testing.assert_allclose(influence, norms**2, rtol=1e-12)
    # A constant added to all logits changes nothing.
    shifted = signals.el2n(logits=logits + 7.0, targets=labels)
    np.testing.assert_allclose(shifted, error, rtol=1e-6, atol=1e-14)
    trace = signals.head_hessian_trace(latents=latents, logits=logits)
    bound = (1 - 1 / classes) * (latents**2).sum(axis=1)
    assert (trace >= 0).all()
    assert (trace <= bound * (1 + 1e-12)).all()


def test_hard_and_one_hot_targets_are_the_same():
    one_hot = np.eye(C)[TARGETS]
    for name in OF_BOTH:
        a, b = (
            getattr(signals, name)(latents=LATENTS, logits=LOGITS, targets=t)
            for t in (TARGETS, one_hot)
        )
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_alone(bad):
    logits = LOGITS.copy()
    logits[3, 1] = bad
    for name in OF_LOGITS:
        got = getattr(signals, name)(logits=logits, targets=TARGETS)
        assert np.isnan(got[3])
        assert np.isfinite(np.delete(got, 3)).all()
    trace = signals.head_hessian_trace(latents=LATENTS, logits=logits)
    assert np.isnan(trace[3])
    assert np.isfinite(np.delete(trace, 3)).all()
    latents = LATENTS.copy()
    latents[5, 0] = bad
    norms = signals.gradient_norm(latents=latents, logits=LOGITS, targets=TARGETS)
    assert not np.isfinite(norms[5])


def test_large_rows_come_in_blocks():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 300)).astype("f4")
    targets = rng.integers(0, 300, 3000)
    whole = signals.el2n(logits=logits, targets=targets)
    np.testing.assert_allclose(whole, signal_oracles.el2n(logits, targets), rtol=1e-5)
    assert signals.margin(logits=logits, targets=targets).shape == (3000,)


# Over the epochs


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_forgetting_and_cartography(epochs, rows, seed):
    rng = np.random.default_rng(seed)
    correct = rng.random((epochs, rows)) < 0.5
    np.testing.assert_array_equal(
        signals.forgetting_events(correct), signal_oracles.forgetting_events(correct)
    )
    p = rng.random((epochs, rows))
    confidence, variability = signals.cartography(p)
    np.testing.assert_allclose(confidence, p.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variability, p.std(axis=0), rtol=1e-9, atol=1e-12)


def test_epochs_without_a_sample_do_not_count():
    p = np.array([[0.2, np.nan, 0.5], [0.4, 0.6, np.nan], [np.nan, np.nan, 0.7]])
    confidence, variability = signals.cartography(p)
    np.testing.assert_allclose(confidence, [0.3, 0.6, 0.6])
    np.testing.assert_allclose(variability, [0.1, 0.0, 0.1], atol=1e-15)
    assert np.isnan(signals.cartography(np.full((2, 1), np.nan)).confidence[0])


def test_known_changes():
    assert float(signals.prediction_changes(np.arange(4), np.arange(4))) == 0.0
    assert float(signals.prediction_changes(np.arange(4), np.arange(4)[::-1].copy())) == 1.0
    nothing = np.full(3, -1)
    with np.errstate(invalid="ignore"):
        assert np.isnan(float(signals.prediction_changes(nothing, nothing)))


# One sigmoid


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_one_sigmoid_counts_as_a_softmax_of_two_classes(scale):
    mp = pytest.importorskip("mpmath")
    rng = np.random.default_rng(0)
    logits, latents = scale * rng.normal(size=(12, 1)), rng.normal(size=(12, 5))
    labels = rng.integers(0, 2, 12)
    names = (*OF_LOGITS, "gradient_norm", "self_influence", "head_hessian_trace", "prediction")
    found = signals.sample_signals(names, logits=logits, latents=latents, targets=labels)
    for i, (logit, y) in enumerate(zip(logits[:, 0], labels, strict=True)):
        with mp.workdps(60):
            p = 1 / (1 + mp.exp(-mp.mpf(logit)))
            miss, size = (1 - p if y else p), mp.norm(list(map(mp.mpf, latents[i])))
            want = {
                "margin": logit if y else -logit,
                "sample_loss": -mp.log(1 - miss),
                "label_probability": 1 - miss,
                "el2n": mp.sqrt(2) * miss,
                # The gradient and the curvature of the sigmoid itself.
                "gradient_norm": miss * size,
                "self_influence": (miss * size) ** 2,
                "head_hessian_trace": p * (1 - p) * size**2,
                "prediction": float(logit > 0),
            }
            for name, value in want.items():
                assert found[name][i] == pytest.approx(float(value), rel=1e-9), name
    assert signals.margin(logits=logits, targets=labels).tolist() == found["margin"].tolist()
    own = signals.gradient_norm(
        latents=latents, logits=logits, targets=labels, loss="binary_cross_entropy"
    )
    np.testing.assert_allclose(found["gradient_norm"], own, rtol=1e-12)
    trace = signals.head_hessian_trace(latents=latents, logits=logits)
    np.testing.assert_allclose(found["head_hessian_trace"], trace, rtol=1e-12)


# What does not fit


CASES = [
    ("soft targets of a margin", lambda: signals.margin(logits=LOGITS, targets=SOFT),
     ValueError, "no class is the label"),
    ("labels of another batch", lambda: signals.el2n(logits=LOGITS, targets=TARGETS[:-1]),
     ValueError, "`targets` must be"),
    ("labels out of range", lambda: signals.margin(logits=LOGITS, targets=TARGETS + C),
     ValueError, "class numbers in"),
    ("latents of another batch", lambda: signals.gradient_norm(
        latents=LATENTS[:-1], logits=LOGITS, targets=TARGETS), ValueError, "`latents` must be"),
    ("one class", lambda: signals.el2n(logits=LOGITS[:, :1], targets=0 * TARGETS),
     ValueError, "C >= 2"),
    ("a third class of a sigmoid", lambda: signals.sample_loss(
        logits=LOGITS[:, :1], targets=0 * TARGETS + 2), ValueError, r"class numbers in 0\.\.1"),
    ("probabilities of one epoch", lambda: signals.cartography(np.zeros(3)),
     ValueError, r"\(T, N\)"),
    ("probabilities as predictions", lambda: signals.forgetting_events(np.zeros((2, 3))),
     ValueError, "boolean"),
    ("logits as predictions", lambda: signals.prediction_changes(LOGITS, LOGITS),
     ValueError, "predicted classes, not logits"),
    ("predictions of other samples", lambda: signals.prediction_changes(
        np.arange(3), np.arange(4)), ValueError, "by sample id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
