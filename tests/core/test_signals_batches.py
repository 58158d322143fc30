"""Signals of a batch, of several and of two runs, against explicit gradients and Gram matrices."""

import math
from functools import partial
from itertools import combinations

import mpmath
import numpy as np
import oracles
import pytest
import signal_oracles
from backends import CASE, open_case, require
from hypothesis import given
from hypothesis import strategies as st
from scenarios import HEAD, HOOKED, LABELS, SOFT, C, D, N

from gwa_core.signals.disparity import gradient_disparity, head_gradient_disparity, rescaled_loss
from gwa_core.signals.information import (
    centred_class_means,
    matrix_entropy_difference_ratio,
    matrix_mutual_information_ratio,
)
from gwa_core.signals.optimum import optimum_alignment
from gwa_core.signals.pairwise import (
    class_alignment,
    mean_pairwise_alignment,
    pairwise_alignment,
)

LATENTS, LOGITS, TARGETS = HEAD["latents"], HOOKED["logits"], HOOKED["targets"]
BATCH = {"latents": LATENTS, "logits": LOGITS, "targets": TARGETS}
KINDS = {
    "hard": (TARGETS, {}),
    "smoothed": (TARGETS, {"label_smoothing": 0.1}),
    "soft": (SOFT, {}),
    "sigmoid": (LABELS, {"loss": "binary_cross_entropy"}),
}
S, B = 4, 5
RNG = np.random.default_rng(6)
# Of narrow heads the gradients are cheaper, of wide ones the Gram matrices.
WIDTHS = {"gradients": (C, D), "gram": (60, 50)}


def explicit_pairs(latents, logits, targets, **options):
    g = signal_oracles.gradients(latents, logits, targets, **options).reshape(len(latents), -1)
    g = g / np.linalg.norm(g, axis=1, keepdims=True)
    return g @ g.T


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def batches(width, seed=0):
    rng = np.random.default_rng(seed)
    classes, features = WIDTHS[width]
    return {
        "latents": rng.normal(size=(S, B, features)),
        "logits": 2 * rng.normal(size=(S, B, classes)),
        "targets": rng.integers(0, classes, (S, B)),
    }


def explicit_disparity(gradients):
    return np.mean([np.linalg.norm(a - b) for a, b in combinations(np.asarray(gradients), 2)])


# Pairs of samples


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_of_explicit_gradients(backend, kind):
    targets, options = KINDS[kind]
    arrays = backend.arrays(**{**BATCH, "targets": targets})
    got = backend.call(lambda a: pairwise_alignment(**a, **options), arrays)
    backend.check(got, shape=(N, N), dtype=backend.case.result_dtype)
    rounded = {name: backend.read(x) for name, x in arrays.items()}
    want = explicit_pairs(**rounded, **options)
    size = 3 * backend.tolerance(backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(got), want, rtol=size, atol=size)
    mean = backend.call(lambda a: mean_pairwise_alignment(**a, **options), arrays)
    backend.check(mean, shape=(), dtype=backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(mean), off_diagonal(want).mean(), rtol=size, atol=size)


@pytest.mark.parametrize("width", WIDTHS)
def test_mean_over_pairs_by_either_matrix(width):
    classes, features = WIDTHS[width]
    rows = 10
    assert (classes * features < rows * (classes + features)) == (width == "gradients")
    rng = np.random.default_rng(1)
    batch = {
        "latents": 1.0 + rng.normal(size=(rows, features)),
        "logits": rng.normal(size=(rows, classes)),
        "targets": rng.integers(0, classes, rows),
    }
    want = off_diagonal(explicit_pairs(**batch)).mean()
    np.testing.assert_allclose(mean_pairwise_alignment(**batch), want, rtol=1e-11)
    single = {k: v.astype("f4") if v.dtype.kind == "f" else v for k, v in batch.items()}
    np.testing.assert_allclose(mean_pairwise_alignment(**single), want, rtol=1e-5, atol=1e-7)


def test_cosines_of_autograd():
    torch = require("torch")
    z, t = torch.tensor(LATENTS), torch.tensor(TARGETS)
    weight = torch.tensor(HEAD["weight"], requires_grad=True)
    rows = [
        torch.autograd.grad(torch.nn.functional.cross_entropy(z[i] @ weight.T, t[i]), weight)[0]
        for i in range(N)
    ]
    unit = torch.stack([g.flatten() / g.norm() for g in rows]).numpy()
    logits = LATENTS @ HEAD["weight"].T
    got = pairwise_alignment(latents=LATENTS, logits=logits, targets=TARGETS)
    np.testing.assert_allclose(got, unit @ unit.T, rtol=1e-6, atol=1e-12)


