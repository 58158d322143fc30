"""A report of random scores, for the tests of what shows reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from gwa_core import EpochSummary, Selection, average_shares
from gwa_offline.analysis.findings import Decision
from gwa_offline.analysis.results import EpochRecord, Report

T, N, C = 20, 300, 4
BEST, SICK = 13, 3
UNSEEN, UNSCORED = 7, 8  # a sample never seen, and one not seen in the best epoch
NAMES = ("cat", "<script>alert(1)</script>", '=HYPERLINK("x"), "quoted"', "var(--bg) & $x$ %{y}")


def make_report(num_epochs: int = T, **changes: Any) -> Report:
    """A report with the moments of samples drawn at random; the sick epoch has two far modes."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, C, N)
    wrong = rng.random(N) < 0.2
    pull = np.where(wrong, -0.15, 0.3) + rng.normal(0, 0.1, N) - 0.05 * targets
    history = np.array(
        [
            pull * min(t / 10, 1) * (1 - max(0, t - BEST) / 20) + rng.normal(0, 0.08, N)
            for t in range(num_epochs)
        ]
    ).astype(np.float32)
    if num_epochs > SICK:
        history[SICK] = np.where(rng.random(N) < 0.5, -0.5, 0.5) + rng.normal(0, 0.01, N)
    edges = np.linspace(-1, 1, 81)
    records, class_gwa, class_mean = [], [], []
    for epoch, scores in enumerate(history):
        summary = summarise(epoch, scores)
        metrics = {"test_accuracy": 0.4 + 0.03 * min(epoch, 15), "<b>loss</b>": 2 / (1 + epoch)}
        records.append(EpochRecord(summary=summary, source="online", metrics=metrics))
        by_class = [summarise(epoch, scores[targets == c]) for c in range(C)]
        class_gwa.append([s.gwa for s in by_class])
        class_mean.append([s.mean for s in by_class])
    best = min(BEST, num_epochs - 1)
    class_gwa[best][1] = np.nan  # as where a class has two far modes
    quality = np.clip(0.5 + history.mean(axis=0), 0, 1).astype(np.float64)
    quality[UNSEEN], quality[UNSCORED] = np.nan, 0.0
    scores = history[best].copy()
    scores[[UNSEEN, UNSCORED]] = np.nan
    summaries = [record.summary for record in records]
    errors = np.array([summary.gwa_standard_error for summary in summaries])
    decision = Decision(
        signal="gwa",
        values=np.array([summary.gwa for summary in summaries]),
        standard_errors=errors,
        tied=np.abs(np.arange(num_epochs) - best) <= 2,
        warmup=min(2, best),
    )
    fields: dict[str, Any] = {
        "decision": decision,
        "name": "demo run", "num_samples": N, "num_classes": C, "class_names": NAMES, "beta": 1.2,
        "epochs": tuple(records), "rule": "MaxGWA(warmup=0.1)", "best_index": best,
        "average_shares": average_shares([record.summary for record in records]),
        "selection": Selection(
            best, records[best].summary.gwa, "largest GWA after the warm-up of 2 epochs"
        ),
        "memorising": False, "targets": targets.astype(np.int64), "scores": scores,
        "predictions": np.where(wrong, (targets + 1) % C, targets).astype(np.int64),
        "label_quality": quality, "class_gwa": np.array(class_gwa),
        "class_mean": np.array(class_mean), "histogram_edges": edges,
        "histograms": np.stack([np.histogram(row, edges)[0] for row in history]),
        "messages": (f"Epoch {SICK} is unhealthy: its denominator is not positive.",),
    }  # fmt: skip
    return Report(**(fields | changes))


def summarise(epoch: int, scores: np.ndarray) -> EpochSummary:
    x = scores.astype(np.float64)
    z = (x - x.mean()) / x.std()
    skewness, kurtosis = float((z**3).mean()), float((z**4).mean() - 3)
    bimodality = (skewness**2 + 1) / (kurtosis + 3)
    return EpochSummary(
        epoch, epoch * 100, len(x), int(epoch == 5), float(x.mean()), float(x.var()), skewness,
        kurtosis, float(x.mean() / (kurtosis + 1.2)), float(x.std() / len(x) ** 0.5), kurtosis + 1.2,
        bimodality, float((x < 0).mean()), bimodality * max(float(x.mean()), 0.0) ** 0.25,
    )  # fmt: skip
