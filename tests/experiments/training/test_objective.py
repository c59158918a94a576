"""Tests of experiments.training.objective: means, BatchNorm's statistics."""

import jax
import numpy as np
from flax import nnx

from experiments.training.objective import Objective, split
from models._layers import BatchNorm


class Tiny(nnx.Module):
    """Classifies images of 2x2 pixels by one layer, perhaps with BatchNorm before."""

    def __init__(self, rngs, norm):
        self.norm = BatchNorm(4, decay=0.5, rngs=rngs) if norm else None
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images, rngs=None):
        x = images.reshape(len(images), -1)
        return self.layer(x if self.norm is None else self.norm(x))


def tiny(norm=False, std=0.5):
    """The objective, first parameters and first running statistics."""
    objective = Objective(lambda rngs: Tiny(rngs, norm), std=(std,))
    return objective, *split(objective.build(nnx.Rngs(0)))[1:]


def examples(n):
    rng = np.random.default_rng(0)
    return rng.random((n, 2, 2, 1), np.float32), rng.integers(0, 3, n, np.int32)


def estimated(objective, params, images, batch_size):
    estimate = jax.jit(objective.estimate_batch_stats, static_argnums=2)
    return estimate(params, images, batch_size)["norm"]


def test_evaluation_is_the_mean_over_images_that_do_not_fill_the_last_part():
    objective, *arrays = tiny()
    batch = examples(1030)
    evaluated = jax.jit(objective.evaluate)(*arrays, *batch)
    each = jax.jit(objective.metrics)(*arrays, *batch)
    assert each.loss.shape == (1030,)
    np.testing.assert_allclose(evaluated.loss, each.loss.mean(), rtol=1e-6)
    np.testing.assert_allclose(evaluated.accuracy, each.accuracy.mean(), rtol=1e-6)


def test_estimated_batch_stats_are_the_average_over_whole_batches():
    objective, params, _ = tiny(norm=True)
    images, _ = examples(37)
    found = estimated(objective, params, images, 16)
    batches = (images[:32] / 0.5).reshape(2, 16, 4)
    np.testing.assert_allclose(found["mean"], batches.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["var"], batches.var(1, ddof=1).mean(0), rtol=1e-5)


def test_estimated_variances_do_not_cancel_where_the_mean_is_large():
    objective, params, _ = tiny(norm=True, std=1e-3)
    images = np.float32(0.5 + 1e-3 * (examples(64)[0] - 0.5))  # mean / deviation: 1,700
    found = estimated(objective, params, images, 32)
    exact = (images.astype(np.float64) / 1e-3).reshape(2, 32, 4)
    # Pixels around 0.5 are multiples of 6e-8, here of 6e-5 beside deviations of 0.3.
    np.testing.assert_allclose(found["var"], exact.var(1, ddof=1).mean(0), rtol=1e-3)


def test_a_network_without_batch_norm_has_no_statistics():
    objective, params, _ = tiny()
    assert objective.estimate_batch_stats(params, examples(32)[0], 32) == {}
