"""The scores of the monitor are those of autograd in float64, whichever way one trains."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from numpy.testing import assert_allclose
from situations import SITUATIONS

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]


# What compiles does so for the check of the default, too.
WAYS = [
    pytest.param(
        case, residual, marks=[pytest.mark.slow] if slow else [], id=f"{case.name}-{residual}"
    )
    for case in SITUATIONS
    for residual in ("auto", "backward")
    for slow in ["compile" in case.name and residual == "backward"]
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# Compiling and its libraries have words of their own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "residual"), WAYS)
def test_scores_are_those_of_autograd(case, residual, device):
    with pytest.warns(UserWarning, match="no gradient") if case.without else nullcontext():
        pairs = case.run(device, residual)
    assert pairs
    for got, want in pairs:
        assert got.shape == want.shape
        assert torch.isfinite(want).any()
        if case.without and residual == "backward":
            assert got.isnan().all()
        else:
            assert_allclose(got, want, rtol=case.tolerance, atol=case.tolerance)
