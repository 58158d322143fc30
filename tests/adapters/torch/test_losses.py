"""Under each loss the scores are those of float64 autograd, or the monitor refuses in words."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from losses import LOSSES
from numpy.testing import assert_allclose

TRAINED = [case for case in LOSSES if case.found != "refused"]
REFUSED = [case for case in LOSSES if case.found == "refused"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def name_of(case):
    return case.name


@pytest.mark.parametrize("case", TRAINED, ids=name_of)
def test_scores_are_those_of_autograd_for_the_loss_that_was_used(case):
    trained = case.run()
    for got, want in trained.pairs:
        assert got.shape == want.shape
        assert torch.isfinite(want).sum() > 5
        assert_allclose(got, want, rtol=0, atol=case.tolerance)
    told = 'residual="backward"' in case.about and case.found == "gradient"
    assert trained.residual == ("formula" if case.found == "formula" else "backward")
    # One warning where the monitor changes by itself.
    changed = case.found == "gradient" and not told
    assert [x.split(" is not ")[0][:15] for x in trained.warnings] == ["the closed form"] * changed


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_has_no_right_number_is_refused(case):
    with pytest.raises(ValueError, match=r"^`\w+` must .* got "):
        case.run()


def test_enough_losses_are_tried():
    assert len(TRAINED) >= 30
    assert len({case.name for case in LOSSES}) == len(LOSSES)
