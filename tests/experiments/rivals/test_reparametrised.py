"""Weights made of hidden variables; what the arena asks of every method made so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rivals._reparametrised import (
    cubic_ramp,
    reparametrised,
    straight_through,
)
from experiments.rivals.autosparse import autosparse
from experiments.rivals.dep_l0 import dep_l0
from experiments.rivals.dst import dst
from experiments.rivals.feather import feather
from experiments.rivals.gdp import gdp
from experiments.rivals.hard_concrete import (
    hard_concrete_constraint,
    hard_concrete_penalty,
)
from experiments.rivals.l1 import l1
from experiments.rivals.st3 import st3
from experiments.rivals.str_ import str_

WITH_ADAM = [
    dep_l0,
    hard_concrete_constraint,
    hard_concrete_penalty,
]
WITHOUT = [autosparse, dst, feather, gdp, l1, st3, str_]


def test_gradients_are_pulled_back_to_each_variable_and_the_penalty_is_added(
    trajectory,
):
    # w = a^2 + (n + 1) b,  penalty 3 a;  b ascends and stays below 4.5.
    transformation = reparametrised(
        lambda params: {"a": jnp.sqrt(params), "b": jnp.zeros_like(params)},
        lambda v, count: v["a"] ** 2 + (jnp.float32(count) + 1) * v["b"],
        {"a": optax.sgd(0.1), "b": optax.scale(1.0)},
        lambda v, count: 3 * jnp.sum(v["a"]),
        lambda v: v | {"b": jnp.minimum(v["b"], 4.5)},
    )
    weights = trajectory(
        transformation, jnp.array([[4.0]]), jnp.array([[[1.0]], [[2.0]]])
    )
    # a: 2 -> 2 - 0.1 (2 * 2 * 1 + 3) = 1.3 -> 1.3 - 0.1 (2 * 1.3 * 2 + 3) = 0.48
    # b: 0 -> 1 * 1 = 1 -> 1 + 2 * 2 = 5, cut to 4.5
    np.testing.assert_allclose(
        weights.ravel(), [4, 1.3**2 + 2 * 1, 0.48**2 + 3 * 4.5], rtol=1e-5
    )


def test_straight_through_has_one_value_and_another_derivative():
    value, slope = jax.value_and_grad(
        lambda x: straight_through(jnp.round(x), x**2) * 2
    )(1.7)
    assert value == 4
    np.testing.assert_allclose(slope, 2 * 2 * 1.7, rtol=1e-6)


def test_ramp_is_cubic_and_stays_at_the_top():
    ramp = [cubic_ramp(jnp.int32(n), 4) for n in (0, 1, 2, 4, 9)]
    np.testing.assert_allclose(ramp, [0, 1 - 0.75**3, 1 - 0.5**3, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("method", WITH_ADAM + WITHOUT)
def test_runs_that_differ_in_numbers_train_side_by_side(make_task, request, method):
    if method in WITH_ADAM:  # which promotes in Optax
        request.getfixturevalue("standard_promotion")
    rng = np.random.default_rng(0)
    params = {
        "conv": jnp.float32(rng.normal(size=(3, 3, 2, 4))),
        "bias": optax.MaskedNode(),  # as optax.partition leaves it
        "dense": jnp.float32(rng.normal(size=(6, 5))),
    }
    gradient = jax.tree.map(np.cos, params)

    def run(sparsity, strength, rate, key):
        task = make_task(
            3,
            sparsity,
            strength=strength,
            rate=lambda count: rate / (1 + jnp.float32(count)),
            key=key,
        )
        transformation = method(task)

        def step(carry, _):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, transformation.init(params)
        return jax.lax.scan(step, carry, length=3)[0][0]

    rows = jax.jit(jax.vmap(run))(
        jnp.array([0.5, 0.8]),
        jnp.array([0.1, 0.2]),
        jnp.array([0.1, 0.2]),
        jax.random.split(jax.random.key(0), 2),
    )
    assert jax.tree.structure(rows) == jax.tree.structure(params)
    for row in jax.tree.leaves(rows):
        assert np.isfinite(row).all()
        assert not np.array_equal(*row)
    if method in (feather, l1, st3):
        zeros = sum((x == 0).sum((*range(1, x.ndim),)) for x in jax.tree.leaves(rows))
        assert zeros.tolist() == [51, 82]  # of 102 kernel entries
