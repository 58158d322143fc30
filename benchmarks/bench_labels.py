"""How well wrong labels are found, beside cleanlab and simple rankings, and how long it takes.

Needs scikit-learn, cleanlab 2.9, and the files of Debian's dataset-fashion-mnist:

    OMP_NUM_THREADS=1 python -m benchmarks.bench_labels --fashion "$(dirname "$(
        dpkg -L dataset-fashion-mnist | grep train-images)")"

One more data set comes with `--npz FILE`: `X`, the right labels `y`, and one array of given labels
for each kind of noise. Rows are appended to a file as they come (`--rows`), so that a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import report

KINDS = ("symmetric", "asymmetric", "feature-dependent")
RATES = (0.1, 0.2, 0.4)
OURS = "LabelIssues"
CLEANLAB = "cleanlab, default"
EPOCHS = 20


def idx(path: Path) -> Any:
    """Read an array in the format of MNIST."""
    with gzip.open(path) as file:
        raw = file.read()
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def digits() -> tuple[Any, Any]:
    """Return pixels in [0, 1] and labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def fashion(folder: Path, rows: int) -> tuple[Any, Any]:
    """Return pixels in [0, 1] and labels of some training images."""
    x = idx(folder / "train-images-idx3-ubyte.gz").reshape(60000, -1)
    y = idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64)
    chosen = np.random.default_rng(0).permutation(60000)[:rows]
    return x[chosen] / 255.0, y[chosen]


