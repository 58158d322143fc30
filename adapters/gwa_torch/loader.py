"""γ of every sample of a loader at fixed weights: the paper's offline estimator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gwa_core import JLSketch
from gwa_torch._capture import whole
from gwa_torch._checks import check_count
from gwa_torch._epoch import BySample
from gwa_torch._targets import Flat, LossOptions, flatten
from gwa_torch._trainers import IDS, TARGETS, Pick, pick_ids, pick_targets
from gwa_torch.heads import (
    Head,
    head_device,
    head_size,
    head_sketch,
    head_weight,
    resolve_head,
    rows_last,
    uncompiled,
    unwrap,
)
from gwa_torch.scoring import frobenius_norm, head_scores

__all__ = ["alignment_scores"]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@torch.no_grad()
def alignment_scores(
    model: nn.Module,
    loader: Iterable[Any],
    head: nn.Module | str | None = None,
    *,
    num_samples: int | None = None,
    targets: Pick = None,
    ids: Pick = None,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = -100,
    sketch: JLSketch | int | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""Return γ of every sample of a loader at the weights that the model has now.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}

    The offline estimator of the paper: one pass in eval mode, without gradients. `GWAMonitor`
    measures the same during training for nothing, with weights that move.

    Parameters
    ----------
    model : Module
        A classifier.
    loader : iterable of batches
        Of tuples (inputs, targets) or (inputs, targets, ids), where the model is called as
        ``model(inputs)``, or ``model(**inputs)`` for a dict of inputs; or of dicts, where it is
        called with all entries by keyword but labels and ids; anything else is given to the model
        as it is.
    head : Linear, 1×1 convolution, str or None
        The head, its dotted name in `model`, or None to look for it by `find_head`.
    num_samples : int, optional
        N, the size of the data set; then every batch has ids, and the scores are in their order.
    targets : str, int or callable, optional
        Where a batch has its targets: a key, a position or a function of the batch. Default the
        second of a tuple, or the entry ``labels``, ``label``, ``targets``, ``target`` or ``y``.
    ids : str, int or callable, optional
        The same for sample numbers in 0..num_samples-1. Default the third of a tuple, or the entry
        ``ids``, ``id``, ``idx``, ``index``, ``indices`` or ``sample_id``.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.
    class_weights : tensor of shape (C,), optional
        As ``torch.nn.CrossEntropyLoss(weight=...)``.
    ignore_index : int
        Class number of targets that do not count, default -100.
    sketch : JLSketch or int, optional
        Measure in K dimensions (see `gwa_core.JLSketch`).
    device : device, optional
        Where the batches go, default where the head is. The model is not moved.

    Returns
    -------
    tensor of shape (N,)
        In [-1, 1], float32 on the host: in the order of the loader, or by id where `num_samples` is
        given. Not a number where a sample was not seen, or its target does not count.

    Raises
    ------
    RuntimeError
        If a batch calls the head never, or more than once.
    TypeError, ValueError
        On a head that is not linear, options and shapes that do not fit, ids out of range, targets
        of tokens or pixels, and an empty loader.

    Notes
    -----
    Cost: a forward pass of the data. The model's modules have the flags of train and eval mode
    afterwards that they had before. Dropout is off and batch norm uses its running statistics, so
    that the online scores differ from these also where the learning rate is zero, unless the model
    has neither. Give a loader without random augmentation, and without shuffling where no ids tell
    which sample is which. Compiled models run uncompiled, and models in DataParallel and DDP on one
    device. Under ``torch.distributed`` each rank gets the scores of its own loader; nothing is
    exchanged.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. A.1 and Fig. 6.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from gwa_torch import alignment_scores
    >>> data = TensorDataset(torch.randn(10, 4), torch.arange(10) % 3)
    >>> alignment_scores(torch.nn.Linear(4, 3), DataLoader(data, batch_size=4)).shape
    torch.Size([10])
    """
    bare = unwrap(model)
    linear = resolve_head(head, bare)
    if all(module is not linear for module in bare.modules()):
        raise ValueError(
            f"`head` must be a module of `model`, got a {type(linear).__name__} that is not in "
            f"this {type(bare).__name__}; it may be that of a copy"
        )
    num_samples = None if num_samples is None else check_count("num_samples", num_samples)
    options = LossOptions.of(
        None,
        loss=loss,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        ignore_index=ignore_index,
        classes=head_size(linear)[0],
    )
    sketch = head_sketch(sketch, linear)
    place = torch.device(head_device(linear) if device is None else device)
    parts, numbers = [], []
    with _evaluating(bare), _listening(linear, options, sketch) as listener:
        for batch in loader:
            if num_samples is not None:
                numbers.append(_checked(pick_ids(batch, ids), num_samples))
            rows = flatten(
                pick_targets(batch, targets), numbers[-1] if numbers else None, None, options
            )
            parts.append(listener.score(bare, _to(_inputs(batch, targets, ids), place), rows))
    if not parts:
        raise ValueError(
            "`loader` must have batches, got none; a generator is used up after one pass"
        )
    scores = torch.cat(parts).cpu()
    if num_samples is None:
        return scores
    kept = BySample(num_samples, scores.device)
    kept.add(scores, torch.cat(numbers).long(), None)
    return kept.scores()


