"""n of m: the projection, how it comes in, and where it can't be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_grda import proximal, sparsity_ramp, target_sparsity


def reference(x, n, m, axis):
    """True for those that a stable sort of each block puts first."""
    blocks = np.moveaxis(x, axis, -1).reshape(-1, m)
    order = np.argsort(-np.abs(blocks), axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, bool)
    np.put_along_axis(mask, order[:, :n], True, axis=-1)
    moved = np.moveaxis(x, axis, -1).shape
    return np.moveaxis(mask.reshape(moved), -1, axis)


@given(
    n_m=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]),
    axis=st.sampled_from([0, 1, -2, -1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_far_threshold_leaves_the_largest_of_every_block(n_m, axis, seed):
    n, m = n_m
    # Few values, so that many are equal.
    x = np.random.default_rng(seed).integers(-3, 4, (8, 16)).astype(np.float32)
    mapped = np.asarray(proximal.n_of_m(n, m, axis=axis)(jnp.asarray(x), 1e9))
    mask = reference(x, n, m, axis)
    np.testing.assert_array_equal(mapped, np.where(mask, x, 0))
    assert mask.sum() == x.size * n // m


def test_others_are_thresholded_and_none_without_a_threshold():
    x = jnp.array([[4.0, -3.0, 2.0, 0.5]])
    pattern = proximal.n_of_m(2, 4, axis=-1)
    np.testing.assert_array_equal(pattern(x, 0.0), x)
    np.testing.assert_allclose(pattern(x, 1.0), [[4.0, -3.0, 1.0, 0.0]])
    cubic = proximal.n_of_m(2, 4, axis=-1, p=3)
    np.testing.assert_allclose(cubic(x, 1.0), [[4.0, -3.0, 7 ** (1 / 3), 0]], rtol=1e-6)


def test_the_dial_steers_it_in_to_exact_counts():
    target = jax.random.normal(jax.random.key(0), (16, 8))
    optimizer = target_sparsity(
        0.1, sparsity_ramp(0.5, 100), proximal=proximal.n_of_m(2, 4)
    )

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), jnp.mean(params == 0)

    start = jnp.full_like(target, 0.1), optimizer.init(jnp.full_like(target, 0.1))
    run = jax.jit(lambda start: jax.lax.scan(step, start, length=300))
    (params, _), zeros = run(start)
    assert np.sum(np.asarray(zeros) > 0.55) == 0
    blocks = np.asarray(params).reshape(4, 4, 8)
    np.testing.assert_array_equal((blocks != 0).sum(1), 2)


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_explicit_axes_give_the_single_device_result(spec):
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices("cpu"))
    x = jax.random.normal(jax.random.key(0), (32, 8))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    pattern = jax.jit(proximal.n_of_m(2, 4))
    mapped = pattern(sharded, 0.5)
    np.testing.assert_array_equal(mapped, pattern(x, 0.5))
    assert mapped.sharding.is_equivalent_to(sharded.sharding, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((4, 4), "n must be an integer > 0 and below m, 4, got 4"),
        ((0, 4), "n must be an integer > 0"),
        ((1, 1), "m must be an integer > 1, got 1"),
    ],
)
def test_counts_out_of_range_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        proximal.n_of_m(*arguments)


def test_leaves_that_have_no_blocks_are_named():
    with pytest.raises(
        ValueError, match=r"multiple of 4, got shape \(6, 2\) at kernel"
    ):
        proximal.n_of_m(2, 4)({"kernel": jnp.ones((6, 2))}, 1.0)
    with pytest.raises(ValueError, match=r"axis -2 .*got shape \(8,\) at bias"):
        proximal.n_of_m(2, 4)({"bias": jnp.ones(8)}, 1.0)
