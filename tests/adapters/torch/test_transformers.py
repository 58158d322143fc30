"""The callback of the Trainer: real models, real runs, stopped, killed and resumed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from backends import require

torch = require("torch")
transformers = require("transformers")
require("accelerate")

from models import oracle
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

import gwa_core
import gwa_torch
from gwa_core import (
    BestMetric,
    EpochAverage,
    LabelWave,
    MaxGWA,
    MaxSeparation,
    Moments,
    average_shares,
    select_epoch,
    select_step,
    summarize,
)
from gwa_offline.store import RunFolder
from gwa_torch._checkpoints import STATE_NAME
from gwa_torch.transformers import GWACallback

PLACES = [str(Path(p.__file__).parent.parent) for p in (gwa_core, gwa_torch)]
ROWS, SIZE, LENGTH, WORDS, CLASSES = 40, 8, 6, 20, 4
STEPS = ROWS // SIZE
PAD = 0


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rows(Dataset):
    """Random tokens; `labels` says what is to be predicted of them."""

    def __init__(self, labels="one", ids=True):
        generator = torch.Generator().manual_seed(0)
        random = lambda *size: torch.randint(CLASSES, size, generator=generator)  # noqa: E731
        self.x = torch.randint(3, WORDS, (ROWS, LENGTH), generator=generator)
        hidden = torch.rand(ROWS, LENGTH, generator=generator) < 0.3
        self.y = {
            # Not by chance: what cannot be learned has no healthy epochs.
            "one": self.x[:, 0] % CLASSES,
            "many": random(ROWS, CLASSES) % 2 * 1.0,
            "tokens": random(ROWS, LENGTH).masked_fill(hidden, -100),
            "words": self.x.masked_fill(hidden, -100),
        }[labels]
        # Padding on the right, and in every third row on the left.
        for row, size in enumerate(torch.randint(2, LENGTH, (ROWS,), generator=generator)):
            self.x[row, slice(size, None) if row % 3 else slice(1, LENGTH - size)] = PAD
        self.ids = torch.arange(self.y.numel()).view(self.y.shape) if self.y.ndim == 2 else None
        if labels in ("one", "many"):
            self.ids = torch.arange(ROWS)
        self.with_ids = ids

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        row = {"input_ids": self.x[i], "labels": self.y[i], "text": "not for the model"}
        return row | ({"ids": self.ids[i]} if self.with_ids else {})


def bert(kind, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": WORDS, "num_labels": CLASSES}
    return kind(BertConfig(**(sizes | options)))


def gpt(kind, **options):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LENGTH}
    sizes |= {"vocab_size": WORDS, "num_labels": CLASSES, "pad_token_id": PAD}
    return kind(GPT2Config(**(sizes | options)))


MODELS = {
    "sequence": lambda **o: bert(BertForSequenceClassification, **o),
    "token": lambda **o: bert(BertForTokenClassification, **o),
    "masked": lambda **o: bert(BertForMaskedLM, **o),
    "causal": lambda **o: gpt(GPT2LMHeadModel, **o),
    "decoder": lambda **o: gpt(GPT2ForSequenceClassification, **o),
}
LABELS = {"token": "tokens", "masked": "words", "causal": "words"}
HEADS = {
    "sequence": lambda model: model.classifier,
    "token": lambda model: model.classifier,
    "masked": lambda model: model.cls.predictions.decoder,
    "causal": lambda model: model.lm_head,
    "decoder": lambda model: model.score,
}


def make(
    folder, model="sequence", *, labels=None, ids=True, kind=Trainer, seed=0, config=None, **options
):
    """Return a trainer; options that are not its own are arguments of the training."""
    torch.manual_seed(seed)
    own = {
        name: options.pop(name)
        for name in ("compute_loss_func", "callbacks", "eval_dataset", "data_collator")
        if name in options
    }
    arguments = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": SIZE,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "log_level": "error",
    }
    args = TrainingArguments(str(folder), **(arguments | options))
    data = Rows(labels or LABELS.get(model, "one"), ids)
    return kind(MODELS[model](**(config or {})), args, train_dataset=data, **own)


def watch(trainer, num_samples=None, **options):
    gwa = GWACallback(trainer, num_samples=num_samples, **options)
    trainer.add_callback(gwa)
    return gwa


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def logged(trainer):
    return [row for row in trainer.state.log_history if "gwa" in row]


def numbers(history):
    return [[x for x in summary if x is not None] for summary in history]


class Recorder:
    """What the head saw in training, and the batches, in order."""

    def __init__(self, trainer, head):
        self.passes, self.batches, self.made = [], [], set()
        head.register_forward_hook(self.keep)
        collate = trainer.data_collator

        def collator(features):
            self.batches.append(collate(features))
            return dict(self.batches[-1])

        trainer.data_collator = collator

    def keep(self, head, inputs, output):
        if head.training:
            bias = None if head.bias is None else head.bias.detach().clone()
            self.made.add(output.dtype)
            self.passes.append((inputs[0].detach(), head.weight.detach().clone(), bias))

    def scores(self, size, targets=lambda batch: batch["labels"], rows=lambda x, _: x, **options):
        """The oracle's score for each id."""
        scores = torch.full((size,), torch.nan, dtype=torch.float64)
        assert len(self.passes) == len(self.batches)
        for (latents, weight, bias), batch in zip(self.passes, self.batches, strict=True):
            latents, wanted = rows(latents, batch), targets(batch)
            flat = wanted.flatten() if not wanted.is_floating_point() else wanted
            counted = flat != -100 if flat.ndim == 1 else torch.ones(len(flat), dtype=torch.bool)
            latents = latents.reshape(len(flat), -1)[counted]
            found = oracle(latents, weight, bias, flat[counted], **options)
            scores[batch["ids"].flatten()[counted]] = found
        return scores


def following(batch):
    """Each token has to predict the next one."""
    return F.pad(batch["labels"][:, 1:], (0, 1), value=-100)


def last(latents, batch):
    """The rightmost token that is no padding."""
    places = torch.arange(LENGTH) * (batch["input_ids"] != PAD)
    return latents[torch.arange(len(latents)), places.argmax(-1)]


