import pickle

import numpy as np
import oracles
import pytest
from backends import require
from scenarios import C

from gwa_core import JLSketch, alignment_scores, jl_dimension, project

KINDS = ("gaussian", "rademacher", "sparse", "hadamard")

# First row of the sketch of five features to two, seed 7, times sqrt(2): a promise for all time.
GOLDEN = {
    "gaussian": [
        -1.121666574836723,
        -0.3430298084888754,
        0.945993341315885,
        0.5936155863191829,
        0.03503379539222498,
    ],
    "rademacher": [1.0, -1.0, -1.0, 1.0, -1.0],
    "sparse": [0.0, -1.414213562373095, 0.0, 0.0, 0.0],
    "hadamard": [1.0, 1.0, -1.0, -1.0, 1.0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_is_the_same_sketch_everywhere(backend, kind):
    sketch = JLSketch(5, 2, kind=kind, seed=7)
    got = backend.call(lambda a: project(a["x"], sketch), backend.arrays(x=np.eye(5)))
    rtol = 1e-12 if backend.case.result_dtype == "float64" else 1e-6
    np.testing.assert_allclose(backend.read(got)[:, 0] * np.sqrt(2), GOLDEN[kind], rtol=rtol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "k"), [(1, 1), (7, 3), (8, 8), (33, 64)])
def test_it_equals_the_explicit_matrix(kind, d, k):
    sketch = JLSketch(d, k, kind=kind, seed=11)
    matrix = oracles.sketch_matrix(sketch)
    x = np.random.default_rng(0).normal(size=(4, d))
    np.testing.assert_allclose(project(x, sketch), x @ matrix.T, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(project(np.eye(d), sketch), matrix.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_kept_on_average(kind):
    x, y = np.random.default_rng(0).normal(size=(2, 12)) + 0.5
    draws = 600
    got = []
    for seed in range(draws):
        a, b = project(np.stack([x, y]), JLSketch(12, 8, kind=kind, seed=seed))
        got.append((a @ b, a @ a))
    got = np.asarray(got)
    error = got.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(got.mean(axis=0) - [x @ y, x @ x]) < 4 * error)
    # Without a spread the statement above would be empty; the spread is of order 1 / sqrt(K).
    assert np.all(error < 0.05 * x @ x)


def test_an_orthogonal_sketch_keeps_every_length():
    x = np.random.default_rng(0).normal(size=(6, 16))
    got = project(x, JLSketch(16, 16, kind="hadamard"))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)


def test_leading_axes_are_kept():
    sketch = JLSketch(6, 3)
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    np.testing.assert_allclose(project(x, sketch)[1, 2], project(x[1, 2], sketch), rtol=1e-12)
    assert project(x[:0], sketch).shape == (0, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_scores_survives_and_each_score_gets_noise(kind):
    rng = np.random.default_rng(0)
    rows, features = 4000, 512
    weight = rng.normal(size=(C, features)) / np.sqrt(features)
    labels = rng.integers(0, C, rows)
    latents = rng.normal(size=(rows, features)) + 8 * weight[labels]
    head = {"latents": latents, "weight": weight, "targets": labels}
    plain = alignment_scores(**head)
    means = [
        alignment_scores(**head, sketch=JLSketch(features, 128, kind=kind, seed=s)).mean()
        for s in range(8)
    ]
    assert plain.mean() > 0.05
    assert np.mean(means) == pytest.approx(plain.mean(), rel=0.05)
    sketched = alignment_scores(**head, sketch=JLSketch(features, 128, kind=kind))
    assert 0.01 < np.std(sketched - plain) < 3 / np.sqrt(128)


def test_a_sketch_is_an_option_that_can_be_compared_hashed_and_stored():
    one, same, other = JLSketch(9, 4, seed=1), JLSketch(9, 4, seed=1), JLSketch(9, 4, seed=2)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    x = np.ones((1, 9))
    np.testing.assert_array_equal(project(x, pickle.loads(pickle.dumps(one))), project(x, one))  # noqa: S301
    assert not np.array_equal(project(x, one), project(x, other))
    with pytest.raises(AttributeError):
        one.seed = 3


def test_a_sketch_can_be_a_static_argument_of_jit():
    jax = require("jax")
    run = jax.jit(project, static_argnums=1)
    x = np.ones((2, 9), "f4")
    np.testing.assert_allclose(run(x, JLSketch(9, 4)), project(x, JLSketch(9, 4)), rtol=1e-5)


def test_entries_have_the_moments_of_their_kind():
    d, k = 400, 100
    for kind, fourth in (("gaussian", 3.0), ("rademacher", 1.0), ("sparse", 20.0)):
        entries = project(np.eye(d), JLSketch(d, k, kind=kind, seed=5)) * np.sqrt(k)
        assert entries.mean() == pytest.approx(0.0, abs=0.03)
        assert entries.var() == pytest.approx(1.0, abs=0.05)
        assert (entries**4).mean() == pytest.approx(fourth, rel=0.1)
    assert np.mean(project(np.eye(d), JLSketch(d, k, kind="sparse")) != 0) == pytest.approx(
        1 / 20, rel=0.1
    )


@pytest.mark.parametrize(("n", "eps"), [(2, 0.5), (1000, 0.1), (10**9, 0.99)])
def test_jl_dimension_is_the_bound_of_dasgupta_and_gupta(n, eps):
    k = jl_dimension(n, eps)
    bound = 4 * np.log(n) / (eps**2 / 2 - eps**3 / 3)
    assert isinstance(k, int)
    assert k - 1 < bound <= k


def test_jl_dimension_is_enough_for_real_points():
    n, eps = 30, 0.5
    x = np.random.default_rng(0).normal(size=(n, 600))
    y = project(x, JLSketch(600, jl_dimension(n, eps)))
    i, j = np.triu_indices(n, 1)
    ratio = ((y[i] - y[j]) ** 2).sum(axis=1) / ((x[i] - x[j]) ** 2).sum(axis=1)
    assert np.all(np.abs(ratio - 1) < eps)
