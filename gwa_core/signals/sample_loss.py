"""Loss of each sample, for the small-loss criterion."""

from __future__ import annotations

from gwa_core._lib.array import Array
from gwa_core.signals._softmax import softmax_rows

__all__ = ["sample_loss"]


def sample_loss(*, logits: Array, targets: Array) -> Array:
    r"""Return the cross-entropy of each sample.

    .. math:: \mathcal L_i = -\log \operatorname{softmax}(\ell_i)_{y_i}

    High is suspicious: samples of small loss are held to be right.

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the head; (N, 1) of one sigmoid. Half precision is raised to float32.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1; 0 and 1 for one sigmoid.

    Returns
    -------
    array of shape (N,)
        In nats, at least 0; nan where the logits are not finite or the label is none of the
        classes.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit; on NumPy arrays also on labels out of range.

    Notes
    -----
    Losses far below the rounding of the logits keep their digits, which a difference of logits and
    their log-sum-exp loses. Cost: O(NC). Runs under jit.

    References
    ----------
    Arpit et al., "A Closer Look at Memorization in Deep Networks", ICML 2017; Han et al.,
    "Co-teaching", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import sample_loss
    >>> sample_loss(logits=np.asarray([[0.0, 0.0], [50.0, 0.0]]), targets=np.asarray([0, 0]))
    array([6.93147181e-01, 1.92874985e-22])
    """
    rows = softmax_rows(logits, targets)
    return rows.masked(rows.loss)
