"""The Lightning callback: what it logs, stops and keeps in real Trainers, and how they resume."""

import functools
import json
import logging
import math
import random
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import pytest
from backends import require

torch = require("torch")
L = require("lightning")

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torchmetrics import MeanMetric

import gwa_core
import gwa_torch
from gwa_core import (
    BestMetric,
    DipThenMax,
    GradientDisparity,
    LabelWave,
    MaxBimodality,
    MaxGWA,
    MaxSeparation,
    average_shares,
    select_epoch,
    select_step,
)
from gwa_offline.store import RunFolder
from gwa_torch import GWAMonitor
from gwa_torch.lightning import GWACallback

pytestmark = [
    # Lightning 2.6 with PyTorch 2.13.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # What Dynamo says of its own way with functions of autograd.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # What Lightning says to any run that resumes in the folder of its checkpoints.
    pytest.mark.filterwarnings(
        "ignore:Checkpoint directory .* exists and is not empty:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning"),
]
# Better in every epoch than before: it keeps the last one that it may.
LATER = BestMetric(metric="step", warmup=0)
PLACES = [str(Path(p.__file__).parent.parent) for p in (gwa_core, gwa_torch)]
ROWS, SIZE, EPOCHS = 200, 20, 12
STEPS = ROWS // SIZE


@pytest.fixture(autouse=True)
def calm():
    """One thread, no advertisements."""
    logger, threads = logging.getLogger("lightning.pytorch"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


def digits(rows=ROWS):
    """Digits of which a tenth have a wrong label."""
    x, y = require("sklearn.datasets").load_digits(return_X_y=True)
    x, y = torch.tensor(x[:rows] / 16, dtype=torch.float32), torch.tensor(y[:rows])
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randperm(rows, generator=generator)[: rows // 10]
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    return x, y, torch.arange(rows)


class Loader:
    """Shuffled batches, the same in each run, that can go on in the middle of an epoch."""

    def __init__(self, pick=None, rows=ROWS):
        self.data, self.rows, self.pick = digits(rows), rows, pick or (lambda batch: batch)
        self.epoch, self.start, self.at = 0, 0, 0
        # Where Lightning looks for `set_epoch`.
        self.sampler = self.batch_sampler = self

    def __len__(self):
        return math.ceil(self.rows / SIZE)

    def __iter__(self):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.epoch))
        start, self.start = self.start % len(self), 0
        for at in range(start, len(self)):
            self.at = at + 1
            chosen = order[at * SIZE : (at + 1) * SIZE]
            yield self.pick(tuple(part[chosen] for part in self.data))

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.start = state["at"]


class Net(L.LightningModule):
    def __init__(self, lr=0.02):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(64, 24), nn.ReLU())
        self.head = nn.Linear(24, 10)
        self.lr = lr

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[0]))


class Weights(L.Callback):
    """The weights at the end of each epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({k: v.clone() for k, v in pl_module.state_dict().items()})


class Kill(L.Callback):
    """An exception before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def trainer(folder, *callbacks, **options):
    rules = any(isinstance(x, GWACallback) and x.rule for x in callbacks)
    if rules and not any(isinstance(x, ModelCheckpoint) for x in callbacks):
        # Checkpoints are on, and there is none but that of the best epoch.
        callbacks = *callbacks, ModelCheckpoint(folder / "none", save_top_k=0)
    options = {
        "max_epochs": EPOCHS,
        "logger": False,
        "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(x, ModelCheckpoint) for x in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    } | options
    return L.Trainer(callbacks=list(callbacks), **options)


def plain_loop(epochs, num_samples=ROWS, accumulate=1, bf16=False, signals=()):
    """What the callback must give: the same training, written out."""
    model, loader = Net(), Loader()
    optimizer = model.configure_optimizers()
    with GWAMonitor(model.head, num_samples, signals=signals) as monitor:
        step = 0
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader, start=1):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model.training_step(batch, 0)
                (loss / accumulate).backward()
                if number % accumulate == 0 or number == STEPS:
                    optimizer.step()
                    optimizer.zero_grad()
                    step += 1
                monitor.update(batch[1], batch[2] if num_samples else None)
            monitor.end_epoch(step=step, batches=STEPS)
    return monitor


@pytest.mark.parametrize(
    ("num_samples", "options", "loop"),
    [
        (ROWS, {}, {}),
        (None, {}, {}),
        (ROWS, {"accumulate_grad_batches": 3}, {"accumulate": 3}),
        (ROWS, {"precision": "bf16-mixed"}, {"bf16": True}),
    ],
    ids=["ids", "moments", "accumulation", "bf16"],
)
def test_the_numbers_are_those_of_a_plain_loop(num_samples, options, loop, tmp_path):
    callback = GWACallback("head", num_samples, signals=["margin", "el2n"])
    logger = CSVLogger(tmp_path)
    # With a validation loop between, and a sanity check before.
    fit = trainer(tmp_path, callback, logger=logger, log_every_n_steps=5, max_epochs=3, **options)
    fit.fit(Validated(), Loader(), Loader(rows=2 * SIZE))
    expected = plain_loop(3, num_samples, signals=["margin", "el2n"], **loop)
    assert callback.history == expected.history
    assert [s.count for s in callback.history] == [ROWS] * 3
    if num_samples:
        assert torch.equal(callback.scores, expected.scores)
    rows = logger.experiment.metrics_file_path
    header, *lines = [line.strip().split(",") for line in Path(rows).read_text().splitlines()]
    table = [dict(zip(header, line, strict=True)) for line in lines]
    logged = [row for row in table if row["train/gwa"]]
    assert len(logged) == 3
    for row, summary in zip(logged, callback.history, strict=True):
        for name, value in {
            "gwa": summary.gwa,
            "gwa_mean": summary.mean,
            "gwa_kurtosis": summary.kurtosis,
            "gwa_se": summary.gwa_standard_error,
            "gwa_bimodality": summary.bimodality,
            "gwa_separation": summary.separation,
        }.items():
            assert float(row[f"train/{name}"]) == pytest.approx(value, rel=1e-5)
    assert callback.monitor.signals.history == expected.signals.history
    for row, means in zip(logged, expected.signals.history, strict=True):
        for name, mean in means.items():
            assert float(row[f"train/{name}"]) == pytest.approx(mean, rel=1e-5)


def test_a_compiled_module(tmp_path):
    callback = GWACallback("head", ROWS)
    model = torch.compile(Net(), backend="aot_eager")
    trainer(tmp_path, callback, max_epochs=2).fit(model, Loader())
    torch._dynamo.reset()
    for got, expected in zip(callback.history, plain_loop(2).history, strict=True):
        assert got[:-1] == pytest.approx(expected[:-1], rel=1e-4)


