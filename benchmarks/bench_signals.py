"""Signals of a batch, N = 1024, C = 1000, D = 384, beside the alignment of the same batch.

`OMP_NUM_THREADS=1 python -m benchmarks signals`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.pairs import best_of, report
from gwa_core import alignment_from_logits, alignment_scores, signals

N, C, D = 1024, 1000, 384
REPEATS = 60


def main() -> None:
    """Measure and report."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((N, D), dtype=np.float32)
    weight = rng.standard_normal((C, D), dtype=np.float32) / 20
    targets = rng.integers(0, C, N)
    logits = latents @ weight.T
    other, near = logits.copy(), latents.copy()
    norms = np.linalg.norm(latents, axis=1)
    of_logits = {"logits": logits, "targets": targets}
    of_both: dict[str, Any] = {"latents": latents, **of_logits}
    each = [name for name, x in signals.SIGNALS.items() if "previous epoch" not in x.needs]
    calls: dict[str, Callable[[], Any]] = {
        "alignment": lambda: alignment_scores(weight=weight, **of_both),
        "alignment, norms given": lambda: alignment_from_logits(
            latent_norms=norms, weight_norm=1.0, **of_logits
        ),
    }
    for name in each:
        given = of_both if "latents" in signals.SIGNALS[name].needs else of_logits
        if name == "head_hessian_trace":
            given = {"latents": latents, "logits": logits}
        calls[name] = partial(getattr(signals, name), **given)
    together = [*each, "correct", "prediction"]
    calls["all signals of a sample together"] = lambda: signals.sample_signals(together, **of_both)
    calls["two products of N × N"] = lambda: (logits @ logits.T, latents @ latents.T)
    # What NumPy does not halve because it sees that the result is symmetric.
    calls["two products of N × N, unlike factors"] = lambda: (logits @ other.T, latents @ near.T)
    calls["pairwise_alignment"] = partial(signals.pairwise_alignment, **of_both)
    times = best_of(calls, REPEATS)
    rows: dict[str, Any] = {f"ms, {name}": 1e3 * time for name, time in times.items()}
    for name in ("alignment", "alignment, norms given"):
        rows[f"all signals of a sample together / {name} (must be 1.5 or less)"] = (
            times["all signals of a sample together"] / times[name]
        )
    for name in ("two products of N × N", "two products of N × N, unlike factors"):
        rows[f"pairwise_alignment / {name} (must be 1 or less)"] = (
            times["pairwise_alignment"] / times[name]
        )
    report("signals", {"N": N, "C": C, "D": D} | rows)


if __name__ == "__main__":
    main()
