"""How many predictions changed from one epoch to the next."""

from __future__ import annotations

from gwa_core._lib.array import Array, namespace

__all__ = ["prediction_changes"]


def prediction_changes(previous: Array, current: Array, /) -> Array:
    r"""Return the share of samples whose predicted class changed between two epochs.

    .. math:: \frac 1 N \sum_i \left[\hat y_{t-1, i} \ne \hat y_{t, i}\right]

    LabelWave stops at the first local minimum of its moving average, which it takes for the
    moment at which a network begins to fit wrong labels; see `gwa_core.LabelWave`.

    Parameters
    ----------
    previous, current : integer array of shape (N,)
        Predicted classes by sample id; negative where there is none, which counts nowhere.

    Returns
    -------
    0-D array
        In [0, 1], a floating number; nan where no sample was predicted in both. Lower is better.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    The paper of LabelWave counts them; a share does not depend on N. Cost: O(N). Runs under jit.

    References
    ----------
    Yuan, Feng, Liu, "Early Stopping Against Label Noise Without Validation Data", ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import prediction_changes
    >>> float(prediction_changes(np.asarray([0, 1, 2, 2, -1]), np.asarray([0, 2, 2, 2, 1])))
    0.25
    """
    xp = namespace(previous=previous, current=current)
    for name, x in {"previous": previous, "current": current}.items():
        if x.ndim != 1 or not xp.isdtype(x.dtype, "integral"):
            raise ValueError(
                f"`{name}` must be (N,) integers, got {x.dtype} of shape {tuple(x.shape)}; "
                "give predicted classes, not logits"
            )
    if previous.shape != current.shape:
        raise ValueError(
            f"`current` must be (N,) = {tuple(previous.shape)}, got {tuple(current.shape)}; both "
            "are by sample id"
        )
    both = (previous >= 0) & (current >= 0)
    count = xp.sum(xp.astype(both, xp.float32))
    changed = xp.sum(xp.astype(both & (previous != current), xp.float32))
    return changed / count