def same_weights(path, weights):
    saved = torch.load(path)["state_dict"]
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_the_stock_callbacks_watch_it(first, tmp_path):
    stop = EarlyStopping("train/gwa", mode="max", patience=3, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(tmp_path, "{epoch}", "train/gwa", mode="max")
    callback, weights = GWACallback(num_samples=ROWS), Weights()
    order = [callback, stop, keep, weights] if first else [stop, keep, weights, callback]
    trainer(tmp_path, *order).fit(Net(), Loader())
    values = [summary.gwa for summary in callback.history]
    best = values.index(max(values))
    assert 0 < best == len(values) - 1 - stop.patience < EPOCHS - 1 - stop.patience
    assert Path(keep.best_model_path).name == f"epoch={best}.ckpt"
    assert float(stop.best_score) == pytest.approx(max(values), rel=1e-6)
    same_weights(keep.best_model_path, weights.epochs[best])


def test_a_rule_stops_and_keeps_the_best_epoch(tmp_path):
    rule = MaxSeparation(patience=3)
    callback, weights = GWACallback("head", ROWS, rule=rule), Weights()
    fit = trainer(tmp_path, callback, weights)
    fit.fit(Validated(), Loader(), Loader(rows=2 * SIZE))
    expected = select_epoch(plain_loop(EPOCHS).history, rule)
    assert len(callback.history) == expected.step + 1 + rule.patience < EPOCHS
    assert (callback.best_epoch, callback.stopping_reason) == (expected.step, expected.reason)
    assert "no improvement in 3 steps" in callback.stopping_reason
    best = tmp_path / "none" / f"gwa-best-epoch={callback.best_epoch}.ckpt"
    assert callback.best_model_path == str(best)
    assert list(best.parent.iterdir()) == [best]
    same_weights(best, weights.epochs[callback.best_epoch])
    # Neither the hook is left, nor is the history set back by the checkpoint's.
    model = fit.lightning_module
    assert not model.head._forward_hooks
    fit.validate(Validated(), Loader(rows=2 * SIZE), ckpt_path=best, verbose=False)
    assert len(callback.history) == expected.step + 1 + rule.patience
    assert callback.best_model_path == str(best)


def test_a_rule_on_a_signal_stops_where_the_stored_history_says(tmp_path):
    rule = LabelWave(window=2, patience=2)
    callback = GWACallback(
        "head", ROWS, rule=rule, signals="prediction_changes", run_folder=tmp_path / "run"
    )
    weights = Weights()
    fit = trainer(tmp_path, callback, weights, max_epochs=40)
    fit.fit(Net(lr=0.05), Loader())
    stored = [
        {**summary._asdict(), **metrics}
        for summary, metrics in RunFolder.open(tmp_path / "run").epochs()
    ]
    monitor = callback.monitor
    kept = [
        {**summary._asdict(), **means}
        for summary, means in zip(monitor.history, monitor.signals.history, strict=True)
    ]
    run = RunFolder.open(tmp_path / "run")
    last = len(stored) - 1
    changed = (run.predictions(last) != run.predictions(last - 1)).mean()
    assert changed == pytest.approx(stored[last]["prediction_changes"])
    expected = select_epoch(stored, rule)
    assert select_epoch(kept, rule) == expected
    assert "stopped at step" in callback.stopping_reason
    assert (callback.best_epoch, callback.stopping_reason) == (expected.step, expected.reason)
    assert 0 < callback.best_epoch < len(callback.history) < 40
    same_weights(callback.best_model_path, weights.epochs[callback.best_epoch])


class Logged(Net):
    """A validation loss, and losses of the training by step and by epoch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[0]))


class Values(L.Callback):
    """A logged metric at the end of each epoch."""

    def __init__(self, name):
        self.name, self.epochs, self.validated = name, {}, False

    def on_validation_end(self, trainer, pl_module):
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer, pl_module):
        if self.name != "val" or self.validated:
            self.epochs[trainer.current_epoch] = float(trainer.callback_metrics[self.name])
        self.validated = False


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("val", {}),
        ("val", {"val_check_interval": 0.5}),
        ("val", {"check_val_every_n_epoch": 2}),
        ("loss_epoch", {}),
        ("loss_step", {}),
    ],
    ids=["validation", "twice an epoch", "every second epoch", "training", "last batch"],
)
def test_a_rule_on_a_logged_metric(metric, options, tmp_path):
    rule = BestMetric(metric=metric, mode="min", patience=2)
    callback, seen, weights = GWACallback("head", rule=rule), Values(metric), Weights()
    # Other digits than in the training, so that it does not fall for ever.
    held_out = Loader(rows=3 * ROWS)
    held_out.data = tuple(x[ROWS:] for x in held_out.data)
    held_out.rows = 2 * ROWS
    fit = trainer(tmp_path, callback, seen, weights, max_epochs=30, **options)
    fit.fit(Logged(lr=0.05), Loader(), held_out)
    expected = select_step(seen.epochs.values(), rule, steps=list(seen.epochs), total_steps=30)
    assert callback.best_epoch == expected.step
    assert callback.stopper.best_value == pytest.approx(expected.value, rel=1e-6)
    assert callback.stopper.reason == expected.reason
    assert len(callback.history) == max(seen.epochs) + 1 < 30
    same_weights(callback.best_model_path, weights.epochs[callback.best_epoch])


class LogsLate(Net):
    def on_train_epoch_end(self):
        self.log("late", 1.0)


@pytest.mark.parametrize("model", [Net, Validated, LogsLate])
def test_a_metric_that_is_nowhere_raises_after_the_first_epoch(model, tmp_path):
    callback = GWACallback("head", rule=BestMetric(metric="late"))
    fit = trainer(tmp_path, callback)
    there = "train/gwa, train/gwa_bimodality"
    with pytest.raises(ValueError, match=f"the column 'late' that BestMetric watches.*{there}"):
        fit.fit(model(), Loader(), Loader(rows=SIZE) if model is Validated else None)
    assert len(callback.history) == 1


def test_a_signal_that_is_not_followed_raises_before_the_first_batch(tmp_path):
    callback = GWACallback("head", ROWS, rule=LabelWave(), signals=["margin", "el2n"])
    with pytest.raises(ValueError, match="'prediction_changes', got margin, el2n; say GWACallback"):
        trainer(tmp_path, callback).fit(Net(), Loader())
    assert callback.history == []


def test_a_metric_whose_validation_never_came_is_said(tmp_path):
    callback = GWACallback("head", rule=BestMetric(metric="val"))
    fit = trainer(tmp_path, callback, max_epochs=2, check_val_every_n_epoch=5)
    with pytest.warns(UserWarning, match="watches 'val', which no validation has logged"):
        fit.fit(Validated(), Loader(), Loader(rows=SIZE))
    assert (callback.best_epoch, callback.stopping_reason) == (None, None)


def test_a_metric_of_a_killed_run_is_not_lost(tmp_path):
    rule = BestMetric(metric="val", mode="min")
    options = {"rule": rule, "dirpath": tmp_path / "best"}
    whole = GWACallback("head", **options)
    trainer(tmp_path, whole, max_epochs=4).fit(Validated(), Loader(), Loader(rows=SIZE))
    # The last checkpoint is of the end of a validation, and the epoch has not ended there.
    save = ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=False)
    callback = GWACallback("head", **options)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, callback, save, Kill(23), max_epochs=4).fit(
            Validated(), Loader(), Loader(rows=SIZE)
        )
    resumed = GWACallback("head", **options)
    fit = trainer(tmp_path, resumed, save, max_epochs=4)
    fit.fit(Validated(), Loader(), Loader(rows=SIZE), ckpt_path=tmp_path / "saved/last.ckpt")
    assert resumed.history == whole.history
    assert resumed.stopper.state_dict() == whole.stopper.state_dict()


class Halt(L.Callback):
    """Stop in the middle of an epoch, as a limit of time does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 3 * STEPS + 2


@pytest.mark.parametrize("num_samples", [ROWS, None], ids=["ids", "moments"])
@pytest.mark.parametrize("how", ["max_steps", "should_stop"])
def test_an_epoch_cut_short_is_not_kept(how, num_samples, tmp_path):
    callback = GWACallback("head", num_samples, rule=LATER)
    if how == "max_steps":
        fit = trainer(tmp_path, callback, max_epochs=-1, max_steps=3 * STEPS + 2)
    else:
        fit = trainer(tmp_path, callback, Halt())
    fit.fit(Net(), Loader())
    counts = [(summary.count, summary.expected) for summary in callback.history]
    assert counts == [(ROWS, ROWS)] * 3 + [(2 * SIZE, ROWS)]
    assert callback.best_epoch == 2
    assert "1 cut short left out" in callback.stopper.reason
    assert Path(callback.best_model_path).name == "gwa-best-epoch=2.ckpt"


def test_epochs_that_are_limited_on_purpose_are_whole(tmp_path):
    callback = GWACallback("head", ROWS, rule=LATER)
    trainer(tmp_path, callback, max_epochs=2, limit_train_batches=0.5).fit(Net(), Loader())
    assert [(s.count, s.expected) for s in callback.history] == [(ROWS // 2, ROWS // 2)] * 2
    assert callback.best_epoch == 1


def test_the_callback_has_the_quality_of_the_labels(tmp_path):
    callback = GWACallback("head", ROWS)
    assert callback.label_quality is None
    trainer(tmp_path, callback, max_epochs=3).fit(Net(), Loader())
    assert torch.equal(callback.label_quality, plain_loop(3).label_quality)
    suspicious = gwa_torch.rank_samples(callback.label_quality, k=ROWS // 10)
    _, y = require("sklearn.datasets").load_digits(return_X_y=True)
    wrong = (digits()[1].numpy() != y[:ROWS]).nonzero()[0]
    assert len(set(suspicious.tolist()) & set(wrong)) > len(wrong) / 2


def test_a_warm_up_of_a_configuration_file_is_a_whole_number(tmp_path):
    """`warmup: 1` of a YAML file for LightningCLI arrives as 1.0."""
    rules = [MaxSeparation(warmup=1.0), MaxSeparation(warmup=1)]
    callbacks = []
    for rule in rules:
        callbacks.append(GWACallback("head", ROWS, rule=rule, dirpath=tmp_path / "best"))
        # How many epochs there are is not known.
        trainer(tmp_path, callbacks[-1], max_epochs=-1, max_steps=2 * STEPS).fit(Net(), Loader())
    one, two = (callback.stopper for callback in callbacks)
    assert (one.best_step, one.best_value, one.reason) == (
        two.best_step,
        two.best_value,
        two.reason,
    )
    assert one.best_step == 1


CONFIG = """
seed_everything: false
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
  callbacks:
    - class_path: gwa_torch.lightning.GWACallback
      init_args:
        head: head
        num_samples: 200
        keep: best
        label_smoothing: 0
        every: 2
        signals: prediction_changes
        rule:
          class_path: gwa_core.LabelWave
          init_args: {{window: 1}}
"""
WITH_NUMBERS = "warmup: 1, patience: 3, min_delta: 0.1, relative: true, smoothing: 2"
ALL = {"warmup": 1, "patience": 3, "min_delta": 0.1, "relative": True, "smoothing": 2}
RULES = {
    "MaxGWA": (WITH_NUMBERS, MaxGWA(**ALL)),
    "MaxSeparation": (WITH_NUMBERS, MaxSeparation(**ALL)),
    "MaxBimodality": (WITH_NUMBERS, MaxBimodality(**ALL)),
    "DipThenMax": ("warmup: 0.5", DipThenMax(warmup=0.5)),
    "LabelWave": ("window: 2, patience: 2", LabelWave(window=2, patience=2)),
    "GradientDisparity": (
        "criterion: five_consecutive",
        GradientDisparity(criterion="five_consecutive"),
    ),
    "BestMetric": ("metric: val, mode: min", BestMetric(metric="val", mode="min")),
}


# Lightning 2.6 with jsonargparse 4.53.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@quiet
def test_lightning_cli(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(folder=tmp_path))
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", str(file)])
    cli = LightningCLI(Net, run=False, save_config_callback=None)
    (callback,) = (x for x in cli.trainer.callbacks if isinstance(x, GWACallback))
    assert (callback.rule, callback._options["every"]) == (LabelWave(window=1), 2)
    cli.trainer.fit(cli.model, Loader())
    assert callback.best_epoch == 1
    same_weights(callback.best_model_path, cli.model.state_dict())


@quiet
def test_each_rule_can_be_given_in_a_file():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--rule", type=typing.get_type_hints(GWACallback.__init__)["rule"])
    rules = {
        name
        for name in gwa_core.__all__
        if hasattr(getattr(gwa_core, name), "advance") and name not in ("Rule", "Extremum")
    }
    assert rules == RULES.keys()
    for name, (options, expected) in RULES.items():
        text = f"rule: {{class_path: gwa_core.{name}, init_args: {{{options}}}}}"
        assert parser.instantiate_classes(parser.parse_string(text)).rule == expected


class Skips(Net):
    """Now and then a batch that is no good."""

    @staticmethod
    def none(at):
        return at[1] in (0, 3, 9)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.none((self.current_epoch, batch_idx)) else loss


# What Lightning says of such a step.
skips = pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")


@skips
@pytest.mark.parametrize("num_samples", [ROWS, None], ids=["ids", "moments"])
def test_a_step_that_returns_none_skips_its_batch(num_samples, tmp_path):
    callback = GWACallback("head", num_samples, rule=LATER)
    trainer(tmp_path, callback, max_epochs=2).fit(Skips(), Loader())

    model, loader = Net(), Loader()
    optimizer = model.configure_optimizers()
    with GWAMonitor(model.head, num_samples) as monitor:
        for epoch in range(2):
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader):
                if Skips.none((epoch, number)):
                    continue
                optimizer.zero_grad()
                model.training_step(batch, 0).backward()
                optimizer.step()
                monitor.update(batch[1], batch[2] if num_samples else None)
            monitor.end_epoch(step=7 * (epoch + 1), batches=7)
    # The optimiser takes a step without a gradient, which Lightning counts.
    assert [s._replace(step=None) for s in callback.history] == [
        s._replace(step=None) for s in monitor.history
    ]
    # Nothing was cut short: the epoch has the batches that the module wants.
    assert [(s.count, s.expected) for s in callback.history] == [(7 * SIZE, 7 * SIZE)] * 2
    assert callback.best_epoch == 1


@skips
def test_batches_that_were_skipped_are_known_after_a_crash(tmp_path):
    whole = GWACallback("head", ROWS)
    trainer(tmp_path, whole, max_epochs=3).fit(Skips(), Loader())
    save = ModelCheckpoint(tmp_path, "{step}", save_last=True, every_n_train_steps=5)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, GWACallback("head", ROWS), save, Kill(18)).fit(Skips(), Loader())
    callback = GWACallback("head", ROWS)
    fit = trainer(tmp_path, callback, max_epochs=3)
    fit.fit(Skips(), Loader(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.history == whole.history


@skips
def test_an_epoch_without_a_backward_pass_is_left_out(tmp_path):
    class Idle(Skips):
        @staticmethod
        def none(at):
            return at[0] == 1

    callback = GWACallback("head", ROWS)
    with pytest.warns(UserWarning, match="leaves out epoch 1, in which no batch trained the head"):
        trainer(tmp_path, callback, max_epochs=3).fit(Idle(), Loader())
    assert [(s.epoch, s.count) for s in callback.history] == [(0, ROWS), (1, ROWS)]


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None:UserWarning")
def test_a_batch_that_is_none_is_skipped(tmp_path):
    loader = Loader(lambda batch: None if 0 in batch[2] else batch)
    callback = GWACallback("head", ROWS)
    trainer(tmp_path, callback, max_epochs=2).fit(Net(), loader)
    assert [(s.count, s.expected) for s in callback.history] == [(ROWS - SIZE, ROWS - SIZE)] * 2


class ByHand(Net):
    """Manual optimisation: a step returns nothing, and trains all the same."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    leaves = ()

    def training_step(self, batch, batch_idx):
        if batch_idx in self.leaves:
            return
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimisation(tmp_path):
    callback = GWACallback("head", ROWS)
    trainer(tmp_path, callback, max_epochs=2).fit(ByHand(), Loader())
    assert callback.history == plain_loop(2).history
    # A step that leaves before the head.
    model = ByHand()
    model.leaves = (2, 5)
    trainer(tmp_path, callback, max_epochs=2).fit(model, Loader())
    assert [(s.count, s.expected) for s in callback.history] == [(8 * SIZE, 8 * SIZE)] * 2


def test_weights_that_are_averaged_at_the_end(tmp_path):
    """For the norms of the averaged model Lightning passes over the data without training."""
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    model = Net()
    model.body = nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU())
    callback = GWACallback("head", ROWS)
    averaging = StochasticWeightAveraging(0.02, swa_epoch_start=2)
    fit = trainer(tmp_path, callback, averaging, max_epochs=3)
    with pytest.warns(UserWarning, match="leaves out epoch 3, in which no batch trained the head"):
        fit.fit(model, Loader())
    assert len(callback.history) == 3


class Sharpened(Net):
    """A temperature after the head, which no option of the callback knows."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]) / 0.2, batch[1])


def test_another_loss_is_found_in_the_gradient(tmp_path):
    told = GWACallback("head", ROWS, residual="backward")
    trainer(tmp_path, told, max_epochs=2).fit(Sharpened(), Loader())
    different = pytest.warns(UserWarning, match="is not the gradient of your loss")
    save = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=4)
    killed = GWACallback("head", ROWS)
    with different, pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, killed, save, Kill(15)).fit(Sharpened(), Loader())
    assert killed.monitor.residual == "backward"
    # The change is part of the state, and is said once.
    callback = GWACallback("head", ROWS)
    fit = trainer(tmp_path, callback, max_epochs=2)
    fit.fit(Sharpened(), Loader(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.history == told.history


class Rebuilds(Net):
    """Learns to tell one half of the picture from the other: there is no label to be found."""

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self(x), x[:, :10])


def test_without_targets_the_gradient_is_enough(tmp_path):
    callback = GWACallback("head", ROWS, residual="backward", ids=1, run_folder=tmp_path / "run")
    loader = Loader(lambda batch: (batch[0], batch[2]))
    trainer(tmp_path, callback, max_epochs=2).fit(Rebuilds(), loader)
    assert [s.count for s in callback.history] == [ROWS] * 2
    model, loader = Rebuilds(), Loader()
    optimizer = model.configure_optimizers()
    loader.set_epoch(0)
    for x, _, ids in loader:
        z = model.body(x).detach()
        made = model.head(z)
        given = 2 * (made - x[:, :10])
        product = -(given * (made - model.head.bias)).sum(1)
        norms = given.norm(dim=1) * z.norm(dim=1) * model.head.weight.norm()
        scores = RunFolder.open(tmp_path / "run").scores(0)[ids.numpy()]
        assert scores == pytest.approx((product / norms).detach().numpy(), abs=1e-5)
        optimizer.zero_grad()
        model.training_step((x, ids), 0).backward()
        optimizer.step()


class Closures(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=4)


def test_a_closure_that_runs_the_step_again_counts_once(tmp_path):
    """LBFGS: the first pass has the weights of the batch's beginning, as in any other loop."""
    callback = GWACallback("head", ROWS)
    trainer(tmp_path, callback, max_epochs=2).fit(Closures(), Loader())
    model, loader = Closures(), Loader()
    optimizer = model.configure_optimizers()
    with GWAMonitor(model.head, ROWS, residual="formula") as monitor:
        for epoch in range(2):
            loader.set_epoch(epoch)
            for batch in loader:
                model(batch[0])
                with monitor.pause():

                    def closure():
                        optimizer.zero_grad()
                        loss = model.training_step(batch, 0)
                        loss.backward()
                        return loss

                    optimizer.step(closure)
                monitor.update(batch[1], batch[2])
            monitor.end_epoch(step=(epoch + 1) * STEPS, batches=STEPS)
    # The closed form alone takes its norms in another order.
    for got, expected in zip(callback.history, monitor.history, strict=True):
        assert got[:-1] == pytest.approx(expected[:-1], rel=1e-5)


class Looks(L.Callback):
    """Passes of its own, in train mode: class means, pseudo labels, a rate that is sought."""

    x = torch.zeros(SIZE, 64)

    def look(self, trainer, pl_module, *more):
        for _ in range(3):
            pl_module(self.x)

    on_train_epoch_start = on_train_batch_end = look


def test_passes_between_the_batches_do_not_count(tmp_path):
    callback = GWACallback("head", ROWS)
    trainer(tmp_path, Looks(), callback, max_epochs=2).fit(Net(), Loader())
    assert callback.history == plain_loop(2).history


class Dropped(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.3))


def trained(folder, *callbacks):
    """The weights, and all that the training could have changed beside them."""
    torch.manual_seed(5)
    before = random.getstate()
    model, passes = Dropped(), []
    model.head.register_forward_hook(lambda *call: passes.append(call[0].training))
    save = ModelCheckpoint(folder / "saved", save_top_k=0)
    fit = trainer(folder, *callbacks, save, max_epochs=4)
    fit.fit(model, Loader())
    optimizer = fit.optimizers[0].state_dict()["state"]
    assert random.getstate() == before
    return model.state_dict(), optimizer, torch.get_rng_state(), passes


@pytest.mark.parametrize("residual", ["auto", "backward"])
def test_nothing_of_the_training_changes(residual, tmp_path):
    """Bitwise the same weights, random numbers and passes, with dropout."""
    plain = trained(tmp_path / "without")
    watched = trained(
        tmp_path / "with",
        GWACallback(
            "head",
            ROWS,
            rule=MaxSeparation(),
            run_folder=tmp_path / "run",
            signals=["margin"],
            residual=residual,
        ),
    )
    for name, weight in plain[0].items():
        assert torch.equal(weight, watched[0][name])
    for number, state in plain[1].items():
        for name, value in state.items():
            assert torch.equal(value, watched[1][number][name])
    assert torch.equal(plain[2], watched[2])
    assert plain[3] == watched[3] == [True] * 4 * STEPS


@pytest.mark.parametrize("keep", ["average", "best"])
def test_fast_dev_run_keeps_nothing(keep, tmp_path):
    callback, model = GWACallback("head", ROWS, keep=keep, dirpath=tmp_path), Net()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no epoch counts")
        trainer(tmp_path, callback, fast_dev_run=2).fit(model, Loader())
    assert not all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert (callback.best_model_path, callback.averaged_model_path) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_writes_nothing(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    # Of a run before, which is not continued and not in the way.
    (run / "epochs.jsonl").write_text("{}")
    callback = GWACallback(
        "head",
        ROWS,
        rule=MaxSeparation(warmup=0),
        run_folder=run,
        dirpath=tmp_path / "best",
    )
    fit = trainer(tmp_path, callback, fast_dev_run=2, logger=CSVLogger(tmp_path))
    fit.fit(Validated(), Loader(), Loader(rows=SIZE))
    assert callback.history[0].count == 2 * SIZE
    assert callback.best_model_path == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "epochs.jsonl"]
    assert (run / "epochs.jsonl").read_text() == "{}"


def test_without_checkpoints_no_best_one_is_written(tmp_path):
    callback = GWACallback("head", rule=LATER)
    fit = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="keeps no weights of the best.*enable_checkpointing=Fal"):
        fit.fit(Net(), Loader())
    assert (callback.best_epoch, callback.best_model_path) == (1, "")
    assert list(tmp_path.iterdir()) == []


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from Loader()


def endless():
    return DataLoader(Endless(), batch_size=None)


def test_an_endless_loader_is_told_at_the_start(tmp_path):
    callback = GWACallback("head", ROWS)
    fit = trainer(tmp_path, callback, max_steps=12)
    with pytest.warns(UserWarning, match="no epoch ends.*limit_train_batches=1000.*window"):
        fit.fit(Net(), endless())
    # As the advice has it.
    callback = GWACallback("head", ROWS)
    fit = trainer(tmp_path, callback, max_steps=25, limit_train_batches=STEPS)
    fit.fit(Net(), endless())
    assert [s.step for s in callback.history] == [10, 20, 25]


def test_a_loader_without_a_length_that_ends_is_no_matter(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from Loader()

    callback = GWACallback("head", ROWS)
    trainer(tmp_path, callback, max_epochs=2).fit(Net(), DataLoader(Stream(), batch_size=None))
    assert [s.count for s in callback.history] == [ROWS] * 2


def test_health_and_the_best_epoch_are_logged(tmp_path):
    class Seen(L.Callback):
        def __init__(self):
            self.rows = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.rows.append(dict(trainer.callback_metrics))

    callback, seen = GWACallback("head", ROWS, rule=MaxSeparation(warmup=1)), Seen()
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, callback, seen, max_epochs=4, logger=logger, log_every_n_steps=1)
    fit.fit(Net(), Loader())
    best, rows = [], [*seen.rows[1:], fit.callback_metrics]
    for row, summary in zip(rows, callback.history, strict=True):
        assert float(row["train/gwa_healthy"]) == summary.healthy
        best.append(float(row.get("train/gwa_best_epoch", -1)))
    expected = [
        select_epoch(callback.history[: n + 1], MaxSeparation(warmup=1)).step for n in range(4)
    ]
    assert best == [-1 if step is None else step for step in expected]
    assert best[0] == -1
    header = Path(logger.experiment.metrics_file_path).read_text().splitlines()[0]
    assert {"train/gwa_healthy", "train/gwa_best_epoch"} < set(header.split(","))


def test_the_run_folder_has_the_labels(tmp_path):
    callback = GWACallback("head", ROWS, run_folder=tmp_path / "run")
    trainer(tmp_path, callback, max_epochs=2).fit(Net(), Loader())
    assert RunFolder.open(tmp_path / "run").targets().tolist() == digits()[1].tolist()
    # Half an epoch does not know them all.
    callback = GWACallback("head", ROWS, run_folder=tmp_path / "half")
    trainer(tmp_path, callback, max_epochs=2, limit_train_batches=0.5).fit(Net(), Loader())
    assert RunFolder.open(tmp_path / "half").targets() is None


def test_a_trainer_that_is_bare(tmp_path):
    callback = GWACallback("head", ROWS)
    fit = L.Trainer(barebones=True, max_epochs=2, accelerator="cpu", default_root_dir=tmp_path)
    fit.fit(Net(), Loader())
    assert callback.history == []
    fit = L.Trainer(
        barebones=True,
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    fit.fit(Net(), Loader())
    assert callback.history == plain_loop(2).history


def resumable(folder, num_samples, **save):
    callback = GWACallback(
        "head",
        num_samples,
        rule=MaxSeparation(patience=3),
        run_folder=folder / "run",
        dirpath=folder / "best",
        signals=["margin"],
    )
    return callback, ModelCheckpoint(folder / "saved", "{step}", save_last=True, **save)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """What was not killed, with ids or without, trained once."""

    @functools.cache
    def train(num_samples):
        folder = tmp_path_factory.mktemp("whole")
        whole, weights = resumable(folder, num_samples)[0], Weights()
        trainer(folder, whole, weights).fit(Validated(), Loader(), Loader(rows=SIZE))
        return whole, weights

    return train


@pytest.mark.parametrize(
    ("kill", "save"),
    [
        (5, {"every_n_train_steps": 4}),
        (37, {"every_n_train_steps": 3}),
        # The last checkpoint was written after the last batch of an epoch.
        (23, {"every_n_train_steps": STEPS}),
        (96, {"every_n_train_steps": 90}),
        # At the end of an epoch.
        (45, {"save_on_train_epoch_end": True}),
        # After validation, before the end of the epoch.
        (64, {"save_on_train_epoch_end": False}),
    ],
    ids=["first", "middle", "last batch", "stopping", "end", "validation"],
)
@pytest.mark.parametrize("num_samples", [ROWS, None], ids=["ids", "moments"])
def test_a_killed_run_goes_on(kill, save, num_samples, tmp_path, whole_run):
    whole, weights = whole_run(num_samples)
    callback, checkpoint = resumable(tmp_path, num_samples, **save)
    killed = trainer(tmp_path, callback, checkpoint, Kill(kill), max_epochs=EPOCHS)
    model = Validated()
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit(model, Loader(), Loader(rows=SIZE))
    assert not model.head._forward_hooks
    assert callback.history == whole.history[: kill // STEPS]

    resumed, checkpoint = resumable(tmp_path, num_samples, **save)
    fit = trainer(tmp_path, resumed, checkpoint)
    fit.fit(Validated(), Loader(), Loader(rows=SIZE), ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert resumed.history == whole.history
    assert resumed.stopper.state_dict() == whole.stopper.state_dict()
    assert (fit.global_step, resumed.stopping_reason) == (
        len(whole.history) * STEPS,
        whole.stopping_reason,
    )
    if num_samples:
        assert torch.equal(resumed.scores, whole.scores)
    same_weights(resumed.best_model_path, weights.epochs[whole.best_epoch])
    written = list(RunFolder.open(tmp_path / "run").epochs())
    assert [summary for summary, _ in written] == whole.history
    assert resumed.monitor.signals.history == whole.monitor.signals.history
    assert written[-1][1] == whole.monitor.signals.history[-1]


def test_a_strategy_that_restores_late(tmp_path):
    class Late(SingleDeviceStrategy):
        """As ModelParallelStrategy (FSDP2), which loads a checkpoint after `on_fit_start`."""

        restore_checkpoint_after_setup = True

    callback, checkpoint = resumable(tmp_path, ROWS, every_n_train_steps=7)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, callback, checkpoint, Kill(24)).fit(Net(), Loader())
    resumed, _ = resumable(tmp_path, ROWS)
    fit = trainer(tmp_path, resumed, strategy=Late("cpu"), max_epochs=4)
    fit.fit(Net(), Loader(), ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert resumed.history == plain_loop(4, signals=["margin"]).history


def test_an_epoch_that_lightning_ends_twice_counts_once(tmp_path):
    # Resumed from the end of an epoch, a run of `max_steps` has one batch more in that epoch.
    options = {"max_epochs": -1, "max_steps": 4 * STEPS}
    stop = EarlyStopping("train/gwa", mode="max", patience=99, check_on_train_epoch_end=True)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    killed = trainer(tmp_path, GWACallback("head", ROWS), checkpoint, Kill(25), **options)
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit(Net(), Loader())
    callback = GWACallback("head", ROWS)
    fit = trainer(tmp_path, stop, callback, **options)
    fit.fit(Net(), Loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [s.count for s in callback.history[:3]] == [ROWS] * 3
    assert callback.history[:2] == plain_loop(2).history


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path):
    callback, checkpoint = resumable(tmp_path, ROWS, every_n_train_steps=90)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, callback, checkpoint, Kill(96)).fit(Net(), Loader())
    Path(callback.best_model_path).unlink()
    resumed, _ = resumable(tmp_path, ROWS)
    with pytest.warns(UserWarning, match="best-epoch=6.ckpt, the checkpoint of epoch 6, is gone"):
        trainer(tmp_path, resumed).fit(Net(), Loader(), ckpt_path=tmp_path / "saved/last.ckpt")
    assert (resumed.best_epoch, resumed.best_model_path) == (6, "")


def test_a_second_fit_goes_on_and_another_model_begins_anew(tmp_path):
    callback = GWACallback("head", ROWS, rule=MaxGWA(warmup=1))
    fit, model, loader = trainer(tmp_path, callback, max_epochs=2), Net(), Loader()
    fit.fit(model, loader)
    first = list(callback.history)
    fit.fit_loop.max_epochs = 4
    fit.fit(model, loader)
    assert callback.history[:2] == first
    assert [s.epoch for s in callback.history] == [0, 1, 2, 3]
    assert callback.stopper.total_steps == 4
    trainer(tmp_path, callback, max_epochs=2).fit(Net(), Loader())
    assert callback.history == first
    # Nothing of the first run was written over.
    assert Path(callback.best_model_path).name == "gwa-best-epoch=1-v1.ckpt"
    assert torch.load(callback.best_model_path)["global_step"] == 2 * STEPS


def test_two_heads(tmp_path):
    class TwoHeads(Net):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(24, 10)

        def training_step(self, batch, batch_idx):
            z = self.body(batch["x"])
            losses = [F.cross_entropy(head(z), batch["y"]) for head in (self.head, self.other)]
            return sum(losses)

    a = GWACallback("head", ROWS, ids="number")
    b = GWACallback("other", prefix="", targets=lambda batch: batch["y"])
    loader = Loader(lambda batch: dict(zip(("x", "y", "number"), batch, strict=True)))
    fit = trainer(tmp_path, a, b, max_epochs=2)
    fit.fit(TwoHeads(), loader)
    assert fit.callback_metrics["train/gwa"] == pytest.approx(a.history[-1].gwa, rel=1e-5)
    assert fit.callback_metrics["gwa"] == pytest.approx(b.history[-1].gwa, rel=1e-5)
    assert a.history[-1].gwa != b.history[-1].gwa
    fit.save_checkpoint(tmp_path / "both.ckpt")
    # A history can be read without a training.
    read = GWACallback(prefix="")
    read.load_state_dict(torch.load(tmp_path / "both.ckpt")["callbacks"][read.state_key])
    assert read.history == b.history


@pytest.mark.parametrize(
    ("arguments", "pick", "message"),
    [
        (
            {"targets": "label"},
            lambda b: {"x": b[0], "y": b[1]},
            "`targets` must be found.*'label'",
        ),
        (
            {"num_samples": ROWS},
            lambda b: b[:2],
            "`ids` must be found.*item 2 of a tuple.*of 2; wrap the data set in gwa_torch.with_ids",
        ),
        (
            {"num_samples": ROWS},
            lambda b: (*b[:2], [f"image-{i}" for i in b[2]]),
            r"`ids` must be integers, got strings.*such as 'image-\d+'; number the samples 0\.\.N-1",
        ),
        ({"head": "hed"}, None, "`head` must be the name of a module of Either, got 'hed'"),
        ({"head": nn.Linear(24, 10)}, None, "must follow a forward pass of the head"),
        (
            {"rule": MaxSeparation()},
            None,
            "warm-up in whole epochs where their number is not known",
        ),
        ({"run_folder": "used"}, None, "`run_folder` must be new, got 'used'"),
    ],
    ids=["targets", "ids", "strings", "name", "head", "warm-up", "folder"],
)
def test_what_does_not_fit_is_said(arguments, pick, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("used").mkdir()
    Path("used/epochs.jsonl").write_text("{}")

    class Either(Net):
        def training_step(self, batch, batch_idx):
            x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
            return F.cross_entropy(self(x), y)

    callback = GWACallback(**{"head": "head"} | arguments)
    model = Either()
    with pytest.raises((RuntimeError, ValueError), match=message):
        trainer(tmp_path, callback, max_epochs=-1, max_steps=3).fit(model, Loader(pick))
    assert not model.head._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"smoothing": 0.1}, TypeError, r"`options` must be among beta, .*got smoothing"),
        ({"criterion": nn.CrossEntropyLoss()}, TypeError, "got criterion"),
        ({"ids": "id"}, ValueError, "`ids` must come with `num_samples`"),
        ({"dirpath": "best"}, ValueError, "`dirpath` must come with `rule`"),
        ({"keep": "mean"}, ValueError, "`keep` must be one of 'average', 'best', None, got 'mean'"),
    ],
)
def test_options_are_checked_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        GWACallback("head", **arguments)


