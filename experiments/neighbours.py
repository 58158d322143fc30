"""Nearest neighbours among the latents, and what their labels add to label quality."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from experiments.measures import judged
from gwa_core import EarlyStopper, EpochAverage, EpochSummary, MaxSeparation, label_quality
from gwa_torch import AveragedWeights

if TYPE_CHECKING:
    from experiments.engine import Engine

__all__ = [
    "BASELINES",
    "LATENTS",
    "SIGNALS",
    "Form",
    "Neighbours",
    "combined",
    "counts",
    "forms",
    "nearest",
    "opinion",
]

#: Whose latents are searched: the weights of which epochs; "all" is the mean of these opinions.
LATENTS = ("last", "separation", "average", "all")
METRICS = ("distance", "cosine")
#: How many neighbours: fixed, or by the number of samples.
COUNTS = ("10", "100", "300", "class root", "root")
#: What a neighbour's vote weighs: one, one by its distance, or the rank of its label quality, among
#: all samples or among those of the same label.
VOTES = ("alike", "near", "trusted", "trusted in class")
#: The given label's share of the votes, or that less the largest other share.
READINGS = ("share", "margin")
COMBINATIONS = (
    *("alone", "ranks", "standardised", "product", "smaller", "against", "for"),
    *("by modes", "the rest"),
)
#: The opinion whose rank correlation with label quality says which latents know the labels.
USUAL = ("distance", "root", "trusted in class", "share")
#: Signals that are measured beside, by their mean over the epochs.
SIGNALS = ("margin", "el2n")
BASELINES = ("label_quality", "mean", *SIGNALS)
#: Rows of the distances at a time.
BLOCK = 1000


class Form(NamedTuple):
    """One way to rank samples by their neighbours and by label quality.

    Parameters
    ----------
    metric, number, vote, reading, combination : str
        Of `METRICS`, `COUNTS`, `VOTES`, `READINGS` and `COMBINATIONS`.
    """

    metric: str
    number: str
    vote: str
    reading: str
    combination: str


def forms() -> list[Form]:
    """Return the forms whose average precision a result has, in its order."""
    every = itertools.product(METRICS, COUNTS, VOTES, READINGS, COMBINATIONS)
    return [form for form in map(Form._make, every) if _is_measured(form)]


def _is_measured(form: Form) -> bool:
    """Whether a form is one of few: what changes little is measured at one place."""
    usual = form.combination in COMBINATIONS[:3]
    main = form.vote in ("alike", "trusted in class")
    if form.number != "root":
        return form.metric == "distance" and usual and main and form.reading == "share"
    if form.metric == "cosine" or not main:
        return usual and (main or form.metric == "distance")
    # A share is never against a label.
    return form.reading == "margin" or form.combination not in ("against", "for")


def counts(samples: int, classes: int) -> dict[str, int]:
    """Return the numbers of neighbours by their name, each below that of the samples."""
    roots = {"class root": round(math.sqrt(samples / classes)), "root": round(math.sqrt(samples))}
    wanted = {name: roots.get(name) or int(name) for name in COUNTS}
    return {name: min(count, samples - 1) for name, count in wanted.items()}


@torch.no_grad()
def nearest(latents: torch.Tensor, count: int, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest other samples of each sample, the nearest first, and their distances.

    Parameters
    ----------
    latents : tensor of shape (N, D)
        Of the samples.
    count : int
        How many.
    metric : {"distance", "cosine"}
        Between points or their directions.

    Returns
    -------
    indices, distances : tensors of shape (N, count)
    """
    x = F.normalize(latents, dim=1) if metric == "cosine" else latents
    squares = x.square().sum(1)
    indices, distances = [], []
    # A difference of large numbers: in short ones the nearest would be any.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    for rows in torch.arange(len(x), device=x.device).split(BLOCK):
        # Less the sample's own square, which does not change the order.
        near = torch.addmm(-squares, x[rows], x.T, alpha=2)
        near[torch.arange(len(rows), device=x.device), rows] = -math.inf
        values, found = near.topk(count, dim=1)
        indices.append(found)
        distances.append((squares[rows, None] - values).clamp_min(0).sqrt())
    torch.set_float32_matmul_precision(precision)
    return torch.cat(indices), torch.cat(distances)