CASES = {
    "sequence": ("sequence", {}, {}),
    "accumulated": ("sequence", {"gradient_accumulation_steps": 2}, {}),
    "smoothed": ("sequence", {"label_smoothing_factor": 0.2}, {"label_smoothing": 0.2}),
    "multi-label": ("sequence", {"labels": "many"}, {"loss": "binary_cross_entropy"}),
    "token": ("token", {}, {}),
    "masked": ("masked", {}, {}),
    "causal": ("causal", {}, {"targets": following}),
    "causal smoothed": (
        "causal",
        {"label_smoothing_factor": 0.2},
        {"targets": following, "label_smoothing": 0.2},
    ),
    "decoder": ("decoder", {}, {"rows": last}),
    "decoder smoothed": (
        "decoder",
        {"label_smoothing_factor": 0.2},
        {"rows": last, "label_smoothing": 0.2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_autograd_at_the_weights_of_the_step(case, tmp_path):
    name, options, expected = CASES[case]
    trainer = make(tmp_path, name, num_train_epochs=1, **options)
    size = trainer.train_dataset.y.numel() if name in LABELS else ROWS
    recorder = Recorder(trainer, HEADS[name](trainer.model))
    gwa = watch(trainer, size)
    before = HEADS[name](trainer.model).weight.detach().clone()
    trainer.train()
    wanted = recorder.scores(size, **expected)
    assert not torch.equal(before, HEADS[name](trainer.model).weight)
    assert_allclose(gwa.scores, wanted, atol=1e-5)
    seen = wanted[wanted.isfinite()].numpy()
    assert gwa.history[0].count == len(seen) > 0
    assert_allclose(gwa.history[0].mean, seen.mean(), atol=1e-6)


@pytest.mark.parametrize("name", ["sequence", "causal", "decoder"])
def test_bf16(name, tmp_path):
    trainer = make(tmp_path, name, num_train_epochs=1, bf16=True)
    size = trainer.train_dataset.y.numel() if name in LABELS else ROWS
    recorder = Recorder(trainer, HEADS[name](trainer.model))
    gwa = watch(trainer, size)
    trainer.train()
    expected = CASES[name][2]
    assert recorder.made == {torch.bfloat16}
    assert_allclose(gwa.scores, recorder.scores(size, **expected), atol=2e-2)


@pytest.mark.parametrize("name", ["token", "causal"])
def test_moments_without_ids(name, tmp_path):
    trainer = make(tmp_path / "a", name, num_train_epochs=2)
    by_sample = watch(trainer, trainer.train_dataset.y.numel())
    trainer.train()
    trainer = make(tmp_path / "b", name, num_train_epochs=2, ids=False)
    by_stream = watch(trainer)
    trainer.train()
    assert_allclose(numbers(by_stream.history), numbers(by_sample.history), rtol=1e-6)


class Weighted(Trainer):
    """A loss of one's own, in the usual way."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.arange(1.0, CLASSES + 1)
        loss = F.cross_entropy(outputs.logits, labels, weight)
        return (loss, outputs) if return_outputs else loss


class Exact(Trainer):
    """It takes what the trainer itself hands over, and nothing more."""

    def compute_loss(self, model, inputs, **more):
        assert set(more) == {"num_items_in_batch"}
        assert "ids" not in inputs
        return super().compute_loss(model, inputs, **more)


class Blunt(Trainer):
    """It only trains, and forgets about outputs."""

    def compute_loss(self, model, inputs, num_items_in_batch=None, **ignored):
        return model(**inputs).loss


def own_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sequence", {"gradient_accumulation_steps": 3}),
        ("causal", {"gradient_accumulation_steps": 3}),
        ("causal", {"gradient_accumulation_steps": 3, "label_smoothing_factor": 0.1}),
        ("token", {"bf16": True}),
        ("sequence", {"compute_loss_func": own_loss, "gradient_accumulation_steps": 3}),
        ("sequence", {"kind": Weighted}),
        ("sequence", {"kind": Blunt}),
        ("sequence", {"kind": Exact}),
        ("decoder", {"kind": Exact}),
    ],
    ids=[
        "plain",
        "causal",
        "smoothed",
        "bf16",
        "compute_loss_func",
        "subclass",
        "blunt",
        "exact",
        "decoder",
    ],
)
def test_the_training_is_the_same_with_and_without(name, options, tmp_path):
    numbered = options.get("kind") is Exact
    passes = []
    count = lambda *_: passes.append(1)  # noqa: E731
    bare = make(tmp_path, name, ids=False, **options)
    bare.model.register_forward_hook(count)
    bare.train()
    alone = len(passes)
    watched = make(tmp_path, name, ids=not numbered, **options)
    watched.model.register_forward_hook(count)
    size = ROWS if numbered else watched.train_dataset.ids.numel()
    watch(watched, size).trainer.train()
    assert losses(bare) == losses(watched)
    assert len(losses(bare)) > 3
    assert len(passes) == 2 * alone
    other = watched.model.state_dict()
    assert all(torch.equal(x, other[name]) for name, x in bare.model.state_dict().items())


def test_options_describe_a_loss_of_ones_own(tmp_path):
    def smooth(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs.logits, labels, label_smoothing=0.3)

    trainer = make(tmp_path, compute_loss_func=smooth, num_train_epochs=1)
    recorder = Recorder(trainer, trainer.model.classifier)
    gwa = watch(trainer, ROWS, label_smoothing=0.3)
    trainer.train()
    assert_allclose(gwa.scores, recorder.scores(ROWS, label_smoothing=0.3), atol=1e-5)


def test_evaluation_in_between_does_not_count(tmp_path):
    # The loader of an evaluation draws a random number, and dropout would then differ.
    still = {"config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    plain = make(tmp_path, **still)
    alone = watch(plain, ROWS)
    plain.train()
    trainer = make(tmp_path, eval_dataset=Rows(), eval_strategy="steps", eval_steps=2, **still)
    gwa = watch(trainer, ROWS)
    trainer.train()
    assert numbers(gwa.history) == numbers(alone.history)
    assert [summary.count for summary in gwa.history] == [ROWS] * 3
    before = gwa.scores.clone()
    assert trainer.evaluate()["eval_loss"] > 0
    assert torch.equal(gwa.scores, before)


def test_numbers_reach_the_log_and_every_callback(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.extend([dict(logs)] if "demo/gwa" in logs else [])

    # Before the adapter, as integrations are.
    trainer = make(tmp_path, callbacks=[Tracker()], logging_strategy="epoch")
    gwa = watch(trainer, prefix="demo/", signals=["margin", "el2n"])
    trainer.train()
    history = [row for row in trainer.state.log_history if "demo/gwa" in row]
    assert [row["demo/gwa"] for row in seen] == [s.gwa for s in gwa.history]
    assert [row["demo/gwa_mean"] for row in history] == [s.mean for s in gwa.history]
    for name in ("margin", "el2n"):
        means = [one[name] for one in gwa.monitor.signals.history]
        assert [row[f"demo/{name}"] for row in history] == means
    assert [row["step"] for row in history] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [summary.step for summary in gwa.history] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert len(losses(trainer)) == 3


class Weights(TrainerCallback):
    """A copy of the model at the end of each epoch."""

    def __init__(self):
        self.kept = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.kept.append(copy.deepcopy(model.state_dict()))


# Keeps its first epoch after the warm-up, whatever follows.
KEEPS_SECOND = MaxGWA(warmup=1, patience=2, min_delta=100.0)


@pytest.mark.parametrize(
    ("name", "saving", "limit"),
    [
        ("sequence", {}, None),
        ("causal", {}, 1),
        ("sequence", {"save_strategy": "steps", "save_steps": 2}, 1),
        ("causal", {"save_strategy": "steps", "save_steps": 2}, 2),
    ],
)
def test_the_rule_stops_and_the_best_epoch_is_restored(name, saving, limit, tmp_path):
    weights = Weights()
    options = {"num_train_epochs": 8, "save_total_limit": limit, **saving}
    trainer = make(tmp_path, name, callbacks=[weights], ids=False, **options)
    gwa = watch(trainer, rule=KEEPS_SECOND)
    trainer.train()
    assert (gwa.best_epoch, len(gwa.history), len(weights.kept)) == (1, 4, 4)
    assert "no improvement in 2" in gwa.stopping_reason
    assert trainer.state.global_step == 4 * STEPS
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[1].items())
    assert not all(torch.equal(x, now[key]) for key, x in weights.kept[3].items())
    folders = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert f"checkpoint-{2 * STEPS}" in folders
    assert limit is None or len(folders) <= limit
    assert trainer.state.best_metric == gwa.history[1].gwa
    assert [row.get("gwa_best_epoch") for row in logged(trainer)] == [None, 1, 1, 1]
    assert all(
        row["gwa_healthy"] == s.healthy for row, s in zip(logged(trainer), gwa.history, strict=True)
    )


@pytest.mark.slow
def test_a_tracker_shows_the_scores(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make(tmp_path, num_train_epochs=2, report_to=["tensorboard"])
    gwa = watch(trainer, ROWS)
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    seen = EventAccumulator(str(folder), {"histograms": 0}).Reload()
    shown = seen.Histograms("train/gwa_scores")
    assert [event.step for event in shown] == [STEPS, 2 * STEPS]
    assert shown[-1].histogram_value.num == ROWS
    assert shown[-1].histogram_value.max == pytest.approx(float(gwa.scores.max()))
    assert [event.value for event in seen.Scalars("train/gwa")] == pytest.approx(
        [summary.gwa for summary in gwa.history]
    )


def test_a_rule_may_stop_only(tmp_path):
    weights = Weights()
    trainer = make(tmp_path, callbacks=[weights], num_train_epochs=8)
    gwa = watch(trainer, rule=KEEPS_SECOND, keep="last")
    trainer.train()
    assert len(gwa.history) == 4
    assert not list(tmp_path.iterdir())
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[-1].items())


def test_a_rule_on_a_signal_stops_where_the_stored_history_says(tmp_path):
    rule, weights = LabelWave(window=2), Weights()
    trainer = make(tmp_path, callbacks=[weights], num_train_epochs=30, save_total_limit=1)
    options = {"signals": "prediction_changes", "run_folder": tmp_path / "run"}
    gwa = watch(trainer, ROWS, rule=rule, **options)
    trainer.train()
    stored = [
        {**summary._asdict(), **metrics}
        for summary, metrics in RunFolder.open(tmp_path / "run").epochs()
    ]
    kept = [
        {**summary._asdict(), **means}
        for summary, means in zip(gwa.history, gwa.monitor.signals.history, strict=True)
    ]
    expected = select_epoch(stored, rule)
    assert select_epoch(kept, rule) == expected
    assert "stopped at step" in gwa.stopping_reason
    assert (gwa.best_epoch, gwa.stopping_reason) == (expected.step, expected.reason)
    assert 0 < gwa.best_epoch < len(gwa.history) < 30
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[gwa.best_epoch].items())


def values_of(trainer, metric):
    """The last value of a metric in each epoch that has one, by epoch."""
    found = {}
    for row in trainer.state.log_history:
        if metric in row:
            found[(row["step"] - 1) // STEPS] = row[metric]
    return found


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("eval_loss", {"eval_strategy": "epoch"}),
        # Twice an epoch, at its end and not.
        ("eval_loss", {"eval_strategy": "steps", "eval_steps": 1}),
        ("eval_loss", {"eval_strategy": "steps", "eval_steps": 3}),
        # In every second epoch.
        ("eval_loss", {"eval_strategy": "steps", "eval_steps": 2 * STEPS}),
        ("loss", {"logging_strategy": "epoch"}),
        ("loss", {"logging_steps": 2}),
        # Logged at the last step of the epoch already, and not at its end again.
        ("loss", {"logging_steps": STEPS}),
        # A number of the callback's own, as it is logged.
        ("gwa_kurtosis", {"logging_strategy": "epoch"}),
    ],
    ids=[
        "epochs",
        "steps",
        "odd steps",
        "every second epoch",
        "loss",
        "loss of steps",
        "loss of last steps",
        "own",
    ],
)
def test_a_rule_on_a_logged_metric(metric, options, tmp_path):
    rule, weights = BestMetric(metric=metric, mode="min", patience=2), Weights()
    # A third of its labels is wrong, so that its loss does not fall for ever.
    held_out = Rows()
    held_out.y[::3] = held_out.y[::3].roll(1)
    trainer = make(
        tmp_path, callbacks=[weights], num_train_epochs=30, eval_dataset=held_out, **options
    )
    gwa = watch(trainer, rule=rule)
    trainer.train()
    found = values_of(trainer, metric)
    expected = select_step(found.values(), rule, steps=list(found), total_steps=30)
    assert (gwa.best_epoch, gwa.stopper.reason) == (expected.step, expected.reason)
    assert "stopped at step" in gwa.stopping_reason
    assert gwa.stopper.best_value == trainer.state.best_metric == expected.value
    assert len(gwa.history) == max(found) + 1 < 30
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[gwa.best_epoch].items())


@pytest.mark.parametrize(
    ("metric", "options", "there"),
    [
        ("eval_acuracy", {"eval_strategy": "epoch"}, "eval_loss"),
        ("eval_loss", {}, "gwa"),
        ("train_acc", {"eval_strategy": "epoch"}, "loss"),
        ("nothing", {"logging_strategy": "epoch"}, "loss"),
    ],
)
def test_a_metric_that_is_nowhere_raises_after_the_first_epoch(metric, options, there, tmp_path):
    trainer = make(tmp_path, eval_dataset=Rows(), **options)
    gwa = watch(trainer, rule=BestMetric(metric=metric))
    message = rf"the column '{metric}' that BestMetric watches, got .*\b{there}\b"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert len(gwa.history) == 1


def test_a_signal_that_is_not_followed_raises_before_the_first_batch(tmp_path):
    trainer = make(tmp_path)
    gwa = watch(trainer, ROWS, rule=LabelWave(), signals="margin")
    with pytest.raises(ValueError, match="'prediction_changes', got margin; say GWACallback"):
        trainer.train()
    assert gwa.history == []


def test_a_metric_whose_evaluation_never_came_is_said(tmp_path):
    late = {"eval_dataset": Rows(), "eval_strategy": "epoch", "eval_delay": 9}
    trainer = make(tmp_path, **late)
    gwa = watch(trainer, rule=BestMetric(metric="eval_loss"))
    with pytest.warns(UserWarning, match="watches 'eval_loss', which no evaluation has logged"):
        trainer.train()
    assert (gwa.best_epoch, gwa.stopping_reason) == (None, None)


# Better in every epoch than before: it keeps the last one that it may.
LATER = BestMetric(metric="step", warmup=0)


@pytest.mark.parametrize("num_samples", [ROWS, None], ids=["ids", "moments"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 4.2},
        {"max_steps": 4 * STEPS + 1},
        {"num_train_epochs": 4.2, "gradient_accumulation_steps": 2},
    ],
    ids=["epochs", "steps", "accumulated"],
)
def test_an_epoch_cut_short_is_not_kept(options, num_samples, tmp_path):
    weights = Weights()
    trainer = make(tmp_path, callbacks=[weights], **options)
    gwa = watch(trainer, num_samples, rule=LATER)
    trainer.train()
    *whole, last = [(summary.count, summary.expected) for summary in gwa.history]
    assert whole == [(ROWS, ROWS)] * 4
    assert last[0] < ROWS / 2
    assert last[1] == ROWS
    assert gwa.best_epoch == 3
    assert "1 cut short left out" in gwa.stopper.reason
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[3].items())


def test_a_mask_of_labels_and_replacement_make_no_epoch_short(tmp_path):
    class Drawn(Trainer):
        def _get_train_sampler(self, *args):
            generator = torch.Generator().manual_seed(0)
            return torch.utils.data.WeightedRandomSampler(
                torch.ones(ROWS), ROWS, generator=generator
            )

    trainer = make(tmp_path, "token", kind=Drawn)
    gwa = watch(trainer, trainer.train_dataset.y.numel(), rule=LATER)
    trainer.train()
    assert all(s.count == s.expected < 0.7 * gwa.num_samples for s in gwa.history)
    assert gwa.best_epoch == 2


@pytest.mark.parametrize("kept_ids", [True, False])
def test_the_run_folder_says_the_loss_that_was_used(kept_ids, tmp_path):
    # The model infers the kind of its problem from the first labels.
    trainer = make(tmp_path, labels="many", num_train_epochs=1)
    assert trainer.model.config.problem_type is None
    gwa = watch(trainer, ROWS if kept_ids else None, run_folder=tmp_path / "run")
    trainer.train()
    assert trainer.model.config.problem_type == "multi_label_classification"
    assert RunFolder.open(tmp_path / "run").loss == "binary_cross_entropy"
    assert gwa.monitor.options.loss == "binary_cross_entropy"


def test_several_labels_have_no_signals(tmp_path):
    trainer = make(tmp_path, labels="many")
    watch(trainer, ROWS, signals="margin")
    with pytest.raises(ValueError, match=r"one label a sample, got .* C = 4 outputs"):
        trainer.train()


def test_the_callback_has_the_quality_of_the_labels(tmp_path):
    trainer = make(tmp_path, num_train_epochs=3)
    gwa = watch(trainer, ROWS, run_folder=tmp_path / "run")
    assert gwa.label_quality is None
    trainer.train()
    run = RunFolder.open(tmp_path / "run")
    history = torch.stack([torch.tensor(run.scores(epoch)) for epoch in range(3)])
    assert_allclose(gwa.label_quality, gwa_core.label_quality(history.double()), rtol=1e-5)
    predictions = [run.predictions(epoch) for epoch in range(3)]
    assert all(set(classes) <= {0, 1, 2, 3} for classes in predictions)
    agrees = [(classes == run.targets()).mean() for classes in predictions]
    assert agrees[2] > max(agrees[0], 0.5)


class KilledError(Exception):
    """The machine went away."""


class Killer(TrainerCallback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def on_step_end(self, args, state, control, **kwargs):
        self.strike("step", state)

    def on_save(self, args, state, control, **kwargs):
        self.strike("save", state)

    def strike(self, event, state):
        if (event, state.global_step) == (self.event, self.step):
            raise KilledError


def killed_and_resumed(folder, event, step, options, **gwa):
    trainer = make(folder, **options)
    watch(trainer, **gwa)
    trainer.add_callback(Killer(event, step))
    with pytest.raises(KilledError):
        trainer.train()
    # A new process has other weights and another state of the random numbers.
    trainer = make(folder, seed=99, **options)
    watched = watch(trainer, **gwa)
    trainer.train(resume_from_checkpoint=True)
    return trainer, watched


@pytest.fixture(scope="module", params=[ROWS, None], ids=["by sample", "moments"])
def uninterrupted(request, tmp_path_factory):
    own = {"num_samples": request.param, "rule": KEEPS_SECOND, "signals": ["margin"]}
    trainer = make(tmp_path_factory.mktemp("whole"), num_train_epochs=8)
    gwa = watch(trainer, **own)
    trainer.train()
    return trainer, gwa, own


@pytest.mark.parametrize(
    ("saving", "event", "step"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, "step", 4),
        ({"save_strategy": "steps", "save_steps": 1}, "step", 14),
        ({"save_strategy": "epoch"}, "step", 13),
        # The last step of an epoch is saved, and the epoch not ended.
        ({"save_strategy": "steps", "save_steps": 5}, "save", 5),
        # The rule has stopped at step 20, and the machine goes away before the end.
        ({"save_strategy": "epoch"}, "save", 20),
        ({"save_strategy": "steps", "save_steps": 20}, "save", 20),
    ],
)
def test_a_killed_run_resumes_to_the_same_end(saving, event, step, uninterrupted, tmp_path):
    whole, wanted, own = uninterrupted
    options = {"num_train_epochs": 8, **saving}
    trainer, got = killed_and_resumed(tmp_path, event, step, options, **own)
    assert len(wanted.history) == 4
    assert numbers(got.history) == numbers(wanted.history)
    assert got.stopper.state_dict() == wanted.stopper.state_dict()
    assert logged(trainer) == logged(whole)
    end, other = trainer.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(x, other[key]) for key, x in end.items())
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{2 * STEPS}"


def test_accumulated_steps_resume_within_an_epoch(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    whole = make(tmp_path / "whole", **options)
    wanted = watch(whole, ROWS)
    whole.train()
    _, got = killed_and_resumed(tmp_path / "killed", "step", 5, options, num_samples=ROWS)
    assert numbers(got.history) == numbers(wanted.history)
    assert_allclose(got.scores, wanted.scores, atol=0)


class Images(Dataset):
    """The first of four pixels says the label."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        pixels = torch.tensor([i % CLASSES, *divmod(i, 7), 1]).view(1, 2, 2) / CLASSES
        return {"pixel_values": pixels, "labels": i % CLASSES, "ids": i}


@pytest.mark.parametrize("sharded", [False, True])
def test_models_that_are_saved_under_other_names(sharded, tmp_path, monkeypatch):
    """A ViT, whose weights the trainer itself neither resumes nor restores in Transformers 5."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "image_size": 2, "patch_size": 1, "num_channels": 1}

    def begin(folder, seed=0):
        torch.manual_seed(seed)
        model = ViTForImageClassification(ViTConfig(num_labels=CLASSES, **sizes))
        if sharded:
            save = model.save_pretrained
            model.save_pretrained = lambda *a, **k: save(*a, **(k | {"max_shard_size": "9KB"}))
        args = make(folder, num_train_epochs=8, save_strategy="steps", save_steps=3).args
        trainer = Trainer(model, args, train_dataset=Images())
        weights = Weights()
        trainer.add_callback(weights)
        return trainer, watch(trainer, ROWS, rule=KEEPS_SECOND), weights

    whole, wanted, weights = begin(tmp_path / "whole")
    whole.train()
    assert wanted.best_epoch == 1
    now = whole.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[1].items())

    trainer, _, _ = begin(tmp_path / "killed")
    trainer.add_callback(Killer("step", 8))
    with pytest.raises(KilledError):
        trainer.train()
    trainer, got, _ = begin(tmp_path / "killed", seed=99)
    trainer.train(resume_from_checkpoint=True)
    assert numbers(got.history) == numbers(wanted.history)
    assert all(torch.equal(x, now[key]) for key, x in trainer.model.state_dict().items())


def test_scores_and_run_folder_of_a_resumed_run(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    own = {"num_samples": ROWS, "run_folder": tmp_path / "run", "signals": "forgetting_events"}
    _, gwa = killed_and_resumed(tmp_path / "killed", "step", 7, options, **own)
    epochs = list(RunFolder.open(tmp_path / "run").epochs())
    assert [summary.gwa for summary, _ in epochs] == [s.gwa for s in gwa.history]
    assert len(epochs) == 3
    assert [metrics for _, metrics in epochs][-1] == gwa.monitor.signals.history[-1]
    trainer = make(tmp_path / "killed", **options)
    watch(trainer, **own)
    with pytest.raises(ValueError, match="`run_folder` must be new"):
        trainer.train()


def test_an_epoch_that_begins_anew_counts_once(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "ignore_data_skip": True}
    _, gwa = killed_and_resumed(tmp_path, "step", 4, options)
    # The trainer makes 15 steps in all, 3 of them before it was killed.
    assert [summary.count for summary in gwa.history] == [ROWS, ROWS, 2 * SIZE]


def test_resuming_what_cannot_be_resumed(tmp_path):
    options = {"save_strategy": "epoch", "num_train_epochs": 2}
    make(tmp_path / "bare", **options).train()
    trainer = make(tmp_path / "bare", **options)
    watch(trainer)
    with pytest.raises(ValueError, match=f"{STATE_NAME}, got none in .*checkpoint-10"):
        trainer.train(resume_from_checkpoint=True)

    trainer = make(tmp_path / "rule", **options)
    watch(trainer, rule=MaxGWA(warmup=0))
    trainer.train()
    for own, message in [
        ({}, "`rule` must be the one of the resumed run"),
        ({"rule": MaxGWA(warmup=1)}, "rule"),
        ({"rule": MaxGWA(warmup=0), "num_samples": ROWS}, "num_samples"),
    ]:
        trainer = make(tmp_path / "rule", **options)
        watch(trainer, **own)
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=str(tmp_path / "rule" / "checkpoint-5"))


def test_a_moved_folder_resumes_and_a_lost_best_checkpoint_is_told(tmp_path):
    options = {"num_train_epochs": 3, "save_strategy": "epoch"}
    rule = MaxGWA(warmup=0, min_delta=100.0)
    trainer = make(tmp_path / "here", **options)
    watch(trainer, rule=rule)
    trainer.train()
    (tmp_path / "here").rename(tmp_path / "there")
    trainer = make(tmp_path / "new", seed=5, **(options | {"num_train_epochs": 4}))
    gwa = watch(trainer, rule=rule)
    trainer.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-10"))
    assert (gwa.best_epoch, len(gwa.history)) == (0, 4)
    assert Path(trainer.state.best_model_checkpoint) == tmp_path / "there" / "checkpoint-5"

    (tmp_path / "there" / "checkpoint-5").rename(tmp_path / "lost")
    trainer = make(tmp_path / "new", **options)
    watch(trainer, rule=rule)
    with pytest.raises(ValueError, match="beside the checkpoint of the best epoch, checkpoint-5"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-10"))


def test_a_second_training_begins_anew(tmp_path):
    trainer = make(tmp_path, num_train_epochs=2)
    gwa = watch(trainer, ROWS)
    trainer.train()
    first = numbers(gwa.history)
    trainer.train()
    assert len(gwa.history) == 2
    assert numbers(gwa.history) != first


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        return iter(list(Rows(ids=False)))


def forgetful(features):
    batch = default_data_collator(features)
    return {key: batch[key] for key in ("input_ids", "labels")}


def test_missing_ids_are_told(tmp_path):
    trainer = make(tmp_path, ids=False, max_steps=3)
    trainer.train_dataset = Stream()
    watch(trainer, ROWS)
    with pytest.raises(ValueError, match="`ids` must be in every training batch as 'ids', got inp"):
        trainer.train()


def test_rows_are_numbered_past_the_collator(tmp_path):
    trainer = make(tmp_path / "column", num_train_epochs=1)
    wanted = watch(trainer, ROWS)
    trainer.train()
    for ids in (False, True):
        trainer = make(tmp_path / str(ids), ids=ids, num_train_epochs=1, data_collator=forgetful)
        seen = set()
        trainer.model.register_forward_pre_hook(
            lambda *call, seen=seen: seen.update(call[2]), with_kwargs=True
        )
        gwa = watch(trainer, ROWS)
        trainer.train()
        assert torch.equal(gwa.scores, wanted.scores)
        assert "input_ids" in seen
        assert "ids" not in seen


@pytest.mark.slow
def test_rows_are_numbered_in_workers(tmp_path):
    trainer = make(tmp_path / "a", num_train_epochs=1)
    wanted = watch(trainer, ROWS)
    trainer.train()
    trainer = make(tmp_path / "b", ids=False, num_train_epochs=1, dataloader_num_workers=2)
    gwa = watch(trainer, ROWS)
    trainer.train()
    assert torch.equal(gwa.scores, wanted.scores)


def test_numbers_and_labels_of_a_run_that_was_killed_in_its_first_epoch(tmp_path):
    options = {"ids": False, "save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2}
    whole = make(tmp_path / "whole", **options)
    wanted = watch(whole, ROWS)
    whole.train()
    own = {"num_samples": ROWS, "run_folder": tmp_path / "run"}
    _, got = killed_and_resumed(tmp_path / "killed", "step", 4, options, **own)
    assert numbers(got.history) == numbers(wanted.history)
    assert torch.equal(got.scores, wanted.scores)
    assert stored(tmp_path / "run") == Rows().y.tolist()


def ragged(causal=False):
    """Rows of several lengths, without padding."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, LENGTH + 1, (ROWS,), generator=generator).tolist()
    rows = [torch.randint(3, WORDS, (size,), generator=generator).tolist() for size in sizes]
    shorter = (lambda row: row) if causal else (lambda row: row[: 1 + len(row) // 2])
    return [{"input_ids": row, "labels": shorter(row)} for row in rows]


def tokenizer(side="right"):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": PAD} | {f"w{i}": i for i in range(1, WORDS)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<pad>")),
        pad_token="<pad>",  # noqa: S106  # no password
        padding_side=side,
    )


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    more = {"pad_token_id": PAD, "eos_token_id": 1, "decoder_start_token_id": PAD}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=WORDS, tie_word_embeddings=False, **sizes, **more)
    )