def test_more_rows_than_a_block():
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(300, 3)),
        "logits": rng.normal(size=(300, 4)),
        "targets": rng.integers(0, 4, 300),
    }
    np.testing.assert_allclose(pairwise_alignment(**batch), explicit_pairs(**batch), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_align_and_opposites_do_not(kind):
    targets, options = KINDS[kind]
    twice = [np.concat([x, x]) for x in (LATENTS, LOGITS, targets)]
    twice = dict(zip(BATCH, twice, strict=True))
    stiffness = np.diagonal(pairwise_alignment(**twice, **options), offset=N)
    np.testing.assert_allclose(stiffness, 1.0, rtol=1e-12)
    same = {k: np.repeat(x[:1], 7, axis=0) for k, x in twice.items()}
    np.testing.assert_allclose(mean_pairwise_alignment(**same, **options), 1.0, rtol=1e-12)
    twice["latents"][N:] *= -3.0
    stiffness = np.diagonal(pairwise_alignment(**twice, **options), offset=N)
    np.testing.assert_allclose(stiffness, -1.0, rtol=1e-12)


@pytest.mark.parametrize("kind", ["hard", "one-hot"])
@pytest.mark.parametrize("gap", [-80.0, -20.0, 0.0, 20.0, 45.0, 80.0])
def test_direction_where_softmax_saturates(kind, gap):
    # float32, in which 1 - p rounds to 0 from a gap of 17 on.
    logits = np.asarray([[gap, 0.0, -1.0], [gap, -1.5, 0.0], [0.5, gap, 0.0]], "f4")
    targets, latents = np.asarray([0, 0, 1]), np.ones((3, 1), "f4")
    with mpmath.workdps(100):
        rows = []
        for row, y in zip(logits, targets, strict=True):
            e = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
            p = [x / sum(e) for x in e]
            r = [-x for x in p]
            r[y] = sum(x for j, x in enumerate(p) if j != y)
            length = mpmath.sqrt(sum(x * x for x in r))
            rows.append([x / length for x in r])
        want = [[float(sum(x * y for x, y in zip(a, b, strict=True))) for a in rows] for b in rows]
    given_targets = targets if kind == "hard" else np.eye(3, dtype="f4")[targets]
    got = pairwise_alignment(latents=latents, logits=logits, targets=given_targets)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-7)


@given(st.integers(2, 9), st.integers(2, 5), st.floats(0.1, 40.0), st.integers(0, 99))
def test_laws_of_pairs(rows, classes, scale, seed):
    rng = np.random.default_rng(seed)
    batch = {
        "latents": rng.normal(size=(rows, 3)),
        "logits": scale * rng.normal(size=(rows, classes)),
        "targets": rng.integers(0, classes, rows),
    }
    pairs = pairwise_alignment(**batch)
    assert (np.abs(pairs) <= 1.0).all()
    np.testing.assert_allclose(np.diagonal(pairs), 1.0, rtol=1e-12)
    np.testing.assert_allclose(pairs, pairs.T, atol=1e-14)
    # A Gram matrix has no negative eigenvalue, so that the mean cannot fall below -1/(N-1).
    assert np.linalg.eigvalsh(pairs).min() > -1e-12
    mean = mean_pairwise_alignment(**batch)
    np.testing.assert_allclose(mean, off_diagonal(pairs).mean(), rtol=1e-9, atol=1e-12)
    assert mean > -1 / (rows - 1) - 1e-12
    # Neither the length of the latents nor a constant in the logits counts.
    other = {**batch, "latents": 7.0 * batch["latents"], "logits": batch["logits"] + 3.0}
    np.testing.assert_allclose(pairwise_alignment(**other), pairs, rtol=1e-6, atol=1e-10)
    order = rng.permutation(rows)
    mixed = pairwise_alignment(**{k: x[order] for k, x in batch.items()})
    np.testing.assert_allclose(mixed, pairs[order][:, order], atol=1e-13)
    # The classes' means, each as often as it has pairs, make the mean over all.
    classwise = class_alignment(pairs, batch["targets"], classes)
    sizes = np.bincount(batch["targets"], minlength=classes)
    weights = np.outer(sizes, sizes) - np.diag(sizes)
    total = np.nansum(classwise * weights) / weights.sum()
    np.testing.assert_allclose(total, mean, rtol=1e-9, atol=1e-12)


