"""What the epochs of a sample say together: forgetting events, confidence, variability."""

from __future__ import annotations

from typing import NamedTuple

from gwa_core._lib.array import Array, namespace, quiet, result_dtype
from gwa_core.signals._softmax import softmax_rows

__all__ = ["Cartography", "cartography", "forgetting_events", "label_probability"]


def label_probability(*, logits: Array, targets: Array) -> Array:
    r"""Return the probability that the model gives to each sample's label.

    .. math:: p_i = \operatorname{softmax}(\ell_i)_{y_i}

    Low is suspicious. `cartography` takes it over the epochs.

    Parameters
    ----------
    logits : array of shape (N, C)
        Outputs of the head; (N, 1) of one sigmoid. Half precision is raised to float32.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1; 0 and 1 for one sigmoid.

    Returns
    -------
    array of shape (N,)
        In [0, 1]; nan where the logits are not finite or the label is none of the classes.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit; on NumPy arrays also on labels out of range.

    Notes
    -----
    Cost: O(NC). Runs under jit.

    References
    ----------
    Swayamdipta et al., "Dataset Cartography", EMNLP 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import label_probability
    >>> label_probability(logits=np.asarray([[0.0, 0.0]]), targets=np.asarray([1]))
    array([0.5])
    """
    rows = softmax_rows(logits, targets)
    return rows.masked(rows.hit)


class Cartography(NamedTuple):
    """Where each sample lies on the map of a training.

    Parameters
    ----------
    confidence : array of shape (N,)
        Mean probability of the label over the epochs. Low is suspicious.
    variability : array of shape (N,)
        Its standard deviation. High is ambiguous.
    """

    confidence: Array
    variability: Array


def cartography(probabilities: Array, /) -> Cartography:
    r"""Return confidence and variability of each sample over the epochs.

    .. math::

       \mu_i = \frac 1 T \sum_t p_{t,i}, \qquad
       \sigma_i = \sqrt{\frac 1 T \sum_t (p_{t,i} - \mu_i)^2}

    Parameters
    ----------
    probabilities : array of shape (T, N)
        What `label_probability` gave in each epoch; nan where a sample was not seen.

    Returns
    -------
    Cartography
        Two arrays of shape (N,); nan where a sample was never seen.

    Raises
    ------
    ValueError
        If the array is not floating or not (T, N).

    Notes
    -----
    Cost: O(TN). Runs under jit.

    References
    ----------
    Swayamdipta et al., "Dataset Cartography", EMNLP 2020, Sec. 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import cartography
    >>> cartography(np.asarray([[0.9, 0.1], [0.9, 0.7]]))
    Cartography(confidence=array([0.9, 0.4]), variability=array([0. , 0.3]))
    """
    xp = namespace(probabilities=probabilities)
    if probabilities.ndim != 2 or not xp.isdtype(probabilities.dtype, "real floating"):
        raise ValueError(
            f"`probabilities` must be floating point (T, N), got {probabilities.dtype} of shape "
            f"{tuple(probabilities.shape)}; stack what `label_probability` gave in each epoch"
        )
    p = xp.astype(probabilities, result_dtype(xp, probabilities))
    with quiet(xp):
        seen = xp.isfinite(p)
        counted = xp.astype(seen, p.dtype)
        count = xp.sum(counted, axis=0)
        mean = xp.sum(xp.where(seen, p, 0.0), axis=0) / count
        away = xp.where(seen, p - mean[None, :], 0.0)
        return Cartography(mean, xp.sqrt(xp.sum(away * away, axis=0) / count))


def forgetting_events(correct: Array, /) -> Array:
    r"""Return how often each sample was predicted right in one epoch and wrong in the next.

    .. math:: f_i = \sum_{t} \left[c_{t-1, i} \wedge \neg c_{t, i}\right]

    High is suspicious, or hard. A sample that was never right was never learnt, and gets T.

    Parameters
    ----------
    correct : boolean array of shape (T, N)
        Whether the prediction was right, epoch by epoch.

    Returns
    -------
    array of shape (N,)
        Whole numbers in 0..T, in float32.

    Raises
    ------
    ValueError
        If the array is not boolean or not (T, N).

    Notes
    -----
    The events are those between epochs, as each sample is seen once an epoch. Toneva et al. give
    infinity to samples that were never learnt; T ranks them in the same way and can be averaged.
    Cost: O(TN). Runs under jit.

    References
    ----------
    Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    ICLR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import forgetting_events
    >>> forgetting_events(np.asarray([[True, True, False], [False, True, False]]))
    array([1., 0., 2.], dtype=float32)
    """
    xp = namespace(correct=correct)
    if correct.ndim != 2 or not xp.isdtype(correct.dtype, "bool"):
        raise ValueError(
            f"`correct` must be boolean (T, N), got {correct.dtype} of shape "
            f"{tuple(correct.shape)}; stack `predicted == labels` of each epoch"
        )
    epochs = correct.shape[0]
    lost = xp.astype(correct[:-1, :] & ~correct[1:, :], xp.float32)
    events = xp.sum(lost, axis=0)
    return xp.where(xp.any(correct, axis=0), events, float(epochs))
