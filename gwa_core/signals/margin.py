"""Margin of the label, whose mean over the epochs is AUM."""

from __future__ import annotations

from gwa_core._lib.array import Array
from gwa_core.signals._softmax import softmax_rows

__all__ = ["margin"]


def margin(*, logits: Array, targets: Array) -> Array:
    r"""Return the logit of the label less the largest other one.

    .. math:: m_i = \ell_{i, y_i} - \max_{k \ne y_i} \ell_{i, k}

    Low is suspicious. Its mean over the epochs is the area under the margin (AUM).

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the head; (N, 1) of one sigmoid. Half precision is raised to float32.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1; 0 and 1 for one sigmoid.

    Returns
    -------
    array of shape (N,)
        Any real number; nan where the logits are not finite or the label is none of the classes.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit; on NumPy arrays also on labels out of range.

    Notes
    -----
    Cost: O(NC). Runs under jit.

    References
    ----------
    Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking",
    NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import margin
    >>> margin(logits=np.asarray([[2.0, 0.5, 1.0]]), targets=np.asarray([2]))
    array([-1.])
    """
    rows = softmax_rows(logits, targets)
    return rows.masked(rows.gap)
