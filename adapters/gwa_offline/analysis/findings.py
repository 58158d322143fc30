"""What an analysis found: numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gwa_core import EpochSummary, Selection, rank_samples
from gwa_offline.files.checks import index

__all__ = ["Decision", "EpochRecord", "Findings"]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of an analysis.

    Parameters
    ----------
    summary : gwa_core.EpochSummary
        Moments, GWA, standard error and health of the epoch's scores.
    source : {"online", "offline"}
        Origin of the scores: saved during training (weights of each step), or computed from saved
        features (weights at the end of the epoch).
    glass_delta : float or None
        Online against offline scores of the epoch (App. A.1); None unless both exist.
    metrics : mapping of str to float
        Further columns of the run, such as ``test_accuracy``.
    """

    summary: EpochSummary
    source: str
    glass_delta: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the rule saw, and how sure its choice is.

    Parameters
    ----------
    signal : str
        The column that the rule watches.
    values : array of shape (T,)
        That column; nan where an epoch lacks it.
    standard_errors : array of shape (T,)
        Of the values (gwa_core.signal_standard_error); nan where they are unknown: for a metric, or
        where the scores of an epoch were not kept.
    tied : boolean array of shape (T,)
        Epochs that are about as good as the best one (gwa_core.near_ties), and that one.
    warmup : int
        Number of first epochs that the rule does not keep.
    """

    signal: str
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    tied: NDArray[np.bool_]
    warmup: int = 0


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of an analysis, as numbers only.

    Parameters
    ----------
    name : str
        Name of the run: the last part of its path.
    num_samples, num_classes : int
        N and C; 2 where the head has one output with a sigmoid.
    class_names : tuple of str
        C names; "0", "1", ... if the run has none.
    beta : float
        The constant of Eq. 2.
    epochs : tuple of EpochRecord
        T records in order.
    rule : str
        The stopping rule, as its repr: "MaxGWA()".
    selection : gwa_core.Selection
        Number of the best epoch (`step`), its value and why.
    decision : Decision
        What the rule saw, and which epochs are about as good.
    best_index : int or None
        Position of the best epoch in `epochs`; None where no epoch qualifies. It differs from
        `best_epoch`, its number, where the run did not store every epoch.
    average_shares : array of shape (T,)
        Share of each epoch in the average of the weights (gwa_core.average_shares); zeros where no
        epoch counts.
    memorising : bool
        The history looks like memorisation of wrong labels (gwa_core.summarize_history).
    targets : array of shape (N,) or None
        Given labels by sample id; -1 where unknown.
    predictions : array of shape (N,) or None
        Class with the largest logit at the shown epoch, as the run stored it in training or else from
        its features; -1 where unknown.
    scores : array of shape (N,)
        Alignment at the shown epoch, by sample id; nan where not seen. Low = suspicious.
    label_quality : array of shape (N,)
        In [0, 1], low = suspicious, over all epochs; nan where never seen.
    class_gwa, class_mean : array of shape (T, C)
        GWA and mean alignment of each class at each epoch; nan where unknown.
    histogram_edges : array of shape (B + 1,)
        Bin edges shared by all epochs.
    histograms : array of shape (T, B)
        Number of scores in each bin.
    messages : tuple of str
        Sentences the user should read: unhealthy epochs, epochs cut short, memorisation, omitted
        scores.
    kept : mapping of str to array of shape (N,)
        What the source carries along by sample id: names of rows, and the columns that were kept.
    """

    name: str
    num_samples: int
    num_classes: int
    class_names: tuple[str, ...]
    beta: float
    epochs: tuple[EpochRecord, ...]
    rule: str
    selection: Selection
    decision: Decision
    best_index: int | None
    average_shares: NDArray[np.float64]
    memorising: bool
    targets: NDArray[np.int64] | None
    predictions: NDArray[np.int64] | None
    scores: NDArray[np.float32]
    label_quality: NDArray[np.float64]
    class_gwa: NDArray[np.float64]
    class_mean: NDArray[np.float64]
    histogram_edges: NDArray[np.float64]
    histograms: NDArray[np.int64]
    messages: tuple[str, ...] = ()
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int | None:
        """Number of the best epoch; None where no epoch qualifies."""
        return self.selection.step

    @property
    def shown(self) -> int:
        """Position in `epochs` of the best one, or of the last where none qualifies."""
        return len(self.epochs) - 1 if self.best_index is None else self.best_index

    def rank(
        self,
        k: int,
        *,
        order: Literal["lowest", "highest"] = "lowest",
        by: Literal["label_quality", "scores"] = "label_quality",
        per_class: bool = False,
    ) -> NDArray[np.int64]:
        """Return the ids of the k samples of lowest or highest label quality or score.

        Parameters
        ----------
        k : int
            How many; fewer are returned if fewer are known.
        order : {"lowest", "highest"}
            Which end, default the suspicious one.
        by : {"label_quality", "scores"}
            The field to rank by.
        per_class : bool
            Rank within each class of `targets`.

        Returns
        -------
        array of shape (k,), or (C, k) with `per_class`
            Sample ids; with `per_class` -1 where a class has fewer.

        Raises
        ------
        ValueError
            If `k` is not an integer of at least 1, an option is unknown, or `per_class` lacks labels.
        """
        if by not in ("label_quality", "scores"):
            raise ValueError(f"`by` must be 'label_quality' or 'scores', got {by!r}")
        values = getattr(self, by)
        k = min(index("k", k), self.num_samples)
        if not per_class:
            ids: NDArray[np.int64] = rank_samples(values, k=k, order=order)
            return ids[ids >= 0]
        if self.targets is None:
            raise ValueError("`per_class` needs labels, got none; save `targets` with the run")
        table = np.full((self.num_classes, k), -1, np.int64)
        # One sort of all samples serves every class; there may be 50,000 of them.
        ids = rank_samples(values, k=self.num_samples, order=order)
        ids = ids[(ids >= 0) & (self.targets[ids] >= 0)]
        ids = ids[np.argsort(self.targets[ids], kind="stable")]
        labels = self.targets[ids]
        place = np.arange(len(ids)) - np.searchsorted(labels, labels)
        first = place < k
        table[labels[first], place[first]] = ids[first]
        return table
