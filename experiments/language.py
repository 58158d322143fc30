"""One run of a language model: which answers are wrong, and which weights to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from experiments.engine import Engine
from experiments.language_data import IGNORED, Texts, given_answers, labels_of, sequences
from experiments.language_signals import REDUCTIONS, Detection, sequence_signals
from experiments.optimisation import optimizer, rate
from experiments.plan import Settings
from experiments.store import SUMMARY, short
from gwa_core import EpochAverage
from gwa_core.signals import gradient_disparity, rescaled_loss
from gwa_torch import AveragedWeights, GWAMonitor

__all__ = ["LanguageRun"]

#: Batches whose gradients are compared, and the decay of the exponential mean of the steps.
BATCHES, DECAY = 5, 0.998
#: Columns of a summary that do not depend on how a monitor scores sequences.
IN_COMMON = {"epoch", "step", "count", "omitted"}


class _Fading(EpochAverage):
    """The exponential mean of the steps, as a share."""

    def share(self, record: Any) -> float:
        return 1 - DECAY


class Answers:
    """Sequences on a device, with what is asked of them.

    Parameters
    ----------
    documents, answers : integer arrays
        As `sequences` takes them.
    loss : str
        As `labels_of` takes it.
    device : str
        Where they are.
    """

    def __init__(self, documents: Any, answers: Any, loss: str, device: str) -> None:
        tokens, starts = sequences(documents, answers)
        labels = labels_of(tokens, starts, loss)
        # Where the tokens of the answer and its end are predicted.
        places = starts[:, None] + np.arange(answers.shape[1] + 1)
        given = np.take_along_axis(labels, places, axis=1)
        self.tokens, self.labels, self.places, self.given = (
            torch.from_numpy(x).to(device) for x in (tokens, labels, places, given)
        )

    def guesses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the answer that are predicted, (B, A + 1), of logits (B, S, C)."""
        rows = torch.arange(len(ids), device=logits.device)[:, None]
        found = logits[rows, self.places[ids]].argmax(2)
        return torch.where(self.given[ids] == IGNORED, IGNORED, found)