def test_a_trainer_of_pytorch_lightning(tmp_path):
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.training_step = self.net.training_step
            self.configure_optimizers = self.net.configure_optimizers

    callback = GWACallback("net.head", ROWS, rule=MaxGWA(warmup=1), dirpath=tmp_path)
    stop = other.callbacks.EarlyStopping("train/gwa", mode="max", check_on_train_epoch_end=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"accelerator": "cpu", "default_root_dir": tmp_path}
    fit = other.Trainer(max_epochs=3, callbacks=[stop, callback], **options, **quiet)
    fit.fit(Other(), Loader())
    assert callback.history == plain_loop(3).history
    assert Path(callback.best_model_path).exists()


def averaging(folder, *callbacks, model=Net, fit=None, keep="average", first=None, **options):
    """Train for six epochs; return callback, model, and the weights at the end of each epoch."""
    weights, made = Weights(), model()
    if keep is not None:
        options["dirpath"] = folder / "best"
    callback = GWACallback("head", ROWS, keep=keep, **options)
    if not any(isinstance(x, ModelCheckpoint) for x in callbacks):
        # Checkpoints are on, and there are none of the trainer's own.
        callbacks = *callbacks, ModelCheckpoint(folder / "none", save_top_k=0)
    own = {"max_epochs": 6} | (fit or {})
    ckpt_path = own.pop("ckpt_path", None)
    callbacks = [*([first] if first else []), callback, weights, *callbacks]
    trainer(folder, *callbacks, **own).fit(made, Loader(), ckpt_path=ckpt_path)
    return callback, made, weights.epochs