def test_samples_that_are_not_finite_or_vanish(backend):
    batch = {name: x.copy() for name, x in BATCH.items()}
    batch["targets"] = SOFT.copy()
    batch["latents"][1], batch["latents"][2, 0] = 0.0, np.inf
    batch["logits"][3, 1], batch["logits"][4, 0] = np.nan, -np.inf
    arrays = backend.arrays(**batch)
    got = backend.read(backend.call(lambda a: pairwise_alignment(**a), arrays))
    bad = np.isin(np.arange(N), [2, 3, 4])
    np.testing.assert_array_equal(np.isnan(got), bad[:, None] | bad)
    good = np.flatnonzero(~bad)
    np.testing.assert_array_equal(got[1, good], 0.0)
    rounded = {name: backend.read(x) for name, x in arrays.items()}
    rest = np.flatnonzero(~bad & (np.arange(N) != 1))
    want = explicit_pairs(**{name: x[rest] for name, x in rounded.items()})
    np.testing.assert_allclose(got[rest][:, rest], want, atol=2e-5)
    mean = backend.read(backend.call(lambda a: mean_pairwise_alignment(**a), arrays))
    np.testing.assert_allclose(mean, off_diagonal(got[good][:, good]).mean(), atol=2e-5)
    alone = backend.arrays(**{name: x[:1] for name, x in BATCH.items()})
    assert np.isnan(backend.read(mean_pairwise_alignment(**alone)))


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_soft_target_that_is_met_has_no_gradient(value):
    # Uniform targets and predictions, exactly.
    logits, targets = np.full((2, 4), value), np.asarray([[0.25] * 4, [1.0, 0, 0, 0]])
    got = pairwise_alignment(latents=np.ones((2, 3)), logits=logits, targets=targets)
    np.testing.assert_allclose(got, [[0.0, 0.0], [0.0, 1.0]], atol=1e-15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("strict", {}),
        ("strict-no_x64", {}),
        ("torch-f32", {}),
        ("jax-x32-jit", {}),
        ("torch-f32", {"label_smoothing": 0.1}),
    ],
)
def test_unknown_labels_are_nan_where_values_are_not_looked_at(name, options):
    labels = TARGETS.copy()
    labels[0], labels[1] = C, -1
    with open_case(CASE[name]) as backend:
        arrays = backend.arrays(**{**BATCH, "targets": labels})
        got = backend.call(lambda a: pairwise_alignment(**a, **options), arrays)
        bad = np.isnan(backend.read(got))
        np.testing.assert_array_equal(bad[5], np.arange(N) < 2)
        assert bad[:2].all()
        mean = backend.call(lambda a: mean_pairwise_alignment(**a, **options), arrays)
        rest = backend.arrays(**{name: x[2:] for name, x in BATCH.items()})
        want = mean_pairwise_alignment(**rest, **options)
        np.testing.assert_allclose(backend.read(mean), backend.read(want), atol=1e-6)
        by_class = backend.call(
            lambda a: class_alignment(a["pairs"], a["targets"], C),
            {"pairs": got, "targets": arrays["targets"]},
        )
        want = class_alignment(pairwise_alignment(**BATCH, **options)[2:, 2:], TARGETS[2:], C)
        np.testing.assert_allclose(backend.read(by_class), want, atol=1e-5)


def test_means_by_class(backend):
    rng = np.random.default_rng(3)
    pairs, classes = rng.uniform(-1, 1, (12, 12)), 5
    labels = np.asarray([0, 0, 0, 1, 1, 2, 0, 1, 0, 1, 4, 4])
    pairs[6], pairs[:, 6], pairs[3, 0] = np.nan, np.nan, np.inf
    arrays = backend.arrays(pairs=pairs, targets=labels)
    got = backend.call(lambda a: class_alignment(a["pairs"], a["targets"], classes), arrays)
    backend.check(got, shape=(classes, classes), dtype=backend.case.result_dtype)
    rounded, want = backend.read(arrays["pairs"]), np.full((classes, classes), np.nan)
    for a in range(classes):
        for b in range(classes):
            values = [
                rounded[i, j]
                for i in range(12)
                for j in range(12)
                if i != j and labels[i] == a and labels[j] == b and np.isfinite(rounded[i, j])
            ]
            if values:
                want[a, b] = np.mean(values)
    # Class 2 has one sample and class 3 none.
    assert np.isnan(want[2, 2])
    assert np.isnan(want[3]).all()
    size = 3 * backend.tolerance(backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(got), want, rtol=size, atol=size)


