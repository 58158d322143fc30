"""Label issues from the steps of SGDClassifier, and what the intercept of one-vs-rest does to scores.

python -m benchmarks sgd_steps
"""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks.pairs import report
from gwa_core import LabelQuality, summarize
from gwa_sklearn import alignment_scores

SEEDS = (0, 1)
RATES = (0.0, 0.1, 0.2, 0.4)
PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
TABLES = {
    "digits": load_digits,
    "wine": load_wine,
    "iris": load_iris,
    "breast cancer": load_breast_cancer,
}
# Options of the estimator and epochs. Rows of texts have length one, which suits larger steps.
STEPS: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 20),
    "default, 100 epochs": ({}, 100),
    "default, averaged": ({"average": True}, 20),
    "constant": ({"learning_rate": "constant"}, 20),
    "constant, averaged": ({"learning_rate": "constant", "average": True}, 20),
}


def texts() -> tuple[Any, Any]:
    """Return the docstrings of the standard library, and their packages."""
    library, found = Path(sysconfig.get_path("stdlib")), {}
    for package in PACKAGES:
        for path in sorted((library / package).rglob("*.py")):
            if not {"test", "tests"} & set(path.relative_to(library).parts):
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    if isinstance(
                        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                    ):
                        text = ast.get_docstring(node) or ""
                        if len(text.split()) > 5:
                            found.setdefault(text, package)
    y = np.unique(list(found.values()), return_inverse=True)[1]
    return TfidfVectorizer(sublinear_tf=True).fit_transform(list(found)), y


def flipped(y: Any, rate: float, seed: int) -> tuple[Any, Any]:
    """Return labels with a share replaced by other classes, and which ones these are."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(y), round(rate * len(y)), replace=False)
    given, classes = y.copy(), int(y.max()) + 1
    given[wrong] = (y[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return given, given != y


def quality(model: Any, x: Any, y: Any, epochs: int) -> Any:
    """Return what LabelIssues finds, which refuses the steps that are measured here."""
    found, classes = LabelQuality(len(y)), np.unique(y)
    for _ in range(epochs):
        model.partial_fit(x, y, classes=classes)
        scores = alignment_scores(model, x, y)
        found.update(scores, summarize(scores))
    return found.value


def measure(x: Any, y: Any, options: dict[str, Any], epochs: int) -> dict[str, list[float]]:
    """Return the share of issues, average precision and F1 at each rate, means over the seeds."""
    rows = {}
    for rate in RATES:
        every = []
        for seed in SEEDS:
            given, wrong = flipped(y, rate, seed)
            # A generator, as with a number each epoch would have one order.
            state = np.random.RandomState(seed)
            model = SGDClassifier(loss="log_loss", random_state=state, **options)
            found = quality(model, x, given, epochs)
            row = [float((found < 0.5).mean())]
            if rate:
                row += [average_precision_score(wrong, -found), f1_score(wrong, found < 0.5)]
            every.append(row)
        rows[f"{rate:.0%}"] = np.mean(every, axis=0).round(3).tolist()
    return rows


def main() -> None:
    """Measure and report."""
    found: dict[str, Any] = {"columns": "share of issues, average precision, F1", "seeds": 2}
    data = {name: load(return_X_y=True) for name, load in TABLES.items()}
    data = {name: (StandardScaler().fit_transform(x), y, 0.01) for name, (x, y) in data.items()}
    data["texts"] = (*texts(), 1.0)
    for name, (x, y, eta0) in data.items():
        for steps, (options, epochs) in STEPS.items():
            found[f"{name}: {steps}"] = measure(x, y, {**options, "eta0": eta0}, epochs)
    x, y = load_digits(return_X_y=True)
    for intercept in (True, False):
        logistic = LogisticRegression(C=100, max_iter=3000, fit_intercept=intercept)
        for name, model in {
            "one-vs-rest": OneVsRestClassifier(logistic),
            "softmax": logistic,
        }.items():
            scores = alignment_scores(clone(model).fit(x / 16, y), x / 16, y)
            row = f"negative scores of right labels, {name}, fit_intercept={intercept}"
            found[row] = float((scores < 0).mean())
    report("sgd_steps", found)


if __name__ == "__main__":
    main()
