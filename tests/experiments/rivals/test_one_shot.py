import jax.numpy as jnp
import numpy as np

from experiments.rivals.one_shot import one_shot


def test_half_of_the_steps_are_dense_and_the_largest_are_tuned(make_task, trajectory):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=(4, 5)), rng.normal(size=(8, 4, 5))
    found = trajectory(
        one_shot(make_task(8, 0.75)),
        {"a": jnp.float32(weights)},
        {"a": jnp.float32(gradients)},
    )["a"]

    moment, mask = np.zeros((4, 5)), np.ones((4, 5))
    for n, gradient in enumerate(gradients):
        if n == 4:
            mask = np.abs(weights) > np.sort(np.abs(weights), axis=None)[14]
        moment = 0.9 * moment + gradient
        weights = mask * (weights - 0.1 * moment)
        np.testing.assert_allclose(found[n + 1], weights, rtol=1e-4, atol=1e-6)
    assert np.sum(found[-1] != 0) == 5
