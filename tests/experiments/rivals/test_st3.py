"""ST-3: soft threshold forward, rescaled by unit; the identity backward."""

import jax
import numpy as np
import pytest

from experiments.rivals.st3 import soft_rescaled, st3


def test_weights_are_the_rescaled_soft_threshold_of_what_sgd_made(
    make_task, trajectory
):
    rng = np.random.default_rng(0)
    v = rng.normal(size=(5, 4)).astype("f4")
    gradients = rng.normal(size=(4, 5, 4)).astype("f4")
    task = make_task(steps=4, sparsity=0.8, momentum=0.0)
    weights = trajectory(st3(task), v, gradients)

    for n in range(1, 5):
        v = v - 0.1 * gradients[n - 1]
        sparsity = 0.8 * (1 - (1 - min(n / 2, 1)) ** 3)
        limit = np.sort(np.abs(v), axis=None)[round(sparsity * 20) - 1]
        kept = np.abs(v) > limit
        share = (np.abs(v) * kept).sum(0) / np.abs(v).sum(0)
        expected = kept * (v - np.sign(v) * limit) * 1.01 / (share + 0.01)
        np.testing.assert_allclose(weights[n], expected, rtol=1e-4, atol=1e-6)
    assert (weights[-1] == 0).sum() == 16


def test_units_are_the_last_axis():
    # Of the unit's 1 + 2 + 3 + 6 = 12, 9 is kept: 3/4; soft: 1 and 4.
    kernel = np.array([1, -2, 3, -6], "f4").reshape(2, 2, 1, 1)
    made = soft_rescaled(jax.numpy.asarray(kernel), jax.numpy.float32(2.0))
    factor = 1.01 / (0.75 + 0.01)
    assert made.ravel().tolist() == pytest.approx([0, 0, factor, -4 * factor], rel=1e-5)
