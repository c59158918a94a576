"""AutoSparse: gradients of pruned weights and thresholds fade with alpha."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals._layer_thresholds import INITIAL
from experiments.rivals.autosparse import ALPHA, annealed, autosparse


def test_pruned_weights_step_alpha_as_far_and_pull_at_the_threshold(
    make_task, trajectory
):
    rng = np.random.default_rng(0)
    v = 0.03 * rng.normal(size=(6, 5))
    gradients = rng.normal(size=(3, 6, 5))
    task = make_task(steps=3, strength=2.0, momentum=0.0)
    weights = trajectory(autosparse(task), v.astype("f4"), gradients.astype("f4"))

    s = INITIAL
    for n in range(1, 4):
        threshold = 1 / (1 + np.exp(-s))
        alpha = ALPHA * float(annealed(jnp.float32((n - 1) / 3)))
        slopes = np.where(np.abs(v) > threshold, 1, alpha) * gradients[n - 1]
        s = s - 0.1 * (
            2.0 * s - threshold * (1 - threshold) * np.sum(np.sign(v) * slopes)
        )
        v = v - 0.1 * slopes
        threshold = 1 / (1 + np.exp(-s))
        expected = np.sign(v) * np.maximum(np.abs(v) - threshold, 0)
        np.testing.assert_allclose(weights[n], expected, rtol=1e-4, atol=1e-6)
    assert 0 < (weights[-1] == 0).mean() < 1


def test_annealing_is_the_larger_of_sigmoid_and_cosine():
    # First the sigmoid is above the cosine, from the middle on the cosine.
    progress = jnp.array([0.25, 0.5, 0.75])
    expected = [1 / (1 + np.exp(-3)), 0.5, (1 + np.cos(0.75 * np.pi)) / 2]
    assert annealed(progress).tolist() == pytest.approx(expected, rel=1e-5)
