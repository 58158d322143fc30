"""Streaming, mergeable central moments (Eq. 3)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gwa_core._lib.array import (
    Array,
    accumulator_dtype,
    constant,
    index_dtype,
    namespace,
    quiet,
)
from gwa_core._lib.checks import check_scores, check_where
from gwa_core._lib.numerics import blocked_sum, divide_or_zero

__all__ = ["Moments"]

# The standard error of a ratio with a fourth moment in it needs moments up to twice the fourth.
ORDER = 8

# Row p, column j holds binomial(p, j), the weight of moment j in moment p of shifted data.
# The diagonal is left out: it is the moment itself, and only what it gains is wanted.
BINOMIAL = [[math.comb(p, j) if j < p else 0 for j in range(ORDER + 1)] for p in range(ORDER + 1)]
# The power of the shift that goes with it, row by row.
EXPONENT = [max(p - j, 0) for p in range(ORDER + 1) for j in range(ORDER + 1)]


class Moments(NamedTuple):
    r"""Count, mean and central moments of a set of scores; any partition merges to the same.

    .. math:: M^{(k)} = \frac 1 N \sum_i \left(\gamma_i - M^{(1)}\right)^k, \qquad k = 2, \dots, 8

    Make one with `from_batch` or `empty`, never by hand.

    Parameters
    ----------
    count, mean : 0-D array
        N (a floating number, exact beyond 2^24 in float32) and the mean.
    m2, m3, m4, m5, m6, m7, m8 : 0-D array
        Central moments of the population, not sums.
    negative_fraction : 0-D array
        Share of values below zero.
    low : array of shape (10,)
        What the other fields lost by rounding, in their order (count, mean, m2, ..., m8,
        negative_fraction): each of them is an unevaluated sum of two numbers.

    Notes
    -----
    A NamedTuple of arrays passes through ``jax.jit``, ``lax.scan`` and PyTorch's pytrees. The
    fields are float64 where the device has it, else float32; there the low parts keep 10^8 merged
    values within 1e-5. Where scores are as small as 1e-5, m8 underflows in float32 and with it
    the standard error of GWA.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Eq. 3; merging: Pébay, Sandia report SAND2008-6212.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import Moments
    >>> scores = np.asarray([0.1, 0.4, -0.2, 0.3])
    >>> whole = Moments.from_batch(scores)
    >>> parts = Moments.from_batch(scores[:1]).merge(Moments.from_batch(scores[1:]))
    >>> float(whole.mean), bool(np.isclose(parts.kurtosis, whole.kurtosis))
    (0.15, True)
    """

    count: Array
    mean: Array
    m2: Array
    m3: Array
    m4: Array
    m5: Array
    m6: Array
    m7: Array
    m8: Array
    negative_fraction: Array
    low: Array

    @classmethod
    def empty(cls, like: Array) -> Moments:
        """Return the moments of nothing, on the device of `like`: the identity of `merge`."""
        xp = namespace(like=like)
        dtype = accumulator_dtype(xp, like)
        zero = constant(xp, 0.0, like, dtype)
        return cls._make([*([zero] * 10), constant(xp, [0.0] * 10, like, dtype)])

    @classmethod
    def from_batch(cls, x: Array, *, where: Array | None = None) -> Moments:
        """Return the moments of an array of scores; nan and masked scores count nowhere.

        Parameters
        ----------
        x : array of shape (N,)
            Scores.
        where : boolean array of shape (N,), optional
            True for scores that count.

        Returns
        -------
        Moments
            Of the finite scores that count. Cost: O(N), two passes.

        Raises
        ------
        TypeError, ValueError
            If `x` is not a floating vector or `where` does not fit it.
        """
        xp = namespace(x=x, where=where)
        check_scores(xp, "x", x)
        check_where(xp, where, x.shape[0])
        dtype = accumulator_dtype(xp, x)
        with quiet(xp):
            x = xp.astype(x, dtype)
            kept = xp.isfinite(x) if where is None else where & xp.isfinite(x)
            x = xp.where(kept, x, constant(xp, 0.0, x))
            kept = xp.astype(kept, dtype)
            count = blocked_sum(xp, kept)
            # One correction removes what rounding left in the mean of a large offset.
            rough = divide_or_zero(xp, blocked_sum(xp, x), count)
            centred = (x - rough) * kept
            shift = divide_or_zero(xp, blocked_sum(xp, centred), count)
            centred = (centred - shift) * kept
            powers = [centred]
            for k in range(2, ORDER + 1):
                powers.append(powers[k // 2 - 1] * powers[k - k // 2 - 1])
            negative = xp.astype(x < 0, dtype)
            sums = blocked_sum(xp, xp.stack([*powers[1:], negative], axis=1))
            fields = divide_or_zero(xp, sums, count)
            mean, low = _two_sum(rough, shift)
            zero = constant(xp, 0.0, mean)
            low = xp.stack([zero, low, *([zero] * ORDER)])
            return cls._make([count, mean, *(fields[k] for k in range(ORDER)), low])

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together; commutative and associative up to rounding.

        Parameters
        ----------
        other : Moments
            Of other samples, in the same namespace and on the same device.

        Returns
        -------
        Moments
            Cost: O(1), about 60 array operations. Runs under jit.
        """
        xp = namespace(self=self.mean, other=other.mean)
        with quiet(xp):
            return _merge(xp, self, other)

    def scale_count(self, factor: float) -> Moments:
        """Return the same moments with the weight of fewer samples: how a window forgets."""
        low = namespace(mean=self.mean).stack(
            [self.low[0] * factor, *(self.low[k] for k in range(1, 10))]
        )
        return self._replace(count=self.count * factor, low=low)

    @property
    def variance(self) -> Array:
        """Population variance, m2."""
        return self.m2

    @property
    def skewness(self) -> Array:
        """Population skewness, m3 / m2^1.5; nan for constant scores."""
        return self._standardized(3)

    @property
    def kurtosis(self) -> Array:
        """Population excess kurtosis, m4 / m2^2 - 3; nan for constant scores."""
        return self._standardized(4) - 3.0

    def _standardized(self, order: int) -> Array:
        """Return m_k / m2^(k/2), dividing step by step so that no power leaves the range."""
        xp = namespace(mean=self.mean)
        constant_scores = self.m2 <= 0
        safe = xp.where(constant_scores, constant(xp, 1.0, self.m2), self.m2)
        value = self[order] if order > 1 else self.mean
        for _ in range(order // 2):
            value = value / safe
        if order % 2:
            value = value / xp.sqrt(safe)
        return xp.where(constant_scores, constant(xp, xp.nan, value), value)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its exact error (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def _merge(xp: Any, a: Moments, b: Moments) -> Moments:
    """Shift both sets' moments to the common mean by the binomial formula and average them.

    The larger set is the base and the rest a correction added with its rounding error kept, so
    that a long run of small batches does not wear the moments away.
    """
    swap = b.count > a.count
    high_a, high_b = xp.stack(a[:10]), xp.stack(b[:10])
    base, base_low = xp.where(swap, high_b, high_a), xp.where(swap, b.low, a.low)
    rest, rest_low = xp.where(swap, high_a, high_b), xp.where(swap, a.low, b.low)

    count, count_low = _two_sum(base[0], rest[0])
    count_low = count_low + base_low[0] + rest_low[0]
    share = divide_or_zero(xp, rest[0] + rest_low[0], count + count_low)

    # m_0 = 1 and m_1 = 0 complete the vector of central moments.
    zero, one = constant(xp, 0.0, base), constant(xp, 1.0, base)
    difference = (rest - base) + (rest_low - base_low)
    delta = difference[1]
    base_m = xp.concat([xp.stack([one, zero]), base[2:9]])
    step_m = xp.concat([xp.stack([zero, zero]), difference[2:9]])
    rest_m = base_m + step_m
    to_base = _shift(xp, base_m, -share * delta)
    to_rest = _shift(xp, rest_m, (1.0 - share) * delta)
    correction = (1.0 - share) * to_base + share * (step_m + to_rest)

    step = xp.concat([xp.stack([share * delta]), correction[2:], xp.stack([share * difference[9]])])
    total, error = _two_sum(base[1:], step)
    total, error = _two_sum(total, error + base_low[1:])
    low = xp.concat([xp.stack([count_low]), error])
    return Moments._make([count, *(total[k] for k in range(9)), low])


def _shift(xp: Any, moments: Array, d: Array) -> Array:
    """Return what central moments (m_0, ..., m_8) gain when all data move by d."""
    powers = [constant(xp, 1.0, d), d]
    for k in range(2, ORDER + 1):
        powers.append(powers[k // 2] * powers[k - k // 2])
    exponent = constant(xp, EXPONENT, moments, index_dtype(xp, moments))
    table = xp.reshape(xp.take(xp.stack(powers), exponent), (ORDER + 1, ORDER + 1))
    weight = constant(xp, BINOMIAL, d)
    # Written as a sum of products: a matrix product may run in reduced precision on accelerators.
    return xp.sum(weight * table * moments[None, :], axis=1)
