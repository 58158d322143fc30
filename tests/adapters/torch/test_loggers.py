"""Histograms of the scores, in real loggers of real trainers."""

import logging

import pytest
from backends import require

torch = require("torch")
L = require("lightning")

from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from gwa_torch import with_ids
from gwa_torch._loggers import to_lightning, to_transformers
from gwa_torch.lightning import GWACallback

pytestmark = pytest.mark.filterwarnings(
    # Lightning 2.6 with PyTorch 2.13.
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    # Of the packages of the loggers themselves.
    "ignore::DeprecationWarning",
    "ignore:The filesystem tracking backend:FutureWarning",
)
ROWS, EPOCHS = 60, 2


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


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Scores(L.Callback):
    """The scores of each epoch, and the step that its numbers are logged with."""

    def __init__(self, callback):
        self.callback, self.epochs, self.steps = callback, [], []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.epochs.append(self.callback.scores)
            # Lightning numbers the steps from nought.
            self.steps.append(trainer.global_step - 1)

    on_train_end = on_train_epoch_start


def fit(folder, logger, num_samples=ROWS):
    torch.manual_seed(0)
    x = torch.randn(ROWS, 4)
    data = with_ids(TensorDataset(x, x[:, :3].argmax(1)))
    callback = GWACallback("head", num_samples)
    seen = Scores(callback)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        logger=logger,
        accelerator="cpu",
        callbacks=[callback, seen],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
    )
    trainer.fit(Net(), DataLoader(data, 20, shuffle=True))
    return seen


def read(folder):
    """The histograms and scalars of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"histograms": 0, "scalars": 0})
    return events.Reload()


def holds(histogram, scores):
    """Whether a histogram of TensorBoard is that of the scores."""
    assert histogram.num == torch.isfinite(scores).sum()
    for name in ("min", "max", "sum"):
        expected = float(getattr(scores.double(), name)())
        assert getattr(histogram, name) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_lightning_with_tensorboard(tmp_path):
    require_tensorboard()
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="")
    seen = fit(tmp_path, logger)
    events = read(logger.log_dir)
    histograms = events.Histograms("train/gwa_scores")
    assert [event.step for event in histograms] == seen.steps
    # Beside the numbers of the epoch.
    assert seen.steps == [event.step for event in events.Scalars("train/gwa")]
    for event, scores in zip(histograms, seen.epochs, strict=True):
        holds(event.histogram_value, scores)


def require_tensorboard():
    return pytest.importorskip("tensorboard")


@pytest.mark.slow
def test_lightning_with_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    seen = fit(tmp_path, logger)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    found = summary["train/gwa_scores"]
    expected, edges = torch.histogram(seen.epochs[-1].double(), bins=64)
    assert (found["_type"], found["values"]) == ("histogram", expected.tolist())
    assert found["bins"] == pytest.approx(edges.tolist())
    assert summary["trainer/global_step"] == seen.steps[-1]


@pytest.mark.slow
def test_lightning_with_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("matplotlib")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    fit(tmp_path, logger)
    pictures = logger.experiment.list_artifacts(logger.run_id, "train/gwa_scores")
    names = [f"train/gwa_scores/epoch-00000{n}.png" for n in range(EPOCHS)]
    assert [picture.path for picture in pictures] == names
    assert all(picture.file_size > 1000 for picture in pictures)


def test_the_trainer_of_transformers_with_tensorboard(tmp_path):
    require_tensorboard()
    integrations = pytest.importorskip("transformers.integrations")
    from torch.utils.tensorboard import SummaryWriter

    scores = torch.linspace(-1, 1, 11)
    scores[3] = torch.nan
    callback = integrations.TensorBoardCallback(SummaryWriter(tmp_path))
    to_transformers([callback], "train/gwa_scores", scores, step=7, epoch=0)
    # Neither scores, nor finite ones, nor a writer.
    to_transformers([callback], "none", None, step=7, epoch=0)
    to_transformers([callback], "none", torch.full((3,), torch.nan), step=7, epoch=0)
    callback.on_train_end(None, None, None)
    to_transformers([callback], "none", scores, step=7, epoch=0)
    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["train/gwa_scores"]
    (event,) = events.Histograms("train/gwa_scores")
    assert event.step == 7
    holds(event.histogram_value, scores[~scores.isnan()])


@pytest.mark.slow
def test_other_trackers_of_transformers_are_those_of_lightning(tmp_path, monkeypatch):
    wandb, mlflow = pytest.importorskip("wandb"), pytest.importorskip("mlflow")
    pytest.importorskip("matplotlib")
    integrations = pytest.importorskip("transformers.integrations")

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    callbacks = [integrations.WandbCallback(), integrations.MLflowCallback()]
    scores = torch.linspace(-1, 1, 11)
    # Before the training nothing is open.
    to_transformers(callbacks, "train/gwa_scores", scores, step=7, epoch=0)
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with wandb.init(mode="offline", dir=tmp_path) as run, mlflow.start_run() as other:
        for callback in callbacks:
            callback._initialized = True
        to_transformers(callbacks, "train/gwa_scores", scores, step=7, epoch=0)
        assert sum(run.summary["train/gwa_scores"]["values"]) == 11
        assert run.summary["train/global_step"] == 7
        paths = mlflow.MlflowClient().list_artifacts(other.info.run_id, "train/gwa_scores")
        assert [x.path for x in paths] == ["train/gwa_scores/epoch-000000.png"]


def test_without_numbers_by_sample_or_a_logger_nothing_is_written(tmp_path):
    require_tensorboard()
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="")
    fit(tmp_path, [logger, CSVLogger(tmp_path / "csv")], num_samples=None)
    events = read(logger.log_dir)
    assert events.Tags()["histograms"] == []
    assert len(events.Scalars("train/gwa_healthy")) == EPOCHS
    to_lightning([], "none", torch.ones(3), step=0, epoch=0)
