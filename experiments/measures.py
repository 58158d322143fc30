"""What is measured of a network between two epochs, and of the samples after the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from experiments.augmentation import scaled
from experiments.criteria import warm
from gwa_core import (
    EpochSummary,
    glass_delta,
    label_quality,
    residual,
    summarize,
)
from gwa_core.signals import (
    SIGNALS,
    centred_class_means,
    gradient_disparity,
    head_gradient_disparity,
    matrix_entropy_difference_ratio,
    matrix_mutual_information_ratio,
    mean_pairwise_alignment,
    optimum_alignment,
    rescaled_loss,
)
from gwa_torch import GWAMonitor, head_scores, layer_alignment

if TYPE_CHECKING:
    from experiments.engine import Engine

__all__ = ["CURVES", "Measures", "detection", "judged"]

BATCHES, BATCH = 5, 512
#: Training images that are scored after an epoch, in a pass without augmentation.
AFTER = 5000
#: Samples whose gradients are explicit, and how many of them at the same time.
SAMPLES, CHUNK = 256, 64
#: Signals whose average precision is kept for every epoch, for the figure.
CURVES = ("alignment", "margin", "sample_loss", "el2n")


class Measures:
    """Signals that need a pass of their own, on the same training images each time.

    Parameters
    ----------
    engine : Engine
        The network.
    monitor : GWAMonitor
        Of its head; it must not take these passes for training.
    images, labels : tensors
        Those that are trained on.
    batch : int
        How many of them a step of training takes.
    """

    def __init__(
        self,
        engine: Engine,
        monitor: GWAMonitor,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch: int,
    ) -> None:
        self.engine, self.monitor, self.batch = engine, monitor, batch
        self.images, self.labels = images, labels
        self.size = min(BATCH, len(labels) // BATCHES)
        #: The head's weight and gradient after each epoch, for the way to the optimum.
        self.ends: list[tuple[torch.Tensor, torch.Tensor]] = []

    def epoch(self, *, offline: bool = False, layers: bool = False) -> dict[str, float]:
        """Return the signals at the weights of now.

        Parameters
        ----------
        offline : bool
            Also the alignment of all training images at these weights, and how far that of the
            epoch lies from it (Fig. 6).
        layers : bool
            Also the alignment of ever more of the network (Fig. 7).
        """
        head, classes = self.engine.model.head, self.engine.classes
        count = BATCHES * self.size
        images, labels = self.images[:count], self.labels[:count]
        latents, logits = self.engine.evaluate(images)
        parts = {
            "latents": latents.unflatten(0, (BATCHES, self.size)),
            "logits": logits.unflatten(0, (BATCHES, self.size)),
            "targets": labels.unflatten(0, (BATCHES, self.size)),
        }
        one = {name: x[0] for name, x in parts.items()}
        means = centred_class_means(latents, labels, classes)
        gradient = -residual(logits=logits, targets=labels).T @ latents / count
        self.ends.append((head.weight.detach().cpu().clone(), gradient.cpu()))
        found = {
            "pairwise_alignment": mean_pairwise_alignment(**one),
            "head_gradient_disparity": head_gradient_disparity(**parts),
            "gradient_disparity": self._disparity(),
            "mir": matrix_mutual_information_ratio(means, head.weight.detach()),
            "hdr": matrix_entropy_difference_ratio(means, head.weight.detach()),
            "latent_norm": latents.norm(dim=1).mean(),
            "weight_norm": head.weight.detach().norm(),
        }
        scores, losses = self._scores(AFTER)
        after = summarize(scores)
        found |= {"after_mean": after.mean, "after_bimodality": after.bimodality}
        found["after_loss"] = losses.mean()
        if offline:
            scores, _ = self._scores(len(self.labels))
            summary = summarize(scores)
            found |= {"offline_gwa": summary.gwa, "offline_mean": summary.mean}
            found["glass_delta"] = glass_delta(self.monitor.scores.to(scores.device), scores)
        if layers:
            found |= self._layers()
        return {name: float(value) for name, value in found.items()}

    def _scores(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and losses of the first training images at the weights of now."""
        head, labels = self.engine.model.head, self.labels[:count]
        latents, logits = self.engine.evaluate(self.images[:count])
        scores = head_scores(
            latents=latents, logits=logits, targets=labels,
            weight=head.weight.detach(), bias=head.bias.detach(),
        )  # fmt: skip
        return scores, F.cross_entropy(logits, labels, reduction="none")

    def _layers(self) -> dict[str, torch.Tensor]:
        """Return what the scores of fixed samples are like, for the head and more before it."""
        model, labels = self.engine.model, self.labels[:SAMPLES]
        count = len(model.body.encoder.stages)
        stages = {"head": ["head.weight"], "full": [""]}
        for first in range(count, 1, -1):
            parts = [f"body.encoder.stages.{k}" for k in range(first - 1, count)]
            stages[f"stage{first}"] = [*parts, "body.layernorm", "head"]
        images = scaled(self.images[:SAMPLES])
        scores = layer_alignment(model, F.cross_entropy, images, labels, stages, chunk_size=CHUNK)
        found = {}
        for name, values in scores.items():
            summary = summarize(values)
            found |= {
                f"{name}_mean": summary.mean,
                f"{name}_deviation": summary.variance.sqrt(),
                f"{name}_kurtosis": summary.kurtosis,
                f"{name}_gwa": summary.gwa,
                # Over the samples: does this part see what the head sees?
                f"{name}_with_head": torch.corrcoef(torch.stack([values, scores["head"]]))[0, 1],
            }
        return found

    def _disparity(self) -> torch.Tensor:
        """Return the mean distance between the gradients of batches, of the whole network."""
        model, size = self.engine.model, self.size
        gradients = []
        with self.monitor.pause():
            for k in range(BATCHES):
                rows = slice(k * size, (k + 1) * size)
                # In the shape of training, for which the network is compiled.
                parts = self.images[rows].split(self.batch)
                logits = torch.cat([self.engine.forward(part) for part in parts])
                losses = F.cross_entropy(logits.float(), self.labels[rows], reduction="none")
                rescaled_loss(losses).backward()
                gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
                model.zero_grad()
        return gradient_disparity(torch.stack(gradients))

    def towards(self, best: int) -> list[float]:
        """Return the alignment of each epoch's gradient with the way to the weights of `best`."""
        optimum = self.ends[best][0]
        return [
            float(optimum_alignment(gradient=gradient, weights=weights, optimum=optimum))
            for weights, gradient in self.ends
        ]


