"""One run: a network trained with the monitor on, and everything measured at the end of an epoch."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from experiments import windows
from experiments.augmentation import mixed
from experiments.averages import Averages
from experiments.data import Images, with_noise
from experiments.engine import Engine
from experiments.folds import packed, scores, split
from experiments.measures import Measures, detection
from experiments.neighbours import SIGNALS as BESIDE
from experiments.neighbours import Neighbours
from experiments.optimisation import optimizer, rate
from experiments.plan import Settings
from experiments.store import short
from gwa_core.signals import SIGNALS
from gwa_torch import GWAMonitor

__all__ = ["Run"]


class Run:
    """A training, from its beginning or from where a budget has ended it.

    Parameters
    ----------
    settings : Settings
        What to train.
    images : Images
        The data.
    folder : path
        Where the run folder goes.
    engine : Engine
        The network, on its device.
    corrupted : mapping of str to (images, labels)
        Test sets under corruptions, by the name of their group.
    """

    def __init__(
        self,
        settings: Settings,
        images: Images,
        folder: Path,
        engine: Engine,
        corrupted: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        self.settings, self.folder, self.engine = settings, folder / settings.name, engine
        device = engine.device
        labels = with_noise(images, settings.labels, settings.seed)
        s = settings
        self.rows, held = split(len(labels), percent=s.percent, fold=s.fold, seed=s.seed)

        def there(x: Any) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(x)).to(device)

        self.images, self.labels = there(images.train[self.rows]), there(labels[self.rows])
        # What a label is wrong against; on real data without known errors nothing is.
        wrong = labels != images.labels["label"]
        self.wrong, self.held_wrong = wrong[self.rows], wrong[held]
        tests = {"test": (images.test, images.test_labels)}
        tests |= {f"corrupted_{name}": x for name, x in (corrupted or {}).items()}
        if len(held):
            tests["validation"] = (images.train[held], labels[held])
        self.tests = {name: (there(x), there(y)) for name, (x, y) in tests.items()}
        self.class_names = images.class_names
        engine.begin(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)
        torch.manual_seed(settings.seed)
        self.optimizer = optimizer(settings, engine)
        head, count = engine.model.head, len(self.rows)
        signals = BESIDE if s.neighbours else tuple(SIGNALS)
        # Mixup leaves an image no class; its scores are of the mixture, its signals of its label.
        self.monitor = GWAMonitor(head, count, signals=() if s.mixup else signals)
        self.others: dict[str, GWAMonitor] = {}
        if s.mixup:
            # No loss is taken of the label alone, so there is no gradient to check it by.
            self.others["labels"] = GWAMonitor(head, count, signals=signals, residual="formula")
        if 0 < s.sketch < head.in_features:
            self.others["sketched"] = GWAMonitor(head, count, sketch=s.sketch)
        self.averages = Averages(engine, self.images) if s.averages else None
        self.neighbours = Neighbours(engine, self.epochs) if s.neighbours else None
        self.measures = (
            None
            if s.averages or s.neighbours
            else Measures(engine, self.monitor, self.images, self.labels, s.batch_size)
        )
        self.step, self.seconds = 0, 0.0
        self.columns: list[dict[str, Any]] = []
        self.samples: dict[str, list[Any]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        """Where the state of an unfinished run is."""
        return self.folder / "checkpoint.pt"

    @property
    def steps(self) -> int:
        """Of whole epochs; a last batch is filled up with the first rows of its epoch."""
        return self.epochs * self._steps_an_epoch

    @property
    def epochs(self) -> int:
        """The nearest number to the steps of the settings, at least one."""
        return max(1, round(self.settings.steps / self._steps_an_epoch))

    @property
    def _steps_an_epoch(self) -> int:
        return -(-len(self.rows) // self.settings.batch_size)

    def train(self, deadline: float = math.inf) -> dict[str, Any] | None:
        """Train to the end and return the result; None where the deadline came before.

        Parameters
        ----------
        deadline : float
            In seconds of ``time.monotonic``; after it the run stops at the end of an epoch, to go on
            later.
        """
        last = 0.0
        while self.step < self.steps:
            begin = time.monotonic()
            if begin + 1.1 * last > deadline:
                self._save()
                return None
            self._epoch()
            trained = time.monotonic()
            if not self.settings.windows:
                self._end_epoch()
            if not math.isfinite(self.columns[-1]["test_loss"]):
                raise FloatingPointError(
                    f"{self.settings.name} must have finite outputs, got {self.columns[-1]} in epoch "
                    f"{len(self.columns)}; a learning rate that is too large is the usual cause"
                )
            last = time.monotonic() - begin
            print(
                f"{self.settings.name}: epoch {len(self.columns)}, {trained - begin:.1f} s and "
                f"{last - trained + begin:.1f} s, test {self.columns[-1]['test_accuracy']:.2%}",
                flush=True,
            )
            self.seconds += last
        result = self._result()
        self.checkpoint.unlink(missing_ok=True)
        self._close()
        return result

    def _close(self) -> None:
        for monitor in (self.monitor, *self.others.values()):
            monitor.close()

    def _epoch(self) -> None:
        s, device = self.settings, self.engine.device
        augment = self.engine.augmentations[s.augmentation]
        order = torch.randperm(len(self.rows), generator=self.generator).to(device)
        order = torch.cat([order, order[: -len(order) % s.batch_size]])
        batches = order.split(s.batch_size)
        ends = windows.ends(len(batches), s.windows)
        for number, ids in enumerate(batches, 1):
            for group in self.optimizer.param_groups:
                group["lr"].fill_(rate(s, self.step, self.steps))
            images, targets = augment(self.images[ids]), self.labels[ids]
            if s.mixup:
                soft = F.one_hot(targets, self.engine.classes).float()
                images, targets = mixed(images, soft, s.mixup)
            loss = F.cross_entropy(self.engine.forward(images), targets)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.averages is not None:
                self.averages.step()
            self.monitor.update(targets, ids=ids)
            for name, monitor in self.others.items():
                monitor.update(self.labels[ids] if name == "labels" else targets, ids=ids)
            self.step += 1
            if number in ends:
                self._end_epoch(ends[number])

    def _end_epoch(self, window: int | None = None) -> None:
        """End an epoch, or a window of so many steps."""
        clock = {"step": self.step, "batches": window, "window": window}
        summary = self.monitor.end_epoch(**clock)
        beside = {name: other.end_epoch(**clock) for name, other in self.others.items()}
        signals = self.others.get("labels", self.monitor).signals
        found: dict[str, Any] = dict(signals.history[-1])
        for name, (images, labels) in self.tests.items():
            logits = self.engine.evaluate(images)[1]
            found[f"{name}_accuracy"] = (logits.argmax(1) == labels).float().mean().item()
            found[f"{name}_loss"] = F.cross_entropy(logits, labels).item()
        s = self.settings
        if self.averages is not None:
            found |= self.averages.epoch(self.tests)
        if self.neighbours is not None:
            self.neighbours.epoch(summary)
        if self.measures is not None:
            with contextlib.ExitStack() as paused:
                for other in self.others.values():
                    paused.enter_context(other.pause())
                found |= self.measures.epoch(offline=s.offline, layers=s.layers)
        if behind := beside.get("sketched"):
            found |= {"sketched_gwa": behind.gwa, "sketched_mean": behind.mean}
        plain = {name: value for name, value in found.items() if isinstance(value, float)}
        names = self.class_names
        self.monitor.save(self.folder, metrics=plain, targets=self.labels, class_names=names)
        values = signals.values | {"alignment": self.monitor.scores.cpu().numpy()}
        for side, mask in {"right": ~self.wrong, "wrong": self.wrong}.items():
            if mask.any() and not s.windows:
                for at, share in {"low": 0.1, "middle": 0.5, "high": 0.9}.items():
                    value = np.nanquantile(values["alignment"][mask], share)
                    found[f"{side}_{at}"] = round(float(value), 4)
        for name, x in values.items():
            self.samples.setdefault(name, []).append(x.astype(np.float32))
        over = signals.over_epochs
        for name in ("variability", "forgetting_events"):
            if name in over:
                self.samples.setdefault(name, []).append(over[name].astype(np.float32))
        self.columns.append(summary._asdict() | found)

    def _result(self) -> dict[str, Any]:
        samples = {name: np.stack(values) for name, values in self.samples.items()}
        np.savez_compressed(
            self.folder / "samples.npz",
            wrong=self.wrong,
            **{name: samples[name].astype(np.float16) for name in ("alignment", "margin")},
        )
        history = self.monitor.history
        columns = self.columns
        if self.measures is not None:
            best = max(range(len(columns)), key=lambda k: columns[k]["test_accuracy"])
            for row, value in zip(columns, self.measures.towards(best), strict=True):
                row["optimum_alignment"] = value
        name = "cpu" if not self.engine.fast else torch.cuda.get_device_name()
        many = self.settings.windows
        few = many or self.settings.neighbours
        result = {
            "settings": asdict(self.settings),
            "device": name,
            "seconds": round(self.seconds, 1),
            "wrong": float(self.wrong.mean()),
            "epochs": {
                key: [short(row[key], windows.DIGITS if few else 6) for row in columns]
                for key in columns[0]
            },
            "detection": self._detection(samples),
        }
        if self.neighbours is not None:
            given = self.images, self.labels, self.wrong
            result["neighbours"] = self.neighbours.judged(*given, samples)
        if self.averages is not None:
            chosen = windows.KEPT if many else None
            result["kept"] = self.averages.kept(history, self.tests, chosen)
        if self.settings.fold:
            images, labels = self.tests["validation"]
            logits = self.engine.evaluate(images)[1].cpu().numpy()
            result["held_out"] = packed(scores(logits, labels.cpu().numpy()), self.held_wrong)
        return result

    def _detection(self, samples: dict[str, Any]) -> dict[str, Any]:
        if self.neighbours is not None:
            return {}
        device = self.engine.device
        if self.settings.windows:
            return windows.detected(samples, self.wrong, device)
        return detection(samples, self.monitor.history, self.wrong, device)

    def _save(self) -> None:
        state = {
            "model": self.engine.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "others": {name: other.state_dict() for name, other in self.others.items()},
            "measures": None if self.measures is None else self.measures.ends,
            "averages": None if self.averages is None else self.averages.state_dict(),
            "neighbours": None if self.neighbours is None else self.neighbours.state_dict(),
            "generator": self.generator.get_state(),
            "random": _random_state(self.engine.device),
            "progress": (self.step, self.seconds, self.columns),
            "samples": {k: [torch.from_numpy(x) for x in v] for k, v in self.samples.items()},
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        self._close()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.engine.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        for name, other in self.others.items():
            other.load_state_dict(state["others"][name])
        if self.measures is not None:
            self.measures.ends = state["measures"]
        if self.averages is not None:
            self.averages.load_state_dict(state["averages"])
        if self.neighbours is not None:
            self.neighbours.load_state_dict(state["neighbours"])
        self.generator.set_state(state["generator"])
        _set_random_state(self.engine.device, state["random"])
        self.step, self.seconds, self.columns = state["progress"]
        self.samples = {k: [x.numpy() for x in v] for k, v in state["samples"].items()}


def _random_state(device: str) -> torch.Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()


def _set_random_state(device: str, state: torch.Tensor) -> None:
    torch.set_rng_state(state) if device == "cpu" else torch.cuda.set_rng_state(state)
