import jax
import jax.numpy as jnp
import numpy as np

from experiments.rivals.snip import snip


def test_the_mask_is_of_the_largest_derivatives_by_a_gate(make_task, trajectory):
    rng = np.random.default_rng(0)
    weights = {"a": jnp.float32(rng.normal(size=(3, 4)))}
    weights |= {"b": jnp.float32(rng.normal(size=(4, 2)))}
    images = jnp.float32(rng.normal(size=(5, 3)))

    def loss(weights):
        hidden = jnp.tanh(images @ weights["a"])
        return jnp.sum(jnp.square(hidden @ weights["b"] - 1))

    def gated(gates):
        return loss(jax.tree.map(jnp.multiply, gates, weights))

    @jax.jit
    def derivatives():
        ones = jax.tree.map(jnp.ones_like, weights)
        return jax.grad(gated)(ones), jax.grad(loss)(weights)

    by_gate, first = jax.device_get(derivatives())
    sensitivities = np.hstack([np.abs(by_gate[k]).ravel() for k in "ab"])
    kept = sensitivities > np.sort(sensitivities)[14]  # 0.75 * 20 are not

    # Later gradients would choose others: they do not.
    gradients = jax.tree.map(lambda x: np.stack([x, 1 / x, x]), first)
    found = trajectory(snip(make_task(3, 0.75)), weights, gradients)
    for n in range(1, 4):
        mask = np.hstack([found[k][n].ravel() != 0 for k in "ab"])
        assert np.array_equal(mask, kept)
    expected = np.where(found["a"][1] != 0, weights["a"] - 0.1 * first["a"], 0)
    np.testing.assert_allclose(found["a"][1], expected, rtol=1e-5)
