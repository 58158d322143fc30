"""Windows of steps in place of epochs, in real trainers."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
L = pytest.importorskip("lightning.pytorch")

import test_lightning as lightning_parts
from lightning.pytorch.loggers import CSVLogger
from test_lightning import calm  # noqa: F401  # a fixture
from test_transformers import ROWS, STEPS, Rows, make, numbers, watch
from transformers import TrainerCallback

from gwa_core import BestMetric, MaxSeparation, average_shares, select_epoch
from gwa_offline.store import RunFolder
from gwa_torch.lightning import GWACallback

pytestmark = [
    *lightning_parts.pytestmark,
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning"),
]
LATER = BestMetric(metric="step", warmup=0)


class Ends(TrainerCallback):
    """The weights at the end of each step."""

    def __init__(self):
        self.kept = {}

    def on_step_end(self, args, state, control, model=None, **more):
        self.kept[state.global_step] = {k: x.clone() for k, x in model.state_dict().items()}


def weighted(kept, history, **options):
    """The mean of stored weights by the final shares."""
    shares = average_shares(history, **options)
    found = {}
    for summary, share in zip(history, shares, strict=True):
        for name, x in kept[summary.step].items():
            if x.is_floating_point():
                found[name] = found.get(name, 0.0) + float(share) * x.double()
    return found


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_of_few_epochs_has_a_history(epochs, tmp_path):
    trainer = make(tmp_path, num_train_epochs=epochs)
    gwa = watch(trainer, ROWS, window=2, run_folder=tmp_path / "run", keep="average")
    ends = Ends()
    trainer.add_callback(ends)
    trainer.train()
    steps = STEPS * epochs
    # The last window has one step, and is marked.
    assert [s.step for s in gwa.history] == [*range(2, steps, 2), steps]
    assert [s.window for s in gwa.history] == [2] * math.ceil(steps / 2)
    short = [s.count < 0.9 * s.expected for s in gwa.history]
    assert short == [False] * (len(short) - 1) + [True]
    run = RunFolder.open(tmp_path / "run")
    assert [summary for summary, _ in run.epochs()] == gwa.history
    assert (run.status, run.planned) == ("ended", len(gwa.history))
    rows = [row for row in trainer.state.log_history if "gwa_separation" in row]
    assert [row["step"] for row in rows] == [s.step for s in gwa.history]
    # The average is that of the weights at the ends of the windows.
    assert gwa.averaged.average.total_steps == len(gwa.history)
    want = weighted(ends.kept, gwa.history, total_steps=len(gwa.history))
    now = trainer.model.state_dict()
    for name, x in want.items():
        torch.testing.assert_close(now[name].double(), x, rtol=1e-6, atol=1e-7)


def test_scores_are_those_of_the_window_and_quality_is_that_of_all(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1)
    gwa = watch(trainer, ROWS, window=2)
    trainer.train()
    assert int(gwa.scores.isfinite().sum()) == gwa.history[-1].count == ROWS // STEPS
    assert bool(gwa.label_quality.isfinite().all())


def test_the_rule_keeps_a_window(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=100)
    gwa = watch(trainer, ROWS, window=4, keep="best", rule=LATER)
    ends = Ends()
    trainer.add_callback(ends)
    trainer.train()
    # Fifteen steps: the last whole window ends at twelve, and the short one is not kept.
    assert gwa.best_epoch == 2 == select_epoch(gwa.history, LATER).step
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[name]) for name, x in ends.kept[12].items())


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kill", [3, 4, 5, 9])
def test_a_killed_run_ends_as_the_uninterrupted(kill, accumulated, tmp_path):
    class KilledError(Exception):
        pass

    class Killer(TrainerCallback):
        def on_save(self, args, state, control, **more):
            if state.global_step == min(kill, state.max_steps - 1):
                raise KilledError

    def begin(folder, seed=0):
        options = {"save_strategy": "steps", "save_steps": 1, "seed": seed}
        options |= {"gradient_accumulation_steps": accumulated, "num_train_epochs": 3}
        trainer = make(folder, **(options | {"seed": 0}))
        rule = MaxSeparation(warmup=1)
        own = {"rule": rule, "keep": "average", "run_folder": folder / "run"}
        return trainer, watch(trainer, ROWS, window=2, **own)

    whole, wanted = begin(tmp_path / "whole")
    whole.train()
    killed, _ = begin(tmp_path / "killed")
    killed.add_callback(Killer())
    with pytest.raises(KilledError):
        killed.train()
    assert RunFolder.open(tmp_path / "killed" / "run").status == "running"
    again, got = begin(tmp_path / "killed", seed=9)
    again.train(resume_from_checkpoint=True)
    assert numbers(got.history) == numbers(wanted.history)
    assert got.stopper.state_dict() == wanted.stopper.state_dict()
    assert torch.equal(got.label_quality, wanted.label_quality)
    end, other = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(x, other[key]) for key, x in end.items())


def fit(folder, callback, *more, epochs=1, ckpt_path=None, **options):
    model, loader = lightning_parts.Net(), lightning_parts.Loader()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[callback, *more],
        default_root_dir=folder,
        logger=False,
        **(quiet | options),
    )
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return model


class LightningEnds(L.Callback):
    def __init__(self):
        self.kept = {}

    def on_train_batch_end(self, trainer, module, *batch):
        weights = {name: x.clone() for name, x in module.state_dict().items()}
        self.kept[trainer.global_step] = weights


@pytest.mark.parametrize("accumulated", [1, 2])
def test_windows_in_lightning(accumulated, tmp_path):
    rows, steps = lightning_parts.ROWS, lightning_parts.STEPS // accumulated
    gwa = GWACallback("head", rows, window=3, keep="average", run_folder=tmp_path / "run")
    ends = LightningEnds()
    model = fit(tmp_path, gwa, ends, accumulate_grad_batches=accumulated)
    assert [s.step for s in gwa.history] == [*range(3, steps, 3), steps]
    short = [s.count < 0.9 * s.expected for s in gwa.history]
    assert short == [False] * (len(short) - 1) + [steps % 3 != 0]
    run = RunFolder.open(tmp_path / "run")
    assert [summary for summary, _ in run.epochs()] == gwa.history
    assert (run.status, run.planned) == ("ended", len(gwa.history))
    want = weighted(ends.kept, gwa.history, total_steps=len(gwa.history))
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x.double(), want[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("every", [4, 6])
def test_a_killed_run_of_lightning_ends_as_the_uninterrupted(every, tmp_path):
    class KilledError(Exception):
        pass

    class Killer(L.Callback):
        def on_train_batch_start(self, trainer, *batch):
            if trainer.global_step == every + 1:
                raise KilledError

    def made(folder):
        own = {"window": 3, "rule": MaxSeparation(warmup=1), "keep": "best"}
        return GWACallback("head", lightning_parts.ROWS, dirpath=folder / "best", **own)

    def saver(folder):
        return L.callbacks.ModelCheckpoint(
            folder, "at-{step}", every_n_train_steps=every, save_top_k=-1
        )

    wanted = made(tmp_path / "a")
    whole = fit(tmp_path, wanted, saver(tmp_path / "a"), epochs=2)
    with pytest.raises(KilledError):
        fit(tmp_path, made(tmp_path / "b"), saver(tmp_path / "b"), Killer(), epochs=2)
    got = made(tmp_path / "b")
    path = str(tmp_path / "b" / f"at-step={every}.ckpt")
    again = fit(tmp_path, got, saver(tmp_path / "b"), epochs=2, ckpt_path=path)
    assert numbers(got.history) == numbers(wanted.history)
    assert got.stopper.state_dict() == wanted.stopper.state_dict()
    for name, x in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], x, rtol=0, atol=0)


ACCURACY = BestMetric(metric="eval_accuracy", warmup=0)


@pytest.mark.parametrize(
    ("window", "evaluated", "best"),
    [
        # Evaluations at the ends of epochs, 5, 10 and 15, of which the second is the best.
        (5, {"eval_strategy": "epoch"}, 1),
        # They are of the window that ended last: at step 4, 8 and 12.
        (4, {"eval_strategy": "epoch"}, 1),
        (5, {"eval_strategy": "steps", "eval_steps": 5}, 1),
    ],
)
def test_an_evaluation_is_of_the_window_before_it(window, evaluated, best, tmp_path):
    values = iter([0.5, 0.9, 0.3])
    options = {"save_strategy": "steps", "save_steps": 100, "eval_on_start": False, **evaluated}
    trainer = make(tmp_path, eval_dataset=Rows(), **options)
    trainer.compute_metrics = lambda _: {"accuracy": next(values)}
    gwa = watch(trainer, ROWS, window=window, rule=ACCURACY, keep="best")
    ends = Ends()
    trainer.add_callback(ends)
    trainer.train()
    assert (gwa.best_epoch, gwa.stopper.best_value) == (best, 0.9)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    now = trainer.model.state_dict()
    assert all(torch.equal(x, now[name]) for name, x in ends.kept[10].items())


def test_a_last_window_of_fewer_steps_is_not_kept_however_many_it_has(tmp_path):
    trainer = make(tmp_path, num_train_epochs=3)
    gwa = watch(trainer, ROWS, window=11, rule=LATER, keep="last")
    trainer.train()
    assert [s.step for s in gwa.history] == [11, 15]
    assert gwa.best_epoch == 0


@pytest.mark.parametrize("window", [2, 3])
def test_steps_of_fewer_batches_do_not_cut_a_window_short(window, tmp_path):
    # Five batches an epoch, in steps of four and of one.
    trainer = make(tmp_path, num_train_epochs=4, gradient_accumulation_steps=4)
    gwa = watch(trainer, ROWS, window=window)
    trainer.train()
    whole = [s for s in gwa.history if s.step % window == 0]
    assert len(whole) == 8 // window
    assert all(s.count == s.expected for s in whole)


def test_a_window_without_labels_is_left_out(tmp_path):
    rows = [{"input_ids": torch.arange(3, 8), "labels": torch.arange(3, 8)} for _ in range(12)]
    for row in rows[4:8]:
        row["labels"] = torch.full((5,), -100)
    trainer = make(tmp_path, "causal", num_train_epochs=1, per_device_train_batch_size=2)
    trainer.args.data_seed = None
    trainer.train_dataset = rows
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    gwa = watch(trainer, 12, window=2)
    with pytest.warns(UserWarning, match="leaves out the window that ends at step 4, in which no"):
        trainer.train()
    assert [(s.step, s.count) for s in gwa.history] == [(2, 4), (6, 4)]


class Judged(lightning_parts.Net):
    """Logs what is said in a validation."""

    def __init__(self, values):
        super().__init__()
        self.values = dict(values)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.values[self.trainer.global_step], batch_size=1)


@pytest.mark.parametrize(
    ("window", "every", "best"), [(5, 5, (1, 10)), (4, 10, (1, 10)), (5, 10, (1, 10))]
)
def test_a_validation_is_of_the_window_before_it(window, every, best, tmp_path):
    loader = lightning_parts.Loader()
    values = {5: 0.1, 10: 0.9, 15: 0.2, 20: 0.3}
    rule = BestMetric(metric="val", warmup=0)
    own = {"rule": rule, "keep": "best", "window": window, "dirpath": tmp_path / "best"}
    gwa, ends = GWACallback("head", lightning_parts.ROWS, **own), LightningEnds()
    logger = CSVLogger(tmp_path)
    model = Judged(values)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=[gwa, ends],
        default_root_dir=tmp_path,
        logger=logger,
        val_check_interval=min(every, 10),
        num_sanity_val_steps=0,
        **quiet,
    )
    trainer.fit(model, loader, lightning_parts.Loader(rows=lightning_parts.SIZE))
    assert (gwa.best_epoch, gwa.stopper.best_value) == (best[0], pytest.approx(0.9))
    assert all(torch.equal(x, ends.kept[best[1]][n]) for n, x in model.state_dict().items())
    header, *lines = (tmp_path / logger.log_dir / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("train/gwa")
    assert sum(bool(line.split(",")[place]) for line in lines) == len(gwa.history)


def test_a_second_fit_counts_its_windows_from_its_beginning(tmp_path):
    gwa = GWACallback("head", lightning_parts.ROWS, window=5)
    model, loader = lightning_parts.Net(), lightning_parts.Loader()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for epochs in (1, 2):
        options = {"max_epochs": epochs, "callbacks": [gwa], "logger": False, **quiet}
        L.Trainer(default_root_dir=tmp_path, **options).fit(model, loader)
    assert [s.step for s in gwa.history] == [5, 10, 5, 10, 15, 20]
    assert all(s.count == s.expected for s in gwa.history)


def test_a_step_that_returns_none_leaves_a_window_what_it_has(tmp_path):
    class Skips(lightning_parts.Net):
        def training_step(self, batch, batch_idx):
            return None if 2 <= batch_idx < 8 else super().training_step(batch, batch_idx)

    gwa = GWACallback("head", lightning_parts.ROWS, window=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 1, "callbacks": [gwa], "logger": False, **quiet}
    L.Trainer(default_root_dir=tmp_path, **options).fit(Skips(), lightning_parts.Loader())
    assert sum(s.count for s in gwa.history) == 4 * lightning_parts.SIZE
