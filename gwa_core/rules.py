"""The stopping rules of gradient-weight alignment, and the engine that all rules share."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from gwa_core._lib.checks import check_positive_int

__all__ = [
    "DipThenMax",
    "Extremum",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "Rule",
    "warmup_steps",
]


class Rule(Protocol):
    """What a stopping rule has: the summary field it watches, and one pure step.

    A rule is a frozen dataclass of options. Its state is a plain dictionary that only `advance`
    changes, so live stopping, finished histories and resumed runs are one code path. Subclass
    `Extremum` for a rule that keeps the best value.
    """

    @property
    def signal(self) -> str:
        """Name of the summary field that the rule watches."""

    def begin(self) -> dict[str, Any]:
        """Return the state before the first value."""

    def advance(
        self, state: dict[str, Any], value: float, step: int, usable: bool, total: int | None
    ) -> None:
        """Take in the next value; set ``state["stopped"]`` to a sentence in order to stop."""


def new_state() -> dict[str, Any]:
    return {
        "best_step": None,
        "best_value": math.nan,
        "wait_count": 0,
        "stopped": "",
        "note": "",
        "recent": [],
    }


def smooth(state: dict[str, Any], value: float, window: int) -> float:
    """Return the mean of the last `window` usable values."""
    state["recent"] = [*state["recent"], value][-window:]
    return math.fsum(state["recent"]) / len(state["recent"])


def warmup_steps(warmup: float, total_steps: int | None) -> int:
    """Return the length of a warm-up in steps.

    Parameters
    ----------
    warmup : float or int
        A fraction of all steps in (0, 1), or a number of steps. A whole float is a number of
        steps: parsers of configuration files make 1.0 of 1.
    total_steps : int or None
        Number of steps of the whole run; needed for a fraction.

    Returns
    -------
    int
        At least 0. Steps before it are not kept.

    Raises
    ------
    ValueError
        If `warmup` is neither, or a fraction without `total_steps`.

    Notes
    -----
    Cost: O(1).

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1.

    Examples
    --------
    >>> from gwa_core import warmup_steps
    >>> warmup_steps(0.1, 30), warmup_steps(2, None), warmup_steps(2.0, None)
    (3, 2, 2)
    """
    warmup = _check_warmup(warmup)
    if isinstance(warmup, int):
        return warmup
    if total_steps is None:
        raise ValueError(
            f"`total_steps` must be given where `warmup` is a fraction ({warmup}), got None; "
            "or give the warm-up as a number of steps, such as warmup=2"
        )
    # Whole steps, and 0.1 * 30 must not be a hair above 3.
    return math.floor(warmup * check_positive_int("total_steps", total_steps) + 1e-9)


def _check_warmup(warmup: Any) -> float:
    """Return a number of steps as an int, a fraction as a float."""
    if isinstance(warmup, numbers.Real) and not isinstance(warmup, bool):
        value = float(warmup)
        if value >= 0 and value.is_integer():
            return int(value)
        if 0 < value < 1:
            return value
    raise ValueError(
        "`warmup` must be a fraction of all steps in [0, 1) or a whole number of steps, "
        f"got {warmup!r}"
    )


def keep_best(state: dict[str, Any], value: float, step: int, rule: Extremum) -> None:
    """Keep a value that is better than the best by more than the margin, else wait."""
    best = state["best_value"]
    margin = rule.min_delta * abs(best) if rule.relative else rule.min_delta
    if math.isnan(best) or rule.sign * (value - best) > margin:
        state.update(best_step=step, best_value=value, wait_count=0)
        word = "largest" if rule.sign > 0 else "smallest"
        state["note"] = f"{word} {rule.signal}" + (" after the warm-up" if rule.warmup else "")
    else:
        wait(state, rule.patience)


def wait(state: dict[str, Any], patience: int | None) -> None:
    """Count a step without improvement; stop after `patience` of them."""
    if state["best_step"] is None:
        return
    state["wait_count"] += 1
    if patience is not None and state["wait_count"] >= patience:
        state["stopped"] = f"no improvement in {patience} step{'s' * (patience > 1)}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Extremum:
    """Keep the step of the best value of a signal: the base of the rules that do.

    A subclass is a frozen dataclass that sets ``signal``, the field to watch, and, where smaller is
    better, ``sign = -1``.

    Parameters
    ----------
    warmup : float or int
        A fraction of all steps in [0, 1), default 0.1 as in the paper, or a number of steps.
    patience : int, optional
        Stop after this many steps without improvement; default never, as in the paper.
    min_delta : float
        What counts as improvement, at least 0; with `relative`, as a share of the best value.
    relative : bool
        Read `min_delta` relative to the best value so far.
    smoothing : int
        Number of last values that are averaged, default 1.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    Cost: O(1) a step.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from gwa_core import Extremum, select_epoch
    >>> @dataclass(frozen=True, kw_only=True, repr=False)
    ... class MinVariance(Extremum):
    ...     signal, sign = "variance", -1
    >>> select_epoch([{"variance": 0.3}, {"variance": 0.1}, {"variance": 0.2}], MinVariance()).step
    1
    """

    warmup: float = 0.1
    patience: int | None = None
    min_delta: float = 0.0
    relative: bool = False
    smoothing: int = 1

    sign: ClassVar[int] = 1
    signal: ClassVar[str]

    def __repr__(self) -> str:
        changed = (
            f"{option.name}={getattr(self, option.name)!r}"
            for option in fields(self)
            if getattr(self, option.name) != option.default
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def __post_init__(self) -> None:
        whole = {"smoothing": self.smoothing}
        if self.patience is not None:
            whole["patience"] = self.patience
        plain: dict[str, Any] = {
            name: check_positive_int(name, value) for name, value in whole.items()
        }
        if not 0.0 <= self.min_delta < math.inf:
            raise ValueError(f"`min_delta` must be at least 0, got {self.min_delta!r}")
        plain |= {"warmup": _check_warmup(self.warmup), "min_delta": float(self.min_delta)}
        plain["relative"] = bool(self.relative)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def begin(self) -> dict[str, Any]:
        """Return the state before the first value."""
        return new_state()

    def advance(
        self, state: dict[str, Any], value: float, step: int, usable: bool, total: int | None
    ) -> None:
        """Take in the next value."""
        warm = step >= warmup_steps(self.warmup, total)
        if usable:
            value = smooth(state, value, self.smoothing)
        if warm:
            self.consider(state, value, step, usable)

    def consider(self, state: dict[str, Any], value: float, step: int, usable: bool) -> None:
        """Keep the smoothed value of a step after the warm-up if it is the best."""
        if usable:
            keep_best(state, value, step, self)
        else:
            wait(state, self.patience)


@dataclass(frozen=True, kw_only=True, repr=False)
class MaxGWA(Extremum):
    """Keep the step of the largest GWA after a warm-up: the paper's rule (Sec. 4.1).

    Parameters
    ----------
    warmup, patience, min_delta, relative, smoothing : float, int or bool
        As of `Extremum`.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    A network that memorises wrong labels raises GWA a second time, and this rule then keeps the
    memorised end; see `MaxSeparation`. Cost: O(1) a step.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.1.

    Examples
    --------
    >>> from gwa_core import MaxGWA, select_step
    >>> select_step([0.9, 0.1, 0.4, 0.2], MaxGWA(warmup=1)).step
    2
    """

    signal: ClassVar[str] = "gwa"


@dataclass(frozen=True, kw_only=True, repr=False)
class MaxBimodality(Extremum):
    """Keep the step whose scores separate most: the largest of Sarle's coefficient.

    Wrong labels stand furthest from right ones just before the network begins to memorise them
    (Fig. 16), and the coefficient peaks there.

    Parameters
    ----------
    warmup, patience, min_delta, relative, smoothing : float, int or bool
        As of `Extremum`.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    The coefficient is (skewness^2 + 1) / (kurtosis + 3), from the moments GWA needs anyway. Where
    labels are right it can peak long before the network is trained; see `MaxSeparation`. Cost: O(1)
    a step.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 16; Sarle's coefficient: SAS/STAT User's Guide.

    Examples
    --------
    >>> from gwa_core import MaxBimodality, select_step
    >>> select_step([0.3, 0.5, 0.6, 0.4], MaxBimodality()).step
    2
    """

    signal: ClassVar[str] = "bimodality"


@dataclass(frozen=True, kw_only=True, repr=False)
class MaxSeparation(Extremum):
    r"""Keep the step whose scores are high and stand apart: the largest separation. The default.

    .. math:: b \cdot \max(\bar\gamma, 0)^{1/4}

    with Sarle's coefficient b and the mean of the scores. The first peaks before wrong labels are
    memorised, the second rises for as long as the network learns.

    Parameters
    ----------
    warmup, patience, min_delta, relative, smoothing : float, int or bool
        As of `Extremum`.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    The value is the field ``separation`` of a summary. The power was chosen on four runs; the
    results in the documentation have the others. Cost: O(1) a step.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Fig. 9 and 16; the product is ours.

    Examples
    --------
    >>> from gwa_core import MaxSeparation, select_epoch
    >>> select_epoch([{"separation": 0.19}, {"separation": 0.22}], MaxSeparation()).step
    1
    """

    signal: ClassVar[str] = "separation"


@dataclass(frozen=True, kw_only=True, repr=False)
class DipThenMax(Extremum):
    """Wait for the first minimum of GWA, then keep its maximum: for fine-tuning (Sec. 4.4).

    Parameters
    ----------
    warmup : float or int
        A fraction of all steps in [0, 1), or a number of steps; default none.
    patience : int, optional
        After the minimum, stop after this many steps without improvement; default never.
    min_delta : float
        What counts as improvement, at least 0; with `relative`, as a share of the best value.
    relative : bool
        Read `min_delta` relative to the best value so far.
    smoothing : int
        Number of last values that are averaged, default 1.

    Raises
    ------
    ValueError
        On options out of range.

    Notes
    -----
    The first minimum is the step before the first rise; a run that rises from the start has it at
    its first step. A run that only falls has none, and no step is kept. Cost: O(1) a step.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Sec. 4.4, Fig. 5.

    Examples
    --------
    >>> from gwa_core import DipThenMax, select_step
    >>> select_step([0.9, 0.3, 0.2, 0.5, 0.6, 0.4], DipThenMax()).step
    4
    """

    warmup: float = 0

    signal: ClassVar[str] = "gwa"

    def begin(self) -> dict[str, Any]:
        """Return the state before the first value."""
        return {**new_state(), "lowest": math.nan, "dip_over": False}

    def consider(self, state: dict[str, Any], value: float, step: int, usable: bool) -> None:
        """Look for the first rise, and for the maximum from there on."""
        if not state["dip_over"]:
            if not usable:
                return
            if not value > state["lowest"]:
                state["lowest"] = value
                state["note"] = "the value was still falling, its first minimum had not come"
                return
            state["dip_over"] = True
        super().consider(state, value, step, usable)
