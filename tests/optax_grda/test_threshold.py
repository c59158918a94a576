"""The threshold against its closed form in float64, over millions of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda

C = 0.005
MUS = np.array([0.4, 0.51, 0.7, 1.0], np.float32)


def state_after(steps, learning_rate, mu, dtype=jnp.float32, factory=grda):
    optimizer = factory(learning_rate, c=C, mu=mu)
    params = jnp.ones((), dtype)

    def step(_, state):
        return optimizer.update(jnp.zeros((), dtype), state, params)[1]

    return jax.lax.fori_loop(0, steps, step, optimizer.init(params))


def growth(learning_rate, start, stop):
    """What steps start + 1 to stop at one learning rate add to the threshold."""
    mu = MUS.astype(np.float64)
    return C * learning_rate ** (mu + 0.5) * (float(stop) ** mu - float(start) ** mu)


def test_threshold_is_right_after_5_million_float32_steps():
    state = jax.jit(jax.vmap(lambda mu: state_after(5_000_000, 0.1, mu)))(MUS)
    assert state.threshold.dtype == jnp.float32
    assert state.count.tolist() == [5_000_000] * len(MUS)
    np.testing.assert_allclose(state.threshold, growth(0.1, 0, 5_000_000), rtol=1e-6)


def test_threshold_is_right_over_5_million_steps_of_a_stepwise_learning_rate():
    def learning_rate(count):
        return jnp.where(
            count < 2_000_000, 0.1, jnp.where(count < 4_000_000, 0.01, 0.001)
        )

    state = jax.jit(jax.vmap(lambda mu: state_after(5_000_000, learning_rate, mu)))(MUS)
    expected = (
        growth(0.1, 0, 2_000_000)
        + growth(0.01, 2_000_000, 4_000_000)
        + growth(0.001, 4_000_000, 5_000_000)
    )
    np.testing.assert_allclose(state.threshold, expected, rtol=1e-6)


def test_every_single_increment_is_right():
    counts = np.array([1, 2, 10, 1000, 10**6, 5 * 10**6, 2 * 10**9], np.int32)
    params = jnp.ones(())

    def increment(count, mu):
        optimizer = grda(0.1, c=C, mu=mu)
        state = optimizer.init(params)._replace(count=count - 1)
        return optimizer.update(params, state, params)[1].threshold

    by_count = jax.vmap(increment, in_axes=(0, None))
    actual = jax.jit(jax.vmap(by_count, in_axes=(None, 0)))(counts, MUS)
    n, mu = counts.astype(np.float64), MUS.astype(np.float64)[:, None]
    with np.errstate(divide="ignore"):  # log(0) at n = 1, as it should be
        difference = -(n**mu) * np.expm1(mu * np.log1p(-1 / n))
    # n is rounded to float32, and its powers are good to a few eps.
    np.testing.assert_allclose(actual, C * 0.1 ** (mu + 0.5) * difference, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "factory",
    [grda, optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)],
    ids=["plain", "injected"],
)
def test_threshold_still_grows_in_narrow_models(dtype, factory):
    def thresholds(mu):
        states = [state_after(n, 0.1, mu, dtype, factory) for n in (99_999, 100_000)]
        return [optax.tree.get(state, "threshold") for state in states]

    before, after = jax.jit(jax.vmap(thresholds))(MUS)
    assert np.all(after > before)
    np.testing.assert_allclose(after, growth(0.1, 0, 100_000), rtol=1e-6)


def test_zero_learning_rate_leaves_threshold_and_accumulator_still():
    optimizer = grda(optax.linear_schedule(0.0, 0.1, 10), c=0.5, mu=0.6)
    params = jnp.array([1.0, -1.0])
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.ones(2), state, params)
    assert state.count == 1
    assert state.threshold == 0
    assert updates.tolist() == [0, 0]
    assert state.accumulator.tolist() == params.tolist()
    _, state = optimizer.update(jnp.ones(2), state, params)
    assert state.threshold > 0


def test_count_saturates_instead_of_wrapping():
    optimizer = grda(0.1)
    params = jnp.ones(())
    last = np.iinfo(np.int32).max
    state = optimizer.init(params)._replace(count=jnp.int32(last))
    _, state = optimizer.update(params, state, params)
    assert state.count == last
    assert np.isfinite(state.threshold)
