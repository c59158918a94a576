"""Hard concrete gates: their distribution, their objective, the multiplier's ascent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals._hard_concrete import drawn, expected_weights
from experiments.rivals.hard_concrete import (
    DUAL,
    GATES,
    ascent,
    hard_concrete_constraint,
    hard_concrete_penalty,
    hard_concrete_units,
)


def test_as_many_gates_are_open_as_their_probabilities_say():
    log_alphas = jnp.repeat(jnp.array([[-3.0], [-0.5], [2.0]]), 20_000, axis=1)
    gates = drawn(log_alphas, jax.random.key(0))
    # P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)): beta log(1 / 11) = -1.599
    probabilities = 1 / (1 + np.exp(-(np.array([-3.0, -0.5, 2.0]) + 1.599)))
    np.testing.assert_allclose((gates > 0).mean(1), probabilities, atol=0.01)
    assert gates.min() == 0
    assert gates.max() == 1
    expected = expected_weights({"a": log_alphas}, {"a": log_alphas})
    np.testing.assert_allclose(expected, 20_000 * probabilities.sum(), rtol=1e-3)


def test_a_gate_of_a_unit_counts_all_its_weights():
    of_units = expected_weights(jnp.zeros((1, 1, 4)), jnp.zeros((3, 5, 4)))
    of_weights = expected_weights(jnp.zeros((3, 5, 4)), jnp.zeros((3, 5, 4)))
    np.testing.assert_allclose(of_units, of_weights, rtol=1e-6)


@pytest.fixture(scope="module")
def kernel():
    return jnp.float32(np.random.default_rng(1).normal(size=(6, 5)))


@pytest.fixture(scope="module")
def gradient():
    return jnp.float32(np.random.default_rng(2).normal(size=(6, 5)))


@pytest.mark.usefixtures("standard_promotion")  # Optax's Adam promotes
def test_variables_descend_and_weights_are_drawn_until_the_last(
    make_task, kernel, gradient
):
    task = make_task(steps=2, strength=0.3, momentum=0.0)
    method = hard_concrete_penalty(task)
    update = jax.jit(method.update)
    state = method.init(kernel)
    theta, log_alpha = state.variables["weights"], state.variables["gates"]
    np.testing.assert_allclose(theta, kernel / 0.7, rtol=1e-6)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def objective(theta, log_alpha, count):
        z = drawn(log_alpha, jax.random.fold_in(task.key, count))
        probabilities = jax.nn.sigmoid(log_alpha + 2 / 3 * np.log(11))
        return jnp.sum(gradient * theta * z) + 0.3 * jnp.sum(probabilities)

    slopes = objective(theta, log_alpha, 0)
    updates, state = update(gradient, state, kernel)
    moved = state.variables
    np.testing.assert_allclose(moved["weights"], theta - 0.1 * slopes[0], rtol=1e-5)
    # Adam's first step is the rate, against the sign.
    step = -GATES / 2 * np.sign(slopes[1])
    np.testing.assert_allclose(moved["gates"] - log_alpha, step, rtol=1e-3)

    # The weights' gradient is the loss's times the gates: so these show.
    before = kernel + updates
    z = objective(moved["weights"], moved["gates"], 1)[0] / gradient
    np.testing.assert_allclose(before, moved["weights"] * z, rtol=1e-4, atol=1e-5)

    updates, state = update(gradient, state, before)
    last = before + updates
    z = np.clip(1.2 / (1 + np.exp(-state.variables["gates"])) - 0.1, 0, 1)
    expected = state.variables["weights"] * z
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(last == 0, z == 0)
    assert 0 < (z == 0).mean() < 1


@pytest.mark.usefixtures("standard_promotion")  # Optax's Adam promotes
def test_the_multiplier_rises_with_the_violation_and_restarts(
    make_task, kernel, gradient
):
    task = make_task(steps=100, sparsity=0.8)
    method = hard_concrete_constraint(task)
    state = method.init(kernel)
    _, after = jax.jit(method.update)(gradient, state, kernel)
    density = np.mean(1 / (1 + np.exp(-(state.variables["gates"] + 1.5986))))
    np.testing.assert_allclose(
        after.variables["multiplier"], DUAL / 100 * (density - 0.2), rtol=1e-3
    )
    rise, _ = ascent(0.5).update(jnp.float32(0.2), None, jnp.float32(3.0))
    restart, _ = ascent(0.5).update(jnp.float32(-0.2), None, jnp.float32(3.0))
    assert (float(rise), float(restart)) == pytest.approx((0.1, -3.0))


@pytest.mark.usefixtures("standard_promotion")
def test_a_constraint_is_met_by_whole_units(make_task, trajectory):
    # The loss wants every tenth unit to grow, of the others nothing.
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 30)).astype("f4")
    gradients = np.zeros((200, 8, 30), "f4")
    gradients[:, :, ::10] = -kernel[:, ::10]
    task = make_task(steps=200, sparsity=0.6)
    last = trajectory(hard_concrete_units(task), kernel, gradients)[-1]
    assert 0.55 < (last == 0).mean() <= 0.9
    assert (last[:, ::10] != 0).all()
    assert ((last == 0).all(0) == (last == 0).any(0)).all()
