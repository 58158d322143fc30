"""The head of a Flax model by its name, NNX and Linen, and gradient-weight alignment as a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gwa_core import EpochSummary
from gwa_jax._sequences import Reduce
from gwa_jax.scoring import Array, Loss
from gwa_jax.state import init, update
from gwa_jax.summaries import end_epoch, label_quality, scores, summary

try:
    from flax import linen, nnx
    from flax.nnx.training.metrics import MetricState
except ImportError as error:
    raise ImportError(
        "`gwa_jax.flax` needs Flax 0.12.4 or newer; pip install 'gwa-core[flax]'"
    ) from error

from gwa_jax._capture import Calls, Head, branches, find, unknown, watched

__all__ = ["GWAMetric", "Head", "apply_with_head", "call_with_head"]

NNX_HEADS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv)
LINEN_HEADS = (linen.Dense, linen.DenseGeneral, linen.Conv)


def call_with_head(
    model: Callable[..., Any],
    name: str | nnx.Module,
    /,
    *args: Any,
    logit_probe: Array | None = None,
    **kwargs: Any,
) -> tuple[Any, Head]:
    """Call an NNX model, and return its output and what its head took and gave.

    Parameters
    ----------
    model : nnx.Module, or a method of one
        Called with all further arguments. It is the same before and after.
    name : str or nnx.Module
        The head, such as ``model.head``, or its name: the attributes that lead to it and places
        in lists, such as ``"head"`` or ``"blocks.3.head"``. An `nnx.Linear`, an
        `nnx.LinearGeneral` over the last axis, or an `nnx.Conv` of size one.
    *args, **kwargs
        Of the model.
    logit_probe : array of shape (..., C), optional
        Zeros that `gwa_jax.add_probe` adds to what the head returns, inside the model: the gradient
        with respect to them is the `logit_gradients` of `update`, whatever follows the head.

    Returns
    -------
    output : Any
        What ``model(*args, **kwargs)`` returns.
    Head
        Pass it on as ``update(state, **head._asdict(), targets=...)``.

    Raises
    ------
    TypeError
        If the head is not a linear layer.
    ValueError
        If the model has no such layer, or did not call it exactly once.

    Notes
    -----
    Nothing is computed besides the model's own call. Works inside ``nnx.jit``, ``nnx.grad``,
    ``nnx.scan``, ``nnx.vmap`` and ``jax.jit``: return the head as an auxiliary output of the loss.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gwa_jax.flax import call_with_head
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
    >>> output, head = call_with_head(model, "layers.2", jnp.ones((5, 3)))
    >>> output.shape, head.latents.shape, head.kernel.shape
    ((5, 2), (5, 8), (8, 2))
    """
    root = getattr(model, "__self__", model)
    if not isinstance(root, nnx.Module):
        raise TypeError(
            f"`model` must be an nnx.Module or a method of one, got {type(root).__name__}; for "
            "Linen there is `apply_with_head`"
        )
    path, layer = find(root, name)
    calls = Calls(path, logit_probe)
    calls.watch(layer, NNX_HEADS)
    with watched(calls):
        output = model(*args, **kwargs)
    return output, calls.only()


def apply_with_head(
    model: linen.Module | Callable[..., Any],
    variables: Any,
    name: str,
    /,
    *args: Any,
    logit_probe: Array | None = None,
    **kwargs: Any,
) -> tuple[Any, Head]:
    """Apply a Linen model, and return its output and what its head took and gave.

    ``capture_intermediates`` gives outputs of layers, not inputs; this gives both.

    Parameters
    ----------
    model : linen.Module, or its ``apply``
        Applied to all further arguments; ``TrainState.apply_fn`` will do.
    variables : pytree
        First argument of ``apply``, ``{"params": ...}``.
    name : str
        Of the head in the tree of parameters, joined by dots, such as ``"head"`` or
        ``"Decoder_0.Dense_1"``. A `linen.Dense`, a `linen.DenseGeneral` over the last axis, or a
        `linen.Conv` of size one.
    *args, **kwargs
        Of ``apply``, such as ``rngs`` and ``mutable``.
    logit_probe : array of shape (..., C), optional
        Zeros that `gwa_jax.add_probe` adds to what the head returns, inside the model: the gradient
        with respect to them is the `logit_gradients` of `update`, whatever follows the head.

    Returns
    -------
    output : Any
        What ``model.apply(variables, *args, **kwargs)`` returns.
    Head
        Pass it on as ``update(state, **head._asdict(), targets=...)``.

    Raises
    ------
    TypeError
        If the layer of that name is not a linear one.
    ValueError
        If there is none of that name, or the model did not call it exactly once.

    Notes
    -----
    Nothing is computed besides the model's own call. Works inside ``jax.jit``, ``jax.grad``,
    ``jax.lax.scan`` and ``jax.vmap``: return the head as an auxiliary output of the loss.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from flax import linen
    >>> from gwa_jax.flax import apply_with_head
    >>> model = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> output, head = apply_with_head(model, variables, "layers_2", jnp.ones((5, 3)))
    >>> output.shape, head.latents.shape, head.kernel.shape
    ((5, 2), (5, 8), (8, 2))
    """
    calls = Calls(name, logit_probe)
    names = branches(variables.get("params", {}))

    def see(call: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        output, layer = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and ".".join(layer.path) == name:
            calls.watch(layer, LINEN_HEADS)
            found = linen.meta.unbox(layer.variables["params"])
            output = calls.see(args, kwargs, output, found["kernel"], found.get("bias"))
        return output

    if name not in names:
        raise unknown(repr(name), names)
    apply = model.apply if isinstance(model, linen.Module) else model
    with linen.intercept_methods(see):
        output = apply(variables, *args, **kwargs)
    return output, calls.only()


class GWAMetric(nnx.Metric):
    r"""GWA of an epoch as a metric of NNX, alone or in an ``nnx.MultiMetric``.

    .. math:: \mathrm{GWA} = \frac{\mathrm{mean}(\gamma)}{\mathrm{kurtosis}(\gamma) + \beta}

    Parameters
    ----------
    num_samples : int, optional
        N, the size of the training set: scores and label quality are kept by sample id.
    reduce : {"mean", "min", "gradient"}, optional
        The samples are sequences of tokens; see `gwa_jax.init`.
    beta : float
        The constant of Eq. 2, default 1.2.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.

    Attributes
    ----------
    state : nnx.metrics.MetricState
        Holds a `State`.

    Raises
    ------
    ValueError
        If `num_samples` is not an integer of at least 1, or `reduce` is unknown or comes without it.

    Notes
    -----
    Cost: that of `gwa_jax.update`. Works inside ``nnx.jit``; nothing goes to the host.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gwa_jax.flax import GWAMetric
    >>> latents, kernel = jnp.asarray([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), jnp.eye(2)
    >>> metric = GWAMetric()
    >>> metric.update(
    ...     logits=latents @ kernel, latents=latents, kernel=kernel, labels=jnp.asarray([0, 1, 0])
    ... )
    >>> round(float(metric.compute()), 3)
    -0.556
    """

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        reduce: Reduce | None = None,
        beta: float = 1.2,
        loss: Loss = "cross_entropy",
        label_smoothing: float = 0.0,
    ) -> None:
        self.beta = beta
        self.loss: Loss = loss
        self.label_smoothing = label_smoothing
        self.state = MetricState(init(num_samples, reduce=reduce))

    def update(  # type: ignore[override]  # as the metrics of Flax do
        self,
        *,
        logits: Array,
        latents: Array,
        kernel: Array,
        labels: Array | None = None,
        bias: Array | None = None,
        logit_gradients: Array | None = None,
        ids: Array | None = None,
        mask: Array | None = None,
        class_weights: Array | None = None,
        **_: Any,
    ) -> None:
        """Score a batch.

        Parameters
        ----------
        logits, latents, kernel, bias
            From the forward pass, ``**head._asdict()`` of `call_with_head`.
        labels : integer array of shape (...,) or array of shape (..., C)
            Class numbers, or probabilities. Not needed with `logit_gradients`.
        logit_gradients : array of shape (..., C), optional
            Gradient of your loss with respect to the logits; see `gwa_jax.head_scores`.
        ids : integer array of shape (...,)
            Sample numbers in 0..num_samples-1, where `num_samples` was given; -1 is padding. With
            `reduce` the number of the sequence of each token, or of each row of tokens.
        mask : array of shape (...,), optional
            True, or not zero, for samples that count.
        class_weights : array of shape (C,), optional
            Weights of the classes in the loss.
        **_ : Any
            What other metrics of an ``nnx.MultiMetric`` need.

        Raises
        ------
        TypeError, ValueError
            As `gwa_jax.update`; the state is unchanged then.
        """
        state = update(
            self.state.get_value(),
            latents=latents,
            kernel=kernel,
            targets=labels,
            logits=logits,
            bias=bias,
            logit_gradients=logit_gradients,
            ids=ids,
            where=None if mask is None else mask.astype(bool),
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            class_weights=class_weights,
        )
        self.state.set_value(state)

    def compute(self) -> Array:
        """Return GWA of all batches since `reset`, a 0-D array.

        Returns
        -------
        0-D array
            nan where there are no scores. Behind the pole of Eq. 2 it means nothing; `summary` has
            ``healthy``, and the numbers that the rules watch.
        """
        gwa: Array = self.summary().gwa  # type: ignore[assignment]  # until `fetch`
        return gwa

    def summary(self) -> EpochSummary:
        """Return all numbers of the epoch as 0-D arrays; `gwa_jax.fetch` makes numbers of them."""
        found: EpochSummary = summary(self.state.get_value(), beta=self.beta)
        return found

    def scores(self) -> Array | None:
        """Return the scores (N,) since `reset` by sample id, nan where not seen; None without N."""
        return scores(self.state.get_value())

    def label_quality(self) -> Array | None:
        """Return the label quality (N,) of the epochs that `reset` ended; None without N."""
        return label_quality(self.state.get_value())

    def reset(self) -> None:
        """Begin a new epoch; the number of epochs goes on, and label quality takes the scores in."""
        self.state.set_value(end_epoch(self.state.get_value())[0])