def opinion(
    labels: torch.Tensor, votes: torch.Tensor, weights: torch.Tensor, classes: int
) -> dict[str, torch.Tensor]:
    """Return the share of the given label among the votes, and how far it is above the next.

    Parameters
    ----------
    labels : integer tensor of shape (N,)
        As given.
    votes : integer tensor of shape (N, K)
        The labels of the neighbours.
    weights : tensor of shape (N, K)
        Of the votes.
    classes : int
        C.
    """
    shares = weights.new_zeros(len(labels), classes).scatter_add_(1, votes, weights)
    shares /= shares.sum(1, keepdim=True)
    own = shares.gather(1, labels[:, None])
    others = shares.scatter(1, labels[:, None], -math.inf).amax(1)
    return {"share": own[:, 0], "margin": own[:, 0] - others}


def combined(opinion: torch.Tensor, quality: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return each combination of the neighbours' opinion (N,) with label quality (N,).

    Low is suspicious. "against" and "for" let the neighbours speak only where most are against the
    label or for it. "by modes" counts each by how clearly it falls into two groups, and "the rest"
    gives the neighbours what label quality leaves of one.
    """
    first, second = _ranks(opinion), _ranks(quality)
    known = _modes(quality)
    return {
        "alone": opinion,
        "ranks": first + second,
        "standardised": _standardised(opinion) + _standardised(quality),
        "product": first * second,
        "smaller": torch.minimum(first, second),
        "against": second + opinion.clamp_max(0),
        "for": second + opinion.clamp_min(0),
        "by modes": _modes(opinion) * first + known * second,
        "the rest": (1 - known) * first + known * second,
    }


class Neighbours:
    """The weights whose latents are searched at the end of a run.

    Parameters
    ----------
    engine : Engine
        The network in training.
    epochs : int
        Of the run.
    """

    def __init__(self, engine: Engine, epochs: int) -> None:
        self.engine = engine
        self.averaged = AveragedWeights(engine.model, EpochAverage(total_steps=epochs))
        self.stopper = EarlyStopper(MaxSeparation(), total_steps=epochs)
        self.best: dict[str, torch.Tensor] = {}

    def epoch(self, summary: EpochSummary) -> None:
        """Take in the weights at the end of an epoch."""
        self.averaged.update(summary)
        self.stopper.observe(summary, step=summary.step)
        if self.stopper.best_step == summary.step or not self.best:
            self.best = {k: x.clone() for k, x in self.engine.model.state_dict().items()}

    def judged(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        wrong: NDArray[Any],
        samples: Mapping[str, NDArray[Any]],
    ) -> dict[str, Any]:
        """Return the average precision of `BASELINES` and of the forms by latents, in thousandths.

        Of each latents also the rank correlation of an opinion with label quality, and the modes of
        label quality.

        Parameters
        ----------
        images, labels : tensors
            Those that were trained on.
        wrong : boolean array of shape (N,)
            The truth; without an error there is nothing to find.
        samples : mapping of str to array of shape (T, N)
            Scores, as "alignment", and `SIGNALS` of each epoch.
        """
        if not wrong.any():
            return {}
        truth, scores = torch.as_tensor(wrong, device=labels.device), samples["alignment"]
        # Low is suspicious.
        rankings = {
            "label_quality": label_quality(scores),
            "mean": np.nanmean(scores, axis=0),
            "margin": np.nanmean(samples["margin"], axis=0),
            "el2n": -np.nanmean(samples["el2n"], axis=0),
        }
        there = {name: torch.as_tensor(x, device=labels.device) for name, x in rankings.items()}
        found: dict[str, Any] = {name: _precision(x, truth) for name, x in there.items()}
        quality = there["label_quality"]
        said = {
            name: self._opinions(self._latents(name, images), labels, quality)
            for name in LATENTS[:-1]
        }
        said["all"] = {
            key: torch.stack([x[key] for x in said.values()]).mean(0) for key in said["average"]
        }
        found["modes"] = round(1000 * float(_modes(quality)))
        found["correlation"] = {
            name: round(1000 * _correlation(x[USUAL], quality)) for name, x in said.items()
        }
        for name, opinions in said.items():
            rankings = {key: combined(x, quality) for key, x in opinions.items()}
            found[name] = [
                _precision(rankings[form[:-1]][form.combination], truth) for form in forms()
            ]
        return found

    def _latents(self, name: str, images: torch.Tensor) -> torch.Tensor:
        model = self.engine.model
        if name == "average":
            with self.averaged.applied():
                return self.engine.evaluate(images)[0]
        own = {k: x.clone() for k, x in model.state_dict().items()}
        if name == "separation":
            model.load_state_dict(self.best)
        latents = self.engine.evaluate(images)[0]
        model.load_state_dict(own)
        return latents

    def _opinions(
        self, latents: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor
    ) -> dict[tuple[str, ...], torch.Tensor]:
        """Return opinions (N,) by all of a form but its combination."""
        numbers = counts(len(labels), self.engine.classes)
        in_class = torch.empty_like(quality)
        for label in labels.unique():
            in_class[labels == label] = _ranks(quality[labels == label]).to(quality.dtype)
        trust = {"trusted": _ranks(quality).to(quality.dtype), "trusted in class": in_class}
        found: dict[tuple[str, ...], torch.Tensor] = {}
        for metric in METRICS:
            keys = dict.fromkeys(form[:3] for form in forms() if form.metric == metric)
            indices, distances = nearest(latents, max(numbers[key[1]] for key in keys), metric)
            for key in keys:
                near = indices[:, : numbers[key[1]]]
                weights = torch.ones_like(distances[:, : near.shape[1]])
                if key[2] == "near":
                    # A copy of a sample is not all of the votes.
                    floor = 1e-3 * distances[:, -1:].clamp_min(1e-12)
                    weights = 1 / distances[:, : near.shape[1]].maximum(floor)
                elif key[2] in trust:
                    weights = trust[key[2]][near]
                said = opinion(labels, labels[near], weights, self.engine.classes)
                found |= {(*key, reading): x for reading, x in said.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on needs."""
        return {
            "averaged": self.averaged.state_dict(),
            "stopper": self.stopper.state_dict(),
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on between two epochs."""
        self.averaged.load_state_dict(state["averaged"])
        self.stopper.load_state_dict(state["stopper"])
        device = self.engine.device
        self.best = {k: x.to(device) for k, x in state["best"].items()}


def _precision(ranking: torch.Tensor, wrong: torch.Tensor) -> int:
    return round(1000 * judged(-ranking, wrong)[1])


def _ranks(x: torch.Tensor) -> torch.Tensor:
    """Return ranks in (0, 1]; ties have the mean of theirs, what is not a number that of all."""
    x = torch.nan_to_num(x.double(), nan=float(x.double().nanmean()))
    _, places, ties = x.unique(return_inverse=True, return_counts=True)
    return (ties.cumsum(0).double() - (ties - 1) / 2)[places] / len(x)


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return Spearman's coefficient."""
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _modes(x: torch.Tensor) -> torch.Tensor:
    """Return how clearly numbers fall into two groups: 1 for two values, one third if normal."""
    z = _standardised(x)
    return 1 / (z.pow(4).mean() - z.pow(3).mean() ** 2).clamp_min(1)


def _standardised(x: torch.Tensor) -> torch.Tensor:
    x = torch.nan_to_num(x.double(), nan=float(x.double().nanmean()))
    return (x - x.mean()) / x.std(correction=0).clamp_min(1e-12)
