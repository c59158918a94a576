import jax
import jax.numpy as jnp
import numpy as np

from experiments.rivals.top_kast import top_kast


def test_forward_of_the_largest_backward_of_twice_as_many(make_task, trajectory):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=(4, 5)), rng.normal(size=(12, 4, 5))
    found = trajectory(
        top_kast(make_task(12, 0.8, weight_decay=0.05)),
        # Kernels are ranked apart: those of one shape are as dense, at any scale.
        {"a": jnp.float32(weights), "b": jnp.float32(100 * weights)},
        {"a": jnp.float32(gradients), "b": jnp.float32(100 * gradients)},
    )
    np.testing.assert_allclose(found["b"], 100 * found["a"], rtol=1e-4, atol=1e-4)
    found = found["a"]

    def top(count):
        return np.abs(weights) > np.sort(np.abs(weights), axis=None)[19 - count]

    def penalty(x, in_a, in_b):
        """lambda / 2 (sum over A of x^2 + sum over B without A of x^2 / D)."""
        squares = jnp.where(in_a, 1.0, in_b / 0.2) * jnp.square(x)
        return 0.05 / 2 * jnp.sum(squares)

    moment, in_a, changes = np.zeros((4, 5)), np.ones((4, 5), bool), 0
    for n, gradient in enumerate(gradients):
        in_b = top(8)
        slope = jax.grad(penalty)(jnp.float32(weights), in_a, jnp.float32(in_b))
        moment = 0.9 * moment + in_b * (gradient + np.float64(slope))
        weights = weights - 0.1 * in_b * moment
        changes += n > 0 and not np.array_equal(in_a, top(4))
        in_a = top(4)
        np.testing.assert_allclose(found[n + 1], in_a * weights, rtol=1e-4, atol=1e-6)
        assert np.sum(found[n + 1] != 0) == 4
    assert changes  # weights outside A came in
