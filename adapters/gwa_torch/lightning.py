"""Gradient-weight alignment in Lightning: a callback that logs, stops, and keeps weights."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, cast

import torch

from gwa_core import EpochSummary, MaxSeparation, Rule
from gwa_torch._checks import check_count
from gwa_torch._keep import Keep
from gwa_torch._labels import SeenLabels
from gwa_torch._runs import begin_folder, end_folder
from gwa_torch._trainers import (
    Pick,
    Watched,
    begin_stopper,
    best_values,
    check_options,
    end_record,
    find_targets,
    pick_ids,
    resume_rule,
)
from gwa_torch.monitor import GWAMonitor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer

    from gwa_torch import _lightning
    from gwa_torch._lightning_keep import Kept, muted, say_torn, say_unseen
    from gwa_torch._lightning_metric import LoggedMetric
except ImportError as error:
    raise ImportError("`gwa_torch.lightning` needs Lightning; pip install lightning") from error

__all__ = ["GWACallback"]


class GWACallback(Watched, Callback):
    """Log gradient-weight alignment in a Lightning Trainer, and stop by it.

    Each training epoch logs ``train/gwa``, ``train/gwa_mean``, ``train/gwa_kurtosis``,
    ``train/gwa_se``, ``train/gwa_bimodality``, ``train/gwa_separation``, ``train/gwa_healthy`` (0 or
    1), ``train/gwa_best_epoch`` of the rule, and the mean of each of ``signals``, such as
    ``train/margin``. ``EarlyStopping`` and ``ModelCheckpoint`` can watch them; the order of the
    callbacks does not matter. TensorBoard and W&B get a histogram of the scores, MLflow a picture.

    Parameters
    ----------
    head : Linear, 1×1 convolution, str or None
        The head, its dotted name in the LightningModule, or None to look for it by `find_head`.
    num_samples : int, optional
        N, the size of the training set; then every batch has ids, and scores are kept by sample.
        Without it only moments are kept.
    rule : Rule, optional
        Stops the training, such as ``MaxSeparation(patience=3)``; the best checkpoint is kept,
        unless the trainer has ``enable_checkpointing=False``, which a warning says. It
        watches a number of the summary, one of ``signals``, or a metric that the module logs in a
        training or validation step: ``BestMetric(metric="val_acc")``.
    keep : "average", "best" or None
        What the model has when ``fit`` returns. "average": the mean of the weights at the ends of the
        epochs, by `EpochAverage`, also in ``gwa-average.ckpt``; a rule then only stops. "best": the
        weights of the best epoch of the rule, default ``MaxSeparation()``. None: those of the end.
    prefix : str
        What the logged names begin with, default ``"train/"``.
    targets : str, int or function, optional
        Key or position in a batch, or a function of it; default the second of a tuple, or the
        labels of a dict. Under ``residual="backward"`` a batch need have none.
    ids : str, int or function, optional
        The same for the sample numbers; default the third of a tuple, or the ids of a dict.
    run_folder : path, optional
        Write each epoch to this run folder, too, with the labels where the first epoch sees all;
        see `GWAMonitor.save`. ``gwa follow`` shows it while the training goes on.
    dirpath : path, optional
        Folder of the best checkpoint and of the average, default that of ``ModelCheckpoint``.
    window : int, optional
        Steps of the optimiser. Each window of so many steps is a record in place of an epoch: in the
        history, the rule, the average and the run folder. For trainings of few epochs. A window at
        the end with fewer steps was cut short, and is never kept.
    **options : Any
        Those of `GWAMonitor`: ``loss``, ``label_smoothing``, ``class_weights``, ``residual``,
        ``every``, ``signals``, ...

    Attributes
    ----------
    monitor, stopper : GWAMonitor, EarlyStopper or None
        The monitor and the rule at work, made at the start of ``fit``.

    Raises
    ------
    TypeError, ValueError
        On options that do not fit, here or at the start of ``fit``; after the first epoch, if
        nothing has logged the metric of the rule.

    Notes
    -----
    Batches without a backward pass have no score. Of a step that an optimiser's closure runs again
    (LBFGS) the first pass counts. ``fast_dev_run`` writes nothing.

    Every checkpoint holds the state, so that a resumed run goes on within an epoch, too. A second
    ``fit`` of the same model goes on with the history, one of another model begins a new one. A rule
    never keeps an epoch that was cut short, and leaves out epochs without a new value of its metric.
    Nothing of the training changes under ``keep="average"``, which also logs ``train/gwa_share``: how
    far the average moved to the newest weights. The first tenth of ``max_epochs`` does not count in it,
    or the first epoch where that number is not known. FSDP, DeepSpeed and ``ModelParallelStrategy``
    are refused. After an interruption by the user ``gwa-average.ckpt`` has the average so far.
    At the end ``rank_samples(callback.label_quality, k=100)`` says which labels are suspicious.
    Cost: that of `GWAMonitor`; with a rule, one checkpoint each time an epoch is better than all
    before it. The average costs one copy of the weights and one update an epoch, and with batch norm
    one more pass over the training data at the end.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2, Algorithm 1, Sec. 4.1.

    Examples
    --------
    >>> from gwa_torch import MaxSeparation
    >>> from gwa_torch.lightning import GWACallback
    >>> callback = GWACallback("head", num_samples=1797, rule=MaxSeparation(patience=5))
    >>> callback.history, callback.best_epoch
    ([], None)
    """

    def __init__(
        self,
        head: torch.nn.Module | str | None = None,
        num_samples: int | None = None,
        *,
        rule: Rule | None = None,
        keep: Keep = None,
        prefix: str = "train/",
        targets: Pick = None,
        ids: Pick = None,
        run_folder: str | Path | None = None,
        dirpath: str | Path | None = None,
        window: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(options)
        _lightning.check_given(
            ids, num_samples, dirpath, wanted=rule is not None or keep is not None
        )
        self.rule = MaxSeparation() if keep == "best" and rule is None else rule
        self.num_samples, self.prefix, self.run_folder = num_samples, prefix, run_folder
        self._head, self._targets, self._ids = head, targets, ids
        # By itself, so that parsers of configuration files see where the options go.
        self._options = options
        self._kept = Kept(keep, dirpath)
        self.window = None if window is None else check_count("window", window)
        # Whether the rule has begun, and the state that waits for it.
        self._begun, self._waiting = False, cast("dict[str, Any] | None", None)
        # The step at which the last window ended, and whether its metric is still to come.
        self._window_ended, self._undecided = 0, False
        self._stage: str | None = None
        self._fitting = False
        self._loaded: dict[str, Any] | None = None  # waits for the monitor
        # Open between the batches: passes there, as those of other callbacks, don't count.
        self._idle = contextlib.ExitStack()
        # Whether the batch had a backward pass, and batches of this epoch that were left out.
        self._backward, self._skipped = False, 0
        # Where epochs and labels are written, if anywhere.
        self._folder: str | Path | None = None
        self._labels: SeenLabels | None = None
        # The trainer's number of the epoch in progress, and of the one that ended last.
        self._open: int | None = None
        self._ended: int | None = None
        # A logged metric that the rule watches.
        self._metric = LoggedMetric()

    @property
    def history(self) -> list[EpochSummary]:
        """Ended epochs in order."""
        if self._loaded is not None:
            return [EpochSummary(**summary) for summary in self._loaded["monitor"]["history"]]
        return [] if self.monitor is None else self.monitor.history

    @property
    def best_model_path(self) -> str:
        """The checkpoint of that epoch, ``gwa-best-epoch=N.ckpt``, or an empty string."""
        return self._kept.saver.best_model_path

    @property
    def averaged_model_path(self) -> str:
        """The checkpoint of the average, ``gwa-average.ckpt``, once it is there, or an empty string."""
        return self._kept.averaged_model_path

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; two callbacks differ in their prefix."""
        return self._generate_state_key(prefix=self.prefix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what the trainer is about to do."""
        self._stage = stage

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the head: the model is whole now, and nothing of it is compiled yet."""
        monitor = GWAMonitor(self._head, self.num_samples, model=pl_module, **self._options)
        if self._loaded is None and self.history and self._hooked.head is monitor.head:
            fresh = {"open": None, "ended": None, "skipped": 0, "window": (0, False)}
            self._loaded = self.state_dict() | fresh
            self._loaded["monitor"]["epoch"] = None
        self.monitor, self._open, self._ended = monitor, None, None
        self._metric.begin()
        self._begun, self.stopper, self._window_ended, self._undecided = False, None, 0, False
        if self.window is None:
            self._begin(trainer, pl_module)
        self._folder = None if _lightning.is_trial(trainer) else self.run_folder
        self._labels, self._skipped, self._fitting = None, 0, True
        self._pause()
        if self._loaded is not None:
            self._restore(self._loaded)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the rule and what is kept; both want to know how many epochs or windows there are."""
        self._planned, state = _lightning.planned(trainer, self.window), self._waiting
        self.stopper = begin_stopper(self.rule, self._planned, self._hooked)
        self._average = self._kept.begin(trainer, pl_module, self._planned)
        self._begun, self._waiting = True, None
        if state is not None:
            self._restore_rule(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what this training will not give, and look after what was resumed."""
        if not self._begun:
            self._begin(trainer, pl_module)
        begun = self.history or self._open is not None
        if self._folder:
            begin_folder(self._hooked, self._folder, self._planned, resumed=bool(begun))
            if not begun and self.num_samples is not None:
                self._labels = SeenLabels(self.num_samples)
        rule = self.stopper is not None and self._average is None
        _lightning.say_limits(trainer, rule=rule, window=self.window)
        if self.window is None and self._open is not None and self._open != trainer.current_epoch:
            # From a checkpoint after the last batch of an epoch Lightning goes on with the next
            # epoch; the hooks at the end of that one are never called.
            self._end_epoch(trainer, pl_module, self._open)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the passes of this batch, and to no earlier ones."""
        self._hooked.skip()
        self._idle.close()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the batch trains the model."""
        if pl_module.automatic_optimization:
            self._backward = True
            # LBFGS and others run the step again, with weights that are on their way.
            self._pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score the batch with the weights of its forward pass."""
        trained, self._backward = self._backward, False
        self._pause()
        if not pl_module.automatic_optimization:
            # A step that left before the head; where none ever came to it, `update` says why.
            begun = self._open is not None or self.history
            trained = bool(self._hooked._capture.waiting or not begun)
        if batch is None or not trained:
            # `training_step` returned None, or the epoch is one of SWA's that trains nothing.
            self._hooked.skip()
            self._skipped += 1
            return
        ids = None if self.num_samples is None else pick_ids(batch, self._ids)
        targets = find_targets(batch, self._targets, self._hooked)
        self._hooked.update(targets, ids)
        if self._labels is not None and ids is not None:
            self._labels.see(targets, ids)
        self._open = trainer.current_epoch
        step = trainer.global_step
        if self.window is not None and step - self._window_ended >= self.window:
            self._end_epoch(trainer, pl_module, trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metric that the rule watches."""
        if self._fitting and not trainer.sanity_checking:
            self._metric.after_validation(trainer, self.stopper, windows=self.window is not None)
            if self._undecided:
                # A validation that follows a window is of the window that ended last.
                self._decide(trainer, pl_module, self.history[-1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch, log it, and ask the rule."""
        if self.window is not None:
            return
        if trainer.current_epoch != self._ended:
            self._end_epoch(trainer, pl_module, trainer.current_epoch)
            return
        # Resumed at the end of an epoch without `max_epochs`, Lightning runs a batch more and ends
        # that epoch again.
        self._hooked.load_state_dict(self._hooked.state_dict() | {"epoch": None})
        self._open, self._metric.value, self._skipped = None, None, 0
        _lightning.log(trainer, pl_module, self.window, self._values(self.prefix, self.stopper))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that the rule had its metric, and give the model what it is to keep."""
        if self.stopper is not None and self.history and self._reads_log and not self._metric.came:
            say_unseen(self.stopper.rule.signal)
        # A batch may have been begun that was left out.
        self._pause()
        if self.window is not None and self._open is not None:
            # A window of fewer steps. Lightning takes no more logs.
            with muted(pl_module):
                self._end_epoch(trainer, pl_module, self._open)
        if self._folder:
            end_folder(self._hooked, self._folder)
        self._kept.end(trainer, pl_module, self.best_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same for a run that was resumed at its end, of which Lightning calls no other hook."""
        if not self._kept.ended and (self.history or self._open is not None):
            with self._kept.late(trainer, pl_module):
                if self._open is not None:
                    # A metric that the steps logged is lost: no reason to raise.
                    self._metric.came = True
                    self._end_epoch(trainer, pl_module, self._open)
                self._kept.end(trainer, pl_module, self.best_epoch, late=True)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Remove the hook; history and scores stay."""
        self._fitting, self._stage = False, None
        self._idle.close()
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Do the same; of a training that a user interrupts the average is written."""
        if self._fitting and isinstance(exception, KeyboardInterrupt):
            self._kept.interrupt(trainer)
        self.teardown()

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors on the host and plain values; all ranks must call it."""
        if self._loaded is not None or self.monitor is None:
            return self._loaded or {}
        if self._fitting:
            self.monitor.synchronize()  # Lightning keeps the state of rank 0
        state = self.monitor.state_dict()
        if state["world"] > 1 and not self._fitting and state["epoch"] is not None:
            # A rank that failed must not wait for others that may not come.
            say_torn()
            state["epoch"] = None
        return {
            "monitor": state,
            "stopper": None if self.stopper is None else self.stopper.state_dict(),
            "best_model_path": self.best_model_path,
            "average": None if self._average is None else self._average.state_dict(),
            "metric": self._metric.number,
            "open": None if state["epoch"] is None else self._open,
            "ended": self._ended,
            "window": (self._window_ended, self._undecided),
            "skipped": self._skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, at the start of ``fit`` at the latest."""
        # To test the best epoch must not set the history back to it.
        if self._stage in (None, "fit"):
            self._loaded = state_dict
            if self._fitting:
                self._restore(state_dict)

    def _restore(self, state: dict[str, Any]) -> None:
        self._loaded = None
        self._hooked.load_state_dict(state["monitor"])
        self._open, self._ended = state["open"], state["ended"]
        self._window_ended, self._undecided = state.get("window", (0, False))
        # Version 0.1.0 scored every batch.
        self._skipped = state.get("skipped", 0)
        self._metric.restore(state["metric"])
        if self._begun:
            self._restore_rule(state)
        else:
            self._waiting = state

    def _restore_rule(self, state: dict[str, Any]) -> None:
        if self.stopper is not None and state["stopper"] is not None:
            resume_rule(self.stopper, state["stopper"])
            self._kept.saver.best_model_path = state["best_model_path"]
        if self._average is not None:
            self._average.load_state_dict(state.get("average"))

    def _pause(self) -> None:
        """Let passes of the head go by until the next batch."""
        self._idle.close()
        self._idle.enter_context(self._hooked.pause())

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        batches, skipped = trainer.num_training_batches, self._skipped
        scored, self._skipped = self._open is not None, 0
        self._open, self._ended = None, epoch
        if _lightning.leaves_out(trainer, epoch, skipped=skipped > 0, scored=scored):
            return
        step, window = trainer.global_step, self.window
        steps, self._window_ended = step - self._window_ended, step
        whole = int(batches) - skipped if math.isfinite(batches) and window is None else None
        if not end_record(self._hooked, step, batches=whole, steps=steps, window=window):
            return
        summary = self.history[-1]
        if self._average is not None:
            self._average.update(self._record())
        _lightning.log(trainer, pl_module, self.window, self._values(self.prefix))
        name = f"{self.prefix}gwa_scores"
        _lightning.write_histogram(trainer, name, self.scores, epoch=summary.epoch)
        if self._folder:
            seen, self._labels = self._labels, None  # to be written once
            labels = _lightning.labels_of_all(trainer, seen, self._hooked.options.classes)
            self._hooked.save(self._folder, targets=labels)
        # A last window of fewer steps comes when the training is over.
        if self.stopper is not None and (window is None or steps >= window):
            self._decide(trainer, pl_module, summary)
            _lightning.log(trainer, pl_module, self.window, best_values(self.stopper, self.prefix))

    def _decide(self, trainer: Trainer, pl_module: LightningModule, summary: EpochSummary) -> None:
        """Ask the rule about the epoch that ended last."""
        assert self.stopper is not None  # noqa: S101  # asked before
        # To look into the log would have Lightning compute it.
        logged = self._metric.take(trainer, self.stopper.rule.signal) if self._reads_log else {}
        self._undecided = logged is None and self.window is not None
        if logged is None:
            return
        if self._observe(logged):
            self._kept.save_best(trainer, pl_module, summary.epoch)
        if self.stopper.should_stop:
            trainer.should_stop = True  # on every rank: they have the same history
            _lightning.say_stop(self.best_epoch, self.stopper.reason)

    @property
    def _reads_log(self) -> bool:
        """Whether the rule watches a logged metric, and no number of the callback's own."""
        return self.stopper is not None and self.stopper.rule.signal not in self._record()