COLLATORS = {
    "flattening": lambda: transformers.DataCollatorWithFlattening(),
    "padding left": lambda: transformers.DataCollatorForSeq2Seq(tokenizer("left")),
    "padding": lambda: transformers.DataCollatorForSeq2Seq(tokenizer()),
    "seq2seq": lambda: transformers.DataCollatorForSeq2Seq(tokenizer()),
}


@pytest.mark.filterwarnings("ignore:Using .DataCollatorWithFlattening.:UserWarning")
@pytest.mark.parametrize("case", COLLATORS)
def test_tokens_are_numbered_by_row_and_place(case, tmp_path):
    made = make(tmp_path, "causal", num_train_epochs=1)
    rows = ragged(causal=case != "seq2seq")
    model = t5() if case == "seq2seq" else gpt(GPT2LMHeadModel, n_positions=SIZE * LENGTH)
    trainer = Trainer(model, made.args, train_dataset=rows, data_collator=COLLATORS[case]())
    gwa = watch(trainer, ROWS * LENGTH)
    trainer.train()
    found = gwa.scores.view(ROWS, LENGTH).isfinite()
    for row, seen in zip(rows, found, strict=True):
        predicted = len(row["labels"]) - (case != "seq2seq")
        assert seen.tolist() == [place < predicted for place in range(LENGTH)]
    assert gwa.history[0].count == found.sum()


