import numpy as np
import pytest
from backends import require
from scenarios import HOOKED, SOFT, C

from gwa_core import loss_weights, residual, weighted_targets

LOGITS, TARGETS = HOOKED["logits"], HOOKED["targets"]


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_are_those_of_the_real_loss(targets, smoothing):
    torch = require("torch")
    weights = np.exp(HOOKED["bias"])
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        logits,
        torch.tensor(targets),
        weight=torch.tensor(weights),
        reduction="sum",
        label_smoothing=smoothing,
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    soft = weighted_targets(targets=targets, class_weights=weights, label_smoothing=smoothing)
    r = residual(logits=LOGITS, targets=soft)
    # Of another length, which the alignment divides out, but of one direction.
    lengths = np.linalg.norm(gradient.numpy(), axis=1) / np.linalg.norm(r, axis=1)
    np.testing.assert_allclose(r * lengths[:, None], -gradient, rtol=1e-9, atol=1e-13)
    # That length is the weight of the sample.
    found = loss_weights(targets=targets, class_weights=weights, label_smoothing=smoothing)
    np.testing.assert_allclose(found, lengths, rtol=1e-9)


def test_class_weights_change_nothing_for_hard_labels_and_a_class_of_no_weight_has_none():
    weights = np.arange(C, dtype=float)
    soft = weighted_targets(targets=np.arange(C), class_weights=weights)
    assert np.isnan(soft[0]).all()
    np.testing.assert_array_equal(soft[1:], np.eye(C)[1:])
