"""Johnson-Lindenstrauss sketches (App. A.2), the same on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from gwa_core._lib.array import (
    Array,
    constant,
    device_of,
    index_dtype,
    is_floating,
    namespace,
    result_dtype,
)
from gwa_core._lib.checks import check_choice, check_integer

__all__ = ["JLSketch", "jl_dimension", "project"]

Kind: TypeAlias = Literal["gaussian", "rademacher", "sparse", "hadamard"]


@dataclass(frozen=True)
class JLSketch:
    r"""A seeded random map from D to K features that keeps inner products on average.

    .. math:: \mathbb E\,\langle S x, S y\rangle = \langle x, y\rangle,
       \qquad S \in \mathbb R^{K \times D}

    Two uses. Measuring: `alignment_scores(..., sketch=...)` works on K features; the mean of the
    scores stays what it was and each score gets noise of order 1/sqrt(K), so this saves memory
    but cannot by itself raise the mean. Training: a frozen ``project`` between latents and head
    gives heads of one width to models of different widths, whose scores are then comparable
    (Fig. 8).

    Parameters
    ----------
    in_features : int
        D.
    out_features : int
        K, default 192 as in the paper.
    kind : {"gaussian", "rademacher", "sparse", "hadamard"}
        Independent normal entries; signs; signs of which one in about sqrt(D) is kept; or random
        signs, Walsh-Hadamard transform and K sampled coordinates (O(D log D) instead of O(DK)).
    seed : int
        The same seed gives the same map on every backend, machine and NumPy version.

    Raises
    ------
    ValueError
        On sizes below one, an unknown kind, or a Hadamard sketch with K larger than D rounded up
        to a power of two.

    Notes
    -----
    The entries come from the raw 64-bit words of the Philox generator, which NumPy guarantees to
    keep, and not from its distributions, which it does not.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import JLSketch, project
    >>> project(np.eye(4), JLSketch(4, 2, kind="rademacher")).shape
    (4, 2)
    """

    in_features: int
    out_features: int = 192
    kind: Kind = "gaussian"
    seed: int = 0
    _made: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("in_features", 1), ("out_features", 1), ("seed", 0)):
            whole = check_integer(name, getattr(self, name), least=least)
            object.__setattr__(self, name, whole)
        check_choice("kind", self.kind, get_args(Kind))
        if self.kind == "hadamard" and self.out_features > self._padded:
            raise ValueError(
                f"`out_features` must be at most {self._padded}, `in_features` rounded up to a "
                f"power of two, for a Hadamard sketch, got {self.out_features}"
            )

        # Made once, and not on first use: a lazily cached property can't be traced.
        made = self._transform() if self.kind == "hadamard" else self._matrix()
        object.__setattr__(self, "_made", made)

    @property
    def _padded(self) -> int:
        return 1 << (self.in_features - 1).bit_length()

    def _words(self, count: int) -> NDArray[np.uint64]:
        return np.random.Philox(self.seed).random_raw(count)

    def _matrix(self) -> NDArray[np.float64]:
        """Return the (K, D) map of independent entries."""
        shape = (self.out_features, self.in_features)
        count = self.out_features * self.in_features
        if self.kind == "gaussian":
            # Box-Muller, from uniforms in [0, 1) of 53 bits.
            pairs = (count + 1) // 2
            uniform = (self._words(2 * pairs) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            radius = np.sqrt(-2.0 * np.log1p(-uniform[:pairs]))
            angle = 2.0 * np.pi * uniform[pairs:]
            entries = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
            keep = 1
        else:
            words = self._words(count)
            keep = 1 if self.kind == "rademacher" else max(1, math.isqrt(self.in_features))
            kept = (words >> np.uint64(1)) % np.uint64(keep) == 0
            entries = kept * (1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64))
        return entries.reshape(shape) * math.sqrt(keep / self.out_features)

    def _transform(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the D signs and the K sampled coordinates of a Hadamard sketch."""
        words = self._words(2 * self._padded)
        signs = 1.0 - 2.0 * (words[: self.in_features] & np.uint64(1)).astype(np.float64)
        rows = np.argsort(words[self._padded :], kind="stable")[: self.out_features]
        return signs, np.sort(rows)


def project(x: Array, sketch: JLSketch) -> Array:
    """Apply a sketch to the last axis.

    Parameters
    ----------
    x : array of shape (..., D)
        Latents, or the rows of a weight. Half precision is raised to float32.
    sketch : JLSketch
        The map, for D features.

    Returns
    -------
    array of shape (..., K)
        Same namespace and device, dtype of `x` but at least float32.

    Raises
    ------
    TypeError, ValueError
        If `x` is not floating or its last axis is not ``sketch.in_features``.

    Notes
    -----
    Cost: O(DK) a row and one copy of the matrix to the device a call; "hadamard" O(D log D).
    Runs under jit, where the matrix is a constant.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import JLSketch, project
    >>> x = np.ones((1, 512))
    >>> float(np.linalg.norm(project(x, JLSketch(512, 256))) / np.linalg.norm(x)).__round__(1)
    1.0
    """
    xp = namespace(x=x)
    if x.ndim == 0 or x.shape[-1] != sketch.in_features:
        raise ValueError(
            f"`x` must be (..., D) with D = {sketch.in_features}, got shape {tuple(x.shape)}; "
            "a sketch belongs to one width of latents"
        )
    if not is_floating(xp, x):
        raise TypeError(f"`x` must be floating point, got {x.dtype}")
    dtype = result_dtype(xp, x)
    x = xp.astype(x, dtype)
    if sketch.kind != "hadamard":
        return x @ constant(xp, sketch._made, x).T
    signs, rows = sketch._made
    x = x * constant(xp, signs, x)
    size = sketch._padded
    if size > sketch.in_features:
        shape = (*x.shape[:-1], size - sketch.in_features)
        x = xp.concat([x, xp.zeros(shape, dtype=dtype, device=device_of(x))], axis=-1)
    lead, half = x.shape[:-1], 1
    while half < size:
        x = xp.reshape(x, (*lead, size // (2 * half), 2, half))
        top, low = x[..., 0, :], x[..., 1, :]
        x = xp.reshape(xp.stack([top + low, top - low], axis=-2), (*lead, size))
        half *= 2
    picked = xp.take(x, constant(xp, rows, x, index_dtype(xp, x)), axis=-1)
    return picked / math.sqrt(sketch.out_features)


def jl_dimension(n_samples: int, distortion: float) -> int:
    r"""Return how many features keep all distances of N points within a relative distortion.

    .. math:: K \ge \frac{4 \ln N}{\varepsilon^2 / 2 - \varepsilon^3 / 3}

    Parameters
    ----------
    n_samples : int
        N, at least 2.
    distortion : float
        ε in (0, 1): squared distances change by at most this factor 1 ± ε.

    Returns
    -------
    int
        K, sufficient with positive probability for a random sketch.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The bound is for every pair of points at once, and generous; a mean over N scores needs far
    fewer (the paper uses 192). Cost: O(1).

    References
    ----------
    Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003.

    Examples
    --------
    >>> from gwa_core import jl_dimension
    >>> jl_dimension(50_000, 0.1)
    9275
    """
    n_samples = check_integer("n_samples", n_samples, least=2)
    if not 0.0 < distortion < 1.0:
        raise ValueError(f"`distortion` must be in (0, 1), got {distortion!r}")
    return math.ceil(4.0 * math.log(n_samples) / (distortion**2 / 2 - distortion**3 / 3))