def test_numbers_that_do_not_fit_are_told(tmp_path):
    trainer = make(tmp_path, "causal", ids=False)
    watch(trainer, ROWS + 1)
    with pytest.raises(
        ValueError, match=f"rows, {ROWS}, got {ROWS + 1}; .* at least {ROWS} × {LENGTH}"
    ):
        trainer.train()

    trainer = make(tmp_path)
    rows = [{key: row[key] for key in ("input_ids", "labels")} for row in Rows()]
    trainer.train_dataset = [row | {"ids": f"a{i}"} for i, row in enumerate(rows)]
    watch(trainer, ROWS)
    with pytest.raises(
        ValueError, match=r"got 'a\d+' in the column 'ids'; number the samples 0..N-1"
    ):
        trainer.train()


def test_ids_of_another_name_and_kept_columns(tmp_path):
    trainer = make(tmp_path, remove_unused_columns=False, num_train_epochs=1)
    trainer.data_collator = lambda rows: {
        **default_data_collator([{k: row[k] for k in ("input_ids", "labels")} for row in rows]),
        "sample": torch.stack([row["ids"] for row in rows]),
    }
    gwa = watch(trainer, ROWS, ids="sample")
    trainer.train()
    assert gwa.history[0].count == ROWS


class Capped(GPT2LMHeadModel):
    """A soft cap that bends every logit."""

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None):
        out = super().forward(input_ids)
        out.logits = torch.tanh(out.logits / 0.1) * 0.1
        out.loss = self.loss_function(out.logits, labels, vocab_size=WORDS)
        return out


