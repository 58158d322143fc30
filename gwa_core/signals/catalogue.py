"""What there is to know of each signal before one chooses it."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["SIGNALS", "Signal"]


class Signal(NamedTuple):
    """A signal of samples, or of an epoch, that `TrackedSignals` can follow.

    Parameters
    ----------
    name : str
        As it is chosen.
    suspicious : {"low", "high"} or None
        Which end of the samples' values to look at; None where the signal has none a sample.
    better : {"low", "high"} or None
        Which mean over the samples a better epoch has, where the mean says so.
    range : tuple of two floats
        Smallest and largest value of a sample, or of the epoch.
    needs : tuple of str
        Of "latents", "ids" and "previous epoch", what it takes beside logits and targets.
    cost : str
        Beside the one pass over the logits that all signals share.
    reference : str
        The paper that it is from.
    """

    name: str
    suspicious: Literal["low", "high"] | None
    better: Literal["low", "high"] | None
    range: tuple[float, float]
    needs: tuple[str, ...]
    cost: str
    reference: str


INF = float("inf")
ACROSS = ("ids", "previous epoch")

#: By name, in the order of the documentation.
SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("margin", "low", "high", (-INF, INF), (), "O(N)",
               "Pleiss et al., NeurIPS 2020 (AUM is its mean over the epochs)"),
        Signal("sample_loss", "high", "low", (0.0, INF), (), "O(N)",
               "Arpit et al., ICML 2017; Han et al., NeurIPS 2018 (small loss)"),
        Signal("label_probability", "low", "high", (0.0, 1.0), (), "O(N)",
               "Swayamdipta et al., EMNLP 2020 (confidence is its mean over the epochs)"),
        Signal("variability", "high", None, (0.0, 0.5), ACROSS, "O(N)",
               "Swayamdipta et al., EMNLP 2020"),
        Signal("el2n", "high", "low", (0.0, 2.0**0.5), (), "O(N)",
               "Paul, Ganguli, Dziugaite, NeurIPS 2021"),
        Signal("gradient_norm", "high", "low", (0.0, INF), ("latents",), "O(ND)",
               "Paul, Ganguli, Dziugaite, NeurIPS 2021 (GraNd at the head)"),
        Signal("self_influence", "high", None, (0.0, INF), ("latents",), "O(ND)",
               "Pruthi et al., NeurIPS 2020 (TracIn at the head)"),
        Signal("head_hessian_trace", None, "low", (0.0, INF), ("latents",), "O(ND)",
               "Hölzl, Rueckert, Kaissis, NeurIPS 2025, App. B.1"),
        Signal("forgetting_events", "high", None, (0.0, INF), ACROSS, "O(N)",
               "Toneva et al., ICLR 2019"),
        Signal("prediction_changes", None, "low", (0.0, 1.0), ACROSS, "O(N)",
               "Yuan, Feng, Liu, ICLR 2024 (LabelWave)"),
    )
}  # fmt: skip
