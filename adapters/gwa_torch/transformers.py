"""Gradient-weight alignment in the Trainer of Hugging Face: it logs, stops, and keeps weights.

The labels are taken on their way to the loss, and the loss is left as it is: the model's own,
``compute_loss_func``, label smoothing, or that of a subclass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from gwa_core import EarlyStopper, Rule
from gwa_torch._checks import check_count
from gwa_torch._runs import begin_folder, end_folder
from gwa_torch._trainers import (
    Watched,
    begin_stopper,
    check_options,
    end_record,
)
from gwa_torch.monitor import GWAMonitor

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from gwa_torch import _checkpoints
    from gwa_torch._transformers import (
        Tap,
        check_run,
        check_trainer,
        head_of,
        length_of,
        options_of,
        planned,
    )
    from gwa_torch._transformers_keep import (
        Keep,
        begin_average,
        choose,
        end_average,
        ends_first,
        restore_rule,
    )
    from gwa_torch._transformers_log import (
        is_coming,
        never_comes,
        new_logs,
        say_unseen,
        show_scores,
    )
    from gwa_torch._transformers_place import Place
except ImportError as error:
    raise ImportError(
        "`gwa_torch.transformers` needs Transformers; pip install 'transformers[torch]>=4.46'"
    ) from error

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["GWACallback"]


class GWACallback(Watched, TrainerCallback):
    r"""Measure, log and stop by gradient-weight alignment in a ``Trainer`` of Transformers.

    .. math:: \gamma_i = \frac{r_i \cdot W z_i}{\|r_i\|\,\|z_i\|\,\|W\|}, \qquad
       \mathrm{GWA} = \frac{\mathrm{mean}(\gamma)}{\mathrm{kurtosis}(\gamma) + \beta}

    Each training epoch logs ``gwa``, ``gwa_mean``, ``gwa_kurtosis``, ``gwa_se``, ``gwa_bimodality``,
    ``gwa_separation``, ``gwa_healthy``, the mean of each of ``signals`` and, under a rule, the
    ``gwa_best_epoch`` so far; trackers show ``train/gwa``, and so on. With `num_samples` TensorBoard,
    W&B and MLflow also show a histogram of the scores.

    Parameters
    ----------
    trainer : Trainer
        The trainer that it will be added to, also of a subclass.
    head : Linear, 1×1 convolution, str or None
        The head, its dotted name in the model, or None to look for it by `find_head`.
    num_samples : int, optional
        N, the number of rows of the training set; then scores are kept by sample. Tokens of a row add
        up, as ``reduce`` says. Rows times places in a row keep a score for each token. Without it
        only moments are kept.
    rule : Rule, optional
        A stopping rule such as ``MaxSeparation(patience=3)``: it stops the training. It watches a
        number of the summary, one of ``signals``, or a metric of the trainer's log:
        ``BestMetric(metric="eval_accuracy")``. A warm-up that is a fraction is one of all epochs.
    keep : "average", "best" or "last", optional
        What the model has when ``train`` returns; default "best" under a rule, else "last".
        "average": the mean of the weights at the ends of the epochs, by `EpochAverage`; a rule then
        only stops. "best": the weights of the best epoch of the rule, default ``MaxSeparation()``,
        of which there is a checkpoint at each new best epoch. "last": the weights of the end.
    prefix : str
        Put before the names that are logged, default nothing.
    ids : str
        Name of the column of sample numbers, default ``"ids"``. Without that column a sample has
        the number of its row in ``trainer.train_dataset``. The model does not get to see it.
    run_folder : path, optional
        Write each epoch to this run folder (see `gwa_offline.RunFolder`), which ``gwa follow`` shows
        while the training goes on.
    window : int, optional
        Steps of the optimiser. Each window of so many steps is a record in place of an epoch: in the
        history, the rule, the average and the run folder. For trainings of few epochs. A window at
        the end with fewer steps was cut short, and is never kept.
    **options : Any
        Further options of `GWAMonitor`: ``residual``, ``loss``, ``label_smoothing``,
        ``class_weights``, ``ignore_index``, ``sketch``, ``beta``, ``every``, ``signals``,
        ``process_group``, ``reduce``. Loss and label smoothing are read from the model and the trainer
        where you do not say.

    Attributes
    ----------
    monitor : GWAMonitor or None
        The monitor, from the start of ``train`` on.
    stopper : EarlyStopper or None
        The rule at work.

    Raises
    ------
    TypeError, ValueError
        On options that do not fit. At the start of ``train``: if the head is not linear, the model
        is trained as a regression, or a checkpoint to resume from was written without the callback.
        After the first epoch: if the metric of the rule is not in the log.

    Notes
    -----
    Sequence, token and image classification, masked and causal language models, also in the
    ``SFTTrainer`` of TRL; labels of causal models are shifted as in their loss. Passes in eval mode
    do not count. The weights in a training are the same with the callback and without. Each checkpoint
    has a file ``gwa_state.pt``, so that a resumed run goes on within an epoch, too. A rule never keeps an epoch
    that was cut short, such as the last of ``num_train_epochs=4.2``, and leaves out epochs without a
    new value of its metric. Nothing of the training changes under ``keep="average"``, which also
    logs ``gwa_share``: how far the average moved to the newest weights. The first tenth of the epochs does
    not count in it, or the first epoch of data without a length. Checkpoints have the weights of the
    training, and the average so far in ``gwa_state.pt``. At the end it is saved, as by ``save_model``,
    in the folder ``gwa-average`` beside them, unless ``save_strategy="no"``. FSDP, DeepSpeed and tensor
    parallelism are refused. At the end ``rank_samples(callback.label_quality, k=100)`` says which
    labels are suspicious. Cost: that of `GWAMonitor`, and one checkpoint for each new best epoch
    where there is a rule. The average costs one copy of the weights and one update an epoch, and with
    batch norm one more pass over the training data at the end.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Definitions 1 and 2, Algorithm 1.

    Examples
    --------
    >>> import tempfile
    >>> from gwa_torch import MaxSeparation
    >>> from gwa_torch.transformers import GWACallback
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from transformers import Trainer, TrainingArguments
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    >>> config = BertConfig(vocab_size=9, num_hidden_layers=1, **sizes)
    >>> folder = tempfile.TemporaryDirectory()
    >>> args = TrainingArguments(folder.name, report_to=[])
    >>> trainer = Trainer(BertForSequenceClassification(config), args)
    >>> gwa = GWACallback(trainer, num_samples=100, rule=MaxSeparation(patience=3))
    >>> trainer.add_callback(gwa)
    >>> gwa.history, gwa.best_epoch
    ([], None)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        trainer: Trainer,
        head: nn.Module | str | None = None,
        num_samples: int | None = None,
        *,
        rule: Rule | None = None,
        keep: Keep = None,
        prefix: str = "",
        ids: str = "ids",
        run_folder: str | os.PathLike[str] | None = None,
        window: int | None = None,
        **options: Any,
    ) -> None:
        check_trainer(trainer)
        check_options(options)
        # Its types differ between versions of Transformers.
        self.trainer = cast("Any", trainer)
        self.num_samples = num_samples
        self.keep, self.rule = choose(trainer.args, keep, rule)
        self.prefix = prefix
        self.run_folder = run_folder
        self.window = None if window is None else check_count("window", window)
        #: Where the average was saved at the end of ``train``, or an empty string.
        self.averaged_model_path = ""
        #: The monitor, from the start of ``train`` on.
        self.monitor: GWAMonitor | None = None
        #: The rule at work.
        self.stopper: EarlyStopper | None = None
        self._head = head
        self._options = options
        self._tap = Tap(
            trainer,
            None if num_samples is None else ids,
            infer="loss" not in options,
            residual=options.get("residual", "auto"),
        )
        # The checkpoint that the run goes on from.
        self._resumed: Path | None = None
        # The batches of a whole epoch, where the data have a length.
        self._batches: int | None = None
        # Where the checkpoint of an ended epoch will be whose metric is still to come.
        self._undecided: Path | None = None
        around: Any = {"train": self._train, "prediction_step": self._tap.prediction_step}
        self._place = Place(trainer, self, around, left=self._tap.close)

    def _train(
        self, train: Callable[..., Any], resume_from_checkpoint: Any = None, *args: Any, **more: Any
    ) -> Any:
        if not self._place.begin():
            return train(resume_from_checkpoint, *args, **more)
        own, found = self.trainer.args, resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(own.output_dir)  # type: ignore[no-untyped-call]
        self._resumed = Path(found) if found else None
        before = own.load_best_model_at_end
        # The trainer itself then loads the checkpoint that its state calls the best.
        own.load_best_model_at_end = before or self.keep == "best"
        self._tap.attach()
        average = self.keep == "average"
        try:
            with ends_first(self.trainer, self) if average else contextlib.nullcontext():
                return train(resume_from_checkpoint, *args, **more)
        finally:
            own.load_best_model_at_end = before
            self._tap.detach()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **more: Any,
    ) -> TrainerControl:
        """Watch the head, and take over the state of a checkpoint."""
        check_run(self.trainer, args, state, self.num_samples)
        head = head_of(model, self._head)
        options = options_of(self.trainer, model, head, self._options)
        self.monitor = GWAMonitor(head, self.num_samples, **options)
        epochs = planned(state, self.window)
        self.stopper = begin_stopper(self.rule, epochs, self.monitor)
        average = self.keep == "average"
        self._average = begin_average(self.trainer, model, epochs) if average else None
        self._batches, self._undecided = length_of(train_dataloader), None
        self.averaged_model_path = ""
        self._tap.open(self.monitor, train_dataloader, keep_labels=self.run_folder is not None)
        if self._resumed is not None:
            _checkpoints.load_renamed(self.trainer, model, self._resumed)
            self._restore(self._resumed, args, state, control)
        if self.run_folder is not None:
            resumed = self._resumed is not None
            begin_folder(self.monitor, self.run_folder, epochs, resumed=resumed)
        return control

    def _restore(
        self,
        folder: Path,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        monitor, stopper = self._hooked, self.stopper
        kept = _checkpoints.read_state(folder)
        # A window that is over has been ended before the checkpoint.
        at_end = float(state.epoch or 0).is_integer() and self.window is None
        if args.ignore_data_skip and not at_end and self.window is None:
            # The trainer begins that epoch again.
            kept["monitor"]["epoch"] = None
        monitor.load_state_dict(kept["monitor"])
        self._tap.load_labels(kept.get("labels"))
        if self._average is not None:
            self._average.load_state_dict(kept.get("average"))
        restore_rule(stopper, kept["stopper"], self.rule)
        if stopper is not None:
            if self.keep == "best" and stopper.best_step is not None:
                step = _checkpoints.best_step(state, monitor, stopper, self.window)
                state.best_model_checkpoint = str(_checkpoints.checkpoint_beside(folder, step))
            if stopper.should_stop:
                self._stop(control)
        if at_end and kept["monitor"]["epoch"] is not None:
            # Saved after the last step of an epoch, which the trainer does not end any more.
            self._end_epoch(args, state, control, folder)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> TrainerControl:
        """Be done with the epoch before."""
        if self.window is None:
            self._give_up(args, state)
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> TrainerControl:
        """End a window, where there are any."""
        if self.window is not None and self._tap.fresh and state.global_step % self.window == 0:
            self._give_up(args, state)
            self._end_epoch(args, state, control, _checkpoints.checkpoint_of(self.trainer, state))
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> TrainerControl:
        """End the epoch, log it, and ask the rule."""
        if self._tap.fresh and self.window is None:
            self._end_epoch(args, state, control, _checkpoints.checkpoint_of(self.trainer, state))
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> TrainerControl:
        """Ask the rule where this is the metric that it waits for: evaluations follow an epoch."""
        if self._undecided is not None and self._signal in (logs or {}):
            self._decide(state, control)
        return control

    def _end_epoch(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, folder: Path
    ) -> None:
        step, window = state.global_step, self.window
        self._tap.fresh = False
        steps = step % window or window if window else 0
        if not end_record(self._hooked, step, batches=self._batches, steps=steps, window=window):
            return
        if self._average is not None:
            self._average.update(self._record())
        if self.run_folder is not None:
            self._hooked.save(self.run_folder, targets=self._tap.given_labels())
        # The row of the epoch then has what the rule says of it.
        at_once = self.stopper is not None and self._signal in self._record()
        # A last window of fewer steps comes when the best weights are loaded already.
        ended = steps != (window or 0)
        if at_once and not ended:
            self._undecided = folder
            self._decide(state, control)
        # To log means to be done with what was to be logged; the loss may wait for it, too.
        wanted, values = control.should_log, self._values(self.prefix, self.stopper)
        self.trainer.log(values)
        control.should_log = wanted
        name = f"train/{self.prefix}gwa_scores"
        show_scores(self.trainer, name, self.scores, epoch=self.history[-1].epoch)
        if self.stopper is None or at_once or ended:
            return
        self._undecided = folder
        # An evaluation that follows a window is of the window that ended last.
        later = window is not None and self._signal.startswith("eval_")
        coming = later or is_coming(self.trainer, control, self._signal)
        if self._signal not in values and coming:
            return
        if self._signal in values or self._signal in new_logs(state, self.history):
            self._decide(state, control)
        self._give_up(args, state)

    @property
    def _signal(self) -> str:
        assert self.stopper is not None  # noqa: S101  # asked before
        return self.stopper.rule.signal

    def _give_up(self, args: TrainingArguments, state: TrainerState) -> None:
        """Leave out an epoch whose metric has not come; raise if it never will."""
        if self._undecided is None:
            return
        self._undecided = None
        if never_comes(args, state, self._signal):
            self._observe(new_logs(state, self.history))  # which says what there is

    def _decide(self, state: TrainerState, control: TrainerControl) -> None:
        """Ask the rule about the epoch that ended last."""
        assert self.stopper is not None  # noqa: S101  # asked before
        folder, self._undecided = self._undecided, None
        if self.window is not None:
            folder = _checkpoints.checkpoint_of(self.trainer, state)
        if self._observe(new_logs(state, self.history)) and self.keep == "best":
            state.best_metric = self.stopper.best_value
            state.best_global_step = state.global_step
            state.best_model_checkpoint = str(folder)
            control.should_save = True
        if self.stopper.should_stop:
            self._stop(control)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **more: Any,
    ) -> None:
        """See that the model has the weights that are kept."""
        if self._tap.fresh and self.window is not None and self._tap.monitor is not None:
            # A window of fewer steps.
            self._end_epoch(args, state, control, _checkpoints.checkpoint_of(self.trainer, state))
        self._give_up(args, state)
        if self.run_folder is not None:
            end_folder(self._hooked, self.run_folder)
        metric = self.stopper and self.history and self._signal not in self._record()
        if metric and not any(self._signal in row for row in state.log_history):
            say_unseen(self._signal)
        if self.keep == "best" and state.best_model_checkpoint is not None:
            _checkpoints.load_renamed(self.trainer, model, state.best_model_checkpoint)
        if self._average is not None:
            self._tap.close()
            self.averaged_model_path = end_average(
                self._average, self.trainer, train_dataloader, self._batches
            )

    def _stop(self, control: TrainerControl) -> None:
        # A run that resumes after the stop makes one more step, which must not count.
        control.should_training_stop = True
        self._tap.close()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Write the state into the checkpoint; the trainer calls it on all ranks."""
        self._hooked.synchronize()
        if args.should_save:
            kept = _checkpoints.state_of(
                self._hooked, self.stopper, self._average, self._tap.labels
            )
            _checkpoints.write_state(kept, _checkpoints.checkpoint_of(self.trainer, state))