def test_logits_that_the_model_changes(tmp_path):
    made = make(tmp_path, "causal", num_train_epochs=1)
    trainer = Trainer(gpt(Capped), made.args, train_dataset=made.train_dataset)
    recorder = Recorder(trainer, trainer.model.lm_head)
    gwa = watch(trainer, trainer.train_dataset.ids.numel())
    with pytest.warns(UserWarning, match="a temperature, scale or soft cap after the head"):
        trainer.train()
    for (latents, weight, _), batch in zip(recorder.passes, recorder.batches, strict=True):
        targets, weight = following(batch), weight.double().requires_grad_()
        # One of each batch.
        row, place = (targets != -100).nonzero()[0]
        logits = torch.tanh(latents[row, place].double() @ weight.T / 0.1) * 0.1
        loss = F.cross_entropy(logits, targets[row, place])
        (gradient,) = torch.autograd.grad(loss, weight)
        wanted = F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0)
        assert_allclose(gwa.scores[batch["ids"][row, place]], wanted.detach(), atol=1e-5)


def test_models_that_are_not_watched(tmp_path):
    for config, message in [
        ({"num_labels": 1}, "`problem_type` must be a classification, got None and 1 outputs"),
        ({"problem_type": "regression"}, "got 'regression' and 4 outputs"),
    ]:
        trainer = make(tmp_path, labels="many", config=config)
        watch(trainer)
        with pytest.raises(ValueError, match=message):
            trainer.train()

    config = trainer.model.config
    config.num_labels, config.problem_type = 2, None
    answers = [{"input_ids": x, "start_positions": 1, "end_positions": 2} for x in Rows().x]
    trainer = Trainer(BertForQuestionAnswering(config), trainer.args, train_dataset=answers)
    watch(trainer)
    with pytest.raises(ValueError, match="`labels` must be in every training batch"):
        trainer.train()

    trainer = make(tmp_path, "causal", ids=False)
    trainer = Trainer(gpt(Capped), trainer.args, train_dataset=trainer.train_dataset)
    watch(trainer, residual="formula")
    with pytest.raises(ValueError, match="`head` must make the logits of the model, got others"):
        trainer.train()


def test_other_heads_by_name(tmp_path):
    trainer = make(tmp_path)
    watch(trainer, head="bert.pooler.dense")
    with pytest.raises(ValueError, match="got others"):
        trainer.train()
    trainer = make(tmp_path)
    gwa = watch(trainer, head="classifier")
    trainer.train()
    assert gwa.monitor.head is trainer.model.classifier


class Own(nn.Module):
    """No model of Transformers at all."""

    def __init__(self):
        super().__init__()
        self.body = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(input_ids).mean(1))
        out = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return out | {"logits": logits}


def test_a_module_of_ones_own(tmp_path):
    trainer = make(tmp_path)
    trainer = Trainer(Own(), trainer.args, train_dataset=trainer.train_dataset)
    weights = Weights()
    trainer.add_callback(weights)
    gwa = watch(trainer, ROWS, rule=MaxGWA(warmup=0, min_delta=100.0))
    trainer.train()
    assert [summary.count for summary in gwa.history] == [ROWS] * 3
    assert torch.equal(trainer.model.head.weight, weights.kept[0]["head.weight"])
    # It takes no ids, with labels and without.
    assert trainer.predict(Rows()).predictions.shape == (ROWS, CLASSES)
    unlabelled = [{key: row[key] for key in ("input_ids", "ids")} for row in Rows()]
    assert trainer.predict(unlabelled).predictions.shape == (ROWS, CLASSES)


class Unlabelled(Own):
    """Its loss is of the logits alone."""

    def forward(self, input_ids):
        logits = super().forward(input_ids)["logits"]
        return {"loss": logits.logsumexp(-1).mean(), "logits": logits}


def test_a_loss_without_labels(tmp_path):
    rows = [{"input_ids": row["input_ids"]} for row in Rows()]
    args = make(tmp_path, num_train_epochs=1).args
    trainer = Trainer(Unlabelled(), args, train_dataset=rows)
    watch(trainer, ROWS)
    with pytest.raises(ValueError, match="A loss without labels is measured under residual='back"):
        trainer.train()
    trainer = Trainer(Unlabelled(), args, train_dataset=rows)
    recorder = Recorder(trainer, trainer.model.head)
    gwa = watch(trainer, ROWS, residual="backward", run_folder=tmp_path / "run")
    trainer.train()
    (latents, weight, bias), batch = recorder.passes[0], recorder.batches[0]
    weight = weight.double().requires_grad_()
    (gradient,) = torch.autograd.grad(
        F.linear(latents[0].double(), weight, bias.double()).logsumexp(0), weight
    )
    wanted = F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0).detach()
    row = [torch.equal(batch["input_ids"][0], row["input_ids"]) for row in rows].index(True)
    assert_allclose(gwa.scores[row], wanted, atol=1e-5)
    assert gwa.history[0].count == ROWS


