import numpy as np
import oracles

from gwa_core import gradient_alignment, gradient_norms


def test_explicit_gradients_match_their_definition():
    rng = np.random.default_rng(0)
    gradients, weights = rng.normal(size=(20, 31)), rng.normal(size=31)
    want = -oracles.cosine(gradients, weights)
    np.testing.assert_allclose(gradient_alignment(gradients, weights), want, rtol=1e-12)
    assert np.all(gradient_alignment(gradients * 0.0, weights) == 0.0)
    assert np.all(gradient_alignment(gradients, weights * 0.0) == 0.0)
    gradients[3, 0] = np.inf
    broken = gradient_alignment(gradients, weights)
    assert np.isnan(broken).tolist() == [i == 3 for i in range(20)]
    weights[0] = np.nan
    assert np.isnan(gradient_alignment(gradients, weights)).all()


def test_norms_of_explicit_gradients_stay_in_range():
    gradients = np.random.default_rng(0).normal(size=(20, 31))
    want = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(gradient_norms(gradients), want, rtol=1e-14)
    for scale in (1e-30, 1e30):
        single = (gradients * scale).astype(np.float32)
        assert gradient_norms(single).dtype == np.float32
        np.testing.assert_allclose(gradient_norms(single), want * scale, rtol=1e-6)
    assert gradient_norms(0.0 * gradients).tolist() == [0.0] * 20
    gradients[3, 0] = np.nan
    assert np.isnan(gradient_norms(gradients)).tolist() == [i == 3 for i in range(20)]
