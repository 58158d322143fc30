"""Numbers on the pages that nobody measures, and why."""

from __future__ import annotations

__all__ = ["ANYWHERE", "DEFINED"]

# The shares of wrong labels that runs are made with.
_RATE = r"\b(?:0|9|10|17|18|20|40)"
_RATES = rf"(?:{_RATE}(?:,| and| to|, or) )*{_RATE} %"

#: Patterns that hold on every page.
ANYWHERE = {
    r"(?:Python|scikit-learn|cleanlab|PyTorch|NumPy|JAX) \d+\.\d+": "a version",
    r"Apache-2\.0": "a licence",
    r"(?:Sec|App|Fig|Table|Eq)\. ?[A-Z]?\.?\d+(?:\.\d+)?": "a place in the paper",
    rf"{_RATES} (?:(?:symmetric|asymmetric|human|such|made|wrong) )*(?:errors|noise|labels|wrong|symmetric|asymmetric)":
        "how many labels of a run are wrong",
    rf"{_RATES} of (?:the|its) labels are wrong": "how many labels of a run are wrong",
    rf"{_RATES} (?:are )?wrong\b": "how many labels of a run are wrong",
    r"10 % validation set": "how much of the data a run holds out",
    r"(?:the )?(?:other|same) 90 %": "how much of the data a run trains on",
}  # fmt: skip

#: The largest score of a head that separates C classes evenly, 1 / sqrt(C - 1).
_BOUND = "a bound that the page derives"
#: By page: patterns of single numbers.
DEFINED: dict[str, dict[str, str]] = {
    "docs/command-line.md": {
        r"at most 0\.006 in size": _BOUND,
        r"written as 0\.000": "how a number is written",
        r"after 22 of 50 epochs": "where the demonstration is",
        r"blocks of 2 MB": "a size in the code",
        r"From three runs on": "a number in the code",
        r"default 0\.1": "a default",
    },
    "docs/glossary.md": {r"kurtosis \+ 1\.2": "a constant of the formula"},
    "docs/results/index.md": {
        r"In ten minutes": "what a reader needs",
        r"trains on 90 %": "how much of the data a run trains on",
        r"by the other 10 %": "how much of the data a run holds out",
        r"Under 40 % of them": "how many labels of a run are wrong",
        r"training set of 90 %": "how much of the data a run trains on",
    },
    "docs/results/averaging.md": {
        r"trains on 90 %": "how much of the data a run trains on",
        r"best on the other 10 %": "how much of the data a run holds out",
    },
    "docs/results/published.md": {
        r"momentum 0\.9": "a setting",
        r"Asymmetric errors of 40 %": "how many labels of a run are wrong",
        r"40,000; 200; 0\.01": "a setting of another paper",
    },
    "docs/run-folder.md": {
        r"gwa-core 0\.1\.0": "a version",
        r"the constant of GWA, 1\.2": "a constant of the formula",
    },
    "docs/remote.md": {
        r"up to 1 MB": "a size in the code",
        r"made three times": "a number in the code",
        r"pieces of 4 MB": "a size in the code",
    },
    "docs/jax/index.md": {
        r"at most 160 MiB": "a size in the code",
        r"1\.28 million samples": "the size of the run",
    },
    "docs/jax/sequences.md": {r"blocks of 160 MiB": "a size in the code"},
    "docs/torch/transformers.md": {r"version 4\.46": "a version"},
    "docs/faq.md": {
        r"1 × 1 convolutions": "the size of a kernel",
        r"at most 0\.33, one of a thousand classes 0\.03": _BOUND,
    },
    "docs/report.md": {r"Below 0\.5 the label pulled": "where label quality is neutral"},
    "docs/concepts/alignment.md": {
        r"0\.33 for ten classes, 0\.03 for a thousand": _BOUND,
        r"the paper finds 0\.02 to 0\.12": "a result of the paper",
    },
    "docs/concepts/gwa.md": {
        r"1 for two points": "a value of the coefficient",
        r"below −0\.4 with more than 6 %": "a threshold in the code",
    },
    "docs/concepts/label-quality.md": {
        r"The 0\.02 keeps chance out": "a constant of the formula",
        r"within about ±0\.33": _BOUND,
    },
    "docs/concepts/numerics.md": {
        r"up to 0\.004 in bfloat16 and 0\.0005 in float16": "half a unit in the last place",
    },
    "docs/concepts/sketches.md": {
        r"9,275 for 50,000 points and 0\.1": "a value of the bound",
    },
    "docs/concepts/stopping.md": {r"make 5\.0 of it": "how a number is written"},
    "docs/results/fine-tuning.md": {
        r"Adam at 0\.0001 and 0\.00005": "settings of the runs",
        r"The paper fine-tunes with SGD at 0\.01": "a setting of the paper",
    },
    "docs/results/labels.md": {
        r"[Tt]o twice the peak": "the name of a ranking",
        r"up to twice the most bimodal one": "what a ranking is",
        r"Under 9 % the ConvNeXt has none": "how many labels of a run are wrong",
        r"Under 20 % its weights hardly see": "how many labels of a run are wrong",
        r"224 of 50,000": "the root of the number of samples",
    },
    "docs/signals/catalogue.md": {
        r"C−1 times": "how often an eigenvalue occurs",
        r"needs \| two runs": "what the signal needs",
    },
    "docs/signals/index.md": {r"two runs' weights": "what the signal needs"},
    "docs/sklearn/index.md": {r"In 1\.9 the one classifier": "a version"},
    "docs/sklearn/cleanlab.md": {
        r"9 to 40 % of them wrong": "how many labels of the data are wrong",
        r"128 × 128": "the size of the images",
        r"more than 40 % of the labels are issues": "a threshold in the code",
        r"40 % of one class under the name of another": "an example",
    },
    "docs/results/stopping.md": {
        r"[Uu]nder (?:9|17|40) %": "how many labels of a run are wrong",
        r"interval of 95 %": "how wide an interval is",
        r"rates 0\.01 and 0\.001": "settings of runs",
        r"10 % held-out data": "how much of the data a run holds out",
        r"rules on 90 % of the data": "how much of the data a run trains on",
    },
    "docs/results/ablations.md": {
        r"(?:[Uu]nder|errors of|under 17 and) (?:17|40) %": "how many labels of a run are wrong",
        r"The paper reports 0\.97 for GWA": "a result of the paper",
        r"The paper reports 1,861 of 1,867 images a second, 0\.997 times": "a result of the paper",
        r"of 90 % are of different": "how much of the data a run trains on",
        r"SGD with momentum 0\.9": "a setting of runs",
        r"a rate of 0\.01 moves the weights as 0\.1 does": "settings of runs",
        r"At a rate of 0\.1 with momentum": "a setting of runs",
    },
    "docs/results/setup.md": {
        r"asked for 60 times in training and ten times": "the size of the data",
        r"[\d.]+ million weights": "the size of a network",
        r"\b[2347] × [2347]\b": "the size of windows and patches",
        r"(?:51|6[01]|40) of \d+(?: or 61 of 98)? of \d+": "settings of runs",
        r"Adam, 0\.\d+": "a setting of runs",
        r"SGD at 0\.05|Adam at 0\.0003": "settings of runs",
        r"the kurtosis plus 1\.2": "a constant of the formula",
        r"increased five times": "a constant of the rule",
        r"those on 90 % one or two": "how much of the data a run trains on",
        r"validation set of 1 %": "how much of the data a run holds out",
    },
}