class Halves(nn.Module):
    """A batch in two passes, put together again, as DataParallel does."""

    def __init__(self):
        super().__init__()
        self.inner = MODELS["sequence"]()

    def forward(self, input_ids, labels):
        logits = torch.cat([self.inner(part).logits for part in input_ids.split(SIZE // 2)])
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_batch_in_several_passes(tmp_path):
    trainer = make(tmp_path)
    trainer = Trainer(Halves(), trainer.args, train_dataset=trainer.train_dataset)
    recorder = Recorder(trainer, trainer.model.inner.classifier)
    gwa = watch(trainer, ROWS, head="inner.classifier")
    trainer.args.num_train_epochs = 1
    trainer.train()
    whole = recorder.batches
    recorder.batches = [
        {key: x.split(SIZE // 2)[half] for key, x in batch.items()}
        for batch in whole
        for half in (0, 1)
    ]
    assert_allclose(gwa.scores, recorder.scores(ROWS), atol=1e-5)


# Dynamo looks at the gradients of what it is handed between two graphs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_models(tmp_path):
    plain = make(tmp_path, "causal", num_train_epochs=1)
    wanted = watch(plain, plain.train_dataset.ids.numel())
    plain.train()
    torch.compiler.reset()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = make(tmp_path, "causal", num_train_epochs=1, **compiled)
    gwa = watch(trainer, trainer.train_dataset.ids.numel())
    trainer.train()
    assert trainer.model_wrapped is not trainer.model
    assert_allclose(gwa.scores, wanted.scores, atol=1e-6)


# PEFT 0.21 with Transformers 5.23.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "task"), [("sequence", "SEQ_CLS"), ("causal", "CAUSAL_LM")])
def test_adapters_of_peft(name, task, tmp_path):
    peft = pytest.importorskip("peft")
    made = make(tmp_path, name, num_train_epochs=6)
    layers = ["query"] if name == "sequence" else ["c_attn"]
    lora = peft.LoraConfig(
        task_type=task, target_modules=layers, r=2, fan_in_fan_out=name == "causal"
    )
    trainer = Trainer(
        peft.get_peft_model(made.model, lora), made.args, train_dataset=made.train_dataset
    )
    recorder = Recorder(trainer, HEADS[name](trainer.model.get_base_model()))
    weights, size = Weights(), trainer.train_dataset.ids.numel()
    trainer.add_callback(weights)
    gwa = watch(trainer, size, rule=KEEPS_SECOND)
    trainer.train()
    assert len(gwa.history) == 4
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[key]) for key, x in weights.kept[1].items())
    assert not all(torch.equal(x, now[key]) for key, x in weights.kept[3].items())
    recorder.passes, recorder.batches = recorder.passes[-STEPS:], recorder.batches[-STEPS:]
    if name == "causal":
        assert_allclose(gwa.scores, recorder.scores(size, following), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["causal", "sequence", "decoder"])
def test_virtual_tokens_of_prompt_tuning(name, tmp_path):
    peft = pytest.importorskip("peft")
    made = make(tmp_path, name, num_train_epochs=1, config={"n_positions": 2 * LENGTH})
    task = "CAUSAL_LM" if name == "causal" else "SEQ_CLS"
    tuned = peft.get_peft_model(
        made.model, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3)
    )
    trainer = Trainer(tuned, made.args, train_dataset=made.train_dataset)
    recorder = Recorder(trainer, HEADS[name](tuned.get_base_model()))
    gwa = watch(trainer, trainer.train_dataset.ids.numel())
    trainer.train()
    assert gwa.history[0].count > 0
    if name == "causal":
        # The head sees them before the others.
        recorder.passes = [(z[:, 3:], *rest) for z, *rest in recorder.passes]
        wanted = recorder.scores(gwa.num_samples, following)
        assert_allclose(gwa.scores, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"trainable_token_indices": [1, 2]}, "`trainable_token_indices` also trains rows of"),
        (
            {"target_modules": ["lm_head"], "fan_in_fan_out": False},
            "must be a layer without an adapter",
        ),
    ],
)
def test_adapters_on_the_head_are_refused(more, message, tmp_path):
    peft = pytest.importorskip("peft")
    untied = {"tie_word_embeddings": "lm_head" not in more.get("target_modules", ())}
    made = make(tmp_path, "causal", config=untied)
    layers = {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True}
    tuned = peft.get_peft_model(made.model, peft.LoraConfig(**(layers | more), r=2))
    trainer = Trainer(tuned, made.args, train_dataset=made.train_dataset)
    watch(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def run_of_a_rank(folder):
    """Train, be killed and resume; what the test of two processes runs in each."""
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"config": still, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    options |= {"per_device_train_batch_size": SIZE // world, "ddp_find_unused_parameters": False}
    whole = make(f"{folder}/whole", "causal", **options)
    gwa = watch(whole, whole.train_dataset.ids.numel(), keep="average")
    whole.train()
    averages = [whole.model.lm_head.weight[:2].tolist()]
    if world == 1:
        return [numbers(gwa.history)], averages
    own = {"num_samples": gwa.num_samples, "keep": "average"}
    options |= {"model": "causal"}
    trainer, again = killed_and_resumed(f"{folder}/killed", "step", 8, options, **own)
    averages.append(trainer.model.lm_head.weight[:2].tolist())
    return [numbers(gwa.history), numbers(again.history)], averages


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        textwrap.dedent(f"""
            import json, os, socket, sys
            sys.path[:0] = {[*PLACES, *map(str, Path(__file__).parents[:3:2])]}
            import torch
            torch.set_num_threads(1)
            from test_transformers import run_of_a_rank
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = str(free.getsockname()[1])
            # Two processes of one import.
            other = os.fork()
            rank = "0" if other else "1"
            os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}}
            os.environ |= {{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}}
            found = run_of_a_rank({str(tmp_path)!r})
            with open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w") as file:
                json.dump(found, file)
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            if other:
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
        """)
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert first == second
    for (whole, resumed), (alone,) in zip(first, run_of_a_rank(tmp_path / "alone"), strict=True):
        assert resumed == whole
        assert_allclose(whole, alone, rtol=1e-3, atol=1e-5)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "killed" / "gwa-average")
    assert saved.lm_head.weight[:2].tolist() == first[1][0]


def averaging(folder, name="sequence", *more, keep="average", rule=None, **options):
    """Train and return the trainer, its callback, and the weights at the end of each epoch."""
    weights = Weights()
    own = {"num_train_epochs": 5, "save_strategy": "epoch"} | options
    trainer = make(folder, name, callbacks=[weights, *more], **own)
    gwa = watch(trainer, keep=keep, rule=rule)
    trainer.train()
    return trainer, gwa, weights.kept


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close_to_mean(state, kept, history, names, **options):
    shares = average_shares(history, **options)
    for name in names:
        wanted = sum(s * one[name].double() for s, one in zip(shares, kept, strict=True))
        torch.testing.assert_close(state[name].double(), wanted, rtol=1e-6, atol=1e-7)


def names_of(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["sequence", "causal"])
def test_the_model_ends_as_the_average_of_its_epochs(name, tmp_path):
    trainer, gwa, kept = averaging(tmp_path / "a", name)
    state, names = trainer.model.state_dict(), names_of(trainer.model)
    close_to_mean(state, kept, gwa.history, names)
    assert not same(state, kept[-1])
    # Until its end the training is that of a run without, and its checkpoints are the same.
    plain, without, other = averaging(tmp_path / "b", name, keep=None, save_strategy="no")
    assert all(same(*pair) for pair in zip(kept, other, strict=True))
    assert same(plain.model.state_dict(), kept[-1])
    assert (without.averaged, without.averaged_model_path) == (None, "")
    load = type(trainer.model).from_pretrained
    raw = load(tmp_path / "a" / f"checkpoint-{5 * STEPS}")
    assert same(raw.state_dict(), kept[-1])
    # The average is beside them, and predicts alike.
    assert gwa.averaged_model_path == str(tmp_path / "a" / "gwa-average")
    loaded, x = load(gwa.averaged_model_path), trainer.train_dataset.x
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, trainer.model(x).logits)
    average = EpochAverage(total_steps=5)
    shares = [average.share(one) for one in gwa.history]
    assert [row["gwa_share"] for row in logged(trainer)] == shares


