"""Gradient-weight alignment as a metric of torchmetrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gwa_core import EpochSummary, Moments, alignment_scores, summarize
from gwa_torch._checks import check_integer, check_real
from gwa_torch._epoch import pack, unpack
from gwa_torch._targets import LossOptions, flatten
from gwa_torch.scoring import frobenius_norm, head_scores

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "`gwa_torch.torchmetrics` needs torchmetrics; pip install torchmetrics"
    ) from error

__all__ = ["GradientWeightAlignment"]

# Classes whose logits are compared with those of the head.
LOOKED_AT = 1024


class GradientWeightAlignment(Metric):
    r"""GWA of an epoch from logits, latents and weight: a metric without hooks.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}, \qquad
       \mathrm{GWA} = \frac{\mathrm{mean}(\gamma)}{\mathrm{kurtosis}(\gamma) + \beta}

    It can be copied, pickled, kept in a ``MetricCollection`` and computed over several processes,
    as any other metric. `GWAMonitor` does more: it finds the tensors by itself, keeps the score of
    each sample, and counts samples once that a sampler draws twice.

    Parameters
    ----------
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
    **options : Any
        Those of every metric, such as ``dist_sync_on_step`` and ``process_group``.

    Attributes
    ----------
    moments : tensor of shape (21,)
        The state: `gwa_core.Moments` as one vector, and how many scores were not finite. float64
        where the device has it, whatever the precision of the model.

    Raises
    ------
    ValueError
        On options that do not fit.

    Notes
    -----
    Cost a batch: one read of logits and latents, one of the weight, and about 230 operations on a
    few numbers, which merge the moments. After the first batch, of which a row is looked at,
    nothing waits for the device until `compute`.

    Two of these in one ``MetricCollection`` that differ in `ignore_index` alone need
    ``compute_groups=False``: metrics whose states are equal after the first batch are taken to be
    the same for ever.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2, Eq. 3.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch.torchmetrics import GradientWeightAlignment
    >>> metric = GradientWeightAlignment()
    >>> weight, target = torch.eye(2), torch.tensor([0, 0, 1, 1, 1])
    >>> latents = torch.tensor([[3.0, 1.0], [2.0, 0.0], [1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    >>> metric.update(latents @ weight, target, latents=latents, weight=weight)
    >>> round(float(metric.compute()), 3)
    0.199
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    moments: torch.Tensor
    class_weights: torch.Tensor | None

    def __init__(
        self,
        *,
        beta: float = 1.2,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: torch.Tensor | None = None,
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.beta = check_real("beta", beta)
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        # A buffer follows the metric to its device, and is not of its state.
        self.register_buffer("class_weights", class_weights, persistent=False)
        # Whether the logits were seen to be the head's.
        self._looked = False
        # The number of classes comes with the first batch; all else is refused here.
        self._loss_options(2 if class_weights is None else class_weights.numel())
        self.add_state("moments", default=_nothing(self.device), dist_reduce_fx=_merge)

    def _loss_options(self, classes: int) -> LossOptions:
        return LossOptions.of(
            None,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
            classes=classes,
        )

    # Batch values of `forward` are computed with gradients on.
    @torch.no_grad()
    def update(
        self,
        preds: torch.Tensor,
        target: torch.Tensor,
        *,
        latents: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Score a batch; call it before ``optimizer.step()``.

        The weight and the bias must be the ones that made the logits; the step changes them.

        Parameters
        ----------
        preds : tensor of shape (N, C)
            Logits, the output of the head; (B, S, C) for tokens.
        target : integer tensor of shape (N,), or probabilities of the shape of `preds`
            Class numbers, (B, S) for tokens.
        latents : tensor of shape (N, D)
            Inputs of the head; (B, S, D) for tokens.
        weight : tensor of shape (C, D)
            Weight of the head, ``head.weight``.
        bias : tensor of shape (C,), optional
            Bias of the head, ``head.bias``; must be given where it has one.

        Raises
        ------
        TypeError, ValueError
            On shapes, dtypes and devices that do not fit, and on a first batch whose `preds` are not
            the logits of that head; the state is unchanged then.
        """
        self._check(preds, latents, weight)
        self._look(preds, latents, weight, bias)
        options = self._loss_options(preds.shape[-1])
        flat = flatten(target, None, None, options)
        if flat.samples != preds.numel() // preds.shape[-1]:
            raise ValueError(
                f"`target` must have one entry a sample, {tuple(preds.shape[:-1])}, got shape "
                f"{tuple(target.shape)}; probabilities are floating and have the shape of `preds`"
            )
        logits = preds.reshape(-1, preds.shape[-1])
        scores = head_scores(
            latents=latents.reshape(-1, latents.shape[-1]),
            targets=flat.to(logits.device).fitting(logits),
            logits=logits,
            weight_norm=frobenius_norm(weight),
            bias=bias,
            loss=self.loss,
            label_smoothing=options.label_smoothing,
            class_weights=options.weights_on(logits.device),
        )
        counted = torch.ones_like(scores, dtype=torch.bool)
        if flat.where is not None:
            counted = flat.where.to(scores.device, non_blocking=True)
        omitted = (counted & ~torch.isfinite(scores)).sum(0, keepdim=True)
        batch = pack(Moments.from_batch(scores, where=counted))
        batch = torch.cat([batch, omitted.to(batch.dtype)])
        self.moments = _merge(torch.stack([self.moments, batch]))

    def _check(self, preds: torch.Tensor, latents: torch.Tensor, weight: torch.Tensor) -> None:
        if preds.ndim < 2 or latents.shape[:-1] != preds.shape[:-1]:
            raise ValueError(
                "`preds` must be (N, C) and `latents` (N, D), got shapes "
                f"{tuple(preds.shape)} and {tuple(latents.shape)}; `preds` are the logits of all "
                "classes, and `latents` what the head was called with"
            )
        shape = preds.shape[-1], latents.shape[-1]
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"`weight` must be (C, D) = {shape}, got {tuple(weight.shape)}; it is the weight "
                "of the linear layer that makes `preds` from `latents`"
            )
        if latents.device != self.moments.device:
            raise ValueError(
                f"`latents` must be on the device of the metric, {self.moments.device}, got "
                f"{latents.device}; call metric.to({str(latents.device)!r})"
            )

    def _look(
        self,
        preds: torch.Tensor,
        latents: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """See once that the logits are those of the head: probabilities would score in silence."""
        rows = preds.numel() // preds.shape[-1]
        # A shard has no row to look at.
        if self._looked or not rows or hasattr(weight, "full_tensor"):
            return
        some = slice(0, LOOKED_AT)
        logits, latent, head, shift = (
            None if x is None else x.detach().double().cpu().numpy()
            for x in (
                preds.reshape(-1, preds.shape[-1])[:1, some],
                latents.reshape(-1, weight.shape[1])[:1],
                weight[some],
                None if bias is None or bias.ndim != 1 else bias[some],
            )
        )
        target: dict[str, Any] = {"targets": np.zeros(1, dtype=np.int64)}
        if self.loss == "binary_cross_entropy":
            target = {"targets": np.zeros_like(logits), "loss": self.loss}
        try:
            alignment_scores(latents=latent, weight=head, logits=logits, bias=shift, **target)
        except ValueError as error:
            text = str(error).replace("`logits`", "`preds`")
            raise ValueError(f"{text}; probabilities instead of logits") from error
        self._looked = True

    def compute(self) -> torch.Tensor:
        """Return GWA of all batches since `reset`, over all processes.

        Returns
        -------
        0-D tensor
            nan where there are no scores, or all are equal. At or behind the pole of Eq. 2 it
            means nothing; `summary` has ``healthy``, and the numbers that the rules watch.
        """
        gwa: torch.Tensor = summarize(_split(self.moments)[0], beta=self.beta).gwa
        return gwa

    def summary(self, epoch: int = 0) -> EpochSummary:
        """Return all numbers of the epoch over all processes; each of them must call it.

        Parameters
        ----------
        epoch : int
            Which epoch it is.

        Returns
        -------
        EpochSummary
            In plain numbers, for `gwa_core.select_epoch` and `gwa_core.EarlyStopper`; waits for
            the device.
        """
        sync = self._to_sync and not self._is_synced
        with self.sync_context(self.dist_sync_fn, should_sync=sync, should_unsync=sync):
            moments, omitted = _split(self.moments)
            return EpochSummary.from_summary(
                summarize(moments, beta=self.beta),
                epoch=check_integer("epoch", epoch),
                omitted=int(omitted),
            )

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or several.

        Parameters
        ----------
        val : tensor or sequence of tensors, optional
            Results of `compute` or ``forward``; default that of `compute`.
        ax : matplotlib Axes, optional
            Where to draw.

        Returns
        -------
        Figure, Axes
        """
        return self._plot(val, ax)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in the state of another metric of this class.

        Parameters
        ----------
        incoming_state : GradientWeightAlignment, or mapping with ``moments``
            The other metric, or its ``metric_state``.
        """
        super().merge_state(incoming_state)
        # The base class would go on to answer with the value from before.
        self._computed = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._computed = None

    def _apply(
        self, fn: Callable[..., Any], exclude_state: Sequence[str] = ()
    ) -> GradientWeightAlignment:
        """Move the state, but keep its precision: `fn` may cast a model with all its metrics."""
        super()._apply(fn, exclude_state=["moments", *exclude_state])
        nothing = _nothing(self.device)
        self._defaults["moments"], self.moments = nothing, self.moments.to(nothing)
        return self


def _nothing(device: torch.device) -> torch.Tensor:
    """Return the state before the first batch."""
    packed = pack(Moments.empty(torch.zeros((), device=device)))
    return torch.cat([packed, torch.zeros_like(packed[:1])])


def _split(state: torch.Tensor) -> tuple[Moments, torch.Tensor]:
    return unpack(state[:-1]), state[-1]


def _merge(states: torch.Tensor) -> torch.Tensor:
    """Merge stacked states (R, 21); central moments cannot be summed."""
    moments = functools.reduce(Moments.merge, map(unpack, states[:, :-1]))
    return torch.cat([pack(moments), states[:, -1].sum(0, keepdim=True)])
