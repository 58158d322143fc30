"""The monitor: a hook on the head, an epoch of scores, a history."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from gwa_core import EpochSummary, JLSketch
from gwa_core.signals import TrackedSignals
from gwa_torch import _targets
from gwa_torch._capture import NOTHING_WAITS, Capture, same_memory
from gwa_torch._checks import check_count, check_real
from gwa_torch._criterion import Heard
from gwa_torch._distributed import position
from gwa_torch._forward import Forward
from gwa_torch._keeper import Keeper
from gwa_torch._residuals import FORMULA, Residuals, check_residual
from gwa_torch._runs import write_run
from gwa_torch._sequences import check_reduce, check_scores, closed_parts
from gwa_torch._signals import Followed
from gwa_torch.heads import head_size, head_sketch, resolve_head
from gwa_torch.scoring import head_scores

__all__ = ["GWAMonitor"]


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
        N, the size of the training set; then every `update` has ``ids``, and scores are kept by
        sample. A sample seen twice in an epoch counts once; tokens of one sequence add up. Without
        it only moments are kept.
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
        numbers, under a softmax or one sigmoid; merged over the ranks.
    residual : {"auto", "formula", "backward"}
        Where the residual r comes from. ``"formula"``: the closed form of `loss`, which is exact
        where softmax saturates. ``"backward"``: the gradient that arrives at the output of the head,
        whatever the loss is; targets and options of the loss are not needed. ``"auto"``, the default:
        the closed form, compared with the gradient on the first batch of each epoch and now and then
        later. Where they differ, it warns once and continues with the gradient.
    reduce : {"mean", "min", "gradient"}
        How the tokens of a sequence, all those with its id, become one score. ``"mean"``, the
        default, and ``"min"`` of the scores of the tokens that count. ``"gradient"``: the alignment
        of the sequence's own gradient :math:`\sum_t r_t \otimes z_t`.
    process_group : ProcessGroup, optional
        The data-parallel ranks, default all of them once ``torch.distributed`` is initialised.

    Attributes
    ----------
    head : Module
        The head.
    options : NamedTuple
        What the scores depend on: ``loss``, ``label_smoothing``, ``class_weights``,
        ``ignore_index``, and the number of ``classes``.
    residual : {"formula", "backward"}
        What is in use now.
    history : list of EpochSummary
        Ended epochs in order.
    label_quality : tensor of shape (N,) or None
        How far each label can be trusted, over the ended epochs.
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
    device until `end_epoch`. Memory: 16 bytes a sample with `num_samples`, for the scores and the
    quality of the labels; 20 bytes a sequence, whatever its length. ``reduce="gradient"`` costs the
    products of all pairs of tokens in a row, (S, S) by C + D, and keeps the gradient at the logits
    until `update` where it is needed. A sequence that is cut over rows or batches has the mean
    of its parts' alignments, each weighted by the length of its gradient.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2, Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from gwa_torch import EarlyStopper, GWAMonitor, rank_samples
    >>> model, stopper = torch.nn.Linear(4, 3), EarlyStopper(total_steps=1)
    >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> with GWAMonitor(model, num_samples=6) as monitor:
    ...     loss = torch.nn.functional.cross_entropy(model(x), y)
    ...     monitor.update(y, ids=torch.arange(6))
    ...     summary = monitor.end_epoch()
    ...     stop = stopper.observe(summary)
    >>> summary.count, monitor.scores.shape, stop
    (6, torch.Size([6]), False)
    >>> rank_samples(monitor.label_quality, k=2).shape
    torch.Size([2])
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
        residual: str = "auto",
        reduce: str = "mean",
        process_group: Any = None,
    ) -> None:
        check_residual(residual)
        check_reduce(reduce, num_samples=num_samples, sketch=sketch)
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
        self.head = linear
        self.num_samples = num_samples
        self.every = every
        self.process_group = process_group
        self._followed = Followed(signals, num_samples)
        self._followed.check_loss(self.options)
        self._keeper = Keeper(
            linear,
            num_samples,
            beta=check_real("beta", beta),
            every=every,
            followed=self._followed,
            process_group=process_group,
            reduce=reduce,
        )
        self._nothing = "call `update` for every batch, and train with the model in train mode"
        self._capture = Capture(
            linear,
            sketch=self.sketch,
            gradients=residual != "formula",
            always=residual == "backward",
            whole=reduce == "gradient",
        )
        # A notebook's cell that runs again leaves a monitor behind.
        weakref.finalize(self, self._capture.close).atexit = False
        self._residuals = Residuals(
            residual, self._capture, self._keeper, self._score, self._current_options
        )
        self._heard = None
        if criterion is not None:
            self._nothing = (
                "the criterion must be called with the output of the head itself, and a slice, a "
                "rescaled or a converted copy is another tensor"
            )
            self._heard = Heard(criterion, self._capture, self.update)

    def update(
        self,
        targets: torch.Tensor | None,
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
            shape of the logits (mixup). None under ``residual="backward"``, which needs none: each
            row of the logits is a sample.
        ids : integer tensor, optional
            Sample numbers in 0..num_samples-1, one for each class number. For targets (B, S) also one
            a row, (B,): then a row is one sample. Tokens with one id add up, over batches too.
            Either every batch has them or none.
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
        compiling = torch.compiler.is_compiling()
        plain = where is None and logits is None and self.every == 1 and self.signals is None
        if plain and not compiling and self._residuals.stage(targets, ids):
            return
        if compiling:
            # A compiled step with this call in it breaks its graph here. As a decorator this would
            # import the compiler for everybody.
            update = torch.compiler.disable(update)  # type: ignore[no-untyped-call]
        update(targets, ids, where, logits)

    @torch.no_grad()
    def _update(
        self,
        targets: torch.Tensor | None,
        ids: torch.Tensor | None,
        where: torch.Tensor | None,
        logits: torch.Tensor | None,
    ) -> None:
        try:
            if targets is None:
                flat = _targets.flatten(self._rows(logits), ids, where)
            else:
                flat = _targets.flatten(targets, ids, where, self.options, self.head)
            _targets.check_ids(ids, self.num_samples, flat.where)
            self._followed.check(flat, self.options)
        except (TypeError, ValueError):
            self._capture.miss()
            raise
        if flat.samples == 0:
            return
        forwards = self._capture.take(flat.shape, logits)
        self._residuals.settle()
        self._keeper.batches += 1
        if (self._keeper.batches - 1) % self.every:
            return
        if self._followed.tracked is not None:
            start = 0
            for forward in forwards:
                stop = start + forward.samples
                self._followed.follow(forward, flat.part(start, stop))
                start = stop
        self._residuals.put(forwards, flat)

    def _rows(self, logits: torch.Tensor | None) -> torch.Tensor:
        """Return a place for each row of the last pass, where no targets are needed."""
        if self._residuals.asked != "backward" or self.signals is not None:
            raise TypeError(
                "`targets` must be a tensor, got None; only residual='backward' without signals "
                "needs none"
            )
        waiting = [x.logits for x in self._capture.waiting]
        made = waiting[-1:] if logits is None else [x for x in waiting if same_memory(x, logits)]
        if not made:
            raise RuntimeError(NOTHING_WAITS)
        return torch.zeros(made[0].shape[:-1], dtype=torch.long, device=made[0].device)

    def _current_options(self) -> _targets.LossOptions:
        """Return the options, which a trainer may learn in the first pass."""
        return self.options

    def _score(self, forward: Forward, flat: _targets.Flat) -> torch.Tensor:
        if flat.tokens and self._keeper.reduce == "gradient":
            return closed_parts(forward, flat, self.options)
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
        scores : tensor of shape (N,) or (B, S)
            Alignment scores of samples, or of tokens, which then add up by id as `reduce` says.
        ids : integer tensor of shape (N,), (B, S) or (B,), optional
            Sample numbers in 0..num_samples-1.
        where : boolean tensor of shape (N,) or (B, S), optional
            True for samples or tokens that count.
        """
        check_scores(scores, self._keeper.reduce)
        if self.signals is not None:
            raise ValueError(
                "`add` must come without `signals=`, got "
                f"{', '.join(self.signals.names)}; signals need the logits: call `update`"
            )
        flat = _targets.flatten(scores, ids, where)
        _targets.check_ids(ids, self.num_samples)
        self._add(scores.detach().flatten(), flat)

    def _add(self, scores: torch.Tensor, flat: _targets.Flat) -> None:
        self._residuals.settle()
        self._residuals.flush()
        self._keeper.batches += 1
        self._keeper.count(flat.samples)
        self._keeper.add(scores, flat.to(scores.device))
        # The head may have been called as well.
        self.skip()

    def end_epoch(
        self,
        step: int | None = None,
        *,
        batches: int | None = None,
        window: int | None = None,
    ) -> EpochSummary:
        """Summarise the epoch over all ranks, append it to the history, and begin a new one.

        Parameters
        ----------
        step : int, optional
            The caller's clock, such as the optimiser's step; default the number of the epoch.
        batches : int, optional
            How many batches this rank has in a whole epoch, such as ``len(loader)``, so that one
            that was cut short is known; no rule keeps it. Default what `num_samples` says, and
            from the second epoch on the rows of the epoch before.
        window : int, optional
            Where you call this every so many steps of the optimiser and not once an epoch: how
            many. The history is then one of windows, and `batches` those of a window.

        Returns
        -------
        EpochSummary
            In plain numbers, the same on every rank; waits for the device once.

        Raises
        ------
        ValueError
            If no rank has a score, or ids on a GPU were out of range.
        """
        # A rank may have none, and must meet the others all the same.
        whole = None if batches is None else check_count("batches", batches, least=0)
        window = None if window is None else check_count("window", window)
        self._residuals.end_epoch()
        summary = self._keeper.end_epoch(step, whole, self._nothing, window)
        self._residuals.begin_epoch()
        self.skip()
        return summary

    def synchronize(self) -> None:
        """Give every rank the epoch so far, so that the state of any rank is the whole state.

        All ranks must call it. Without ``torch.distributed`` it changes nothing.
        """
        self._settle()
        self._keeper.synchronize()

    def _settle(self) -> None:
        """Score what can be scored."""
        with torch.no_grad():
            self._residuals.settle(newest=True)
            self._residuals.flush()

    @property
    def residual(self) -> str:
        """What the scores are made of now: the closed form ("formula"), or the gradient ("backward")."""
        return self._residuals.used

    @property
    def history(self) -> list[EpochSummary]:
        """Ended epochs in order."""
        return self._keeper.history

    @property
    def scores(self) -> torch.Tensor | None:
        """Scores (N,) of the epoch in progress, or of the one that ended last, on the host.

        Not a number where a sample was not seen; None without `num_samples` or before the first
        batch. During an epoch, only what this rank saw.
        """
        self._residuals.settle()
        self._residuals.flush()
        return self._keeper.scores

    @property
    def label_quality(self) -> torch.Tensor | None:
        """Label quality (N,) in [0, 1] over the ended epochs of all ranks, on the host.

        Low is suspicious: ``rank_samples(monitor.label_quality, k=100)``. Not a number where a
        sample was never seen; None without `num_samples` or before the first `end_epoch`. It is
        what `gwa_core.label_quality` makes of the scores of all epochs, in 8 bytes a sample.
        """
        return self._keeper.label_quality

    @property
    def signals(self) -> TrackedSignals | None:
        """Signals that are followed: their means by epoch, and values by sample."""
        return self._followed.tracked

    @property
    def beta(self) -> float:
        """The constant of Eq. 2."""
        return self._keeper.beta

    def save(
        self,
        run_folder: str | os.PathLike[str],
        *,
        metrics: Mapping[str, float] | None = None,
        targets: torch.Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write the epoch that ended last to a run folder, for ``gwa analyse``.

        Call it after every `end_epoch`. Epochs that the folder does not have yet are written
        without scores, and epochs after the last one, which a resumed run makes again, are dropped.
        Only the first rank writes. With `num_samples` the epochs after the first call also have the
        predicted class of each sample: one argmax a batch, and 8 bytes a sample.

        Parameters
        ----------
        run_folder : path
            The folder; made where it does not exist.
        metrics : mapping of str to float, optional
            Numbers to keep beside the summary and the means of the signals.
        targets : integer tensor of shape (N,), optional
            Given labels by sample id.
        class_names : sequence of str, optional
            C names.
        """
        if not self.history:
            raise ValueError("`save` must follow `end_epoch`, got no ended epoch")
        kept = self._keeper
        if position(self.process_group)[0] == 0:
            write_run(
                run_folder,
                kept.history,
                kept.scores if kept.ended else None,
                predictions=kept.predictions if kept.ended else None,
                resumed=kept.resumed,
                num_samples=self.num_samples,
                num_classes=self.options.classes,
                beta=kept.beta,
                loss=self.options.loss,
                metrics=self._followed.means | dict(metrics or {}),
                targets=targets,
                class_names=class_names,
            )
        kept.resumed, kept.predicts = True, self.num_samples is not None

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host and plain values, with a version.

        In the middle of an epoch under ``torch.distributed`` call `synchronize` on all ranks first;
        then the state of any rank serves all of them.
        """
        with torch.no_grad():
            residual = self._residuals.state_dict()
        return self._keeper.state_dict() | {"residual": residual}

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
        self._keeper.load_state_dict(state)
        residual: dict[str, Any] = state.get("residual", FORMULA)
        if self._keeper.epoch is None:
            # The epoch was left out, or is another rank's.
            residual = residual | {"stage": None}
        self._residuals.load_state_dict(residual)
        self.skip()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Ignore forward passes inside the ``with`` block, such as passes for another loss."""
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
        if self._heard is not None:
            self._heard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
