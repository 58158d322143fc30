"""Several signals of a batch, from one pass over its logits and one over its latents."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

from gwa_core._lib.array import Array, namespace
from gwa_core.signals._softmax import Rows, softmax_rows
from gwa_core.signals.gradient_norm import latent_norms

__all__ = ["sample_signals", "unknown"]

# The property of a row's numbers that each is.
OF_ROWS = {
    "margin": "gap",
    "sample_loss": "loss",
    "label_probability": "hit",
    "el2n": "residual_norm",
    "correct": "correct",
    "prediction": "prediction",
}
# Of a row's numbers and the norm of its latents.
OF_LATENTS: dict[str, Callable[[Rows, Array], Array]] = {
    "gradient_norm": lambda rows, norm: rows.residual_norm * norm,
    "self_influence": lambda rows, norm: (rows.residual_norm * norm) ** 2,
    "head_hessian_trace": lambda rows, norm: rows.impurity * norm * norm,
}


def sample_signals(
    names: Iterable[str], /, *, logits: Array, targets: Array, latents: Array | None = None
) -> dict[str, Array]:
    """Return several signals of a batch, from one pass over its logits and one over its latents.

    Parameters
    ----------
    names : iterable of str
        Of "margin", "sample_loss", "label_probability", "el2n", "gradient_norm", "self_influence",
        "head_hessian_trace", "correct" (1 or 0) and "prediction" (a class number).
    logits : array of shape (N, C)
        Outputs of the head. Half precision is raised to float32. (N, 1) is one sigmoid, which
        counts as the softmax of two classes with the same probabilities, loss and gradient norms.
    targets : integer array of shape (N,)
        Class numbers in 0..C-1; 0 and 1 for one sigmoid.
    latents : array of shape (N, D), optional
        Input of the head, for the signals that need it.

    Returns
    -------
    dict of str to array of shape (N,)
        Floating, in the order of `names`; nan where a sample is not finite or its label is none of
        the classes.

    Raises
    ------
    TypeError, ValueError
        On unknown names, on latents that are missing, on shapes and dtypes that do not fit.

    Notes
    -----
    Each is what the function of its name gives; "prediction" breaks ties for the label. Cost:
    O(NC + ND) for all together. Runs under jit.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core.signals import sample_signals
    >>> logits, targets = np.asarray([[2.0, 0.5, 1.0]]), np.asarray([2])
    >>> sample_signals(["margin", "prediction"], logits=logits, targets=targets)
    {'margin': array([-1.]), 'prediction': array([0.])}
    """
    names = list(names)
    for name in names:
        if name not in OF_ROWS and name not in OF_LATENTS:
            raise unknown(name, (*OF_ROWS, *OF_LATENTS))
    needing = [name for name in names if name in OF_LATENTS]
    if needing and latents is None:
        raise ValueError(f"`latents` must be given for {needing[0]!r}, got None")
    rows = softmax_rows(logits, targets)
    xp = namespace(logits=logits)
    norms = None
    if needing:
        norms = latent_norms(latents, rows=logits.shape[0], outputs=logits.shape[1])
    found = {}
    for name in names:
        value = getattr(rows, OF_ROWS[name]) if name in OF_ROWS else OF_LATENTS[name](rows, norms)
        found[name] = rows.masked(xp.astype(value, rows.gap.dtype, copy=False))
    return found


def unknown(name: object, known: Iterable[str]) -> ValueError:
    """Say which names there are, and the nearest."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3) or known
    return ValueError(f"`names` must be of {', '.join(known)}, got {name!r}; near: {near[0]!r}")