def mean_of(epochs, history, names, **options):
    """The mean of stored weights by the shares of the finished run, in float64."""
    shares = average_shares(history, **options)
    return {
        name: sum(share * one[name].double() for share, one in zip(shares, epochs, strict=True))
        for name in names
    }


def close(state, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-6, atol=1e-7)


def test_the_model_ends_as_the_average_of_its_epochs(tmp_path):
    logger = CSVLogger(tmp_path)
    callback, model, epochs = averaging(tmp_path, fit={"logger": logger, "log_every_n_steps": 5})
    close(model.state_dict(), mean_of(epochs, callback.history, epochs[0]))
    assert not all(torch.equal(x, epochs[-1][name]) for name, x in model.state_dict().items())
    # Until its end the training is that of a run without.
    _, plain, without = averaging(tmp_path / "plain", keep=None)
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(epochs, without, strict=True)]
    assert same == [True] * 6
    assert all(torch.equal(x, epochs[-1][name]) for name, x in plain.state_dict().items())
    path = tmp_path / "best" / "gwa-average.ckpt"
    assert callback.averaged_model_path == str(path)
    assert list(path.parent.iterdir()) == [path]
    loaded, (x, _, _) = Net.load_from_checkpoint(path), digits()
    assert torch.equal(loaded(x), model(x))
    header, *lines = Path(logger.experiment.metrics_file_path).read_text().splitlines()
    place = header.split(",").index("train/gwa_share")
    shares = [float(line.split(",")[place]) for line in lines if line.split(",")[place]]
    average = gwa_core.EpochAverage(total_steps=6)
    assert shares == pytest.approx([average.share(one) for one in callback.history], rel=1e-5)


