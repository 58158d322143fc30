"""Real models of timm, torchvision and transformers, without their weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

import pytest
import torch

# What torchvision defines in its compiled part, and wants to find when it is imported.
OPERATORS = ("nms", "qnms")


def library(name):
    """Import one of the three, or skip the test."""
    _torchvision()
    with warnings.catch_warnings():
        # Their own imports are not under test.
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def _torchvision():
    """Let torchvision be imported beside a PyTorch of another build, as a CPU one.

    Its compiled operators are missing then, and its import fails, and with it those of timm and
    transformers. Classifiers need none of them.
    """
    if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in OPERATORS:
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
        importlib.import_module("torchvision")
