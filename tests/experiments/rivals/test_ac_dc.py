import jax.numpy as jnp
import numpy as np

from experiments.rivals.ac_dc import ac_dc


def test_phases_alternate_and_momentum_restarts(make_task, trajectory):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=(4, 5)), rng.normal(size=(40, 4, 5))
    found = trajectory(
        ac_dc(make_task(40, 0.75)),
        {"a": jnp.float32(weights)},
        {"a": jnp.float32(gradients)},
    )["a"]

    # An epoch is 0.4 steps: warm-up 4 steps, then phases of 2; the last two 4 and 6.
    phases = "dddd" + "ccdd" * 6 + "cc" + "dddd" + "cccccc"
    assert len(phases) == 40
    moment, mask, before = np.zeros((4, 5)), np.ones((4, 5)), "d"
    for n, (phase, gradient) in enumerate(zip(phases, gradients, strict=True)):
        if before + phase == "dc":
            mask = np.abs(weights) > np.sort(np.abs(weights), axis=None)[14]
        if before + phase == "cd":
            mask, moment = np.ones((4, 5)), np.zeros((4, 5))
        moment, before = 0.9 * moment + gradient, phase
        weights = mask * (weights - 0.1 * moment)
        np.testing.assert_allclose(found[n + 1], weights, rtol=1e-4, atol=1e-5)
        assert np.sum(found[n + 1] != 0) == (5 if phase == "c" else 20)
