import math

import numpy as np
import oracles
import pytest
from backends import CASE, open_case, require

from gwa_core import Moments

VALUES = 10**7
NARROW = ["strict-no_float64", "strict-no_x64", "jax-x32-jit"]


def read(backend, moments):
    """All fields but the low parts, in float64, and the low parts added to them."""
    fields = [float(backend.read(field)) for field in moments[:10]]
    return np.asarray(fields), np.asarray(fields) + backend.read(moments.low)


def close(got, want, rtol, scale=1.0):
    """Compare moments; odd ones may vanish, so each is measured in its power of the spread."""
    sigma = math.sqrt(want[2])
    size = np.array([want[0], max(abs(want[1]), sigma), *(sigma**k for k in range(2, 9)), 1.0])
    # Higher moments of data with long tails are far above the power of the spread.
    size = np.maximum(size, np.abs(want))
    assert np.all(np.abs(got - want) <= rtol * scale * size), (got - want) / size


@pytest.fixture(scope="module")
def scores():
    """Skewed, with two modes and a tail, as scores are under label noise."""
    rng = np.random.default_rng(0)
    good = rng.normal(0.25, 0.12, VALUES)
    good[: VALUES // 10] = rng.normal(-0.3, 0.08, VALUES // 10)
    return rng.permutation(np.clip(good, -1, 1))


@pytest.fixture(scope="module")
def truth(scores):
    return oracles.moments(scores)


def moments_of(x):
    return Moments.from_batch(x)


def merge(pair):
    return pair[0].merge(pair[1])


def merge_in_a_random_tree(parts, rng, merge=merge):
    while len(parts) > 1:
        i, j = sorted(rng.choice(len(parts), 2, replace=False), reverse=True)
        parts.append(merge((parts.pop(i), parts.pop(j))))
    return parts[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_any_split_order_and_tree_in_float64(scores, truth, seed):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, VALUES, 150))
    parts = [Moments.from_batch(part) for part in np.split(scores, cuts)]
    assert min(float(part.count) for part in parts) < 10000 < max(float(p.count) for p in parts)
    order = rng.permutation(len(parts))
    whole = merge_in_a_random_tree([parts[i] for i in order], rng)
    close(np.asarray(whole[:10], float), truth, 1e-12)


def test_a_long_chain_of_small_batches_in_float64(scores):
    x = scores[: 2000 * 16]
    chain = Moments.empty(x)
    for batch in x.reshape(-1, 16):
        chain = chain.merge(Moments.from_batch(batch))
    close(np.asarray(chain[:10], float), oracles.moments(x), 1e-12)


@pytest.mark.parametrize("name", NARROW)
def test_any_split_and_tree_without_float64(scores, truth, name):
    rng = np.random.default_rng(0)
    single = scores.astype(np.float32)
    with open_case(CASE[name]) as backend:
        parts = [backend.call(moments_of, backend.array(part)) for part in np.split(single, 50)]
        whole = merge_in_a_random_tree(parts, rng, lambda pair: backend.call(merge, pair))
        got, full = read(backend, whole)
    close(got, truth, 1e-5)
    assert full[0] == VALUES


@pytest.mark.parametrize("name", NARROW)
def test_counts_are_exact_beyond_the_integers_of_float32(name):
    x = np.random.default_rng(0).uniform(-1, 1, 1001)
    with open_case(CASE[name]) as backend:
        one, total = (Moments.from_batch(backend.array(part)) for part in (x[:1], x))
        count = x.size
        for _ in range(15):
            total, count = backend.call(merge, (total, total)), 2 * count
        assert count > 2**24
        for _ in range(3):
            total, count = backend.call(merge, (one, total)), count + 1
        _, full = read(backend, total)
        assert full[0] == count
        np.testing.assert_allclose(full[2], np.float32(x).var(), rtol=1e-6)


def test_hundred_thousand_float32_merges_in_a_row():
    jax = require("jax")
    steps, batch = 100_000, 4
    x = np.random.default_rng(0).normal(0.2, 0.3, (steps, batch)).astype(np.float32)
    with open_case(CASE["jax-x32"]) as backend:

        def add(moments, values):
            return moments.merge(Moments.from_batch(values)), None

        start = Moments.empty(jax.numpy.zeros(1, "float32"))
        total, _ = jax.jit(lambda x: jax.lax.scan(add, start, x))(x)
        got, full = read(backend, total)
    close(got, oracles.moments(x.ravel()), 1e-5)
    assert full[0] == steps * batch