def make_wrong(x: Any, y: Any, kind: str, rate: float, seed: int) -> Any:
    """Return labels of which a share is wrong.

    Symmetric: any other class. Asymmetric: always the next class. Feature-dependent: the class
    that a weak model, fitted on a twentieth of the right labels, takes for the most probable other
    one; rows are drawn in proportion to that probability.
    """
    rng = np.random.default_rng([seed, round(100 * rate), KINDS.index(kind)])
    n, classes, count, given = len(y), int(y.max()) + 1, round(rate * len(y)), y.copy()
    if kind == "feature-dependent":
        from sklearn.linear_model import LogisticRegression

        few = rng.choice(n, n // 20, replace=False)
        weak = LogisticRegression(C=0.1, max_iter=200).fit(x[few], y[few])
        other = np.zeros((n, classes))
        other[:, weak.classes_] = weak.predict_proba(x)
        other[np.arange(n), y] = 0.0
        doubt = other.max(axis=1)
        wrong = rng.choice(n, count, replace=False, p=doubt / doubt.sum())
        given[wrong] = other.argmax(axis=1)[wrong]
    else:
        wrong = rng.choice(n, count, replace=False)
        step = rng.integers(1, classes, count) if kind == "symmetric" else 1
        given[wrong] = (y[wrong] + step) % classes
    return given


def label_issues(x: Any, y: Any, seed: int, estimator: Any = None) -> dict[str, Any]:
    """Rank by LabelIssues."""
    from gwa_sklearn.label_issues import LabelIssues

    begin = time.perf_counter()
    found = LabelIssues(estimator, max_epochs=EPOCHS, random_state=seed).fit(x, y)
    seconds = time.perf_counter() - begin
    return {"quality": found.label_quality_, "issues": found.issues_, "seconds": seconds}


def cleanlab(x: Any, y: Any, seed: int, estimator: Any = None) -> dict[str, Any]:
    """Rank by cleanlab, cross-validated in five folds."""
    from cleanlab.classification import CleanLearning

    begin = time.perf_counter()
    # More processes would only be slower here.
    options = {"n_jobs": 1}
    model = CleanLearning(estimator, seed=seed, find_label_issues_kwargs=options)
    table = model.find_label_issues(x, y)
    seconds = time.perf_counter() - begin
    return {
        "quality": table["label_quality"].to_numpy(),
        "issues": table["is_label_issue"].to_numpy(),
        "seconds": seconds,
    }


def cleanlab_in_sample(x: Any, y: Any) -> dict[str, Any]:
    """Rank by cleanlab with the probabilities of a model that was fitted on the same rows."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression

    begin = time.perf_counter()
    probabilities = LogisticRegression().fit(x, y).predict_proba(x)
    quality = get_label_quality_scores(y, probabilities)
    issues = find_label_issues(y, probabilities, n_jobs=1)
    return {"quality": quality, "issues": issues, "seconds": time.perf_counter() - begin}


def network(x: Any, y: Any, seed: int) -> Any:
    """Return what LabelIssues trains by default on these data, untrained."""
    from sklearn.base import clone

    from gwa_sklearn.label_issues import LabelIssues

    found = LabelIssues(max_epochs=1, random_state=seed).fit(x, y)
    return clone(found.estimator_).set_params(
        mlpclassifier__max_iter=EPOCHS, mlpclassifier__random_state=seed
    )


def rankings(x: Any, y: Any, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rank by loss and by margin over the same training as that of LabelIssues."""
    model = network(x, y, seed)
    begin = time.perf_counter()
    x = model[0].fit_transform(x).astype(np.float32)
    rows, losses, margins = np.arange(len(y)), [], []
    for _ in range(EPOCHS):
        model[1].partial_fit(x, y, classes=np.unique(y))
        with np.errstate(divide="ignore"):
            logits = np.log(model[1].predict_proba(x).astype(np.float64) + 1e-300)
        losses.append(-logits[rows, y])
        own = logits[rows, y]
        logits[rows, y] = -np.inf
        margins.append(own - logits.max(axis=1))
    seconds = time.perf_counter() - begin
    for name, quality in {
        "small loss, last epoch": -losses[-1],
        "small loss, mean over epochs": -np.mean(losses, axis=0),
        "margin, last epoch": margins[-1],
        "margin, mean over epochs": np.mean(margins, axis=0),
    }.items():
        yield name, {"quality": quality, "seconds": seconds}


def measure(x: Any, y: Any, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each method makes of labels of which some are wrong."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    yield OURS, label_issues(x, y, seed)
    yield CLEANLAB, cleanlab(x, y, seed)
    yield "LabelIssues, LogisticRegression", label_issues(x, y, seed, logistic)
    yield "cleanlab, LogisticRegression", cleanlab(x, y, seed, logistic)
    yield "cleanlab, the network of LabelIssues", cleanlab(x, y, seed, network(x, y, seed))
    yield "cleanlab, in-sample", cleanlab_in_sample(x, y)
    yield from rankings(x, y, seed)


def judged(result: dict[str, Any], wrong: Any) -> dict[str, float]:
    """Compare a ranking, and where there is one a choice, with the labels that are wrong."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    row = {}
    if wrong.any():
        row["average precision"] = float(average_precision_score(wrong, -result["quality"]))
        row["AUROC"] = float(roc_auc_score(wrong, -result["quality"]))
    if "issues" in result:
        issues = result["issues"]
        row["issues"] = float(issues.mean())
        if wrong.any():
            row["F1"] = float(2 * (issues & wrong).sum() / (issues.sum() + wrong.sum()))
    row["seconds"] = result["seconds"]
    return row


def settings(
    options: argparse.Namespace,
) -> Iterator[tuple[str, str, float, int, Callable[[], tuple[Any, Any, Any]]]]:
    """Yield data set, kind of noise, rate, seed, and how to make X, right and given labels."""
    sets = {"digits": digits()}
    if options.fashion:
        sets["Fashion-MNIST"] = fashion(options.fashion, options.rows_of_fashion)
    for seed in range(options.seeds):
        for name, (x, y) in sets.items():
            yield name, "none", 0.0, seed, lambda x=x, y=y: (x, y, y)
            for kind in KINDS:
                for rate in RATES:
                    yield (
                        name,
                        kind,
                        rate,
                        seed,
                        lambda x=x, y=y, k=kind, r=rate, s=seed: (x, y, make_wrong(x, y, k, r, s)),
                    )
        if options.npz:
            with np.load(options.npz) as file:
                arrays = dict(file)
            x, y = arrays.pop("X"), arrays.pop("y")
            for kind, given in arrays.items():
                rate = float((given != y).mean())
                yield options.npz.stem, kind, rate, seed, lambda x=x, y=y, g=given: (x, y, g)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return mean, smallest and largest over the seeds, by setting, method and figure."""
    groups: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in rows:
        noise = f"{row['kind']} {round(100 * row['rate'])} %" if row["rate"] else "no wrong labels"
        methods = groups.setdefault(f"{row['data']}, {noise}", {})
        methods.setdefault(row["method"], []).append(row["result"])
    return {
        name: {
            method: {figure: spread([row[figure] for row in results]) for figure in results[0]}
            for method, results in methods.items()
        }
        for name, methods in groups.items()
    }


def spread(values: list[float]) -> list[float]:
    """Return mean, smallest and largest, to four digits."""
    return [float(f"{value:.4g}") for value in (np.mean(values), min(values), max(values))]


def main() -> None:
    """Measure what is missing, and report all."""
    from threadpoolctl import threadpool_info

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion", type=Path, help="folder of the files of Fashion-MNIST")
    parser.add_argument("--rows-of-fashion", type=int, default=10_000, help="of 60000")
    parser.add_argument("--npz", type=Path, help="one more data set")
    parser.add_argument("--seeds", type=int, default=5)
    place = Path(tempfile.gettempdir()) / "gwa-labels.jsonl"
    parser.add_argument("--rows", type=Path, default=place, help="where rows are kept")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    if options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    # The first call of each method imports and compiles.
    small = digits()
    for _ in measure(small[0][::9], small[1][::9], 0):
        pass
    done = {(row["data"], row["kind"], row["rate"], row["seed"]) for row in rows}
    for data, kind, rate, seed, make in settings(options):
        if (data, kind, rate, seed) in done:
            continue
        x, right, given = make()
        at = {"data": data, "kind": kind, "rate": rate, "seed": seed}
        new = [
            {**at, "method": method, "result": judged(result, given != right)}
            for method, result in measure(x, given, seed)
        ]
        rows += new
        with options.rows.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
    head: dict[str, Any] = {name: version(name) for name in ("scikit-learn", "cleanlab")}
    head |= {
        "threads": max(pool["num_threads"] for pool in threadpool_info()),
        "seeds": options.seeds,
        "rows of Fashion-MNIST": options.rows_of_fashion,
    }
    report("labels", head | summary(rows))


if __name__ == "__main__":
    main()
