"""Feather: the threshold with p = 3, and slower steps of what is pruned."""

import numpy as np
import pytest

from experiments.rivals.feather import feather


@pytest.mark.parametrize(("sparsity", "theta"), [(0.5, 1.0), (0.96, 0.5)])
def test_weights_are_thresholded_and_pruned_ones_step_theta_as_far(
    make_task, trajectory, sparsity, theta
):
    rng = np.random.default_rng(0)
    v = rng.normal(size=(10, 10)).astype("f4")
    gradients = rng.normal(size=(4, 10, 10)).astype("f4")
    task = make_task(steps=4, sparsity=sparsity, momentum=0.0)
    weights = trajectory(feather(task), v, gradients)

    kept = np.ones_like(v, bool)
    for n in range(1, 5):
        v = v - 0.1 * np.where(kept, 1, theta) * gradients[n - 1]
        now = sparsity * (1 - (1 - min(n / 2, 1)) ** 3)
        limit = np.sort(np.abs(v), axis=None)[round(now * 100) - 1]
        kept = np.abs(v) > limit
        expected = np.sign(v) * np.maximum(np.abs(v) ** 3 - limit**3, 0) ** (1 / 3)
        np.testing.assert_allclose(weights[n], expected, rtol=1e-3, atol=1e-5)
    assert (weights[-1] == 0).sum() == round(sparsity * 100)
