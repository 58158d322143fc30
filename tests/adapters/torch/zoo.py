"""Real models of timm, torchvision and transformers, without their weights."""

from __future__ import annotations

import warnings

import pytest


def library(name):
    """Import one of the three, or skip the test: timm and torchvision have no small CPU build."""
    with warnings.catch_warnings():
        # Their own imports are not under test.
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)