class _Listener:
    """A hook that scores the batch while the head's output is as the head made it."""

    def __init__(self, head: Head, options: LossOptions, sketch: JLSketch | None) -> None:
        self.head = head
        self.options = options
        self.sketch = sketch
        self._rows: Flat | None = None
        self._found: list[torch.Tensor] = []

    def score(self, model: nn.Module, inputs: Any, rows: Flat) -> torch.Tensor:
        """Run the model and return the scores of the batch."""
        self._rows, self._found = rows, []
        if isinstance(inputs, Mapping):
            model(**inputs)
        else:
            model(inputs)
        self._rows = None
        if len(self._found) != 1:
            raise RuntimeError(
                f"`head` must be called once a batch, got {len(self._found)} calls. Usual causes: "
                "another layer makes the output; a functional call goes around the module; the "
                "model sends several inputs of a sample through it (score by `head_scores`)"
            )
        return self._found[0]

    def hear(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        """Score what the head has just made."""
        rows = self._rows
        if rows is None:
            return
        logits = rows_last(output, module)
        latents = rows_last(args[0] if args else kwargs["input"], module)
        logits = logits.reshape(-1, logits.shape[-1])
        single = output.shape[0] == rows.samples and rows.samples == logits.shape[0]
        if not single:
            raise ValueError(
                "`targets` must be one for each sample and row of the head's output, got "
                f"{rows.samples} targets and an output of shape {tuple(output.shape)}; score "
                "tokens and pixels by `GWAMonitor` or `head_scores`"
            )
        scores = head_scores(
            latents=latents.reshape(logits.shape[0], -1),
            targets=rows.to(logits.device).fitting(logits),
            logits=logits,
            weight=None if self.sketch is None else whole(head_weight(module)),
            weight_norm=frobenius_norm(head_weight(module)),
            bias=None if self.head.bias is None else whole(self.head.bias.detach()),
            loss=self.options.loss,
            label_smoothing=self.options.label_smoothing,
            class_weights=self.options.weights_on(logits.device),
            where=None if rows.where is None else rows.where.to(logits.device),
            sketch=self.sketch,
        )
        self._found.append(scores.float())


@contextlib.contextmanager
def _listening(head: Head, options: LossOptions, sketch: JLSketch | None) -> Iterator[_Listener]:
    listener = _Listener(head, options, sketch)
    hook = head.register_forward_hook(listener.hear, with_kwargs=True)
    try:
        with uncompiled():
            yield listener
    finally:
        hook.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and each module back in its own."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # From the root down, so that what a module's own `train` does is undone by it, too.
        for module, training in before:
            if module.training != training:
                module.train(training)
        for module, training in before:
            module.training = training


def _inputs(batch: Any, targets: Pick, ids: Pick) -> Any:
    """Return what the model is called with."""
    if isinstance(batch, Mapping):
        others = {*TARGETS, *IDS, targets, ids}
        return {key: x for key, x in batch.items() if key not in others}
    if not isinstance(batch, Sequence):
        return batch
    others = {1 if targets is None else targets, 2 if ids is None else ids}
    return next((x for place, x in enumerate(batch) if place not in others), None)


def _to(x: Any, device: torch.device) -> Any:
    """Move the tensors of a batch; what moves itself, such as a batch of graphs, does so."""
    if isinstance(x, Mapping):
        return {key: _to(inner, device) for key, inner in x.items()}
    if isinstance(x, tuple | list):
        return [_to(inner, device) for inner in x]
    return x.to(device, non_blocking=True) if hasattr(x, "to") else x


def _checked(ids: torch.Tensor, size: int) -> torch.Tensor:
    kind = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
    if kind not in INTEGERS:
        raise ValueError(f"`ids` must be a tensor of integers, got {kind}")
    if ids.numel() and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"`ids` must be in 0..{size - 1}, got {ids.min()}..{ids.max()}; ids number the whole "
            "data set, not the batch"
        )
    return ids.reshape(-1).cpu()
