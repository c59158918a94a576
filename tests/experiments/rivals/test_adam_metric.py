"""The threshold in Adam's metric, against its equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rivals.adam_metric import adam_metric
from optax_grda import proximal, target_sparsity

STEPS, RATE, DECAY = 8, 0.1, 0.2


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {name: np.float32(rng.standard_normal((7, 6))) for name in "ab"}


@pytest.fixture
def gradients():
    """Those of "b" are a tenth as large."""
    rng = np.random.default_rng(1)
    scales = {"a": 1.0, "b": 0.1}
    return {
        name: np.float32(scale * rng.standard_normal((STEPS, 7, 6)))
        for name, scale in scales.items()
    }


def expected(params, gradients, sparsity, p):
    """Weights after each step, of both leaves as one array."""
    v = np.concatenate([np.float64(params[name]).ravel() for name in "ab"])
    g = np.concatenate(
        [np.float64(gradients[name]).reshape(STEPS, -1) for name in "ab"], 1
    )
    m, nu = np.zeros_like(v), np.zeros_like(v)
    for n in range(1, STEPS + 1):
        m = 0.9 * m + 0.1 * g[n - 1]
        nu = 0.999 * nu + 0.001 * g[n - 1] ** 2
        scale = np.sqrt(nu / (1 - 0.999**n)) + 1e-8
        v = (1 - RATE * DECAY) * v - RATE * m / (1 - 0.9**n) / scale
        d = (1 / scale) / np.mean(1 / scale)
        now = sparsity * (1 - (1 - min((n - 1) / (STEPS / 2), 1)) ** 3)
        zeros = round(now * v.size)
        limit = np.sort(np.abs(v) / d)[zeros - 1] if zeros else 0.0
        beyond = np.maximum(np.abs(v) ** p - (limit * d) ** p, 0)
        yield np.sign(v) * beyond ** (1 / p)


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.usefixtures("standard_promotion")
def test_weights_are_the_sum_of_adams_steps_thresholded_in_its_metric(
    make_task, trajectory, params, gradients, p
):
    task = make_task(STEPS, 0.7, momentum=None, weight_decay=DECAY, direction="adam")
    found = trajectory(adam_metric(task, p), params, gradients)
    both = np.concatenate([found[name].reshape(STEPS + 1, -1) for name in "ab"], 1)
    for n, weights in enumerate(expected(params, gradients, 0.7, p), start=1):
        # 1 - 0.999^n loses four of float32's seven digits; beside the threshold, the
        # root of a difference makes of 1e-4 its cube root times a weight.
        at_the_edge = np.abs(weights) < 0.2
        exact = np.where(at_the_edge & (weights != 0), both[n], weights)
        np.testing.assert_allclose(both[n], exact, rtol=2e-3, atol=1e-4)
        np.testing.assert_array_equal(both[n] == 0, weights == 0)
    assert (both[-1] == 0).sum() == round(0.7 * both[-1].size)


@pytest.mark.usefixtures("standard_promotion")
def test_entries_whose_gradients_are_small_become_zero_first(
    make_task, trajectory, params, gradients
):
    task = make_task(STEPS, 0.5, momentum=None, direction="adam")
    last = {
        k: w[-1] for k, w in trajectory(adam_metric(task), params, gradients).items()
    }
    zeros = {name: np.mean(w == 0) for name, w in last.items()}
    assert zeros["b"] > 3 * zeros["a"]


@pytest.mark.usefixtures("standard_promotion")
def test_in_a_flat_metric_it_is_the_dial_behind_adam(make_task, trajectory, params):
    """Where all gradients are as large, all of d is one."""
    signs = np.sign(np.random.default_rng(2).standard_normal((STEPS, 7, 6)))
    gradients = {name: np.float32(signs) for name in "ab"}
    task = make_task(STEPS, 0.7, momentum=None, direction="adam")
    found = trajectory(adam_metric(task), params, gradients)
    optimizer = optax.chain(
        optax.scale_by_adam(), target_sparsity(0.1, 0.0, proximal=proximal.soft)
    )
    state, weights = optimizer.init(params), params
    for n in range(STEPS):
        step = jax.tree.map(lambda g, n=n: jnp.asarray(g[n]), gradients)
        updates, state = optimizer.update(step, state, weights)
        weights = optax.apply_updates(weights, updates)
    v = np.concatenate([np.ravel(x) for x in jax.tree.leaves(weights)])
    limit = np.sort(np.abs(v))[round(0.7 * v.size) - 1]
    both = np.concatenate([found[name][-1].ravel() for name in "ab"])
    soft = np.sign(v) * np.maximum(np.abs(v) - limit, 0)
    np.testing.assert_allclose(both, soft, rtol=1e-3, atol=1e-4)
