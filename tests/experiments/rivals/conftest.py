"""Runs of a rival on gradients that are given."""

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.rivals._task import Task


@pytest.fixture(scope="session")
def make_task():
    """Builds a task: SGD at rate 0.1 with momentum 0.9, unless told otherwise."""

    def make_task(steps, sparsity=0.0, **fields):
        defaults = {
            "rate": optax.constant_schedule(0.1),
            "strength": 0.0,
            "key": jax.random.key(0),
        }
        return Task(steps=steps, sparsity=sparsity, **(defaults | fields))

    return make_task


@pytest.fixture(scope="session")
def trajectory():
    """Runs a transformation and returns its weights, the initial ones first."""

    def trajectory(transformation, params, gradients):
        """Of a pytree of gradients with a leading axis of steps."""

        def step(carry, gradient):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        @jax.jit
        def run(params, gradients):
            carry = params, transformation.init(params)
            _, weights = jax.lax.scan(step, carry, gradients)
            return jax.tree.map(
                lambda first, rest: jnp.concatenate([first[None], rest]),
                params,
                weights,
            )

        return jax.device_get(run(params, gradients))

    return trajectory
