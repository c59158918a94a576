"""DST: a step with long tails, thresholds by unit, and layers that start again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals.dst import dst, step


def test_step_has_the_long_tailed_derivative():
    at = jnp.array([-1.5, -0.7, -0.1, 0.2, 0.5, 1.2])
    assert step(at).tolist() == [0, 0, 0, 1, 1, 1]
    slopes = jax.vmap(jax.grad(step))(at)
    assert slopes.tolist() == pytest.approx([0, 0.4, 1.6, 1.2, 0.4, 0], rel=1e-5)


def test_weights_and_thresholds_follow_the_estimated_gradients(make_task, trajectory):
    rng = np.random.default_rng(0)
    v = rng.normal(size=(6, 3))
    gradients = rng.normal(size=(3, 6, 3))
    task = make_task(steps=3, strength=1.5, momentum=0.0)
    weights = trajectory(dst(task), v.astype("f4"), gradients.astype("f4"))

    t = np.zeros(3)
    for n in range(1, 4):
        x = np.abs(v) - t
        slope = np.where(
            np.abs(x) <= 0.4, 2 - 4 * np.abs(x), np.where(np.abs(x) <= 1, 0.4, 0)
        )
        through = gradients[n - 1] * v * slope
        v = v - 0.1 * (gradients[n - 1] * (x > 0) + through * np.sign(v))
        t = t - 0.1 * (-through.sum(0) - 1.5 * np.exp(-t))
        expected = v * (np.abs(v) > t)
        np.testing.assert_allclose(weights[n], expected, rtol=1e-4, atol=1e-6)
    assert 0 < (weights[-1] == 0).mean() < 1


def test_a_layer_that_is_nearly_empty_starts_again(make_task):
    task = make_task(steps=3, strength=100.0, momentum=0.0)
    method = dst(task)
    kernels = {"a": jnp.full((20, 4), 0.5), "b": jnp.full((20, 4), 50.0)}
    state = method.init(kernels)
    gradients = jax.tree.map(jnp.zeros_like, kernels)
    updates, state = jax.jit(method.update)(gradients, state, kernels)
    # Both thresholds rise by 0.1 * 100 = 10: none is left of a, all of b.
    assert (state.variables["thresholds"]["a"] == 0).all()
    np.testing.assert_allclose(state.variables["thresholds"]["b"], 10, rtol=1e-5)
    assert all((x == 0).all() for x in jax.tree.leaves(updates))
