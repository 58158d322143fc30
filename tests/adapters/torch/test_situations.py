"""The scores of the monitor are those of autograd in float64, whichever way one trains."""

from __future__ import annotations

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


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# Reentrant checkpointing, compiling and their libraries have words of their own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", SITUATIONS, ids=lambda case: case.name)
def test_scores_are_those_of_autograd(case, device):
    pairs = case.run(device)
    assert pairs
    for got, want in pairs:
        assert got.shape == want.shape
        assert torch.isfinite(want).any()
        assert_allclose(got, want, rtol=case.tolerance, atol=case.tolerance)
