"""grda against a dozen lines of NumPy in float64, on random trees and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_grda import grda


def oracle(start, gradients, learning_rates, c, mu):
    """gRDA of one array in float64: accumulator, threshold and weights by step."""
    v, threshold = start, 0.0
    steps = zip(gradients, learning_rates, strict=True)
    for n, (gradient, gamma) in enumerate(steps, start=1):
        v = v - gamma * gradient
        threshold += c * gamma ** (mu + 0.5) * (n**mu - (n - 1) ** mu)
        yield v, threshold, np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


STEPS = 4
SCHEDULES = [
    optax.constant_schedule,
    lambda peak: optax.linear_schedule(0.0, peak, 3),
    lambda peak: lambda count: peak * jnp.cos(count / STEPS),
    lambda peak: lambda count: jnp.where(count < 2, peak, 0.1 * peak),
]


def trees(*dtypes):
    """Nested dicts, lists and tuples of arrays, of which shape and dtype count."""
    shapes = st.sampled_from([(), (3,), (2, 3), (2, 0)])
    return st.recursive(
        st.builds(np.zeros, shapes, st.sampled_from(dtypes).map(jnp.dtype)),
        lambda inner: (
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
            | st.lists(inner, min_size=1, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=4,
    )


@settings(max_examples=25)
@given(
    wide_and_like=st.one_of(
        st.tuples(
            st.just("float64"), trees("float64", "float32", "float16", "bfloat16")
        ),
        st.tuples(st.just("complex128"), trees("complex128", "complex64")),
    ),
    schedule=st.sampled_from(SCHEDULES),
    peak=st.floats(1e-3, 1.0),
    c=st.floats(0.0, 1.0),
    mu=st.floats(0.1, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_grda_agrees_with_the_oracle(wide_and_like, schedule, peak, c, mu, seed):
    wide, like = wide_and_like
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.standard_normal((2, *leaf.shape))
        values = values[0] + 1j * values[1] if wide == "complex128" else values[0]
        return values.astype(leaf.dtype)

    start, *gradients = (jax.tree.map(draw, like) for _ in range(1 + STEPS))

    with jax.enable_x64(True):
        learning_rate = schedule(peak)
        optimizer = grda(learning_rate, c, mu, accumulator_dtype=wide)
        params, state = start, optimizer.init(start)
        trajectory, learning_rates = [], []
        for n, gradient in enumerate(gradients):
            learning_rates.append(float(learning_rate(jnp.int32(n))))
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            trajectory.append(jax.device_get((params, state)))

    for i, first in enumerate(jax.tree.leaves(start)):
        dtype, previous = first.dtype, first
        given_gradients = [
            np.asarray(jax.tree.leaves(gradient)[i], wide) for gradient in gradients
        ]
        expected = oracle(first.astype(wide), given_gradients, learning_rates, c, mu)
        for (params, state), (v, threshold, weights) in zip(
            trajectory, expected, strict=True
        ):
            accumulator = jax.tree.leaves(state.accumulator)[i]
            actual = np.asarray(jax.tree.leaves(params)[i])
            assert actual.dtype == dtype
            np.testing.assert_allclose(state.threshold, threshold, rtol=0, atol=1e-12)
            np.testing.assert_allclose(accumulator, v, rtol=0, atol=1e-12)
            # weights, weights - params and their sum are rounded: each by half an eps
            # of at most |weights| + |params|.
            rounding = jnp.finfo(dtype).smallest_subnormal + 1.5 * float(
                jnp.finfo(dtype).eps
            ) * (np.abs(weights) + np.abs(previous.astype(wide)))
            assert np.all(np.abs(actual.astype(wide) - weights) <= rounding + 1e-12)
            assert np.all(actual[np.abs(v) < threshold - 1e-12] == 0)
            previous = actual