@pytest.mark.slow
def test_hundred_million_float32_values_far_from_zero():
    jax = require("jax")
    chunks, size = 100, 10**6

    def chunk(i):
        x = np.random.default_rng(i).standard_normal(size, np.float32)
        return np.float32(1000.0) + x

    sums = np.zeros(4)
    with open_case(CASE["jax-x32"]) as backend:
        take = jax.jit(lambda total, x: total.merge(Moments.from_batch(x)))
        total = Moments.empty(jax.numpy.zeros(1, "float32"))
        for i in range(chunks):
            x = chunk(i)
            total = take(total, x)
            # Exact shift, then plain sums of powers in float64: the spread is 1 around 0.
            centred = x.astype(np.float64) - 1000.0
            square = centred * centred
            sums += centred.sum(), square.sum(), square @ centred, square @ square
        got, full = read(backend, total)
        skewness, kurtosis = (float(total.skewness), float(total.kurtosis))
    m1, s2, s3, s4 = sums / (chunks * size)
    m2 = s2 - m1**2
    m3 = s3 - 3 * m1 * s2 + 2 * m1**3
    m4 = s4 - 4 * m1 * s3 + 6 * m1**2 * s2 - 3 * m1**4
    assert full[0] == chunks * size
    assert full[1] == pytest.approx(1000.0 + m1, rel=1e-9)
    assert got[2] == pytest.approx(m2, rel=1e-5)
    assert skewness == pytest.approx(m3 / m2**1.5, abs=1e-5)
    assert kurtosis == pytest.approx(m4 / m2**2 - 3, abs=3e-5)


def test_a_large_offset_costs_no_digits():
    x = np.random.default_rng(0).normal(size=1001)
    plain, far = Moments.from_batch(x), Moments.from_batch(x + 1e8)
    # Adding the offset itself rounds the data to 1.5e-8.
    for k in range(2, 9):
        assert far[k] == pytest.approx(plain[k], rel=1e-6, abs=1e-6)
    halves = Moments.from_batch(x[:500] + 1e8).merge(Moments.from_batch(x[500:] + 1e8))
    assert halves.m4 == pytest.approx(far.m4, rel=1e-12)


def test_shape_statistics_are_those_of_scipy():
    stats = require("scipy.stats")
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=50), rng.exponential(size=999), rng.uniform(size=7), [0.0, 1.0, 1.0]):
        x = np.asarray(x)
        moments = Moments.from_batch(x)
        assert moments.variance == pytest.approx(x.var(), rel=1e-12)
        assert moments.skewness == pytest.approx(stats.skew(x), rel=1e-11)
        assert moments.kurtosis == pytest.approx(stats.kurtosis(x), rel=1e-11)


@pytest.mark.parametrize(
    ("x", "kurtosis"), [([-1.0, 1.0], -2.0), (np.linspace(-1, 1, 100001), -1.2)]
)
def test_known_kurtosis(x, kurtosis):
    assert Moments.from_batch(np.asarray(x)).kurtosis == pytest.approx(kurtosis, abs=1e-8)


def test_nan_inf_and_masked_values_count_nowhere(backend):
    x = np.asarray([0.1, np.nan, 0.3, np.inf, -0.2, 0.9, -np.inf])
    where = np.asarray([True, True, True, True, True, False, True])

    def run(a):
        return Moments.from_batch(a["x"], where=a.get("where"))

    masked = backend.call(run, backend.arrays(x=x, where=where))
    kept = backend.call(run, backend.arrays(x=np.asarray([0.1, 0.3, -0.2])))
    for got, want in zip(masked[:10], kept[:10], strict=True):
        np.testing.assert_allclose(backend.read(got), backend.read(want), rtol=1e-5, atol=1e-7)
    assert float(backend.read(masked.count)) == 3.0


def test_nothing_is_the_identity(backend):
    x = np.asarray([0.1, 0.4, -0.2])

    def run(a):
        one, nothing = Moments.from_batch(a["x"]), Moments.from_batch(a["x"][:0])
        empty = Moments.empty(a["x"])
        return one, one.merge(empty), empty.merge(one), nothing.merge(one), empty.merge(nothing)

    one, *sums, zero = backend.call(run, backend.arrays(x=x))
    for got in sums:
        for a, b in zip(one, got, strict=True):
            np.testing.assert_allclose(backend.read(a), backend.read(b), rtol=1e-6, atol=1e-9)
    assert all(np.all(backend.read(field) == 0) for field in zero)


def test_constant_and_missing_values_have_no_shape(backend):
    def run(a):
        return [(m.skewness, m.kurtosis) for m in map(Moments.from_batch, (a["x"], a["x"][:0]))]

    for pair in backend.call(run, backend.arrays(x=np.full(5, 0.25))):
        assert all(np.isnan(backend.read(value)) for value in pair)


def test_spread_of_the_size_of_rounding_is_not_a_shape():
    # 0.1 is not a float32; the scores are equal all the same.
    moments = Moments.from_batch(np.full(1000, 0.1, np.float32))
    assert moments.variance == 0.0
    assert np.isnan(moments.kurtosis)


def test_the_state_travels_through_pytrees():
    torch, jax = require("torch"), require("jax")
    moments = Moments.from_batch(torch.tensor([0.1, 0.2, 0.4]))
    leaves, tree = torch.utils._pytree.tree_flatten(moments)
    assert len(leaves) == len(Moments._fields)
    assert torch.utils._pytree.tree_unflatten(leaves, tree).count == 3.0
    assert len(jax.tree_util.tree_leaves(moments)) == len(Moments._fields)


def test_scale_count_forgets():
    x = np.random.default_rng(0).normal(size=100)
    half = Moments.from_batch(x).scale_count(0.5)
    assert half.count == 50.0
    assert half.kurtosis == Moments.from_batch(x).kurtosis
    both = half.merge(Moments.from_batch(x + 3))
    assert both.mean == pytest.approx((50 * x.mean() + 100 * (x.mean() + 3)) / 150, rel=1e-12)
