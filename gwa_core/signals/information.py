"""What latents and class weights have in common, by matrix information (App. B.4)."""

from __future__ import annotations

from typing import Any

from gwa_core._lib.array import (
    Array,
    accumulator_dtype,
    index_dtype,
    namespace,
    quiet,
    result_dtype,
)
from gwa_core._lib.checks import check_labels, check_matrix, check_positive_int
from gwa_core._lib.numerics import divide_or_zero, norm, one_hot_mask

__all__ = [
    "centred_class_means",
    "matrix_entropy_difference_ratio",
    "matrix_mutual_information_ratio",
]


def matrix_mutual_information_ratio(a: Array, b: Array, /) -> Array:
    r"""Return the matrix mutual information of two sets of vectors over their smaller entropy.

    .. math:: \mathrm{MIR} = \frac{H(K_a) + H(K_b) - H(K_a \odot K_b)}{\min(H(K_a), H(K_b))},
       \qquad H(K) = -\operatorname{tr}\left(\tfrac K N \log \tfrac K N\right)

    with K the cosines between the rows of each. Row i of both belongs together: class means and
    class weights, or each sample's latents and the weight of its class.

    Parameters
    ----------
    a : array of shape (N, D)
        Vectors, for instance ``centred_class_means(...)`` or latents.
    b : array of shape (N, any)
        Their partners, for instance ``weight`` or ``weight[targets]``.

    Returns
    -------
    0-D array
        In [0, 1] up to rounding. High: the same structure. At neural collapse with C classes
        ``1 / (C-1) + (C-2) log(C-2) / ((C-1) log(C-1))``. 0 where one entropy is 0, nan where an
        entry is not finite.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    A pair of which one vector is zero is left out. The logarithm of any base gives the same. What
    rounding leaves of an eigenvalue 0 counts as 0, and an entropy that may be rounding, below
    64 N eps, too. In float64 where the device has it. Cost: O(N³), eigenvalues; needs the
    extension ``linalg`` of the array API. Runs under jit.

    References
    ----------
    Song, Tan, Zou, Ma, Huang, "Unveiling the Dynamics of Information Interplay in Supervised
    Learning", ICML 2024; Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.4.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import matrix_mutual_information_ratio
    >>> collapsed = np.eye(4) - 1 / 4
    >>> matrix_mutual_information_ratio(collapsed, collapsed).round(3)
    np.float64(0.754)
    """
    xp, a, b, count, finite, dtype = _paired(a, b)
    with quiet(xp):
        h_a, h_b = _entropy(xp, _small_gram(a), count), _entropy(xp, _small_gram(b), count)
        both = _entropy(xp, (a @ a.T) * (b @ b.T), count)
        ratio = divide_or_zero(xp, h_a + h_b - both, xp.minimum(h_a, h_b))
        return xp.astype(xp.where(finite, ratio, xp.nan), dtype)


def matrix_entropy_difference_ratio(a: Array, b: Array, /) -> Array:
    r"""Return the difference of the matrix entropies of two sets of vectors over the larger.

    .. math:: \mathrm{HDR} = \frac{|H(K_a) - H(K_b)|}{\max(H(K_a), H(K_b))}

    with H and K as in `matrix_mutual_information_ratio`.

    Parameters
    ----------
    a, b
        As those of `matrix_mutual_information_ratio`.

    Returns
    -------
    0-D array
        In [0, 1]. 0 at neural collapse, where both hold the same information, and where both
        entropies are 0; nan where an entry is not finite.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    Cost: O(N D min(N, D)) and eigenvalues of the smaller side; see
    `matrix_mutual_information_ratio`. Runs under jit.

    References
    ----------
    Song, Tan, Zou, Ma, Huang, "Unveiling the Dynamics of Information Interplay in Supervised
    Learning", ICML 2024; Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.4.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import matrix_entropy_difference_ratio
    >>> float(matrix_entropy_difference_ratio(np.eye(4), np.eye(4)[[0, 0, 1, 1]]).round(3))
    0.5
    """
    xp, a, b, count, finite, dtype = _paired(a, b)
    with quiet(xp):
        h_a, h_b = _entropy(xp, _small_gram(a), count), _entropy(xp, _small_gram(b), count)
        ratio = divide_or_zero(xp, xp.abs(h_a - h_b), xp.maximum(h_a, h_b))
        return xp.astype(xp.where(finite, ratio, xp.nan), dtype)