# Mini-batches


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_disparity_of_autograd(width, kind):
    torch = require("torch")
    classes, features = WIDTHS[width]
    assert (classes * features <= S * B * (classes + features)) == (width == "gradients")
    batch, options = batches(width), KINDS[kind][1]
    if kind == "soft":
        batch["targets"] = RNG.dirichlet(np.ones(classes), (S, B))
    if kind == "sigmoid":
        batch["targets"] = RNG.random((S, B, classes))
    z, t = torch.tensor(batch["latents"]), torch.tensor(batch["targets"])
    weight = torch.tensor(RNG.normal(size=(classes, features)) / 4, requires_grad=True)
    gradients = []
    for s in range(S):
        logits = z[s] @ weight.T
        if kind == "sigmoid":
            function = torch.nn.functional.binary_cross_entropy_with_logits
            losses = function(logits, t[s], reduction="none").mean(axis=1)
        else:
            smoothing = options.get("label_smoothing", 0.0)
            losses = torch.nn.functional.cross_entropy(
                logits, t[s], reduction="none", label_smoothing=smoothing
            )
        # As the authors write it.
        rescaled = torch.mean(losses / torch.std(losses))
        gradients.append(torch.autograd.grad(rescaled, weight)[0].flatten().numpy())
    batch["logits"] = (z @ weight.T).detach().numpy()
    got = head_gradient_disparity(**batch, **options)
    np.testing.assert_allclose(got, explicit_disparity(gradients), rtol=1e-9)
    np.testing.assert_allclose(
        gradient_disparity(np.stack(gradients)), explicit_disparity(gradients), rtol=1e-12
    )


def explicit_head_disparity(latents, logits, targets, **options):
    gradients = []
    for z, logit, target in zip(latents, logits, targets, strict=True):
        r = oracles.residual(logit, target, **options)
        soft = oracles.soft_targets(target, logit.shape[1], **options)
        losses = -np.sum(soft * np.log(oracles.softmax(logit)), axis=1)
        m, s = losses.mean(), losses.std(ddof=1)
        parts = [1 / len(z) / s - m * (value - m) / ((len(z) - 1) * s**3) for value in losses]
        gradients.append(sum(-p * np.outer(a, b) for p, a, b in zip(parts, r, z, strict=True)))
    return explicit_disparity([g.ravel() for g in gradients])


@pytest.mark.parametrize("width", WIDTHS)
def test_disparity_on_backends(backend, width):
    arrays = backend.arrays(**batches(width))
    got = backend.call(lambda a: head_gradient_disparity(**a), arrays)
    backend.check(got, shape=(), dtype=backend.case.result_dtype)
    want = explicit_head_disparity(**{name: backend.read(x) for name, x in arrays.items()})
    size = 10 * backend.tolerance(backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(got), want, rtol=size)
    gradients = backend.array(np.random.default_rng(0).normal(size=(6, 11)))
    got = backend.call(gradient_disparity, gradients)
    backend.check(got, shape=(), dtype=backend.case.result_dtype)
    np.testing.assert_allclose(
        backend.read(got), explicit_disparity(backend.read(gradients)), rtol=size
    )


