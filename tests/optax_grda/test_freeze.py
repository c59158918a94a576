"""freeze_zeros: zeros stay, the rest trains as if they were not there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import freeze_zeros

PARAMS = {"kernel": jnp.array([[0.0, 1.0], [-2.0, 0.0]]), "bias": jnp.array([0.0, 0.5])}


def loss(params):
    return sum(jnp.sum(jnp.square(leaf - 3.0)) for leaf in jax.tree.leaves(params))


GRADIENT = jax.grad(loss)


def train(optimizer, params, steps=20, gradient=GRADIENT):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


INNER = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", INNER)
def test_zeros_stay_and_the_rest_moves(name):
    params = train(freeze_zeros(INNER[name]), PARAMS)
    for leaf, start in zip(
        jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True
    ):
        np.testing.assert_array_equal(leaf == 0, start == 0)
        np.testing.assert_array_equal(leaf != start, start != 0)


def test_the_rest_trains_as_alone():
    """Norms too: the gradients of the zeros do not count."""
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    params = train(freeze_zeros(inner), PARAMS)
    alone = train(inner, [leaf[leaf != 0] for leaf in jax.tree.leaves(PARAMS)])
    for leaf, start, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(PARAMS), alone, strict=True
    ):
        np.testing.assert_allclose(leaf[start != 0], expected, rtol=1e-6)


def test_weight_that_passes_through_zero_trains_on():
    params = train(
        freeze_zeros(optax.sgd(0.5)), jnp.array([1.0, 0.0]), 4, jnp.ones_like
    )
    np.testing.assert_array_equal(params, [-1.0, 0.0])


def test_nan_gradients_of_zeros_do_no_harm():
    params = jnp.array([0.0, 2.0])
    params = train(freeze_zeros(optax.sgd(1.0)), params, 1, lambda p: jnp.log(p) / p)
    np.testing.assert_allclose(params, [0.0, 2 - np.log(2) / 2], rtol=1e-6)


def test_extra_arguments_reach_the_inner_transformation():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = freeze_zeros(inner)
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=7)
    assert seen == [7]
