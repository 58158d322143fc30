"""All tables by name."""

from __future__ import annotations

from collections.abc import Callable

from experiments.store import Result
from experiments.tables import (
    correlations,
    corruptions,
    estimator,
    fine_tuning,
    fluctuation,
    keep,
    knowing,
    label_errors,
    language,
    layers,
    missing,
    models,
    neighbours,
    published,
    rules,
    stopping,
    two_modes,
    widths,
)

__all__ = ["TABLES"]

#: By name: what makes the table of all results; empty where its runs are missing.
TABLES: dict[str, Callable[[list[Result]], str]] = {
    "stopping": stopping.stopping,
    "correlations": correlations.correlations,
    "label-errors": label_errors.label_errors,
    "rules": rules.rules,
    "smooth-rules": rules.smooth_rules,
    "above-validation": rules.above_validation,
    "leads": rules.leads,
    "fluctuation": fluctuation.fluctuation,
    "knowing": knowing.knowing,
    "missing": missing.missing,
    "published": published.published,
    "claims": keep.claims,
    "keep": keep.keep,
    "averages": keep.candidates,
    "fixed-size": stopping.fixed_size,
    "corruptions": corruptions.corruptions,
    "models": models.models,
    "further-errors": label_errors.further_errors,
    "neighbours": neighbours.neighbours,
    "estimator": estimator.estimator,
    "layers": layers.layers,
    "widths": widths.widths,
    "fine-tuning": fine_tuning.fine_tuning,
    "fine-tuning-windows": fine_tuning.windows,
    "two-modes": two_modes.two_modes,
    "language-examples": language.examples,
    "language-all-tokens": language.examples_all,
    "language-stopping": language.stopping,
}
