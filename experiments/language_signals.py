"""What a language model's logits say of each sequence, and how well that finds wrong answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from experiments.language_data import IGNORED
from experiments.measures import judged
from gwa_core.signals import forgetting_events, sample_signals

__all__ = ["REDUCTIONS", "SIGNALS", "Detection", "sequence_signals"]

#: How the monitors score a sequence.
REDUCTIONS = ("mean", "min", "gradient")
#: Signals that a wrong answer makes large (1) or small (-1).
SIGNALS = {"loss": 1, "perplexity": 1, "el2n": 1, "margin": -1, "forgetting": 1}


@torch.no_grad()
def sequence_signals(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return loss, perplexity, EL2N and margin of each sequence, over the tokens that count.

    The loss is the sum over the tokens. Perplexity is the mean of their losses, its logarithm, so
    that no epoch outweighs all others in a mean. The others are means, too.

    Parameters
    ----------
    logits : tensor of shape (B, S, C)
    labels : integer tensor of shape (B, S)
        Next tokens, `IGNORED` where none counts.

    Returns
    -------
    dict of str to tensor of shape (B,)
    """
    counts = labels != IGNORED
    rows = counts.nonzero()[:, 0]
    found = sample_signals(
        ["sample_loss", "el2n", "margin"], logits=logits[counts], targets=labels[counts]
    )
    tokens = counts.sum(1)
    sums = {
        name: torch.zeros(len(labels), dtype=x.dtype, device=x.device).index_add_(0, rows, x)
        for name, x in found.items()
    }
    return {
        "loss": sums["sample_loss"],
        "perplexity": sums["sample_loss"] / tokens,
        "el2n": sums["el2n"] / tokens,
        "margin": sums["margin"] / tokens,
    }


class Detection:
    """Average precision of the wrong answers by each signal, epoch by epoch.

    Parameters
    ----------
    wrong : boolean tensor of shape (N,)
        The truth.
    """

    def __init__(self, wrong: torch.Tensor) -> None:
        self.wrong = wrong
        #: By signal: "by_epoch", "by_mean" over the epochs so far, and "by_quality", the same weighed.
        self.found: dict[str, dict[str, list[float]]] = {}
        self._totals: dict[str, torch.Tensor] = {}
        self._right: list[torch.Tensor] = []

    def epoch(
        self,
        signals: Mapping[str, torch.Tensor],
        right: torch.Tensor,
        scores: Mapping[str, torch.Tensor],
        qualities: Mapping[str, torch.Tensor],
    ) -> None:
        """Judge an epoch.

        Parameters
        ----------
        signals : mapping of str to tensor of shape (N,)
            What `sequence_signals` gave.
        right : boolean tensor of shape (N,)
            Whether the given answer was predicted, each token after those before it.
        scores, qualities : mapping of str to tensor of shape (N,)
            Of the monitors: the scores of the epoch, and the quality of the answers so far.
        """
        self._right.append(right)
        suspicion = {name: SIGNALS[name] * x for name, x in signals.items()}
        suspicion |= {name: -x for name, x in scores.items()}
        for name, x in suspicion.items():
            x = x.to(self.wrong.device).double()
            total = self._totals.setdefault(name, torch.zeros_like(x)).add_(x)
            self._note(name, "by_epoch", x)
            self._note(name, "by_mean", total)
        self._note("forgetting", "by_mean", forgetting_events(torch.stack(self._right)))
        for name, quality in qualities.items():
            self._note(name, "by_quality", -quality)

    def _note(self, name: str, way: str, suspicion: Any) -> None:
        precision = judged(suspicion.to(self.wrong.device), self.wrong)[1]
        self.found.setdefault(name, {}).setdefault(way, []).append(precision)