def judged(suspicion: Any, wrong: torch.Tensor) -> tuple[float, float]:
    """Return how well numbers (N,) find what is wrong: area under the curve and average precision."""
    x, truth = torch.as_tensor(suspicion, device=wrong.device).double(), wrong.long()
    # Ranks in [0, 1]: numbers outside would be taken for logits. Ties stay ties.
    x = torch.nan_to_num(x, nan=float(x.nanmean())).unique(return_inverse=True)[1].double()
    x = x / x.max().clamp_min(1)
    area, precision = binary_auroc(x, truth), binary_average_precision(x, truth)
    return round(float(area), 5), round(float(precision), 5)


def detection(
    samples: dict[str, np.ndarray[Any, Any]],
    history: Sequence[EpochSummary],
    wrong: np.ndarray[Any, Any],
    device: str,
) -> dict[str, Any]:
    """Return how well each signal finds the wrong labels, as average precision.

    By its "last" epoch, by its "mean" over all epochs, and by the "best_mean" up to any epoch; of
    `CURVES` also "by_epoch" and "by_mean" so far. "auroc" and "last_auroc" are areas.

    Parameters
    ----------
    samples : mapping of str to array of shape (T, N)
        Values of each epoch; variability and forgetting events are over the epochs already.
    history : sequence of EpochSummary
        All epochs.
    wrong : boolean array of shape (N,)
        The truth.
    device : str
        Where to sort.
    """
    if not wrong.any():
        return {}
    truth = torch.as_tensor(wrong, device=device)
    found: dict[str, Any] = {}
    for name, values in samples.items():
        if name == "alignment":
            sign = -1
        elif name in SIGNALS and SIGNALS[name].suspicious is not None:
            sign = -1 if SIGNALS[name].suspicious == "low" else 1
        else:
            continue
        x = sign * torch.as_tensor(values, device=device)
        of_runs = name in ("variability", "forgetting_events")
        means = x if of_runs else x.nan_to_num().cumsum(0) / x.isfinite().cumsum(0).clamp_min(1)
        single = [] if of_runs else [judged(row, truth) for row in x]
        mean = [precision for _, precision in (judged(x, truth) for x in means)]
        found[name] = {"mean": mean[-1], "best_mean": max(mean)}
        if single:
            found[name] |= dict(zip(("last_auroc", "last"), single[-1], strict=True))
        if name in CURVES:
            # For figures, in which a pixel is more.
            by_epoch = [round(precision, 3) for _, precision in single]
            found[name] |= {"by_epoch": by_epoch, "by_mean": [round(x, 3) for x in mean]}
        if name == "alignment":
            found[name]["auroc"] = [area for area, _ in single]
    scores = samples["alignment"]
    # What was tried before: squares of the excess over the least bimodal epoch, and all alike up to one.
    bimodality = np.asarray([summary.bimodality for summary in history])
    former = np.nan_to_num(bimodality - np.nanmin(bimodality)) ** 2
    qualities = {
        name: label_quality(scores, weights=weights)
        for name, weights in {"label_quality": None, "by excess bimodality": former}.items()
    }
    for name, values in {"mean": scores, "margin": samples["margin"]}.items():
        qualities[f"{name} to twice the peak"] = np.nanmean(values[: _cut_off(history)], axis=0)
    for name, quality in qualities.items():
        area, precision = judged(-quality, truth)
        found[name] = {"mean": precision, "auroc": area}
    return found


def _cut_off(history: Sequence[EpochSummary]) -> int:
    """Return how many first epochs: up to twice the healthy one of largest bimodality.

    It is looked for after the warm-up.
    """
    first = warm(len(history))
    usable = [t for t, summary in enumerate(history) if t >= first and summary.healthy]
    if not usable:
        return len(history)
    return min(len(history), 2 * max(usable, key=lambda t: history[t].bimodality) + 1)