def test_under_an_average_the_rule_only_stops(tmp_path):
    rule = MaxGWA(warmup=1, patience=2, min_delta=100.0)
    own = {"rule": rule, "num_train_epochs": 8, "save_strategy": "no"}
    trainer, gwa, kept = averaging(tmp_path, **own)
    assert (gwa.best_epoch, len(gwa.history)) == (1, 4)
    state, names = trainer.model.state_dict(), names_of(trainer.model)
    close_to_mean(state, kept, gwa.history, names, total_steps=8)
    assert gwa.averaged_model_path == ""
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_cut_short_does_not_count_in_the_average(tmp_path):
    trainer, gwa, kept = averaging(tmp_path, max_steps=3 * STEPS + 2)
    assert [summary.count for summary in gwa.history] == [ROWS] * 3 + [2 * SIZE]
    state, names = trainer.model.state_dict(), names_of(trainer.model)
    close_to_mean(state, kept[:-1], gwa.history[:-1], names, total_steps=4)


@pytest.mark.parametrize(
    ("saving", "event", "step"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, "step", 14),
        # The last step of an epoch is saved, and the epoch not ended.
        ({"save_strategy": "steps", "save_steps": 2 * STEPS}, "save", 2 * STEPS),
        # The machine goes away after the last checkpoint.
        ({"save_strategy": "epoch"}, "save", 5 * STEPS),
    ],
)
def test_an_average_that_was_killed_goes_on(saving, event, step, tmp_path):
    whole, wanted, _ = averaging(tmp_path / "whole")
    options = {"num_train_epochs": 5, **saving}
    trainer, got = killed_and_resumed(tmp_path, event, step, options, keep="average")
    assert got.history == wanted.history
    assert same(trainer.model.state_dict(), whole.model.state_dict())


def test_a_checkpoint_without_the_average_begins_it_there(tmp_path):
    averaging(tmp_path, keep=None, num_train_epochs=2)
    weights = Weights()
    trainer = make(tmp_path, callbacks=[weights], num_train_epochs=5)
    gwa = watch(trainer, keep="average")
    with pytest.warns(UserWarning, match="the average begins now, with a warm-up of 0 epochs"):
        trainer.train(resume_from_checkpoint=True)
    state, names = trainer.model.state_dict(), names_of(trainer.model)
    close_to_mean(state, weights.kept, gwa.history[2:], names, total_steps=5)