def centred_class_means(latents: Array, targets: Array, num_classes: int) -> Array:
    r"""Return the mean latents of each class, less the mean of all.

    .. math:: \mu_c - \mu = \frac 1 {N_c} \sum_{y_i = c} z_i - \frac 1 N \sum_i z_i

    What neural collapse aligns with the rows of the head's weight.

    Parameters
    ----------
    latents : array of shape (N, D)
        Input z of the linear head. Half precision is raised to float32.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1.
    num_classes : int
        C.

    Returns
    -------
    array of shape (C, D)
        Zero for a class without samples, which the ratios then leave out. Samples that are not
        finite count nowhere.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit; on NumPy arrays also on labels out of range.

    Notes
    -----
    Elsewhere a label out of range is left out. Cost: O(NCD). Runs under jit.

    References
    ----------
    Papyan, Han, Donoho, "Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
    Training", PNAS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import centred_class_means
    >>> latents = np.asarray([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0], [7.0, 6.0]])
    >>> centred_class_means(latents, np.asarray([0, 0, 1, 1]), 2)
    array([[-2., -1.],
           [ 2.,  1.]])
    """
    xp = namespace(latents=latents, targets=targets)
    check_matrix(xp, "latents", latents, shape="(N, D)")
    num_classes = check_positive_int("num_classes", num_classes)
    check_labels(xp, targets, latents.shape[0], max(num_classes, 2))
    dtype = result_dtype(xp, latents)
    labels = xp.astype(targets, index_dtype(xp, targets))
    finite = xp.all(xp.isfinite(latents), axis=1)
    member = one_hot_mask(xp, labels, num_classes) & finite[:, None]
    counted = xp.any(member, axis=1)
    z = xp.where(counted[:, None], xp.astype(latents, dtype), 0.0)
    member = xp.astype(member, dtype)
    sizes = xp.sum(member, axis=0)[:, None]
    # Twice, as rounding leaves a part of a large mean, and that in all classes.
    z = z - divide_or_zero(xp, xp.sum(z, axis=0), xp.sum(sizes))
    total = member.T @ z
    rest = divide_or_zero(xp, xp.sum(total, axis=0), xp.sum(sizes))
    return xp.where(sizes > 0, divide_or_zero(xp, total, sizes) - rest, 0.0)


def _paired(a: Array, b: Array) -> tuple[Any, Array, Array, Array, Array, Any]:
    """Check two sets of vectors; return them at unit length, or 0 where one of a pair is 0."""
    xp = namespace(a=a, b=b)
    check_matrix(xp, "a", a, shape="(N, D)")
    check_matrix(xp, "b", b, shape="(N, any)", rows=a.shape[0])
    dtype, wide = result_dtype(xp, a, b), accumulator_dtype(xp, a)
    finite = xp.all(xp.isfinite(a)) & xp.all(xp.isfinite(b))
    # LAPACK raises on what is not finite.
    a, b = (xp.astype(xp.where(xp.isfinite(x), x, 0.0), wide) for x in (a, b))
    sizes = norm(xp, a), norm(xp, b)
    paired = (sizes[0] > 0) & (sizes[1] > 0)
    a, b = (
        xp.where(paired[:, None], divide_or_zero(xp, x, size[:, None]), 0.0)
        for x, size in zip((a, b), sizes, strict=True)
    )
    return xp, a, b, xp.sum(xp.astype(paired, wide)), finite, dtype


def _small_gram(x: Array) -> Array:
    """Return x x' or x' x, whichever is smaller: they have the same eigenvalues but for zeros."""
    return x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x


def _entropy(xp: Any, gram: Array, count: Array) -> Array:
    values = divide_or_zero(xp, xp.linalg.eigvalsh(gram), count)
    values = xp.clip(values, 0.0, 1.0)
    entropy = -xp.sum(values * xp.log(xp.where(values > 0, values, 1.0)))
    rounding = 64 * gram.shape[0] * float(xp.finfo(gram.dtype).eps)
    return xp.where(entropy > rounding, entropy, 0.0)
