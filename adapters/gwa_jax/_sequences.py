"""Sequences of tokens: what an epoch keeps of each, and what a batch adds."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from gwa_core import SequenceParts, loss_weights, residual, sequence_parts
from gwa_jax._rows import PADDING, count, narrow
from gwa_jax._tracing import automatic, everywhere, lenient, spec
from gwa_jax.scoring import BLOCK_BYTES, Array, Loss, loss_options

__all__ = [
    "Gradient",
    "Mean",
    "Min",
    "Reduce",
    "Sequences",
    "Taken",
    "add_parts",
    "begin",
    "check_reduce",
    "finished",
    "gradient_parts",
    "kind",
    "token_parts",
]

Reduce: TypeAlias = Literal["mean", "min", "gradient"]


# A kind is a type, because jit sees the structure of a state and not the words in it.
class Mean(NamedTuple):
    """The mean of the tokens' scores: the state's values are their sums.

    Parameters
    ----------
    lengths : array of shape (N,)
        Tokens that counted.
    """

    lengths: Array


class Min(NamedTuple):
    """The minimum of the tokens' scores, which the state's values are.

    Parameters
    ----------
    lengths : array of shape (N,)
        Tokens that counted.
    """

    lengths: Array


class Gradient(NamedTuple):
    """The alignment of the sequence's own gradient: the state's values are sums of its products.

    Parameters
    ----------
    lengths : array of shape (N,)
        Norms of the gradients.
    """

    lengths: Array


Sequences: TypeAlias = Mean | Min | Gradient
KINDS: dict[str, type[Sequences]] = {"mean": Mean, "min": Min, "gradient": Gradient}


class Taken(NamedTuple):
    """What the sequences of an epoch are after a batch.

    Parameters
    ----------
    values, lengths : array of shape (N,)
        The sums or minima.
    rows : 0-D int32 array
        Sequences of the batch; one that is cut counts for each piece.
    unknown : 0-D int32 array
        Those with an id outside 0..N-1 other than -1.
    """

    values: Array
    lengths: Array
    rows: Array
    unknown: Array


def check_reduce(reduce: str | None, size: int) -> None:
    """Raise if `reduce` is unknown, or comes without `num_samples`."""
    if reduce is not None and reduce not in KINDS:
        raise ValueError(
            f"`reduce` must be one of {', '.join(map(repr, KINDS))} or None, got {reduce!r}"
        )
    if reduce is not None and not size:
        raise ValueError(
            f"`reduce` must come with `num_samples`, got {reduce!r} without; sequences are kept by "
            "their ids"
        )


def kind(sequences: Sequences | None) -> str | None:
    """Return the word for a kind, to begin another epoch with."""
    return next((word for word, of in KINDS.items() if isinstance(sequences, of)), None)


def begin(reduce: str | None, size: int, dtype: Any) -> tuple[Array, Sequences | None]:
    """Return the values of no sample, and of no sequence their lengths."""
    if reduce is None:
        return jnp.full((size,), jnp.nan, dtype), None
    nothing = jnp.inf if reduce == "min" else 0.0
    return jnp.full((size,), nothing, dtype), KINDS[reduce](jnp.zeros((size,), dtype))


def finished(values: Array, sequences: Sequences | None) -> Array:
    """Return the score of each sample, nan where it has none."""
    if sequences is None:
        return values
    if isinstance(sequences, Min):
        return jnp.where(jnp.isfinite(values), values, jnp.nan)
    scores: Array = SequenceParts(values, sequences.lengths).scores
    return scores


def _layout(tokens: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows of a batch of tokens, and the tokens of each."""
    # Of packed tokens without an axis of rows all are in one.
    of_rows = ids if ids != tokens else tokens[:1] if len(tokens) > 1 else ()
    rows = math.prod(of_rows)
    return rows, math.prod(tokens) // rows


def token_parts(scores: Array, where: Array | None, *, least: bool) -> tuple[Array, Array]:
    """Return the parts of tokens whose scores are known: what is added, and one for each."""
    counted = jnp.ones(scores.shape, bool) if where is None else where
    nothing = jnp.inf if least else 0.0
    return jnp.where(counted, scores, nothing), counted.astype(scores.dtype)


