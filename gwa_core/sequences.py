"""Alignment of sequences: samples of several tokens, whose gradients at the head add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from gwa_core._lib.array import (
    Array,
    accumulator_dtype,
    constant,
    device_of,
    index_dtype,
    is_floating,
    is_host,
    namespace,
    quiet,
    result_dtype,
    scalar,
)
from gwa_core._lib.checks import Loss, check_bias, check_choice, check_loss, check_positive_int
from gwa_core._lib.groups import group_min, group_sum
from gwa_core._lib.numerics import bounded_score, divide_or_zero, norm
from gwa_core.alignment import alignment_from_logits
from gwa_core.residual import residual

__all__ = ["SequenceParts", "sequence_parts", "sequence_scores"]

Reduce: TypeAlias = Literal["mean", "min", "gradient"]

# Entries of a block: of tokens times tokens, and of tokens times classes. A device wants more of
# them, as each operation is launched.
BLOCK = 4 * 1024 * 1024
CLASSES = 2048
ON_DEVICE = 8

# Where the squared length is below so many roundings of its terms, none of its digits is known.
ROUNDINGS = 16


class SequenceParts(NamedTuple):
    r"""What the score of a sequence is made of: two numbers that add up.

    .. math:: \gamma = \frac{\sum \text{numerators}}{\sum \text{lengths}}

    Add both by sequence, over pieces, batches and processes, and read `scores` of the sums. With
    scores of tokens as numerators and ones as lengths it is their mean.

    Parameters
    ----------
    numerators : array
        Products of gradient and weight, over the norm of the weight.
    lengths : array
        Norms of gradients, of the same shape.
    """

    numerators: Array
    lengths: Array

    @property
    def scores(self) -> Array:
        """Scores in [-1, 1], nan where nothing was added, or where a part is not finite."""
        xp = namespace(numerators=self.numerators, lengths=self.lengths)
        known = self.lengths >= xp.finfo(self.lengths.dtype).smallest_normal
        size = xp.where(known, self.lengths, constant(xp, 1.0, self.lengths))
        score = bounded_score(xp, self.numerators / size, xp.abs(self.numerators) + size)
        # A length of nan is not known either.
        return xp.where(known, score, xp.nan)


def sequence_parts(
    *,
    residuals: Array,
    activations: Array,
    latents: Array,
    weight_norm: Array | float,
    groups: Array,
    where: Array | None = None,
) -> SequenceParts:
    r"""Return the parts of the alignment of each sequence's own gradient with the head's weights.

    .. math::

       G = \sum_t r_t \otimes z_t, \qquad
       \gamma = \frac{\langle G, W\rangle}{\|G\|\,\|W\|} = \frac{\sum_t r_t \cdot a_t}{\|G\|\,\|W\|},
       \qquad \|G\|^2 = \sum_{t,s} (r_t \cdot r_s)(z_t \cdot z_s)

    A *piece* is all tokens of one group in one row of the batch; they need not be adjacent. Add the
    parts by group, and `SequenceParts.scores` of the sums are the scores. Of a sequence in one
    piece the score is exact. Of one that is cut over rows or batches it is the mean of the
    alignments of its pieces, each with the length of its gradient as its weight.

    Parameters
    ----------
    residuals : array of shape (B, S, C)
        Negative gradient of the loss with respect to the logits, one a token: that of `residual`,
        or of any loss. A factor that all tokens share changes no score.
    activations : array of shape (B, S, C)
        Outputs of the head without its bias.
    latents : array of shape (B, S, D)
        Input of the head.
    weight_norm : 0-D array or float
        Frobenius norm of the head's weight at the forward pass.
    groups : integer array of shape (B, S)
        The sequence of each token; below 0 for a token of none.
    where : boolean array of shape (B, S), optional
        True for tokens that count.

    Returns
    -------
    SequenceParts
        Two arrays (B, S), in the dtype of the widest input but at least float32. ``numerators`` are
        r·a / ‖W‖, 0 where a token does not count. ``lengths`` has ‖G‖ of a piece at the first
        token of it that counts, and 0 elsewhere.

    Raises
    ------
    TypeError, ValueError
        On shapes and dtypes that do not fit.

    Notes
    -----
    No gradient (C, D) is formed. Cost: O(B S² (C + D)) time, in blocks of rows, tokens and classes
    of 4 million entries, so that extra memory does not grow with B or C; a tracer unrolls the
    blocks. On a GPU blocks are eight times as large. Scale by scale: a piece is divided by its largest entries first, so that squares stay in
    range. A token that counts and is not finite makes its piece nan.

    The relative error of a length is about ε (Σ‖r_t‖‖z_t‖ / ‖G‖)², with ε the rounding of matrix
    products: 1e-7 in float32, 1e-3 where a library rounds them to TensorFloat-32. Where the tokens'
    gradients cancel to 16 ε, the length has no digits left and is nan. Where residuals sum to zero,
    as those of softmax do, take a constant off the activations of a token to keep digits, such
    as the largest one. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1, for a sample with several outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import sequence_parts
    >>> r, z = np.asarray([[[0.5, -0.5], [0.2, -0.2]]]), np.asarray([[[2.0, 0.0], [0.0, 1.0]]])
    >>> parts = sequence_parts(
    ...     residuals=r,
    ...     activations=z,  # of a head whose weight is the unit matrix
    ...     latents=z,
    ...     weight_norm=2.0**0.5,
    ...     groups=np.asarray([[0, 0]]),
    ... )
    >>> parts.lengths.round(3)
    array([[1.442, 0.   ]])
    >>> round(float(parts.numerators.sum() / parts.lengths.sum()), 3)
    0.392
    """
    xp = namespace(
        residuals=residuals, activations=activations, latents=latents, groups=groups, where=where
    )
    _check_tokens(xp, "residuals", residuals, "C", None)
    tokens = tuple(residuals.shape[:2])
    _check_tokens(xp, "activations", activations, "C", tokens, residuals.shape[2])
    _check_tokens(xp, "latents", latents, "D", tokens)
    _check_groups(xp, groups, where, tokens)
    dtype = result_dtype(xp, residuals, activations, latents)
    weight_norm = scalar(xp, "weight_norm", weight_norm, residuals, dtype)
    counted = groups >= 0 if where is None else (groups >= 0) & where

    def part(rows: slice) -> SequenceParts:
        r, a, z = (x[rows, ...] for x in (residuals, activations, latents))
        return _parts(xp, r, a, z, groups[rows, ...], counted[rows, ...], weight_norm, dtype)

    return _by_rows(xp, part, residuals)


def sequence_scores(
    *,
    logits: Array,
    latents: Array,
    weight_norm: Array | float,
    targets: Array,
    groups: Array,
    num_groups: int,
    bias: Array | None = None,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    where: Array | None = None,
    reduce: Reduce = "gradient",
) -> Array:
    r"""Return one score for each sequence: a prompt with its answer, a document, a caption.

    .. math::

       \gamma = \frac{\sum_t r_t \cdot (\ell_t - b)}{\|\sum_t r_t \otimes z_t\|\,\|W\|}
       \quad\text{or}\quad \frac 1 n \sum_t \gamma_t \quad\text{or}\quad \min_t \gamma_t

    The first is the alignment of the gradient of the sequence's own loss, the sum or the mean over
    its tokens. The others see each token apart.

    Parameters
    ----------
    logits : array of shape (B, S, C) or (N, C)
        Outputs of the head, bias included, one row a token. (N, C) is one row of N tokens.
    latents : array of shape (B, S, D) or (N, D)
        Input of the head.
    weight_norm : 0-D array or float
        Frobenius norm of the head's weight at the forward pass.
    targets : array of shape (B, S), (B, S, C), (N,) or (N, C)
        Class numbers in 0..C-1, or probabilities; for a language model those of the next token.
    groups : integer array of shape (B, S) or (N,)
        The sequence of each token, in 0..num_groups-1; below 0 for a token of none.
    num_groups : int
        G, how many sequences there are.
    bias : array of shape (C,), optional
        Bias of the head. Its own gradient is not part of the alignment (as in the paper).
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1): the share of the target that is spread evenly, default 0.
    where : boolean array of shape (B, S) or (N,), optional
        True for tokens that count: those that the loss sees, not a prompt and not padding.
    reduce : {"mean", "min", "gradient"}
        The mean or the minimum of the scores of the tokens, or that of the sequence's gradient,
        default "gradient".

    Returns
    -------
    array of shape (G,)
        In [-1, 1], in the dtype of the widest input but at least float32. nan for a sequence
        without a token that counts, or with one that is not finite or of an unknown class number.

    Raises
    ------
    TypeError, ValueError
        On shapes, dtypes and options that do not fit; on NumPy arrays also on values of `targets`
        and `groups`.

    Notes
    -----
    With "gradient" a sequence in several rows gets the mean of its pieces, see `sequence_parts`; put
    it into one row where that matters. A gradient of 0 has no direction: the score is nan where all
    residuals or all latents vanish, and 0 where the weights do. In float32 residuals vanish beyond
    a probability of 1 - 1e-38: a sequence that is learned so well has no score, while its tokens,
    whose scale does not matter, have theirs. float64 goes to 1 - 1e-308.

    Cost: "mean" and "min" that of `alignment_from_logits`; "gradient" O(B S² (C + D)), and memory
    for the residuals of some rows. Outside NumPy the sums by sequence are O(B S G): number the
    sequences of a batch, not of the whole training set. Runs under jit.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definition 1, for a sample with several outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_core import sequence_scores
    >>> latents = np.asarray([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]])
    >>> weight, groups = np.eye(2), np.asarray([[0, 0], [1, -1]])
    >>> for reduce in ("gradient", "mean"):
    ...     scores = sequence_scores(
    ...         logits=latents @ weight.T,
    ...         latents=latents,
    ...         weight_norm=np.linalg.norm(weight),
    ...         targets=np.asarray([[0, 1], [0, 0]]),
    ...         groups=groups,
    ...         num_groups=2,
    ...         reduce=reduce,
    ...     )
    ...     print(scores.round(3))
    [ 0.706 -0.5  ]
    [ 0.5 -0.5]
    """
    xp = namespace(
        logits=logits, latents=latents, targets=targets, groups=groups, bias=bias, where=where
    )
    check_choice("reduce", reduce, get_args(Reduce))
    num_groups = check_positive_int("num_groups", num_groups)
    if logits.ndim == 2:
        for name, x in {"groups": groups, "targets": targets, "latents": latents}.items():
            if x.ndim == 0 or x.shape[0] != logits.shape[0]:
                raise ValueError(
                    f"`{name}` must have one entry for each of the {logits.shape[0]} logits (N, C), "
                    f"got shape {tuple(x.shape)}"
                )
        # One row of tokens; what does not fit is found below.
        logits, latents, targets, groups = (
            x[None, ...] for x in (logits, latents, targets, groups)
        )
        where = None if where is None else where[None, ...]
    _check_tokens(xp, "logits", logits, "C", None)
    rows, tokens, classes = logits.shape
    shape = (rows, tokens)
    _check_tokens(xp, "latents", latents, "D", shape)
    _check_groups(xp, groups, where, shape)
    if is_host(groups) and groups.size and groups.max() >= num_groups:
        raise ValueError(
            f"`groups` must be below num_groups = {num_groups}, got {groups.max()}; number the "
            "sequences of the call from 0"
        )
    check_bias(xp, bias, classes)
    if tuple(targets.shape) not in (shape, (*shape, classes)):
        raise ValueError(
            f"`targets` must be (B, S) = {shape} class numbers or (B, S, C) = {(*shape, classes)} "
            f"probabilities, got shape {tuple(targets.shape)}; labels of a language model are "
            "shifted by one"
        )
    counted = groups >= 0 if where is None else (groups >= 0) & where
    flat_counted, flat_groups = xp.reshape(counted, (-1,)), xp.reshape(groups, (-1,))
    flat_targets = xp.reshape(targets, (rows * tokens, *targets.shape[2:]))
    check_loss(xp, flat_targets, rows * tokens, classes, loss, label_smoothing, flat_counted)
    dtype = result_dtype(xp, logits, latents)
    weight_norm = scalar(xp, "weight_norm", weight_norm, logits, dtype)

    if reduce != "gradient":
        with quiet(xp):
            lengths = norm(xp, xp.astype(latents, dtype, copy=False))
        scores = alignment_from_logits(
            logits=xp.reshape(logits, (rows * tokens, classes)),
            latent_norms=xp.reshape(lengths, (-1,)),
            weight_norm=weight_norm,
            targets=flat_targets,
            bias=bias,
            loss=loss,
            label_smoothing=label_smoothing,
            where=flat_counted,
        )
        if reduce == "min":
            scores = xp.where(flat_counted, scores, xp.inf)
            with quiet(xp):
                least = group_min(xp, scores, flat_groups, num_groups)
            return xp.where(xp.isfinite(least), least, xp.nan)
        scores = xp.where(flat_counted, scores, 0.0)
        parts = SequenceParts(scores, xp.astype(flat_counted, dtype))
    else:

        def part(block: slice) -> SequenceParts:
            logit, z, target = (x[block, ...] for x in (logits, latents, targets))
            group, count = groups[block, ...], counted[block, ...]
            # What does not count may be any number, such as -100.
            if target.ndim == 2:
                target = xp.where(count, target, xp.zeros_like(target))
            else:
                target = xp.where(count[:, :, None], target, constant(xp, 1 / classes, target))
            r = residual(
                logits=xp.reshape(logit, (-1, classes)),
                targets=xp.reshape(target, (-1, *target.shape[2:])),
                loss=loss,
                label_smoothing=label_smoothing,
            )
            activation = xp.astype(logit, dtype, copy=False)
            if bias is not None:
                activation = activation - xp.astype(bias, dtype)
            if loss == "cross_entropy":
                # The entries of r sum to zero; a common offset would cost digits.
                activation = activation - xp.max(activation, axis=2, keepdims=True)
            r = xp.reshape(r, logit.shape)
            return _parts(xp, r, activation, z, group, count, weight_norm, dtype)

        # The residuals of a part have all classes.
        parts = _by_rows(xp, part, logits, whole=True)
    with quiet(xp):
        return SequenceParts(
            *(group_sum(xp, xp.reshape(x, (-1,)), flat_groups, num_groups) for x in parts)
        ).scores


def _check_tokens(
    xp: Any,
    name: str,
    x: Array,
    last: str,
    tokens: tuple[int, ...] | None,
    size: int | None = None,
) -> None:
    """Check a floating array with a row of numbers for each token."""
    shape = tuple(x.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"`{name}` must be (B, S, {last}) and not empty, got shape {shape}; B rows of S tokens"
        )
    if not is_floating(xp, x):
        raise TypeError(f"`{name}` must be floating point, got {x.dtype}; cast it first")
    wanted = (*(tokens or shape[:2]), size or shape[2])
    if shape != wanted:
        raise ValueError(
            f"`{name}` must be (B, S, {last}) = {wanted}, got shape {shape}; all arrays of a call "
            "describe the same tokens"
        )


def _check_groups(xp: Any, groups: Array, where: Array | None, tokens: tuple[int, ...]) -> None:
    """Check what says which tokens belong together, and which count."""
    if not xp.isdtype(groups.dtype, "integral") or tuple(groups.shape) != tokens:
        raise ValueError(
            f"`groups` must be integers (B, S) = {tokens}, got {groups.dtype} of shape "
            f"{tuple(groups.shape)}; it has the number of the sequence of each token"
        )
    if where is not None and (not xp.isdtype(where.dtype, "bool") or tuple(where.shape) != tokens):
        raise ValueError(
            f"`where` must be boolean (B, S) = {tokens}, got {where.dtype} of shape "
            f"{tuple(where.shape)}; True marks the tokens that count"
        )


def _by_rows(
    xp: Any,
    part: Callable[[slice], SequenceParts],
    like: Array,
    *,
    whole: bool = False,
) -> SequenceParts:
    """Make the parts of some rows of a batch (B, S, C) at a time."""
    rows, tokens, classes = like.shape
    many = _many(like)
    width = max(tokens, classes if whole else min(classes, CLASSES * many))
    step = max(1, BLOCK * many // (tokens * width))
    with quiet(xp):
        parts = [part(block) for block in _slices(rows, step)]
    return SequenceParts(*(xp.concat(x) for x in zip(*parts, strict=True)))


def _many(x: Array) -> int:
    """Return how many times larger blocks of an array are than those of the host."""
    return 1 if is_host(x) or str(device_of(x)) == "cpu" else ON_DEVICE


def _parts(
    xp: Any,
    residuals: Array,
    activations: Array,
    latents: Array,
    groups: Array,
    counted: Array,
    weight_norm: Array,
    dtype: Any,
) -> SequenceParts:
    """Return the parts of some rows of checked arrays."""
    tokens = residuals.shape[1]
    step = max(1, BLOCK * _many(residuals) // (residuals.shape[0] * tokens))
    tiles = list(_slices(tokens, step))

    def own(tile: slice) -> Array:
        """Tell for tokens of a tile which tokens of their rows are of the same piece."""
        same = groups[:, tile][:, :, None] == groups[:, None, :]
        return same & counted[:, None, :]

    def within(reduce: Any, x: Array) -> Array:
        """Reduce numbers of at least 0 over the piece of each token."""
        nothing = constant(xp, 0, x)
        kept = (xp.where(own(tile), x[:, None, :], nothing) for tile in tiles)
        return xp.concat([reduce(each, axis=2) for each in kept], axis=1)

    def scale(x: Array) -> Array:
        """Return the largest entry of each token's piece, 1 where that is 0."""
        blocks = [xp.max(xp.abs(block), axis=2) for block in _blocks(xp, x, dtype)]
        largest = xp.max(xp.stack(blocks), axis=0)
        peak = within(xp.max, xp.where(counted, largest, constant(xp, 0.0, largest)))
        return xp.where((peak > 0) & xp.isfinite(peak), peak, constant(xp, 1.0, peak))

    r_scale, z_scale = scale(residuals), scale(latents)
    dots, squares = [], []
    pairs = zip(
        _blocks(xp, residuals, dtype, r_scale), _blocks(xp, activations, dtype), strict=True
    )
    for r, a in pairs:
        dots.append(xp.vecdot(r, a))
        squares.append(xp.vecdot(r, r))
    zero = constant(xp, 0.0, r_scale)
    dot = xp.where(counted, sum(dots[1:], start=dots[0]), zero)
    numerators = divide_or_zero(xp, dot, weight_norm) * r_scale
    z_squares = [xp.vecdot(z, z) for z in _blocks(xp, latents, dtype, z_scale)]
    terms = xp.sqrt(sum(squares[1:], start=squares[0]) * sum(z_squares[1:], start=z_squares[0]))

    wide = accumulator_dtype(xp, r_scale)
    nothing = constant(xp, 0.0, r_scale, wide)
    rows = []
    for tile in tiles:
        product = xp.astype(_gram(xp, residuals, dtype, r_scale, tile), wide)
        product = product * xp.astype(_gram(xp, latents, dtype, z_scale, tile), wide)
        rows.append(xp.sum(xp.where(own(tile), product, nothing), axis=2))
    square = within(xp.sum, xp.concat(rows, axis=1))
    bound = within(xp.sum, xp.astype(terms, wide))
    doubtful = square < ROUNDINGS * xp.finfo(dtype).eps * bound * bound
    length = xp.astype(xp.sqrt(xp.where(doubtful, xp.nan, square)), dtype) * r_scale * z_scale

    # The first token of a piece is the one with the most tokens from it to the end of the row.
    left = xp.arange(tokens, 0, -1, dtype=index_dtype(xp, groups), device=device_of(groups))
    left = xp.broadcast_to(left[None, :], groups.shape)
    first = counted & (within(xp.max, left) == left)
    return SequenceParts(numerators, xp.where(first, length, zero))


def _slices(size: int, step: int) -> Iterator[slice]:
    """Cut an axis into pieces of at most `step` entries."""
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _blocks(xp: Any, x: Array, dtype: Any, scale: Array | None = None) -> Iterator[Array]:
    """Yield (B, S, C) by blocks of classes, in the dtype and over the scale of each token."""
    for classes in _slices(x.shape[2], CLASSES * _many(x)):
        block = xp.astype(x[:, :, classes], dtype, copy=False)
        yield block if scale is None else block / scale[:, :, None]


def _gram(xp: Any, x: Array, dtype: Any, scale: Array, tile: slice) -> Array:
    """Return the products of the tokens of a tile with all tokens of their rows."""
    total: Any = None
    for block in _blocks(xp, x, dtype, scale):
        product = block[:, tile, :] @ xp.matrix_transpose(block)
        total = product if total is None else total + product
    return total