class LanguageRun:
    """A training from its beginning to its end, too short to be worth a checkpoint.

    Parameters
    ----------
    settings : Settings
        What to train.
    texts : Texts
        The data.
    engine : Engine
        The network, on its device.
    """

    def __init__(self, settings: Settings, texts: Texts, engine: Engine) -> None:
        self.settings, self.engine = settings, engine
        s, device = settings, engine.device
        answers, wrong = given_answers(texts, s.labels, s.seed)
        self.train_set = Answers(texts.train, answers, s.loss, device)
        self.test_set = Answers(texts.test, texts.answers[texts.test_labels], s.loss, device)
        self.count = len(wrong)
        self.wrong = torch.from_numpy(wrong).to(device)
        engine.begin(s.seed)
        self.generator = torch.Generator().manual_seed(s.seed)
        self.optimizer = optimizer(settings, engine)
        model, planned = engine.model, {"total_steps": self.epochs}
        self.monitors = {
            name: GWAMonitor(model.head, num_samples=self.count, reduce=name) for name in REDUCTIONS
        }
        averages = {name: EpochAverage(**planned) for name in REDUCTIONS}
        averages["plain"] = EpochAverage(0, **planned)
        self.averages = {name: AveragedWeights(model, x) for name, x in averages.items()}
        self.fading = AveragedWeights(model, _Fading(warmup=0))
        self.detection = Detection(self.wrong)
        # By sequence, of the epoch in progress; the guesses of the one before.
        self.signals: dict[str, torch.Tensor] = {}
        self.guesses = torch.full_like(self.train_set.given, IGNORED)
        self.before: torch.Tensor | None = None
        self.step, self.columns = 0, list[dict[str, Any]]()

    @property
    def batches(self) -> int:
        """Of an epoch; the last one is filled up with the first rows of its epoch."""
        return -(-self.count // self.settings.batch_size)

    @property
    def epochs(self) -> int:
        """Whole ones."""
        return max(1, round(self.settings.steps / self.batches))

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.batches

    def train(self, deadline: float = math.inf) -> dict[str, Any] | None:
        """Train to the end and return the result; None where the deadline would come before.

        Parameters
        ----------
        deadline : float
            In seconds of ``time.monotonic``. A run that would end after it stops, and begins anew
            in the next call.
        """
        begin, last = time.monotonic(), 0.0
        try:
            for epoch in range(self.epochs):
                now = time.monotonic()
                # The first epoch compiles and says little about the others.
                left = self.epochs - epoch if epoch > 1 else 0
                if now + left * last > deadline:
                    return None
                self._epoch()
                self._end_epoch()
                last = time.monotonic() - now
                loss = self.columns[-1]["test_loss"]
                print(
                    f"{self.settings.name}: epoch {epoch + 1}, {last:.1f} s, test loss {loss:.4f}",
                    flush=True,
                )
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"{self.settings.name} must have finite outputs, got a loss of {loss} in "
                        f"epoch {epoch + 1}; a learning rate that is too large is the usual cause"
                    )
            return self._result(time.monotonic() - begin)
        finally:
            for monitor in self.monitors.values():
                monitor.close()

    def _epoch(self) -> None:
        s, data = self.settings, self.train_set
        order = torch.randperm(self.count, generator=self.generator).to(self.engine.device)
        order = torch.cat([order, order[: -len(order) % s.batch_size]])
        for ids in order.split(s.batch_size):
            for group in self.optimizer.param_groups:
                group["lr"].fill_(rate(s, self.step, self.steps))
            labels = data.labels[ids]
            logits = self.engine.forward(data.tokens[ids])
            _token_loss(logits, labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.fading.update({})
            for monitor in self.monitors.values():
                monitor.update(labels, ids=ids)
            for name, x in sequence_signals(logits.detach(), labels).items():
                kept = self.signals.setdefault(name, torch.empty(self.count, device=x.device))
                kept[ids] = x.float()
            self.guesses[ids] = data.guesses(logits.detach(), ids)
            self.step += 1

    def _end_epoch(self) -> None:
        summaries = {name: x.end_epoch(step=self.step) for name, x in self.monitors.items()}
        for name, averaged in self.averages.items():
            averaged.update(summaries.get(name, summaries["mean"]))
        scores = {name: x.scores for name, x in self.monitors.items()}
        qualities = {name: x.label_quality for name, x in self.monitors.items()}
        right = (self.guesses == self.train_set.given).all(1)
        self.detection.epoch(self.signals, right, scores, qualities)
        changes = math.nan
        if self.before is not None:
            changes = (self.guesses != self.before).any(1).float().mean().item()
        self.before = self.guesses.clone()
        found = self._test() | {
            "sample_loss": self.signals["perplexity"].mean().item(),
            "prediction_changes": changes,
            "gradient_disparity": float(self._disparity()),
        }
        columns = {name: _row(summary) for name, summary in summaries.items()}
        self.columns.append(columns["mean"] | found | {"reductions": columns})

    def _unseen(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits past the monitors."""
        with self.engine.precision():
            return F.linear(self.engine.latents(tokens), self.engine.model.head.weight)

    @torch.no_grad()
    def _test(self) -> dict[str, float]:
        """Return the mean loss of the test tokens, and how many answers are predicted whole."""
        data, size = self.test_set, self.settings.batch_size
        device = self.engine.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for ids in torch.arange(len(data.tokens), device=device).split(size):
            # One shape for all, so that nothing is compiled twice.
            tokens = F.pad(data.tokens[ids], (0, 0, 0, size - len(ids)))
            logits, labels = self._unseen(tokens)[: len(ids)], data.labels[ids]
            right = (data.guesses(logits, ids) == data.given[ids]).all(1)
            loss = _token_loss(logits, labels, reduction="sum")
            sums += torch.stack([loss, (labels != IGNORED).sum(), right.sum()])
        loss, tokens, right = sums.tolist()
        return {"test_loss": loss / tokens, "test_accuracy": right / len(data.tokens)}

    def _disparity(self) -> torch.Tensor:
        """Return the mean distance between the gradients of batches, of the whole network."""
        model, data, gradients = self.engine.model, self.train_set, []
        size = min(self.settings.batch_size, self.count // BATCHES)
        for k in range(BATCHES):
            rows = slice(k * size, (k + 1) * size)
            logits, labels = self._unseen(data.tokens[rows]), data.labels[rows]
            losses = _token_loss(logits, labels, reduction="none").view(labels.shape).sum(1)
            rescaled_loss(losses / (labels != IGNORED).sum(1)).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
        return gradient_disparity(torch.stack(gradients))

    def _result(self, seconds: float) -> dict[str, Any]:
        kept = {}
        for name, averaged in (self.averages | {"ema_998": self.fading}).items():
            with averaged.applied():
                kept[name] = {key: short(value) for key, value in self._test().items()}
        reductions = [row.pop("reductions") for row in self.columns]
        # What follows from the scores; the rest is the same for all.
        read = [name for name in reductions[0]["mean"] if name not in IN_COMMON]
        return {
            "settings": asdict(self.settings),
            "device": torch.cuda.get_device_name() if self.engine.fast else "cpu",
            "seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in self.engine.model.parameters()),
            "wrong": float(self.wrong.float().mean()),
            "epochs": _by_column(self.columns, self.columns[0]),
            "reductions": {
                name: _by_column([row[name] for row in reductions], read)
                for name in REDUCTIONS
                if name != "mean"
            },
            "detection": {},
            "examples": self.detection.found,
            "averages": kept,
        }


def _token_loss(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the loss of the tokens that count, in float32."""
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, **options
    )


def _row(summary: Any) -> dict[str, Any]:
    """Return what rules and averages read of a summary."""
    return {name: getattr(summary, name) for name in (*SUMMARY, "separation")}


def _by_column(rows: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [short(row[name]) for row in rows] for name in names}
