import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rivals._masked import masked
from experiments.rivals.ac_dc import ac_dc
from experiments.rivals.gradual import gradual_global, gradual_uniform
from experiments.rivals.one_shot import one_shot
from experiments.rivals.rigl import rigl
from experiments.rivals.snip import snip
from experiments.rivals.top_kast import top_kast


@pytest.mark.parametrize("restarts", [False, True])
def test_steps_are_those_of_momentum_under_the_mask(make_task, trajectory, restarts):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=3), rng.normal(size=(6, 3))
    masks = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    transformation = masked(
        make_task(6, weight_decay=0.01),
        lambda count: count != 0,
        lambda count, *_: {"a": jnp.array(masks, bool)[count]},
        restart=lambda count: (count == 4) & restarts,
    )
    found = trajectory(
        transformation,
        {"a": jnp.float32(weights)},
        {"a": jnp.float32(gradients)},
    )["a"]

    moment, before = np.zeros(3), masks[0]
    for n, (gradient, mask) in enumerate(zip(gradients, masks, strict=True)):
        # A weight that enters has no past; off the mask neither moves nor remembers.
        moment = moment * before * mask * (not (restarts and n == 4))
        moment = 0.9 * moment + gradient + 0.01 * weights
        weights, before = mask * (weights - 0.1 * moment), mask
        np.testing.assert_allclose(found[n + 1], weights, rtol=1e-5)
        assert np.all(found[n + 1][mask == 0] == 0)


METHODS = (
    ac_dc,
    gradual_global,
    gradual_uniform,
    one_shot,
    rigl,
    snip,
    top_kast,
)


@pytest.mark.parametrize("method", METHODS)
def test_the_sparsity_is_reached_side_by_side(make_task, method):
    """Of states, sparsities and keys under vmap; a place of the pytree is not there."""
    rng = np.random.default_rng(1)

    def draw(*lead):
        return {
            "a": jnp.float32(rng.normal(size=(*lead, 3, 3, 4, 5))),
            "b": {"c": jnp.float32(rng.normal(size=(*lead, 20, 11)))},
            "d": optax.MaskedNode(),
        }

    params, gradients = draw(), draw(30)

    @jax.jit
    @jax.vmap
    def run(sparsity, seed):
        transformation = method(
            make_task(30, sparsity, key=jax.random.key(seed), weight_decay=1e-3)
        )

        def step(carry, gradient):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, transformation.init(params)
        return jax.lax.scan(step, carry, gradients)[0][0]

    sparsities = jnp.array([0.5, 0.9])
    ended = run(sparsities, jnp.arange(2))
    nonzeros = sum(
        np.count_nonzero(leaf, axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(ended)
    )
    # Where layers are counted apart, each is right to half an entry.
    np.testing.assert_allclose(nonzeros, (1 - sparsities) * 400, atol=1)
