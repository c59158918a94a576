"""health and health_warnings: what is seen, said, and said once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda
from optax_grda.diagnostics import health, health_warnings


def network(**changes):
    params = {
        "hidden": {"kernel": jnp.ones((4, 5)), "bias": jnp.zeros(5)},
        "head": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)},
    }
    for layer, kernel in changes.items():
        params[layer]["kernel"] = kernel
    return params


def zeros_first(count, shape):
    return jnp.ones(shape).ravel().at[:count].set(0).reshape(shape)


def test_record_counts_under_jit():
    record = jax.jit(health)(network(hidden=zeros_first(5, (4, 5))))
    assert record.finite
    np.testing.assert_allclose(record.sparsity, 12 / 37, rtol=1e-6)
    assert record.kernels.keys() == {"hidden/kernel", "head/kernel"}
    np.testing.assert_allclose(record.kernels["hidden/kernel"], 0.25, rtol=1e-6)
    assert record.kernels["head/kernel"] == 0


def test_network_in_good_health_needs_no_warning():
    record = health(network())
    assert health_warnings(record) == []
    assert health_warnings(record, record) == []


def test_dead_kernel_is_named_with_what_to_lower():
    record = health(network(hidden=jnp.zeros((4, 5))))
    [warning] = health_warnings(record)
    assert warning.startswith("hidden/kernel is all zero")
    assert "lower c or mu of grda" in warning


def test_a_model_without_kernels_that_is_all_zero_is_told_once():
    alive, dead = health({"w": jnp.ones(3)}), health({"w": jnp.zeros(3)})
    for previous in alive, None:
        [warning] = health_warnings(dead, previous)
        assert warning.startswith("all weights are zero: lower c or mu of grda")
    assert health_warnings(dead, dead) == []


def test_dead_kernel_is_named_once():
    alive, dead = health(network()), health(network(head=jnp.zeros((5, 2))))
    assert len(health_warnings(dead, alive)) == 1
    assert health_warnings(dead, dead) == []


def test_jump_is_named_with_both_sparsities():
    before, after = (
        health(network(hidden=zeros_first(count, (4, 5)))) for count in (2, 6)
    )
    [warning] = health_warnings(after, before)
    assert warning.startswith("hidden/kernel went from 10.0% to 30.0% zeros: lower")
    assert health_warnings(after, before, jump=0.25) == []
    assert health_warnings(after) == []
    assert health_warnings(before, after) == []


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_accumulator_that_is_not_finite_shows_in_the_weights(bad):
    optimizer = grda(0.1)
    params = network()
    gradients = jax.tree.map(jnp.zeros_like, params)
    gradients["head"]["bias"] = gradients["head"]["bias"].at[0].set(bad)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    sick = health(optax.apply_updates(params, updates))
    assert not sick.finite
    [warning] = health_warnings(sick, health(params))
    assert "not finite" in warning
    assert "lower the learning rate" in warning
    assert health_warnings(sick, sick) == []


def test_too_strong_a_threshold_is_seen_before_the_end():
    optimizer = grda(0.1, c=2.0, mu=0.6)
    params = network()
    state = optimizer.init(params)
    records = [health(params)]
    update = jax.jit(optimizer.update)
    for _ in range(40):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        records.append(health(params))
    said = [health_warnings(now, before) for before, now in itertools.pairwise(records)]
    # All weights start at 1, so both kernels die in the same step, and none later.
    assert [len(warnings) for warnings in said if warnings] == [2]


def test_records_of_different_params_are_refused():
    other = health({"other": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="previous must be of the params of record"):
        health_warnings(health(network()), other)


@pytest.mark.parametrize("jump", [0.0, 1.5])
def test_wrong_jumps_are_named(jump):
    with pytest.raises(ValueError, match=r"jump must be in \(0, 1\], got"):
        health_warnings(health(network()), jump=jump)