def test_near_gradients_keep_their_distance():
    rng = np.random.default_rng(0)
    gradients = (rng.normal(size=1000) + 1e-4 * rng.normal(size=(5, 1000))).astype("f4")
    want = explicit_disparity(gradients.astype("f8"))
    np.testing.assert_allclose(gradient_disparity(gradients), want, rtol=1e-6)
    for scale in (1e-25, 1e25):
        got = gradient_disparity(gradients * np.float32(scale))
        np.testing.assert_allclose(got, want * scale, rtol=1e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_near_mini_batches_keep_their_distance(width):
    batch = batches(width)
    noise = 1e-4 * np.random.default_rng(1).normal(size=batch["latents"].shape)
    near = {name: np.stack([x[0]] * S) for name, x in batch.items()}
    near["latents"] = near["latents"] + noise
    single = {k: x.astype("f4") if x.dtype.kind == "f" else x for k, x in near.items()}
    want = explicit_head_disparity(
        **{k: x.astype("f8" if x.dtype.kind == "f" else int) for k, x in single.items()}
    )
    got = head_gradient_disparity(**single)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=2e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_laws_of_disparity(width):
    batch = batches(width)
    disparity = head_gradient_disparity(**batch)
    assert disparity > 0.1
    order = np.asarray([2, 0, 3, 1])
    mixed = {name: x[order][:, ::-1] for name, x in batch.items()}
    np.testing.assert_allclose(head_gradient_disparity(**mixed), disparity, rtol=1e-10)
    same = {name: np.stack([x[0]] * S) for name, x in batch.items()}
    assert head_gradient_disparity(**same) <= 1e-7
    longer = {**batch, "latents": 3.0 * batch["latents"]}
    np.testing.assert_allclose(head_gradient_disparity(**longer), 3.0 * disparity, rtol=1e-10)


def test_rescaling_takes_the_size_of_the_losses_away():
    # Residuals of 1e-9 and of 1e-28 that look the same, in float32: the mean over the deviation
    # of the losses stays, so do the gradients.
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 6, 2)).astype("f4")
    latents = rng.normal(size=(3, 6, 4)).astype("f4")
    targets = np.zeros((3, 6), int)
    values = []
    for gap in (20.0, 64.0):
        shifted = logits.copy()
        shifted[..., 0] += np.float32(gap)
        given = {"latents": latents, "logits": shifted, "targets": targets}
        values.append(head_gradient_disparity(**given))
    assert np.isfinite(values).all()
    # Two classes: losses are exp(-gap) up to 1e-9, and softmax is a scale.
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    with mpmath.workdps(60):
        gradients = []
        for logit, z in zip(shifted, latents, strict=True):
            miss = [1 / (1 + mpmath.exp(mpmath.mpf(float(a)) - float(b))) for a, b in logit]
            losses = [-mpmath.log(1 - x) for x in miss]
            m = sum(losses) / 6
            s = mpmath.sqrt(sum((x - m) ** 2 for x in losses) / 5)
            parts = [1 / (6 * s) - m * (x - m) / (5 * s**3) for x in losses]
            weighted = list(zip(parts, miss, z, strict=True))
            gradients.append(
                [
                    sign * float(sum(p * x * float(row[d]) for p, x, row in weighted))
                    for sign in (-1, 1)
                    for d in range(4)
                ]
            )
    np.testing.assert_allclose(values[1], explicit_disparity(gradients), rtol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_disparity_is_nan_where_a_batch_has_none(width):
    for name in ("latents", "logits"):
        for bad in (np.nan, np.inf, -np.inf):
            batch = batches(width)
            batch[name][1, 2, 0] = bad
            assert np.isnan(head_gradient_disparity(**batch)), (name, bad)
    batch = batches(width)
    batch["logits"][2] = 0.0
    assert np.isnan(head_gradient_disparity(**batch))
    with open_case(CASE["torch-f32"]) as backend:
        batch = batches(width)
        batch["targets"][0, 0] = -1
        assert np.isnan(backend.read(head_gradient_disparity(**backend.arrays(**batch))))
    assert np.isnan(gradient_disparity(np.asarray([[1.0], [np.inf], [2.0]])))


# Two runs


def test_way_to_the_optimum(backend):
    rng = np.random.default_rng(4)
    given = {name: rng.normal(size=(C, D)) for name in ("gradient", "weights", "optimum")}
    arrays = backend.arrays(**given)
    got = backend.call(lambda a: optimum_alignment(**a), arrays)
    backend.check(got, shape=(), dtype=backend.case.result_dtype)
    g, w, end = (backend.read(x).ravel() for x in arrays.values())
    want = -g @ (end - w) / np.linalg.norm(g) / np.linalg.norm(end - w)
    size = 3 * backend.tolerance(backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(got), want, rtol=size, atol=size)
    still = {**arrays, "optimum": arrays["weights"]}
    assert backend.read(backend.call(lambda a: optimum_alignment(**a), still)) == 0.0
    nothing = {**arrays, "gradient": backend.array(np.zeros((C, D)))}
    assert backend.read(backend.call(lambda a: optimum_alignment(**a), nothing)) == 0.0


@given(st.integers(1, 9), st.floats(-25.0, 25.0), st.integers(0, 99))
def test_laws_of_the_way_to_the_optimum(size, exponent, seed):
    rng = np.random.default_rng(seed)
    scale = np.float32(10.0**exponent)
    w, end, g = (rng.normal(size=size).astype("f4") for _ in range(3))
    along = partial(optimum_alignment, weights=w, optimum=end)
    # The gradient of half the squared distance points away from the optimum.
    np.testing.assert_allclose(along(gradient=scale * (w - end)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(along(gradient=scale * (end - w)), -1.0, rtol=1e-5)
    assert abs(along(gradient=scale * (w - end))) <= 1.0
    np.testing.assert_allclose(along(gradient=-g), -along(gradient=g), atol=1e-6)
    back = optimum_alignment(gradient=g, weights=end, optimum=w)
    np.testing.assert_allclose(back, -along(gradient=g), atol=1e-6)


@pytest.mark.parametrize("name", ["gradient", "weights", "optimum"])
def test_the_way_is_nan_where_a_weight_is(name):
    given = {key: RNG.normal(size=(2, 3)) for key in ("gradient", "weights", "optimum")}
    for bad in (np.nan, np.inf):
        broken = {**given, name: given[name].copy()}
        broken[name][1, 2] = bad
        assert np.isnan(optimum_alignment(**broken))


# Latents and class weights


def entropy(matrix):
    values = np.linalg.eigvalsh(matrix / np.trace(matrix))
    return -sum(x * math.log(x) for x in values if x > 1e-14)


def explicit_information(a, b):
    """MIR and HDR from the Gram matrices of rows at unit length."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    k, m = a @ a.T, b @ b.T
    h = entropy(k), entropy(m)
    return (h[0] + h[1] - entropy(k * m)) / min(h), abs(h[0] - h[1]) / max(h)


def simplex(classes, features, seed=0):
    """The vertices of neural collapse, turned in space."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(features, features)))
    return (np.eye(classes) - 1 / classes) @ turn[:classes]


def collapsed(classes):
    return 1 / (classes - 1) + (classes - 2) * math.log(classes - 2) / (
        (classes - 1) * math.log(classes - 1)
    )


INFORMATION = (matrix_mutual_information_ratio, matrix_entropy_difference_ratio)


@pytest.mark.parametrize("shape", [(9, 4, 6), (6, 9, 9), (12, 3, 20)])
def test_information_of_explicit_gram_matrices(backend, shape):
    if backend.case.name == "strict-strictest":
        pytest.skip("eigenvalues are in an extension of the standard")
    rows, *widths = shape
    rng = np.random.default_rng(rows)
    arrays = [backend.array(rng.normal(size=(rows, width))) for width in widths]
    wants = explicit_information(*(backend.read(x) for x in arrays))
    size = 5 * backend.tolerance(backend.case.accumulator_dtype)
    size = max(size, backend.tolerance(backend.case.result_dtype))
    for function, want in zip(INFORMATION, wants, strict=True):
        got = backend.call(lambda x, f=function: f(*x), arrays)
        backend.check(got, shape=(), dtype=backend.case.result_dtype)
        np.testing.assert_allclose(backend.read(got), want, rtol=size, atol=size)


@pytest.mark.parametrize("classes", [3, 4, 10, 100])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_information_at_neural_collapse(classes, dtype):
    rng = np.random.default_rng(1)
    vertices = simplex(classes, classes + 3)
    # Balanced, as the theorem wants it; a common offset and the length of the latents do not count.
    labels = rng.permutation(np.repeat(np.arange(classes), 3))
    latents = (5.0 * vertices[labels] + 2.0).astype(dtype)
    weight = (0.3 * vertices).astype(dtype)
    means = centred_class_means(latents, labels, classes)
    size = 1e-5 if dtype == "f4" else 1e-9
    np.testing.assert_allclose(
        matrix_mutual_information_ratio(means, weight), collapsed(classes), rtol=size
    )
    assert matrix_entropy_difference_ratio(means, weight) < size
    # So it is between the samples and the weights of their classes.
    samples = latents - latents.mean(axis=0)
    np.testing.assert_allclose(
        matrix_mutual_information_ratio(samples, weight[labels]), collapsed(classes), rtol=size
    )
    assert matrix_entropy_difference_ratio(samples, weight[labels]) < size


def test_information_of_known_matrices():
    axes = np.eye(6)
    # Orthogonal rows know all of each other that there is.
    np.testing.assert_allclose(matrix_mutual_information_ratio(axes, axes[::-1]), 1.0, rtol=1e-12)
    assert matrix_entropy_difference_ratio(axes, axes) == 0.0
    # log 6 against log 3 and log 2.
    threes, twos = axes[[0, 1, 2, 0, 1, 2]], axes[[0, 0, 0, 1, 1, 1]]
    hdr = matrix_entropy_difference_ratio(axes, threes)
    np.testing.assert_allclose(hdr, 1 - math.log(3) / math.log(6), rtol=1e-12)
    # A partition into three and one into two that know nothing of each other.
    np.testing.assert_allclose(matrix_mutual_information_ratio(threes, twos), 0.0, atol=1e-12)
    # One direction holds nothing.
    line = np.outer([1.0, -2.0, 3.0, 1.0, 5.0, 0.1], [0.3, 0.4])
    assert matrix_mutual_information_ratio(line, axes) == 0.0
    assert matrix_entropy_difference_ratio(line, axes) == 1.0
    assert matrix_entropy_difference_ratio(line, -line) == 0.0


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 99))
def test_laws_of_information(rows, width, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows, width)), rng.normal(size=(rows, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    turned = (3.0 * a @ turn) * rng.uniform(0.5, 2.0, (rows, 1))
    order = rng.permutation(rows)
    for function in INFORMATION:
        value = function(a, b)
        assert -1e-9 <= value <= 1.0 + 1e-9
        np.testing.assert_allclose(function(b, a), value, atol=1e-10)
        np.testing.assert_allclose(function(turned, b), value, atol=1e-9)
        np.testing.assert_allclose(function(a[order], b[order]), value, atol=1e-10)
    # Which row belongs to which does not matter to the difference.
    shuffled = matrix_entropy_difference_ratio(a[order], b)
    np.testing.assert_allclose(shuffled, matrix_entropy_difference_ratio(a, b), atol=1e-10)


def test_pairs_without_direction_are_left_out_and_nan_stays(backend):
    if backend.case.name == "strict-strictest":
        pytest.skip("eigenvalues are in an extension of the standard")
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(8, 5)), rng.normal(size=(8, 3))
    a[2], b[5] = 0.0, 0.0
    keep = [0, 1, 3, 4, 6, 7]
    broken = b.copy()
    broken[1, 1] = np.inf
    for function in INFORMATION:

        def run(arrays, function=function):
            return function(arrays["a"], arrays["b"])

        given = backend.arrays(a=a, b=b)
        whole = backend.read(backend.call(run, given))
        rounded = {name: backend.read(x) for name, x in given.items()}
        want = function(rounded["a"][keep], rounded["b"][keep])
        np.testing.assert_allclose(whole, want, rtol=1e-5)
        assert np.isnan(backend.read(backend.call(run, backend.arrays(a=a, b=broken))))
        nothing = backend.arrays(a=np.zeros((8, 5)), b=b)
        assert backend.read(backend.call(run, nothing)) == 0.0


def test_class_means(backend):
    latents, labels = LATENTS.copy(), np.where(TARGETS == 1, 0, TARGETS)
    latents[4, 1] = np.nan
    arrays = backend.arrays(latents=latents, targets=labels)
    got = backend.call(lambda a: centred_class_means(a["latents"], a["targets"], C), arrays)
    backend.check(got, shape=(C, D), dtype=backend.case.result_dtype)
    z = backend.read(arrays["latents"])
    keep = np.isfinite(z).all(axis=1)
    want = np.zeros((C, D))
    for c in set(labels):
        want[c] = z[keep & (labels == c)].mean(axis=0) - z[keep].mean(axis=0)
    assert (backend.read(got)[1] == 0.0).all()
    size = backend.tolerance(backend.case.result_dtype)
    np.testing.assert_allclose(backend.read(got), want, rtol=size, atol=size)


def test_a_common_offset_costs_class_means_few_digits():
    rng = np.random.default_rng(0)
    latents = (1000.0 + rng.normal(size=(5000, 3))).astype("f4")
    labels = rng.integers(0, 4, 5000)
    got = centred_class_means(latents, labels, 4)
    z = latents.astype("f8")
    want = np.array([z[labels == c].mean(axis=0) for c in range(4)]) - z.mean(axis=0)
    np.testing.assert_allclose(got, want, atol=1e-6)


# Bad input

WRONG = {
    "latents of other samples": (lambda: pairwise_alignment(**{**BATCH, "latents": LATENTS[1:]}), "`latents` must be"),
    "labels out of range": (lambda: mean_pairwise_alignment(**{**BATCH, "targets": TARGETS + C}), "`targets` must be"),
    "latents and targets swapped": (lambda: pairwise_alignment(latents=TARGETS, logits=LOGITS, targets=LATENTS), "`latents` must be"),
    "pairs not square": (lambda: class_alignment(np.zeros((3, 4)), np.zeros(3, int), 2), r"`pairs` must be \(N, N\)"),
    "soft targets by class": (lambda: class_alignment(np.zeros((3, 3)), np.ones((3, 2)) / 2, 2), "`targets` must be"),
    "label beyond the classes": (lambda: class_alignment(np.zeros((2, 2)), np.asarray([0, 3]), 2), "`targets` must be"),
    "no classes": (lambda: class_alignment(np.zeros((2, 2)), np.asarray([0, 0]), 0), "`num_classes` must be"),
    "one gradient": (lambda: gradient_disparity(np.zeros((1, 4))), "S >= 2"),
    "gradients not flattened": (lambda: gradient_disparity(np.zeros((2, 4, 3))), "`gradients` must be"),
    "one loss": (lambda: rescaled_loss(np.ones(1)), "B >= 2"),
    "losses already reduced": (lambda: rescaled_loss(np.asarray(1.0)), "`losses` must be"),
    "one mini-batch": (lambda: head_gradient_disparity(**{k: x[:1] for k, x in batches("gram").items()}), "S >= 2"),
    "mini-batches of one": (lambda: head_gradient_disparity(**{k: x[:, :1] for k, x in batches("gram").items()}), "B >= 2"),
    "mini-batches not stacked": (lambda: head_gradient_disparity(**BATCH), r"`latents` must be \(S, B"),
    "labels of other batches": (lambda: head_gradient_disparity(**{**batches("gram"), "targets": np.zeros((S, B + 1), int)}), "`targets` must be"),
    "integer latents": (lambda: head_gradient_disparity(**{**batches("gram"), "latents": np.zeros((S, B, 2), int)}), "`latents` must be"),
    "weights of another layer": (lambda: optimum_alignment(gradient=np.ones((2, 3)), weights=np.ones((2, 3)), optimum=np.ones((3, 2))), "`optimum` must have the shape"),
    "no weights": (lambda: optimum_alignment(gradient=np.ones(0), weights=np.ones(0), optimum=np.ones(0)), "not be empty"),
    "integer weights": (lambda: optimum_alignment(gradient=np.ones(2), weights=np.ones(2, int), optimum=np.ones(2)), "`weights` must be floating"),
    "latents against all weights": (lambda: matrix_mutual_information_ratio(LATENTS, HEAD["weight"]), "`b` must be"),
    "vectors not in rows": (lambda: matrix_entropy_difference_ratio(np.ones(3), np.ones((3, 2))), "`a` must be"),
    "soft targets of means": (lambda: centred_class_means(LATENTS, SOFT, C), "`targets` must be"),
    "means without classes": (lambda: centred_class_means(LATENTS, TARGETS, 0), "`num_classes` must be"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named(mistake):
    call, text = WRONG[mistake]
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_no_warning_escapes_numpy():
    batch = {name: x.copy() for name, x in batches("gram").items()}
    batch["latents"][0, 0, 0], batch["logits"][1, 1, 1] = np.inf, np.nan
    flat = {name: x.reshape(S * B, *x.shape[2:]) for name, x in batch.items()}
    with np.errstate(all="raise"):
        assert np.isnan(head_gradient_disparity(**batch))
        assert np.isnan(pairwise_alignment(**flat)[0]).all()
        assert np.isfinite(mean_pairwise_alignment(**flat))
        assert np.isnan(matrix_mutual_information_ratio(flat["latents"], flat["latents"]))
        assert np.isfinite(centred_class_means(flat["latents"], flat["targets"], 60)).all()