def test_under_an_average_the_rule_only_stops(tmp_path):
    rule = MaxGWA(warmup=0, patience=2)
    callback, model, epochs = averaging(tmp_path, rule=rule, fit={"max_epochs": 30})
    assert len(epochs) < 30
    assert "no improvement in 2 steps" in callback.stopping_reason
    assert callback.best_model_path == ""
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["gwa-average.ckpt"]
    close(model.state_dict(), mean_of(epochs, callback.history, epochs[0], total_steps=30))


def test_an_epoch_cut_short_does_not_count_in_the_average(tmp_path):
    # How many epochs there are is not known: the warm-up is the first one.
    fit = {"max_epochs": -1, "max_steps": 4 * STEPS + 2}
    callback, model, epochs = averaging(tmp_path, fit=fit)
    assert callback.history[-1].count == 2 * SIZE
    whole = callback.history[:-1]
    close(model.state_dict(), mean_of(epochs[:-1], whole, epochs[0], warmup=1))


def test_without_an_epoch_that_counts_the_weights_stay(tmp_path):
    fit = {"max_epochs": -1, "max_steps": STEPS}
    with pytest.warns(UserWarning, match="no epoch counts in the average"):
        _, model, epochs = averaging(tmp_path, fit=fit)
    assert all(torch.equal(x, epochs[-1][name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("kill", "save"),
    [
        (37, {"every_n_train_steps": 3}),
        (43, {"every_n_train_steps": 2 * STEPS}),
        (45, {"save_on_train_epoch_end": True}),
    ],
    ids=["middle", "last batch", "end"],
)
def test_an_average_that_was_killed_goes_on(kill, save, tmp_path):
    whole, wanted, _ = averaging(tmp_path / "whole")
    checkpoint = ModelCheckpoint(tmp_path / "saved", "{step}", save_last=True, **save)
    with pytest.raises(RuntimeError, match="killed"):
        averaging(tmp_path, checkpoint, Kill(kill))
    last = tmp_path / "saved" / "last.ckpt"
    resumed, model, _ = averaging(tmp_path, checkpoint, fit={"ckpt_path": last})
    assert resumed.history == whole.history
    assert all(torch.equal(x, wanted.state_dict()[name]) for name, x in model.state_dict().items())


def test_a_checkpoint_without_the_average_begins_it_there(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="killed"):
        averaging(tmp_path, checkpoint, Kill(25), keep=None)
    last = tmp_path / "saved" / "last.ckpt"
    with pytest.warns(UserWarning, match="the average begins now, with a warm-up of 0 epochs"):
        callback, model, epochs = averaging(tmp_path, checkpoint, fit={"ckpt_path": last})
    close(model.state_dict(), mean_of(epochs, callback.history[2:], epochs[0], warmup=0))


class Normed(Net):
    """Batch norm, of which a part is frozen, and dropout."""

    def __init__(self):
        super().__init__()
        layers = nn.BatchNorm1d(64), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.1)
        self.body = nn.Sequential(*layers, nn.ReLU())
        self.body[0].eval().requires_grad_(requires_grad=False)


# What Lightning says of the part that is frozen.
frozen = pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode:UserWarning")


@frozen
def test_batch_norm_has_the_statistics_of_the_average(tmp_path):
    states = []

    class Ends(L.Callback):
        def on_train_end(self, trainer, pl_module):
            states.append((random.getstate(), torch.get_rng_state()))

    for folder, keep in (("plain", None), ("averaged", "average")):
        torch.manual_seed(5)
        callback, model, epochs = averaging(tmp_path / folder, Ends(), model=Normed, keep=keep)
    assert states[0][0] == states[1][0]
    assert torch.equal(states[0][1], states[1][1])
    trained = [name for name, _ in model.named_parameters() if not name.startswith("body.0")]
    close(model.state_dict(), mean_of(epochs, callback.history, trained))
    first, layer, norm = model.body[:3]
    with torch.no_grad():
        batches = [layer(first(batch[0])) for batch in Loader()]
    # Of other batches than Lightning's last epoch has, but of the same samples.
    torch.testing.assert_close(norm.running_mean, torch.stack([z.mean(0) for z in batches]).mean(0))
    assert torch.equal(first.running_mean, torch.zeros(64))
    assert not first.training
    assert model.training
    loaded = Normed.load_from_checkpoint(callback.averaged_model_path)
    assert torch.equal(loaded.body[2].running_mean, norm.running_mean)


@frozen
def test_a_pass_for_batch_norm_that_fails_is_said(tmp_path):
    class Unable(Normed):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                raise TypeError("what is this")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match=r"failed: TypeError: what is this; call .*update_bn"):
        callback, model, epochs = averaging(tmp_path, model=Unable)
    close(model.state_dict(), mean_of(epochs, callback.history, ["head.weight"]))
    norm = model.body[2]
    assert torch.equal(norm.running_mean, epochs[-1]["body.2.running_mean"])
    # As the sentence says.
    callback.averaged.update_bn(Loader())
    callback.averaged.copy_to()
    assert not torch.equal(norm.running_mean, epochs[-1]["body.2.running_mean"])


