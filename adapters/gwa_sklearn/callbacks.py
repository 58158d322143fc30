"""A callback that watches the iterations of a fit and stops it by a rule of gwa_core."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import sklearn
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.utils.validation import _check_feature_names

from gwa_core import EarlyStopper, EpochSummary, GWATracker, MaxBimodality, Rule
from gwa_sklearn._training import check_rule
from gwa_sklearn.scores import alignment_scores

__all__ = ["GWAStopping"]

# A number of iterations: a solver that converges may do far fewer than `max_iter`.
DEFAULT_RULE = MaxBimodality(warmup=5, patience=10)


class GWAStopping:
    """Stop a fit by a rule on the alignment of its training data, and keep the best iteration.

    A callback of scikit-learn 1.9 and later: ``estimator.set_callbacks(GWAStopping())``. No data
    are held out.

    Parameters
    ----------
    rule : Rule, optional
        Which iteration is the best, and when to stop, from a field of the summaries. Default
        ``MaxBimodality(warmup=5, patience=10)``. A solver that converges before ``max_iter`` may
        never get past a warm-up that is a fraction of it; give a number instead.
    beta : float
        The constant of Eq. 2, default 1.2.

    Attributes
    ----------
    history_ : list of EpochSummary
        One summary an iteration of the fit that ended last, up to the stop.
    best_epoch_ : int or None
        The best iteration, counted from 0, or None where none qualifies.
    best_estimator_ : estimator or None
        A copy of the estimator as it was then, ready to predict.
    stopping_reason_ : str
        Why this iteration, and why the rule stopped if it did.

    Raises
    ------
    ImportError
        If scikit-learn is older than 1.9.
    ValueError
        When the fit begins, if the rule watches what no summary has.
    TypeError
        When the fit begins, if the estimator is not one of those whose head is known:
        `LogisticRegression` and what derives from it, `SGDClassifier` or `MLPClassifier`.

    Notes
    -----
    The callbacks of scikit-learn are new and experimental. In 1.9 the one classifier that calls
    them at each iteration is ``LogisticRegression(solver="lbfgs")``, which doesn't look at their
    answer yet: it goes on to its end, and the best iteration is in `best_estimator_`. An estimator
    of your own that looks at it, by `sklearn.callback.CallbackSupportMixin`, is stopped.

    Inside a search or an ensemble all clones share the callback, and its attributes describe the
    fit that ended last. Fits in other processes leave nothing behind.

    Cost: one `alignment_scores` an iteration, O(NCD), and a copy of the estimator at each new best.

    References
    ----------
    Hölzl, Rueckert, Kaissis, NeurIPS 2025, Algorithm 1 and Sec. 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gwa_sklearn import GWAStopping
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_digits(return_X_y=True)
    >>> rng = np.random.default_rng(0)
    >>> wrong = rng.choice(len(y), 180, replace=False)
    >>> y[wrong] = (y[wrong] + rng.integers(1, 10, 180)) % 10
    >>> stopping = GWAStopping()
    >>> model = LogisticRegression(max_iter=1000).set_callbacks(stopping).fit(X / 16.0, y)
    >>> stopping.stopping_reason_
    'largest bimodality after the warm-up; stopped at step 23: no improvement in 10 steps'
    >>> stopping.best_estimator_.predict(X[:3] / 16.0)
    array([0, 1, 2])
    """

    def __init__(self, rule: Rule | None = None, *, beta: float = 1.2) -> None:
        if find_spec("sklearn.callback") is None:
            raise ImportError(
                f"GWAStopping needs the callbacks of scikit-learn 1.9, got {sklearn.__version__}; "
                "upgrade scikit-learn, or train by partial_fit and gwa_core.GWATracker"
            )
        self.rule = rule
        self.beta = beta
        self._runs: dict[int, _Run] = {}

    def setup(self, estimator: Any, context: Any) -> None:
        """Begin to watch a fit."""
        if not isinstance(estimator, (LogisticRegression, SGDClassifier, MLPClassifier)):
            raise TypeError(
                "`estimator` must be a classifier whose head is known, such as "
                f"LogisticRegression, got {type(estimator).__name__}; set the callback on the "
                "classifier itself and not on a Pipeline or a search around it"
            )
        rule = DEFAULT_RULE if self.rule is None else self.rule
        check_rule(rule)
        stopper = EarlyStopper(rule, total_steps=context.max_subtasks)
        self._runs[id(estimator)] = _Run(context, stopper, self.beta)

    def teardown(self, estimator: Any, context: Any) -> None:
        """Publish what was seen of a fit, also of one that failed."""
        run = self._runs.pop(id(estimator), None)
        if run is not None:
            self.history_: list[EpochSummary] = run.tracker.history
            self.best_epoch_: int | None = run.stopper.best_step
            self.best_estimator_: Any = run.best
            self.stopping_reason_: str = run.stopper.reason

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_end(
        self,
        estimator: Any,
        context: Any,
        *,
        X: Any = None,
        y: Any = None,
        metadata: dict[str, Any] | None = None,
        fitted_estimator: Any = None,
    ) -> bool:
        """Score the training data at the end of an iteration.

        Returns
        -------
        bool
            Whether the rule says stop.
        """
        run = self._runs[id(estimator)]
        # Only the iterations of this fit: not the whole of it, and not the steps of an iteration.
        ours = context.parent is run.context and fitted_estimator is not None and X is not None
        if not ours or run.stopper.should_stop:
            return run.stopper.should_stop
        weight = (metadata or {}).get("sample_weight")
        # The rows of a fit have lost the names that the estimator remembers.
        nameless = copy.copy(fitted_estimator)
        _check_feature_names(nameless, X, reset=True)
        return run.add(fitted_estimator, alignment_scores(nameless, X, y, sample_weight=weight))


class _Run:
    """One fit: what came so far and the best of it."""

    def __init__(self, context: Any, stopper: EarlyStopper, beta: float) -> None:
        self.context = context
        self.stopper = stopper
        self.tracker = GWATracker(beta=beta, keep_scores=False)
        self.best: Any = None

    def add(self, fitted: Any, scores: Any) -> bool:
        self.tracker.update(scores)
        summary = self.tracker.end_epoch(expected=len(scores))
        stop = self.stopper.observe(summary, step=summary.epoch)
        if self.stopper.best_step == summary.epoch:
            self.best = _copy_without_run(fitted)
        return stop


def _copy_without_run(fitted: Any) -> Any:
    """Copy an estimator in the middle of a fit, without the callbacks and their contexts."""
    alone = copy.copy(fitted).set_callbacks()
    for name in [name for name in vars(alone) if "callback" in name]:
        delattr(alone, name)
    # Deep, because later iterations may write into the same weights.
    return copy.deepcopy(alone)