def add_parts(
    values: Array, sequences: Sequences, parts: tuple[Array, Array], ids: Array, axis_name: Any
) -> Taken:
    """Add the parts of tokens to the sequences that they belong to."""
    least, size = isinstance(sequences, Min), values.shape[0]
    rows, _ = _layout(parts[0].shape, ids.shape)
    ids = narrow(ids, size).reshape(rows, -1)
    # One id a row, or one a token: there a sequence begins where it is another one's.
    begins = (ids != jnp.roll(ids, 1, axis=1)) | (jnp.arange(ids.shape[1]) == 0)
    numerators, lengths = (x.reshape(ids.size, -1).astype(values.dtype) for x in parts)
    numerators = jnp.min(numerators, axis=1) if least else jnp.sum(numerators, axis=1)
    flat = [ids.reshape(-1), begins.reshape(-1), numerators, jnp.sum(lengths, axis=1)]
    if axis_name is not None:
        flat = [everywhere(x, axis_name) for x in flat]
    ids, begins, numerators, lengths = flat
    known = (ids >= 0) & (ids < size)
    # Places outside are dropped.
    slots = jnp.where(known, ids, size)
    place = values.at[slots]
    begins = begins & (ids != PADDING)
    return Taken(
        values=(place.min if least else place.add)(numerators, mode="drop"),
        lengths=sequences.lengths.at[slots].add(lengths, mode="drop"),
        rows=count(begins),
        unknown=count(begins & ~known),
    )


@functools.partial(jax.jit, static_argnums=(9, 10))
@lenient
def gradient_parts(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    bias: Array | None,
    logit_gradients: Array | None,
    class_weights: Array | None,
    ids: Array,
    where: Array | None,
    loss: Loss,
    label_smoothing: float,
) -> tuple[Array, Array]:
    """Return the parts of each sequence's gradient, in the shape of the tokens."""
    arrays = latents, kernel, targets, logits, bias, logit_gradients, class_weights
    make = functools.partial(_gradient_parts, loss=loss, label_smoothing=label_smoothing)
    given = jax.lax.stop_gradient(arrays)
    tokens = spec(latents, leave=1)
    parts: tuple[Array, Array] = automatic(make, (tokens, tokens), *given, ids, where)
    return parts


def _gradient_parts(
    latents: Array,
    kernel: Array,
    targets: Array | None,
    logits: Array | None,
    bias: Array | None,
    logit_gradients: Array | None,
    class_weights: Array | None,
    ids: Array,
    where: Array | None,
    *,
    loss: Loss,
    label_smoothing: float,
) -> tuple[Array, Array]:
    shape, (features, classes) = latents.shape[:-1], kernel.shape
    rows, tokens = _layout(shape, ids.shape)
    packed = ids.size > rows
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    weight_norm = jnp.linalg.norm(kernel.astype(wide))
    of_loss: Any = targets if logit_gradients is None else logit_gradients
    hard = logit_gradients is None and of_loss.size == rows * tokens
    given = {
        "latents": latents.reshape(rows, tokens, features),
        "of_loss": of_loss.reshape(rows, tokens, *(() if hard else (classes,))),
        "groups": ids.reshape(rows, tokens) if packed else jnp.zeros((rows, tokens), jnp.int32),
        "logits": None if logits is None else logits.reshape(rows, tokens, classes),
        "where": None if where is None else where.reshape(rows, tokens),
    }

    def parts(
        latents: Array, of_loss: Array, groups: Array, logits: Array | None, where: Array | None
    ) -> tuple[Array, Array]:
        """Make the parts of some rows of tokens."""
        if logits is None:
            z = latents.astype(kernel.dtype)
            logits = jnp.dot(z, kernel, preferred_element_type=wide)
            logits = logits if bias is None else logits + bias.astype(wide)
        activations = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if bias is not None:
            activations = activations - bias.astype(activations.dtype)
        if logit_gradients is not None:
            residuals = -of_loss
        else:
            flat = of_loss.reshape(-1, *of_loss.shape[2:])
            options = loss_options(flat, loss, label_smoothing, class_weights)
            residuals = residual(logits=logits.reshape(-1, classes), **options)
            if class_weights is not None:
                # They turn no gradient of one token, and that of several.
                weights = loss_weights(
                    targets=flat, class_weights=class_weights, label_smoothing=label_smoothing
                )
                residuals = residuals * weights[:, None]
            residuals = residuals.reshape(logits.shape)
            if loss == "cross_entropy":
                # Residuals sum to zero; a common offset would cost digits.
                activations = activations - jnp.max(activations, axis=-1, keepdims=True)
        # A GPU or TPU would round the products of a Gram matrix.
        with jax.default_matmul_precision("highest"):
            found = sequence_parts(
                residuals=residuals,
                activations=activations,
                latents=latents,
                weight_norm=weight_norm,
                groups=groups,
                where=where,
            )
        return found.numerators, found.lengths

    step = max(1, BLOCK_BYTES // (tokens * (tokens + classes) * wide.itemsize))
    if rows <= step:
        found = parts(**given)
    else:

        def one(row: dict[str, Any]) -> tuple[Array, Array]:
            numerators, lengths = parts(**jax.tree.map(lambda x: x[None], row))
            return numerators[0], lengths[0]

        found = jax.lax.map(one, given, batch_size=step)
    numerators, lengths = found
    return numerators.reshape(shape), lengths.reshape(shape)
