"""The monitor: a hook on the head, an epoch of scores, a history."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn

from gwa_core import EpochSummary, JLSketch, summarize
from gwa_torch import _targets
from gwa_torch._capture import Capture, Forward, Listener, same_memory
from gwa_torch._distributed import position
from gwa_torch._epoch import BySample, ByStream
from gwa_torch._runs import write_run
from gwa_torch.heads import resolve_head
from gwa_torch.scoring import head_scores

__all__ = ["GWAMonitor"]

STATE_VERSION = 1


class GWAMonitor:
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
    projection : JLSketch or int, optional
        Measure in K dimensions (see `gwa_core.JLSketch`); keeps a copy of the weight a step.
    every : int
        Score every n-th `update` only, default each.
    criterion : Module, optional
        The loss module. Its calls on the head's output bring the targets, and `update` is not
        needed. Label smoothing, class weights and ignored class of ``CrossEntropyLoss`` are read
        from it, and ``BCEWithLogitsLoss`` means sigmoid.
    process_group : ProcessGroup, optional
        The data-parallel ranks, default all of them once ``torch.distributed`` is initialised.

    Attributes
    ----------
    history : list of EpochSummary
        Ended epochs in order.
    head : Module
        The head.

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
        projection: JLSketch | int | None = None,
        every: int = 1,
        criterion: nn.Module | None = None,
        process_group: Any = None,
    ) -> None:
        for name, value in {"num_samples": num_samples, "every": every}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
        if criterion is not None and num_samples is not None:
            raise ValueError(
                "`criterion` must come without `num_samples`, got both: a loss module is not told "
                "which samples it sees; call `update(targets, ids=ids)` instead"
            )
        self.head = resolve_head(head, model)
        self.num_samples = num_samples
        self.beta = beta
        self.every = every
        self.process_group = process_group
        #: Ended epochs in order.
        self.history: list[EpochSummary] = []
        classes, features = self.head.weight.shape[:2]
        self.num_classes = int(classes)
        if isinstance(projection, int):
            projection = JLSketch(features, projection)
        if projection is not None and projection.in_features != features:
            raise ValueError(
                f"`projection` must be made for D = {features} features, got "
                f"{projection.in_features}; a sketch belongs to one width of latents"
            )
        self.projection = projection
        self.options = _targets.LossOptions.of(
            criterion,
            loss=loss,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ignore_index=ignore_index,
            classes=self.num_classes,
        )
        self._updates = 0
        self._epoch: BySample | ByStream | None = None
        self._ended = False
        # Whether a run folder with epochs in it may be this run's.
        self._resumed = False
        self._capture = Capture(self.head, keep_weight=projection is not None)
        self._loss_hook = None
        if criterion is not None:
            self._loss_hook = criterion.register_forward_hook(
                Listener(self._on_loss), with_kwargs=True
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _on_loss(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = dict(zip(("input", "target"), args, strict=False)) | kwargs
        # A loss of something else, such as an auxiliary head, or of a pass in eval mode.
        if not any(same_memory(given["input"], x.logits) for x in self._capture.waiting):
            return
        targets = given["target"]
        if targets.is_floating_point() and targets.ndim > 2:
            # PyTorch's cross-entropy has the classes second.
            targets = targets.movedim(1, -1).flatten(0, -2)
        self.update(targets, logits=given["input"])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
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
        flat = _targets.flatten(targets, ids, where, self.options, self.head)
        self._check_ids(ids)
        forwards = self._capture.take(flat.samples, logits)
        self._updates += 1
        if (self._updates - 1) % self.every:
            return
        scores, start = [], 0
        for forward in forwards:
            stop = start + forward.samples
            scores.append(self._score(forward, flat.part(start, stop)))
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
            projection=self.projection,
        )

    @torch.no_grad()
    def add(
        self,
        scores: torch.Tensor,
        ids: torch.Tensor | None = None,
        where: torch.Tensor | None = None,
    ) -> None:
        """Add scores that you computed yourself, by `head_scores`.

        Parameters
        ----------
        scores : tensor of shape (N,)
            Alignment scores.
        ids : integer tensor of shape (N,), optional
            Sample numbers in 0..num_samples-1.
        where : boolean tensor of shape (N,), optional
            True for samples that count.
        """
        flat = _targets.flatten(scores, ids, where)
        self._check_ids(ids)
        self._add(scores.detach(), flat.to(scores.device))

    def _add(self, scores: torch.Tensor, flat: _targets.Flat) -> None:
        epoch = self._in_flight() or self._new_epoch(scores.device)
        if epoch.device != scores.device:
            epoch.to(scores.device)
        epoch.add(scores, flat.ids, flat.where, self.process_group)  # type: ignore[arg-type]
        self._epoch, self._ended = epoch, False

    def _in_flight(self) -> BySample | ByStream | None:
        return None if self._ended else self._epoch

    def _new_epoch(self, device: torch.device) -> BySample | ByStream:
        n = self.num_samples
        return ByStream(device) if n is None else BySample(n, device)

    def _check_ids(self, ids: torch.Tensor | None) -> None:
        if (ids is None) != (self.num_samples is None):
            raise ValueError(
                "`ids` and `num_samples` must be given together, got "
                f"{'no ' if ids is None else ''}ids and num_samples={self.num_samples}; let the "
                "dataset return its index, and say GWAMonitor(head, num_samples=len(dataset))"
            )
        if ids is None:
            return
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"`ids` must be integers, got {ids.dtype}")
        size = self.num_samples or 0
        # Looking at ids on a GPU would wait for it; those are counted and refused at the end.
        if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < size:
            raise ValueError(
                f"`ids` must be in 0..{size - 1}, got {ids.min()}..{ids.max()}; ids number the "
                "whole training set, not the batch"
            )

    def end_epoch(self, step: int | None = None) -> EpochSummary:
        """Summarise the epoch over all ranks, append it to the history, and begin a new one.

        Parameters
        ----------
        step : int, optional
            The caller's clock, such as the optimiser's step; default the number of the epoch.

        Returns
        -------
        EpochSummary
            In plain numbers, the same on every rank; waits for the device once.

        Raises
        ------
        ValueError
            If no rank has a score, or ids on a GPU were out of range.
        """
        # A rank without samples takes part, too.
        epoch = self._in_flight() or self._new_epoch(self.head.weight.device)
        moments, omitted = epoch.finish(self.process_group)
        if int(moments.count) == 0 and omitted == 0:
            raise ValueError(
                "an epoch must have scores, got none since the last `end_epoch`; call `update` "
                "for every batch, and train with the model in train mode"
            )
        summary = EpochSummary.from_summary(
            summarize(moments, beta=self.beta),
            epoch=len(self.history),
            step=step,
            omitted=omitted,
        )
        self.history.append(summary)
        self._epoch, self._ended = epoch, True
        self._capture.waiting.clear()
        return summary

    def synchronize(self) -> None:
        """Give every rank the epoch so far, so that the state of any rank is the whole state.

        All ranks must call it. Without ``torch.distributed`` it changes nothing.
        """
        if position(self.process_group)[1] == 1:
            return
        epoch = self._in_flight() or self._new_epoch(self.head.weight.device)
        epoch.synchronize(self.process_group)
        if not epoch.empty:
            self._epoch, self._ended = epoch, False

    @property
    def scores(self) -> torch.Tensor | None:
        """Scores (N,) of the epoch in flight, or of the one that ended last, on the host.

        Not a number where a sample was not seen; None without `num_samples` or before the first
        batch. In flight, those of this rank.
        """
        return None if self._epoch is None else self._epoch.scores()

    def save(
        self,
        run_folder: str | os.PathLike[str],
        *,
        metrics: Mapping[str, float] | None = None,
        targets: torch.Tensor | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        """Write the epoch that ended last to a run folder, for ``gwa analyse``.

        Call it after every `end_epoch`. Epochs that the folder does not have yet are written
        without scores, and epochs after the last one, which a resumed run makes again, are dropped.
        Only the first rank writes.

        Parameters
        ----------
        run_folder : path
            The folder; made where it does not exist.
        metrics : mapping of str to float, optional
            Numbers to keep beside the summary.
        targets : integer tensor of shape (N,), optional
            Given labels by sample id.
        class_names : list of str, optional
            C names.
        """
        if not self.history:
            raise ValueError("`save` must follow `end_epoch`, got no ended epoch")
        if position(self.process_group)[0] == 0:
            write_run(
                run_folder,
                self.history,
                self.scores if self._ended else None,
                resumed=self._resumed,
                num_samples=self.num_samples,
                num_classes=self.num_classes,
                beta=self.beta,
                loss=self.options.loss,
                metrics=metrics,
                targets=targets,
                class_names=class_names,
            )
        self._resumed = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host and plain values, with a version.

        In the middle of an epoch under ``torch.distributed`` call `synchronize` on all ranks first;
        then the state of any rank serves all of them.
        """
        rank, world = position(self.process_group)
        epoch = self._in_flight()
        return {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "beta": self.beta,
            "history": [summary._asdict() for summary in self.history],
            "updates": self._updates,
            "rank": rank,
            "world": world,
            "epoch": None if epoch is None else epoch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, also in the middle of an epoch.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned; survives ``torch.load(weights_only=True)``.

        Raises
        ------
        ValueError
            If it is of another version or training set; the monitor is unchanged then.
        """
        found = state.get("version"), state.get("num_samples")
        if found != (STATE_VERSION, self.num_samples):
            raise ValueError(
                f"`state` must be of version {STATE_VERSION} and num_samples={self.num_samples}, "
                f"got {found[0]!r} and {found[1]!r}; it is of another gwa-core or training set"
            )
        self.beta = state["beta"]
        self.history = [EpochSummary(**summary) for summary in state["history"]]
        self._updates = state["updates"]
        self._resumed = True
        self._epoch, self._ended = None, False
        self._capture.waiting.clear()
        if state["epoch"] is not None:
            self._epoch = self._new_epoch(self.head.weight.device)
            self._epoch.load_state_dict(state["epoch"])

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Ignore forward passes inside the ``with`` block, such as those of another loss."""
        before, self._capture.paused = self._capture.paused, True
        try:
            yield
        finally:
            self._capture.paused = before

    def close(self) -> None:
        """Remove the hooks; history and scores stay."""
        self._capture.close()
        if self._loss_hook is not None:
            self._loss_hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
