"""The monitor: a hook on the head, an epoch of scores, a history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import nn

from gwa_core import JLSketch
from gwa_torch import _targets
from gwa_torch._capture import Capture, Forward, Listener, Recent, same_memory
from gwa_torch._keeper import Keeper, check_count
from gwa_torch._signals import Followed
from gwa_torch.heads import head_size, head_sketch, resolve_head
from gwa_torch.scoring import head_scores

__all__ = ["GWAMonitor"]


class GWAMonitor(Keeper):
    r"""Watch the linear head of a model in training: one score a sample, one summary an epoch.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}, \qquad
       \mathrm{GWA} = \frac{\mathrm{mean}(\gamma)}{\mathrm{kurtosis}(\gamma) + \beta}

    A forward hook keeps the logits, the latents and the norm of the weight, so that `update` gives
    the same numbers before and after the optimiser's step.

    Parameters
    ----------
    head : Linear, 1×1 convolution, str or None
        The head, its dotted name in `model`, or None to look for it by `find_head`.
    num_samples : int, optional
        N, the size of the training set; then every `update` has ``ids``, scores are kept by
        sample, and a sample seen twice in an epoch counts once. Without it only moments are kept.
    model : Module, optional
        Where to look for the head.
    beta : float
        The constant of Eq. 2, default 1.2.
    loss : {"cross_entropy", "binary_cross_entropy"}
        Softmax or sigmoid, default softmax.
    label_smoothing : float
        In [0, 1), as in the loss, default 0.
    class_weights : tensor of shape (C,), optional
        As ``torch.nn.CrossEntropyLoss(weight=...)``.
    ignore_index : int
        Class number of targets that do not count, default -100.
    sketch : JLSketch or int, optional
        Measure in K dimensions (see `gwa_core.JLSketch`); keeps a copy of the weight a step.
    every : int
        Score every n-th `update` only, default each.
    criterion : Module, optional
        The loss module, a ``CrossEntropyLoss`` or a ``BCEWithLogitsLoss``. Its calls on the head's
        output itself bring the targets, and `update` is not needed. Label smoothing, class weights
        and ignored class are read from it.
    signals : str or iterable of str
        Keys of ``gwa_core.signals.SIGNALS`` to follow beside the scores, default none. For class
        numbers and cross-entropy; merged over the ranks as the scores are.
    process_group : ProcessGroup, optional
        The data-parallel ranks, default all of them once ``torch.distributed`` is initialised.

    Attributes
    ----------
    history : list of EpochSummary
        Ended epochs in order.
    head : Module
        The head.
    signals : TrackedSignals or None
        Their means by epoch, and values by sample. Without label smoothing and class weights.

    Raises
    ------
    TypeError, ValueError
        If the head is not linear, or on options that do not fit.

    Notes
    -----
    Right under ``torch.compile`` (make the monitor before), mixed precision, gradient
    accumulation, activation checkpointing, DataParallel, DDP and FSDP2. Passes in eval mode are
    ignored. Cost a step: one read of logits and latents, one of the weight; nothing waits for the
    device until `end_epoch`. Memory: 8 bytes a sample with `num_samples`.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2, Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import GWAMonitor
    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> with GWAMonitor(model, num_samples=6) as monitor:
    ...     loss = torch.nn.functional.cross_entropy(model(x), y)
    ...     monitor.update(y, ids=torch.arange(6))
    ...     summary = monitor.end_epoch()
    >>> summary.count, monitor.scores.shape
    (6, torch.Size([6]))
    """

    def __init__(
        self,
        head: nn.Module | str | None = None,
        num_samples: int | None = None,
        *,
        model: nn.Module | None = None,
        beta: float = 1.2,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: torch.Tensor | None = None,
        ignore_index: int = -100,
        sketch: JLSketch | int | None = None,
        every: int = 1,
        criterion: nn.Module | None = None,
        signals: str | Iterable[str] = (),
        process_group: Any = None,
    ) -> None:
        num_samples = None if num_samples is None else check_count("num_samples", num_samples)
        every = check_count("every", every)
        if criterion is not None and num_samples is not None:
            raise ValueError(
                "`criterion` must come without `num_samples`, got both: a loss module is not told "
                "which samples it sees; call `update(targets, ids=ids)` instead"
            )
        linear = resolve_head(head, model)
        self.sketch = head_sketch(sketch, linear)
        self.options = _targets.LossOptions.of(
            criterion,
            loss=loss,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ignore_index=ignore_index,
            classes=head_size(linear)[0],
        )
        super().__init__(
            linear, num_samples, beta=beta, loss=self.options.loss, process_group=process_group
        )
        self._followed = Followed(signals, num_samples, self.options.loss)
        self.signals = self._followed.tracked
        self.every = every
        self._capture = Capture(linear, keep_weight=sketch is not None)
        self._loss_hook = None
        # The output that the criterion was called with last.
        self._last = Recent()
        if criterion is not None:
            self._nothing = (
                "the criterion must be called with the output of the head itself, and a slice, a "
                "rescaled or a converted copy is another tensor"
            )
            self._loss_hook = criterion.register_forward_hook(
                Listener(self._on_loss), with_kwargs=True
            )

    def _on_loss(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = dict(zip(("input", "target"), args, strict=False)) | kwargs
        heard = self._heard
        if torch.compiler.is_compiling():
            heard = torch.compiler.disable(heard)  # type: ignore[no-untyped-call]
        heard(given["input"], given["target"])

    def _heard(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        if not any(same_memory(logits, x.logits) for x in self._capture.waiting):
            # A loss of something else, such as an auxiliary head, or of a pass in eval mode.
            again = self._last.is_memory_of(logits)
            if again and logits.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    "`criterion` must be called once with an output of the head, got a second "
                    "call; the sum of two losses (mixup) has soft targets: without `criterion=`, "
                    "call `update(soft_targets)`"
                )
            return
        self._last.see(logits)
        linear = isinstance(self.head, nn.Linear) and self.loss == "cross_entropy"
        if linear and targets.is_floating_point() and targets.ndim > 2:
            # PyTorch's cross-entropy has the classes second.
            targets = targets.movedim(1, -1)
        self.update(targets, logits=logits)

    def update(
        self,
        targets: torch.Tensor,
        ids: torch.Tensor | None = None,
        where: torch.Tensor | None = None,
        *,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Score the samples of the last forward pass; before or after the optimiser's step.

        Parameters
        ----------
        targets : integer tensor of the samples' shape, or probabilities with classes
            Class numbers (B,), (B, S) for tokens, (B, H, W) for pixels; or probabilities of the
            shape of the logits (mixup).
        ids : integer tensor, optional
            Sample numbers in 0..num_samples-1, one for each class number. Either every batch has
            them or none.
        where : boolean tensor, optional
            True for samples that count; those with the ignored class never do.
        logits : tensor, optional
            Output of the head, to say which pass is meant where several wait.

        Raises
        ------
        RuntimeError
            If the head was not called in training mode since the last update.
        ValueError
            On shapes that do not fit, and ids out of range (those on a GPU at `end_epoch`). Only
            the batch is lost.
        """
        update = self._update
        if torch.compiler.is_compiling():
            # A compiled step with this call in it breaks its graph here. As a decorator this would
            # import the compiler for everybody.
            update = torch.compiler.disable(update)  # type: ignore[no-untyped-call]
        update(targets, ids, where, logits)

    @torch.no_grad()
    def _update(
        self,
        targets: torch.Tensor,
        ids: torch.Tensor | None,
        where: torch.Tensor | None,
        logits: torch.Tensor | None,
    ) -> None:
        try:
            flat = _targets.flatten(targets, ids, where, self.options, self.head)
            self._check_ids(ids)
            self._followed.check(flat)
        except (TypeError, ValueError):
            self._capture.miss()
            raise
        if flat.samples == 0:
            return
        forwards = self._capture.take(flat.shape, logits)
        self._updates += 1
        if (self._updates - 1) % self.every:
            return
        scores, start = [], 0
        for forward in forwards:
            stop = start + forward.samples
            part = flat.part(start, stop)
            scores.append(self._score(forward, part))
            self._followed.follow(forward, part)
            start = stop
        device = scores[0].device
        self._add(
            torch.cat([part.to(device) for part in scores]) if len(scores) > 1 else scores[0],
            flat.to(device),
        )

    def _score(self, forward: Forward, flat: _targets.Flat) -> torch.Tensor:
        logits = forward.logits.reshape(-1, forward.logits.shape[-1])
        latents = forward.latents.reshape(-1, forward.latents.shape[-1])
        return head_scores(
            latents=latents,
            targets=flat.to(logits.device).fitting(logits),
            logits=logits,
            weight=forward.weight,
            weight_norm=forward.weight_norm,
            bias=forward.bias,
            loss=self.options.loss,
            label_smoothing=self.options.label_smoothing,
            class_weights=self.options.weights_on(logits.device),
            sketch=self.sketch,
        )

    def _forget(self) -> None:
        self._capture.forget()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Ignore forward passes inside the ``with`` block, such as those of another loss."""
        before, self._capture.paused = self._capture.paused, True
        try:
            yield
        finally:
            self._capture.paused = before

    def skip(self) -> None:
        """Forget the forward passes since the last `update`, of a batch that is left out."""
        self._capture.forget()

    def close(self) -> None:
        """Remove the hooks; history and scores stay."""
        self._capture.close()
        if self._loss_hook is not None:
            self._loss_hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