class Normed(Own):
    def __init__(self):
        super().__init__()
        norms = nn.BatchNorm1d(8).requires_grad_(requires_grad=False), nn.BatchNorm1d(8)
        self.body = nn.Sequential(self.body, nn.Flatten(0, 1), *norms)

    @property
    def frozen(self):
        return self.body[2]

    @property
    def norm(self):
        return self.body[3]

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(input_ids).view(*input_ids.shape, -1).mean(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Popped(Trainer):
    """A loss of one's own, that takes a column out of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert inputs.pop("more").shape == inputs["labels"].shape
        return model(**inputs)["loss"]


def test_batch_norm_has_the_statistics_of_the_average(tmp_path):
    made = make(tmp_path, num_train_epochs=5, remove_unused_columns=False)
    rows = [{k: row[k] for k in ("input_ids", "labels", "ids")} | {"more": 1} for row in Rows()]
    trainer, weights = Popped(Normed(), made.args, train_dataset=rows), Weights()
    trainer.add_callback(weights)
    gwa = watch(trainer, ROWS, keep="average")
    trainer.train()
    model = trainer.model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    close_to_mean(model.state_dict(), weights.kept, gwa.history, names)
    with torch.no_grad():
        z = model.body[:3](Rows().x)
    # Of other batches, but of the same rows.
    assert_allclose(model.norm.running_mean, z.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.frozen.running_mean, torch.zeros(8))
    assert [summary.count for summary in gwa.history] == [ROWS] * 5


@pytest.mark.parametrize("step", [3, 5 * STEPS])
def test_a_resumed_run_ends_with_the_same_statistics_of_batch_norm(step, tmp_path):
    def of(folder):
        made = make(folder, num_train_epochs=5, save_strategy="steps", save_steps=1)
        rows = [{k: row[k] for k in ("input_ids", "labels", "ids")} for row in Rows()]
        torch.manual_seed(0)
        trainer = Trainer(Normed(), made.args, train_dataset=rows)
        return trainer, watch(trainer, ROWS, keep="average")

    (whole, gwa), (resumed, again) = of(tmp_path / "a"), of(tmp_path / "b")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    assert again.history == gwa.history
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_the_generator_of_a_loader_is_left_as_it_was(tmp_path):
    states = []
    for keep in ("last", "average"):
        generator = torch.Generator().manual_seed(3)

        class Drawn(Trainer):
            def get_train_dataloader(self, generator=generator):
                rows = [{k: row[k] for k in ("input_ids", "labels")} for row in Rows()]
                return DataLoader(rows, SIZE, shuffle=True, generator=generator)

        made = make(tmp_path, num_train_epochs=2)
        trainer = Drawn(Normed(), made.args, train_dataset=made.train_dataset)
        watch(trainer, keep=keep)
        trainer.train()
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_callbacks_see_the_average_at_the_end_of_the_training(tmp_path):
    """Trackers that save the model then are in the list before anything that a user adds."""

    class Tracker(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **more):
            self.saved = {name: x.clone() for name, x in model.state_dict().items()}

    early, late = Tracker(), Tracker()
    trainer = make(tmp_path, callbacks=[early], num_train_epochs=3)
    gwa = watch(trainer, keep="average")
    trainer.add_callback(late)
    before = list(trainer.callback_handler.callbacks)
    trainer.train()
    assert not same(early.saved, make(tmp_path / "other").model.state_dict())
    assert same(early.saved, trainer.model.state_dict())
    assert same(late.saved, trainer.model.state_dict())
    # In the training the order is that of the user.
    assert trainer.callback_handler.callbacks == before
    assert before.index(gwa) == len(before) - 2
    assert "on_train_end" not in vars(trainer.callback_handler)


def test_the_best_epoch_needs_no_rule_of_ones_own(tmp_path):
    trainer, gwa, kept = averaging(tmp_path, keep="best", save_strategy="no")
    assert gwa.rule == MaxSeparation()
    assert same(trainer.model.state_dict(), kept[gwa.best_epoch])


def test_shards_are_not_averaged(tmp_path):
    for name in ("deepspeed", "fsdp"):
        trainer = make(tmp_path)
        watch(trainer, keep="average")
        begin = trainer.callback_handler.on_train_begin

        def sharded(*args, trainer=trainer, name=name, begin=begin):
            # As Accelerate's plug-ins say it, which need several GPUs.
            setattr(trainer, f"is_{name}_enabled", True)
            return begin(*args)

        trainer.callback_handler.on_train_begin = sharded
        with pytest.raises(
            ValueError, match=r"whole weights .*, got (DeepSpeed|FSDP), whose shards"
        ):
            trainer.train()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
def test_of_adapters_the_average_is_saved(tmp_path):
    peft = pytest.importorskip("peft")
    made = make(tmp_path, num_train_epochs=4, save_strategy="epoch")
    base = copy.deepcopy(made.model)
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    model = peft.get_peft_model(made.model, lora)
    trainer, weights = Trainer(model, made.args, train_dataset=made.train_dataset), Weights()
    trainer.add_callback(weights)
    gwa = watch(trainer, keep="average")
    trainer.train()
    names = names_of(model)
    assert any("lora_B" in name for name in names)
    close_to_mean(model.state_dict(), weights.kept, gwa.history, names)
    assert not (Path(gwa.averaged_model_path) / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(base, gwa.averaged_model_path)
    x = made.train_dataset.x
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


def test_hooks_are_gone_after_a_run_that_failed(tmp_path):
    trainer = make(tmp_path)
    watch(trainer)
    trainer.add_callback(Killer("step", 2))
    with pytest.raises(KilledError):
        trainer.train()
    assert not trainer.model.classifier._forward_hooks
    assert trainer.args.load_best_model_at_end is False


def test_a_removed_callback_leaves_the_trainer_as_it_was(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1)
    before, handlers = dict(vars(trainer)), list(trainer.callback_handler.callbacks)
    for name, by_kind in [("remove", True), ("remove", False), ("pop", True)]:
        gwa = watch(trainer, ROWS)
        assert dict(vars(trainer)) != before
        getattr(trainer, f"{name}_callback")(GWACallback if by_kind else gwa)
        assert dict(vars(trainer)) == before
        assert trainer.callback_handler.callbacks == handlers
        trainer.train()
        assert gwa.history == logged(trainer) == []
        before = dict(vars(trainer))
    gwa = watch(trainer, ROWS)
    trainer.train()
    assert len(gwa.history) == 1
    # Past the trainer, which then finds out when it trains.
    trainer.callback_handler.remove_callback(gwa)
    trainer.train()
    assert len(gwa.history) == 1
    assert logged(trainer) == []
    assert vars(trainer).keys() == before.keys()
    assert not trainer.model.classifier._forward_hooks
    # Another library wraps the method after the callback, and keeps what it found there.
    gwa, inner = watch(trainer, ROWS), trainer.train
    trainer.train = lambda: inner()
    trainer.remove_callback(gwa)
    trainer.train()
    assert gwa.history == logged(trainer) == []


def test_a_cell_that_is_run_twice(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1)
    first = watch(trainer, ROWS, rule=KEEPS_SECOND)
    trainer.train()
    kept = numbers(first.history)
    second = watch(trainer, ROWS)
    assert first not in trainer.callback_handler.callbacks
    trainer.train()
    assert (len(first.history), len(second.history)) == (1, 1)
    assert numbers(first.history) == kept != numbers(second.history)
    assert len(logged(trainer)) == 1
    # One that broke off before it was added.
    GWACallback(trainer)
    third = watch(trainer)
    # And the same one once more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.trainer_callback.logger, "warning", lambda _: None)
        trainer.add_callback(third)
    trainer.train()
    assert len(third.history) == len(logged(trainer)) == 1


class Named(nn.Module):
    """Labels have another name, and the word `labels` another meaning."""

    def __init__(self):
        super().__init__()
        self.inner = Own()

    def forward(self, input_ids, wanted, labels=None):
        return self.inner(input_ids, wanted)


def test_labels_of_another_name(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1, label_names=["wanted"])
    rows = [{"input_ids": r["input_ids"], "wanted": r["labels"], "labels": 0} for r in Rows()]
    trainer = Trainer(Named(), trainer.args, train_dataset=rows)
    recorder = Recorder(trainer, trainer.model.inner.head)
    gwa = watch(trainer, ROWS)
    trainer.train()
    for batch in recorder.batches:
        batch["ids"] = torch.tensor(
            [
                i
                for x in batch["input_ids"]
                for i, r in enumerate(rows)
                if torch.equal(x, r["input_ids"])
            ]
        )
    wanted = recorder.scores(ROWS, targets=lambda batch: batch["wanted"])
    assert_allclose(gwa.scores, wanted, atol=1e-5)


class Soft(Trainer):
    """Cross-entropy with soft labels, which a model takes for several labels a sample."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Mixed(Rows):
    """A tenth of each label is of the other classes."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"labels": 0.9 * F.one_hot(row["labels"], CLASSES) + 0.1 / CLASSES}


@pytest.mark.filterwarnings("ignore::UserWarning:gwa_torch")
@pytest.mark.parametrize("residual", ["auto", "backward"])
def test_soft_labels_under_a_softmax_of_ones_own(residual, tmp_path):
    trainer = make(tmp_path, kind=Soft, num_train_epochs=1)
    trainer.train_dataset = Mixed()
    recorder = Recorder(trainer, trainer.model.classifier)
    gwa = watch(trainer, ROWS, residual=residual)
    if residual == "auto":
        with pytest.warns(UserWarning, match="residual"):
            trainer.train()
    else:
        trainer.train()
    assert trainer.model.config.problem_type == "multi_label_classification"
    assert gwa.monitor.residual == "backward"
    assert_allclose(gwa.scores, recorder.scores(ROWS), atol=1e-5)


def stored(folder):
    found = RunFolder.open(folder).targets()
    return None if found is None else found.tolist()


def test_given_labels_are_stored(tmp_path):
    data = Rows()
    trainer = make(tmp_path, num_train_epochs=1)
    watch(trainer, ROWS, run_folder=tmp_path / "column")
    trainer.train()
    assert stored(tmp_path / "column") == data.y.tolist()
    trainer = make(tmp_path, ids=False, num_train_epochs=1)
    watch(trainer, ROWS, run_folder=tmp_path / "numbers")
    trainer.train()
    assert stored(tmp_path / "numbers") == data.y.tolist()
    # Some rows are not seen.
    trainer = make(tmp_path, max_steps=5, per_device_train_batch_size=7, dataloader_drop_last=True)
    gwa = watch(trainer, ROWS, run_folder=tmp_path / "some")
    trainer.train()
    assert gwa.history[0].count == 35
    assert stored(tmp_path / "some") is None
    # Neither tokens nor several labels a sample have one.
    for name, options in [("token", {}), ("sequence", {"labels": "many"})]:
        trainer = make(tmp_path, name, num_train_epochs=1, **options)
        watch(trainer, trainer.train_dataset.ids.numel(), run_folder=tmp_path / f"none {name}")
        trainer.train()
        assert stored(tmp_path / f"none {name}") is None


def test_labels_of_unseen_rows_come_from_the_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    data, order = Rows(), torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    columns = {"input_ids": data.x.tolist(), "labels": data.y.tolist()}
    for more, wanted in [
        ({}, data.y),
        ({"ids": order.tolist()}, data.y[order.argsort()]),
    ]:
        trainer = make(
            tmp_path, max_steps=5, per_device_train_batch_size=7, dataloader_drop_last=True
        )
        trainer.train_dataset = datasets.Dataset.from_dict(columns | more)
        gwa = watch(trainer, ROWS, run_folder=tmp_path / f"run {len(more)}")
        trainer.train()
        assert gwa.history[0].count == 35
        assert stored(tmp_path / f"run {len(more)}") == wanted.tolist()


def test_labels_of_a_stream_are_those_of_its_batches(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = Rows()
    columns = {"input_ids": data.x.tolist(), "labels": data.y.tolist(), "ids": list(range(ROWS))}
    trainer = make(tmp_path, max_steps=STEPS)
    trainer.train_dataset = datasets.Dataset.from_dict(columns).to_iterable_dataset()
    gwa = watch(trainer, ROWS, run_folder=tmp_path / "run")
    trainer.train()
    assert gwa.history[0].count == ROWS
    assert stored(tmp_path / "run") == data.y.tolist()


def test_misuse_is_told(tmp_path):
    with pytest.raises(TypeError, match="`trainer` must be a Trainer of Transformers, got str"):
        GWACallback("classifier")
    trainer = make(tmp_path)
    with pytest.raises(TypeError, match=r"`options` must be among .*, got patience"):
        GWACallback(trainer, patience=3)
    GWACallback(trainer)
    with pytest.raises(RuntimeError, match=r"trainer\.add_callback"):
        trainer.train()
    other = make(tmp_path)
    other.add_callback(watch(make(tmp_path)))
    with pytest.raises(RuntimeError, match="`trainer` must be the one that trains, got another"):
        other.train()
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = make(tmp_path, eval_dataset=Rows(), **best)
    with pytest.raises(ValueError, match="`metric_for_best_model` must be None where a rule"):
        GWACallback(trainer, rule=MaxGWA())
    assert GWACallback(trainer, rule=MaxGWA(), keep="last").stopper is None
    with pytest.raises(ValueError, match='`load_best_model_at_end` must be False under keep="ave'):
        GWACallback(trainer, keep="average")
    with pytest.raises(
        ValueError, match="`keep` must be one of 'average', 'best', 'last', None, g"
    ):
        GWACallback(trainer, keep="mean")


def test_the_state_is_in_every_checkpoint_and_plain(tmp_path):
    trainer = make(tmp_path, save_strategy="epoch", num_train_epochs=2)
    gwa = watch(trainer, ROWS, rule=MaxGWA(warmup=0))
    trainer.train()
    for epoch, folder in enumerate(sorted(tmp_path.iterdir(), key=lambda p: int(p.name[11:]))):
        kept = torch.load(folder / STATE_NAME, weights_only=True)
        assert len(kept["monitor"]["history"]) == epoch + 1
    assert json.loads((folder / "trainer_state.json").read_text())["best_metric"] == (
        gwa.stopper.best_value
    )
    scores = gwa.scores[gwa.scores.isfinite()].numpy()
    assert gwa.history[-1].gwa == pytest.approx(float(summarize(Moments.from_batch(scores)).gwa))
