"""Dep-L0: gates by unit that layers of a network make one of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals._hard_concrete import drawn
from experiments.rivals.dep_l0 import GENERATOR, dep_l0, log_alphas


def by_hand(generator):
    first, second = generator
    x = np.log(100) * np.tanh(np.ones(64) @ np.array(first["W"]) + first["b"])
    return x, np.log(100) * np.tanh(x @ np.array(second["W"]) + second["b"])


@pytest.mark.usefixtures("standard_promotion")  # Optax's Adam promotes
def test_variables_step_along_the_gradients_of_the_penalized_loss(make_task):
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 4), "b": (4, 5)}
    kernels = {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}
    gradients = {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}
    task = make_task(steps=1, strength=0.01, momentum=0.0)
    method = dep_l0(task)
    state = jax.jit(method.init)(kernels)
    before = state.variables

    @jax.jit
    @jax.grad
    def objective(variables):
        gates = log_alphas(variables)
        z = drawn(gates, jax.random.fold_in(task.key, 0))
        weights = variables["weights"]
        loss = sum(jnp.sum(gradients[name] * weights[name] * z[name]) for name in z)
        is_open = {k: jax.nn.sigmoid(a + 2 / 3 * np.log(11)) for k, a in gates.items()}
        return loss + 0.01 * (18 * jnp.sum(is_open["a"]) + 4 * jnp.sum(is_open["b"]))

    slopes = objective(before)
    updates, after = jax.jit(method.update)(gradients, state, kernels)
    for name, log_alpha in zip(
        "ab", by_hand(after.variables["generator"]), strict=True
    ):
        theta = kernels[name] - 0.1 * np.array(slopes["weights"][name])
        # The only step is the last: sure gates.
        z = np.clip(1.2 / (1 + np.exp(-log_alpha)) - 0.1, 0, 1)
        np.testing.assert_allclose(
            kernels[name] + updates[name], theta * z, rtol=1e-4, atol=1e-5
        )
    for old, new, slope in zip(
        before["generator"],
        after.variables["generator"],
        slopes["generator"],
        strict=True,
    ):
        # Adam's first step: of saturated units its epsilon counts.
        step = -GENERATOR * slope["b"] / (np.abs(slope["b"]) + 1e-8)
        np.testing.assert_allclose(new["b"] - old["b"], step, rtol=0.02, atol=1e-6)


def test_each_layer_of_the_generator_starts_as_pytorch_does(make_task):
    kernels = {"a": np.ones((3, 400), "f4"), "b": np.ones((400, 300), "f4")}
    first, second = dep_l0(make_task(1)).init(kernels).variables["generator"]
    for layer, inputs in ((first, 64), (second, 400)):
        assert layer["W"].shape[0] == inputs
        np.testing.assert_allclose(np.abs(layer["W"]).max(), inputs**-0.5, rtol=0.01)
        np.testing.assert_allclose(np.std(layer["W"]), (3 * inputs) ** -0.5, rtol=0.02)
        assert (layer["b"] == 3).all()