class Prepared(Normed):
    """Inputs that are not those of the loader, and all that a training step may change."""

    def __init__(self):
        super().__init__()
        self.seen = MeanMetric()
        self.teacher = nn.Linear(64, 24).requires_grad_(requires_grad=False)
        self.register_buffer("queue", torch.zeros(24))

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, *rest = batch
        return (x * 5 + 1, *rest)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, *rest = batch
        return (x * 3, *rest)

    def prepare(self, x):
        return x - 2

    def training_step(self, batch, batch_idx):
        assert batch_idx < STEPS
        self.teacher.weight.mul_(0.9).add_(self.body[1].weight.detach(), alpha=0.1)
        self.queue = self.queue + 1
        self.seen(batch[1].float())
        self.log("y", self.seen)
        self.log_dict({"count": float(len(batch[1]))})
        return super().training_step((self.prepare(batch[0]), *batch[1:]), batch_idx)


class ByHandPrepared(Prepared):
    """Where the step itself moves the weights, `forward` gets the first item."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def forward(self, x):
        return super().forward(self.prepare(x))

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.optimizers().step()


@frozen
@pytest.mark.parametrize("model", [Prepared, ByHandPrepared])
def test_batch_norm_sees_what_it_saw_in_the_training(model, tmp_path):
    ends = []

    class Ends(L.Callback):
        def on_train_end(self, trainer, pl_module):
            ends.append(dict(trainer.logged_metrics))

        on_fit_end = on_train_end

    callback, model, epochs = averaging(tmp_path, Ends(), model=model)
    first, layer, norm = model.body[:3]
    with torch.no_grad():
        z = [layer(first(model.prepare((batch[0] * 5 + 1) * 3))) for batch in Loader()]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in z]).mean(0))
    # Nothing else is changed by the pass: weights without a gradient, buffers, metrics, the log.
    for name in ("teacher.weight", "queue"):
        assert torch.equal(model.state_dict()[name], epochs[-1][name])
    assert not model.seen.update_called
    assert "log" not in vars(model)
    assert ends[0] == ends[1]
    # The passes have no scores.
    assert [summary.count for summary in callback.history] == [ROWS] * 6
    assert not callback.monitor._capture.waiting


@frozen
def test_batch_norm_under_several_loaders(tmp_path):
    class Several(Normed):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["one"], batch_idx)

    pick, model = (lambda batch: batch["one"][1]), Several()
    callback = GWACallback("head", keep="average", targets=pick)
    loaders = {"one": Loader(), "other": Loader(rows=SIZE)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*statistics of batch norm")
        trainer(tmp_path, callback, max_epochs=3).fit(model, loaders)
    first, layer, norm = model.body[:3]
    with torch.no_grad():
        z = torch.cat([layer(first(batch[0])) for batch in Loader()])
    torch.testing.assert_close(norm.running_mean, z.mean(0))


@frozen
@pytest.mark.filterwarnings("ignore:the training loader has no length:UserWarning")
def test_an_endless_loader_has_as_many_batches_for_batch_norm_as_for_the_training(tmp_path):
    read = []

    class Counted(Endless):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(1)
                assert len(read) < 99
                yield batch

    callback = GWACallback("head", keep="average")
    loader = DataLoader(Counted(), batch_size=None)
    trainer(tmp_path, callback, max_epochs=1, max_steps=STEPS).fit(model := Normed(), loader)
    # Lightning reads one ahead.
    assert len(read) == 2 * STEPS + 1
    first, layer, norm = model.body[:3]
    with torch.no_grad():
        z = torch.cat([layer(first(batch[0])) for batch in Loader()])
    torch.testing.assert_close(norm.running_mean, z.mean(0))


@frozen
def test_the_generator_of_a_loader_is_left_as_it_was(tmp_path):
    x, y, ids = digits()
    states = []
    for folder, keep in (("a", None), ("b", "average")):
        generator = torch.Generator().manual_seed(3)
        data = torch.utils.data.TensorDataset(x, y, ids)
        loader = DataLoader(data, SIZE, shuffle=True, generator=generator)
        callback = GWACallback("head", ROWS, keep=keep)
        trainer(tmp_path / folder, callback, max_epochs=2).fit(Normed(), loader)
        states.append(generator.get_state())
    assert torch.equal(*states)


class KillAtEnd(L.Callback):
    def on_train_end(self, trainer, pl_module):
        raise RuntimeError("killed")


@frozen
@pytest.mark.parametrize(
    ("fit", "save"),
    [
        ({}, {"save_on_train_epoch_end": True}),
        ({}, {"every_n_train_steps": STEPS}),
        ({"max_epochs": -1, "max_steps": 6 * STEPS}, {"save_on_train_epoch_end": True}),
        # Saved before the end of the epoch, which Lightning does not end any more.
        ({"max_epochs": -1, "max_steps": 6 * STEPS}, {"every_n_train_steps": STEPS}),
    ],
)
@pytest.mark.parametrize("keep", ["average", "best"])
def test_a_run_that_was_killed_at_its_very_end_has_what_is_kept(keep, fit, save, tmp_path):
    options = {"model": Normed, "keep": keep, "rule": MaxSeparation(warmup=1)}
    whole, wanted, _ = averaging(tmp_path / "whole", fit=fit, **options)
    checkpoint = ModelCheckpoint(tmp_path / "saved", "{step}", save_last=True, **save)
    with pytest.raises(RuntimeError, match="killed"):
        # First in the list: the training is killed before the average is there.
        averaging(tmp_path, checkpoint, first=KillAtEnd(), fit=fit, **options)
    assert not list(tmp_path.glob("best/gwa-average*"))
    last = {"ckpt_path": tmp_path / "saved" / "last.ckpt"}
    resumed, model, _ = averaging(tmp_path, checkpoint, fit=fit | last, **options)
    assert resumed.history == whole.history
    for name, x in model.state_dict().items():
        assert torch.equal(x, wanted.state_dict()[name]), name
    if keep == "average":
        assert Path(resumed.averaged_model_path).name == "gwa-average.ckpt"
        saved = torch.load(resumed.averaged_model_path)["state_dict"]
        assert all(torch.equal(x, saved[name]) for name, x in model.state_dict().items())
    assert "log_dict" not in vars(model)
    assert model.training


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no:UserWarning")
def test_a_metric_that_is_lost_with_the_end_of_a_run_leaves_its_epoch_out(tmp_path):
    fit = {"max_epochs": -1, "max_steps": 2 * STEPS}
    rule = BestMetric(metric="loss_epoch", mode="max", warmup=0)
    callback = functools.partial(GWACallback, "head", ROWS, rule=rule)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=STEPS)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, KillAtEnd(), callback(), checkpoint, **fit).fit(Logged(), Loader())
    resumed = callback()
    trainer(tmp_path, resumed, checkpoint, **fit).fit(
        Logged(), Loader(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert (len(resumed.history), resumed.best_epoch) == (2, 0)


def test_what_is_kept_is_beside_the_checkpoints(tmp_path):
    for keep in ("average", "best"):
        folder = tmp_path / keep / "saved"
        rule = BestMetric(metric="gwa_standard_error", warmup=0)
        callback = GWACallback("head", ROWS, keep=keep, rule=rule)
        checkpoint = ModelCheckpoint(folder, save_last=True)
        trainer(tmp_path / keep, callback, checkpoint, max_epochs=2).fit(Net(), Loader())
        kept = Path(callback.averaged_model_path or callback.best_model_path)
        assert kept.parent == folder
        assert {"last.ckpt", kept.name} <= {path.name for path in folder.iterdir()}


def test_the_model_ends_with_its_best_epoch(tmp_path):
    class Configured(Net):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"folder": tmp_path})

    callback, model, epochs = averaging(tmp_path, model=Configured, keep="best")
    assert callback.rule == MaxSeparation()
    assert all(
        torch.equal(x, epochs[callback.best_epoch][n]) for n, x in model.state_dict().items()
    )
    with pytest.warns(UserWarning, match="no epoch is the best by the rule"):
        averaging(tmp_path / "none", keep="best", rule=MaxGWA(warmup=9), fit={"max_epochs": 1})
    rule = BestMetric(metric="gwa_standard_error", mode="min", warmup=0)
    callback, model, epochs = averaging(tmp_path / "rule", keep="best", rule=rule)
    assert callback.best_epoch < 5
    assert all(
        torch.equal(x, epochs[callback.best_epoch][n]) for n, x in model.state_dict().items()
    )


class Interrupt(Kill):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_training_leaves_the_average_so_far(tmp_path):
    callback, weights, model = GWACallback("head", keep="average"), Weights(), Net()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=0)
    fit = trainer(tmp_path, callback, weights, checkpoint, Interrupt(35), max_epochs=10)
    with pytest.raises(SystemExit):
        fit.fit(model, Loader())
    saved = torch.load(callback.averaged_model_path)["state_dict"]
    shares = {"total_steps": 10}
    close(saved, mean_of(weights.epochs, callback.history, saved, **shares))
    # The model itself can go on.
    assert not torch.equal(model.head.weight, saved["head.weight"])


def test_a_checkpoint_at_the_end_has_the_weights_of_the_training(tmp_path):
    late = ModelCheckpoint(tmp_path / "late", every_n_epochs=99, save_last=True)
    _, model, epochs = averaging(tmp_path, late)
    same_weights(tmp_path / "late" / "last.ckpt", epochs[-1])
    assert not torch.equal(model.head.weight, epochs[-1]["head.weight"])


def test_an_average_without_checkpoints_and_a_second_one(tmp_path):
    callback, model = GWACallback("head", keep="average"), Net()
    fit = trainer(tmp_path, callback, max_epochs=3)
    fit.fit(model, Loader())
    assert callback.averaged_model_path == ""
    assert list(tmp_path.iterdir()) == []
    names = []
    for _ in range(2):
        callback, *_ = averaging(tmp_path, fit={"max_epochs": 1})
        names.append(Path(callback.averaged_model_path).name)
    assert names == ["gwa-average.ckpt", "gwa-average-v1.ckpt"]


def test_what_cannot_be_kept_is_refused(tmp_path):
    class ModelParallelStrategy(SingleDeviceStrategy):
        pass

    shards = {"strategy": ModelParallelStrategy("cpu")}
    with pytest.raises(ValueError, match=r"got ModelParallelStrategy, whose .*AveragedWeights"):
        averaging(tmp_path, fit=shards)
    with pytest.raises(ValueError, match="got the callback StochasticWeightAveraging beside it"):
        averaging(tmp_path, L.pytorch.callbacks.StochasticWeightAveraging(0.1))
    with pytest.raises(ValueError, match=r"`keep=\"best\"` must have a checkpoint"):
        L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[GWACallback("head", keep="best")],
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Net(), Loader())


# 101 samples on two ranks: each has 51, in batches of 10, the last of one; a sample comes twice.
DISTRIBUTED = '''
import json, logging, os, socket, sys, warnings
sys.path[:0] = PLACES
warnings.filterwarnings("ignore")
warnings.filterwarnings("error", ".*sync_dist")
import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from gwa_core import BestMetric, MaxSeparation
from gwa_torch.lightning import GWACallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
x, y, epochs, folder = torch.load(sys.argv[1])

class Net(L.LightningModule):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(64, 24), *[torch.nn.BatchNorm1d(24)] * norm, torch.nn.ReLU()]
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(24, 10)
        self.biases = []
    def forward(self, x):
        return self.head(self.body(x))
    def on_train_epoch_end(self):
        self.biases.append(self.head.bias.tolist())
    def training_step(self, batch, batch_idx):
        if (self.global_step, self.global_rank) in kills:
            raise RuntimeError("killed")
        # Best in epoch 2, and known to the first process alone.
        value = -abs(self.current_epoch - 2.0) if self.global_rank == 0 else 99.0
        own = {"on_step": False, "on_epoch": True, "batch_size": 1}
        self.log("own", value, **own, sync_dist=True, rank_zero_only=True)
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)

class Loader(DataLoader):
    """What the distributed sampler gives, able to go on in the middle of an epoch."""
    start = at = 0
    def __iter__(self):
        start, self.start = self.start % len(self), 0
        for at, batch in enumerate(super().__iter__()):
            if at >= start:
                self.at = at + 1
                yield batch
    def state_dict(self):
        return {"at": self.at}
    def load_state_dict(self, state):
        self.start = state["at"]

def fit(
    num_samples, name, ckpt_path=None, rule=MaxSeparation(patience=2), keep=None, norm=False, **save
):
    run = f"{folder}/{name}"
    callback = GWACallback("head", num_samples, rule=rule, keep=keep, run_folder=run)
    stop = EarlyStopping("train/gwa", mode="max", patience=99, check_on_train_epoch_end=True)
    save = ModelCheckpoint(f"{folder}/{name}-saved", every_n_train_steps=4, save_last=True, **save)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        default_root_dir=f"{folder}/{name}-root", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[stop, callback, save],
    )
    data, model = TensorDataset(x, y, torch.arange(len(x))), Net(norm)
    if norm:
        # Its batches have several rows.
        data = TensorDataset(x[:100], y[:100])
    try:
        trainer.fit(model, Loader(data, batch_size=10), ckpt_path=ckpt_path)
    except RuntimeError as error:
        assert str(error) == "killed", error
    averaged = {} if not norm else {
        "layer": [model.body[0].weight.tolist(), model.body[0].bias.tolist()],
        "mean": model.body[1].running_mean.tolist(), "averaged": callback.averaged_model_path,
        "biases": model.biases, "bias": model.head.bias.tolist(),
    }
    return averaged | {
        "history": callback.history, "best": callback.best_epoch,
        "reason": callback.stopping_reason, "path": callback.best_model_path,
        "step": trainer.global_step,
    }, trainer.global_rank

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
# Two processes of one import. Lightning sees that they are there.
other = os.fork()
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
os.environ["LOCAL_RANK"] = "0" if other else "1"
result = {}
for num_samples in (len(x), None):
    name = str(num_samples)
    kills = set()
    result[f"{name} whole"], rank = fit(num_samples, name + "-whole")
    kills = {(15, 0), (15, 1)}
    fit(num_samples, name)
    kills = set()
    result[f"{name} resumed"], rank = fit(num_samples, name, f"{folder}/{name}-saved/last.ckpt")
kills = set()
own = {"rule": BestMetric(metric="own", patience=1), "keep": "average", "norm": True}
result["metric"], rank = fit(None, "metric", **own)
kills = {(15, 0), (15, 1)}
fit(None, "exception", save_on_exception=True)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(result, file)
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
'''


def one_process(x, y, num_samples, epochs):
    """The same training in one process: each batch is what both ranks have in a step."""
    model = Net()
    optimizer = model.configure_optimizers()
    samplers = [DistributedSampler(x, num_replicas=2, rank=rank) for rank in (0, 1)]
    with GWAMonitor(model.head, num_samples) as monitor:
        for epoch in range(epochs):
            for sampler in samplers:
                sampler.set_epoch(epoch)
            orders = [torch.tensor(list(sampler)).split(10) for sampler in samplers]
            for parts in zip(*orders, strict=True):
                ids = torch.cat(parts)
                optimizer.zero_grad()
                F.cross_entropy(model(x[ids]), y[ids]).backward()
                optimizer.step()
                monitor.update(y[ids], ids if num_samples else None)
            monitor.end_epoch(step=(epoch + 1) * len(orders[0]), batches=len(orders[0]))
    return monitor.history


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    rows, epochs = 101, 10
    x, y, _ = digits(rows)
    (tmp_path / "script.py").write_text(f"PLACES = {PLACES!r}\n{DISTRIBUTED}")
    torch.save((x, y, epochs, str(tmp_path)), tmp_path / "data.pt")
    command = [sys.executable, "script.py", "data.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for num_samples in (rows, None):
        whole, resumed = first[f"{num_samples} whole"], first[f"{num_samples} resumed"]
        expected = one_process(x, y, num_samples, epochs)
        assert [s.count for s in expected] == [rows if num_samples else rows + 1] * epochs
        kept = select_epoch(expected, MaxSeparation(patience=2))
        assert (whole["best"], whole["reason"]) == (kept.step, kept.reason)
        assert len(whole["history"]) == kept.step + 3 < epochs
        for got, summary in zip(whole["history"], expected, strict=False):
            assert got[:-1] == pytest.approx(list(summary)[:-1], rel=1e-3)
        assert Path(whole.pop("path")).name == Path(resumed.pop("path")).name
        assert resumed == whole
        written = [list(s) for s, _ in RunFolder.open(tmp_path / str(num_samples)).epochs()]
        assert written == whole["history"]
    assert RunFolder.open(tmp_path / f"{rows}-whole").targets().tolist() == y.tolist()
    # A metric that one process alone knows decides on both.
    assert (first["metric"]["best"], len(first["metric"]["history"])) == (2, 4)
    assert first["metric"]["reason"].startswith("largest own; stopped at step 3")
    # Both end with the same average, and with statistics of batch norm of the samples of both.
    found, history = (
        first["metric"],
        [gwa_core.EpochSummary(*s) for s in first["metric"]["history"]],
    )
    shares = torch.tensor(average_shares(history, total_steps=epochs))
    expected = shares @ torch.tensor(found["biases"]).double()
    torch.testing.assert_close(torch.tensor(found["bias"]).double(), expected, rtol=1e-6, atol=1e-7)
    weight, bias = map(torch.tensor, found["layer"])
    mean = F.linear(x[:100], weight, bias).mean(0)
    torch.testing.assert_close(torch.tensor(found["mean"]), mean, rtol=1e-5, atol=1e-6)
    saved = torch.load(found["averaged"])["state_dict"]
    assert (saved["head.bias"].tolist(), saved["body.1.running_mean"].tolist()) == (
        found["bias"],
        found["mean"],
    )
    # A rank that fails does not wait for the others to tell what they saw.
    saved = torch.load(tmp_path / "exception-saved" / "last.ckpt")
    state = saved["callbacks"]["GWACallback{'prefix': 'train/'}"]
    assert saved["global_step"] == 15
    assert (len(state["monitor"]["history"]), state["monitor"]["epoch"], state["open"]) == (
        2,
        None,
        None,
    )
