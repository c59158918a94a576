"""The proximal operators, against their definition and at the edges of the dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from optax_grda import proximal
from optax_grda.proximal import (
    group_soft_threshold,
    hard_threshold,
    power_threshold,
    soft_threshold,
)

soft = jax.jit(soft_threshold)
group_soft = jax.jit(group_soft_threshold, static_argnames="axis")

SHAPE = (4, 3)
AXES = st.sampled_from([0, -1, (0, 1)])
DTYPES = ["float32", "float16", "bfloat16", "complex64"]
FLOATS = st.floats(-100, 100)
REAL = hnp.arrays(np.float64, SHAPE, elements=FLOATS)
ARRAYS = REAL | st.tuples(REAL, REAL).map(lambda parts: parts[0] + 1j * parts[1])
THRESHOLDS = st.floats(0, 50)
SEEDS = st.integers(0, 2**32 - 1)


def candidates(minimiser, x, seed):
    """Points near and far of which none may be better than the minimiser."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((5, *x.shape))
    if np.iscomplexobj(x):
        noise = noise + 1j * rng.standard_normal(noise.shape)
    yield from (minimiser + scale * noise[i] for i, scale in enumerate((1e-3, 1, 100)))
    yield from (x, np.zeros_like(x))
    yield minimiser + 0.01 * (x - minimiser)
    yield 0.99 * minimiser


def assert_minimises(objective, minimiser, x, seed):
    least = objective(minimiser)
    for candidate in candidates(minimiser, x, seed):
        assert least <= objective(candidate) * (1 + 1e-12)


@given(x=ARRAYS, threshold=THRESHOLDS, seed=SEEDS)
def test_soft_threshold_is_the_proximal_operator_of_l1(x, threshold, seed):
    with jax.enable_x64(True):
        minimiser = np.asarray(soft(x, threshold))
    assert minimiser.dtype == x.dtype

    def objective(y):
        return np.sum(np.abs(x - y) ** 2 / 2 + threshold * np.abs(y))

    assert_minimises(objective, minimiser, x, seed)


def norms(x, axis):
    return np.sqrt(np.sum(np.abs(x) ** 2, axis=axis, keepdims=True))


@given(x=ARRAYS, threshold=THRESHOLDS, axis=AXES, seed=SEEDS)
def test_group_soft_threshold_is_the_proximal_operator_of_the_group_lasso(
    x, threshold, axis, seed
):
    with jax.enable_x64(True):
        minimiser = np.asarray(group_soft(x, threshold, axis))
    assert minimiser.dtype == x.dtype
    size = x.size // norms(x, axis).size

    def objective(y):
        penalty = threshold * np.sqrt(size) * np.sum(norms(y, axis))
        return np.sum(np.abs(x - y) ** 2) / 2 + penalty

    assert_minimises(objective, minimiser, x, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@given(x=ARRAYS, threshold=THRESHOLDS, axis=AXES)
def test_every_dtype_gives_the_float64_values_and_the_same_zeros(
    dtype, x, threshold, axis
):
    x = np.asarray(jnp.asarray(x if dtype == "complex64" else x.real, dtype))
    threshold = float(np.float32(threshold))
    wide = x.astype("complex128" if dtype == "complex64" else "float64")
    size = x.size // norms(wide, axis).size
    groups = norms(wide, axis) / np.sqrt(size)
    for actual, moduli in (
        (soft(x, threshold), np.abs(wide)),
        (group_soft(x, threshold, axis), groups),
    ):
        assert actual.dtype == x.dtype
        assert actual.shape == x.shape
        nonzero = np.where(moduli > threshold, moduli, 1)
        expected = np.where(moduli > threshold, wide * (1 - threshold / nonzero), 0)
        # The result is rounded to the dtype; before it, norms, their quotients and the
        # factors, all at most 1, to a few roundings of float32.
        np.testing.assert_allclose(
            np.asarray(actual).astype(wide.dtype),
            expected,
            rtol=float(jnp.finfo(dtype).eps),
            atol=4 * float(jnp.finfo("float32").eps) * np.max(np.abs(wide))
            + float(jnp.finfo(dtype).tiny),
        )
        decided = moduli < threshold * (1 - 1e-6)  # but for rounding of the moduli
        assert np.all(np.asarray(actual)[np.broadcast_to(decided, x.shape)] == 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_entries_equal_to_the_threshold_are_exactly_zero(dtype):
    threshold = jnp.asarray(0.3, dtype)
    above = jnp.nextafter(threshold, jnp.ones_like(threshold))
    x = jnp.stack([threshold, -threshold, above, -above])
    result = np.asarray(soft(x, threshold)).astype("float32")
    assert (result == 0).tolist() == [True, True, False, False]
    assert np.sign(result[2:]).tolist() == [1, -1]


def test_narrow_dtypes_are_compared_with_the_threshold_in_float32():
    x = jnp.asarray(1.0, jnp.bfloat16)
    threshold = 1 + 2**-10  # 1 in bfloat16
    assert soft(-x, threshold) == 0
    assert soft(x, 1 - 2**-10) == 2**-10


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_threshold_may_be_an_array(dtype):
    x = jnp.full((2, 3), 2.0, dtype)
    thresholds = jnp.array([[0.0, 1.0, 3.0]])
    expected = [[2.0, 1.0, 0.0]] * 2
    np.testing.assert_array_equal(soft(x, thresholds), expected)
    by_column = group_soft(x, thresholds, axis=0)
    np.testing.assert_allclose(by_column, expected, rtol=1e-6)
    np.testing.assert_array_equal(by_column[:, 2], 0)


@given(x=st.floats(-10, 10), threshold=st.floats(0, 5), axis=AXES)
def test_group_of_equal_entries_shrinks_as_one_entry_does(x, threshold, axis):
    group = jnp.full(SHAPE, x, jnp.float32)
    np.testing.assert_allclose(
        group_soft(group, threshold, axis),
        soft(group, threshold),
        atol=1e-5,
    )


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def slopes_of_columns(x, threshold):
    return jnp.real(jnp.sum(group_soft_threshold(x, threshold, axis=0)))


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e30])
def test_zero_groups_stay_zero_with_zero_derivatives(dtype, threshold):
    x = jnp.array([[0, 0, 0], [0, 1e-25, 0], [0, 5, 1e-25]], dtype)
    slope_x, slope_threshold = slopes_of_columns(x, threshold)
    assert np.all(group_soft(x, threshold, axis=0)[:, 0] == 0)
    assert np.all(slope_x[:, 0] == 0)
    assert np.isfinite(np.asarray(slope_x).astype("complex64")).all()
    assert np.isfinite(slope_threshold)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25, 5e37])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_group_soft_threshold_neither_overflows_nor_underflows(scale, dtype):
    x = jnp.array([[3.0, 0.0], [-4.0, 1e-3]], dtype)
    expected = np.asarray(group_soft(x, 0.5, axis=0))
    actual = np.asarray(group_soft(scale * x, 0.5 * scale, axis=0))
    np.testing.assert_allclose(actual / scale, expected, rtol=1e-5)

    actual_slopes = slopes_of_columns(scale * x, 0.5 * scale)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        actual_slopes,
        slopes_of_columns(x, 0.5),
    )


def test_derivatives_are_those_of_finite_differences():
    x = np.random.default_rng(0).standard_normal(SHAPE)
    with jax.enable_x64(True):
        check_grads(soft, (x, 0.3), order=1)
        check_grads(lambda x, threshold: group_soft(x, threshold, 0), (x, 0.3), order=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1, 2, 3, 2.5, "traced"])
def test_power_takes_the_threshold_off_in_the_power(dtype, p):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200) + 1j * rng.standard_normal(200)
    x = jnp.asarray(x if dtype == "complex64" else x.real, dtype)
    if p == "traced":
        actual = jax.jit(power_threshold)(x, 0.5, 4.0)
        p = 4.0
    else:
        actual = power_threshold(x, 0.5, p)
    assert actual.dtype == x.dtype
    wide = "complex128" if dtype == "complex64" else "float64"
    x, actual = np.asarray(x).astype(wide), np.asarray(actual).astype(wide)
    np.testing.assert_array_equal(actual == 0, np.abs(x) <= 0.5)
    kept = actual != 0
    np.testing.assert_allclose(
        (np.abs(actual[kept]) ** p + 0.5**p) ** (1 / p),
        np.abs(x[kept]),
        rtol=4 * float(jnp.finfo(dtype).eps),
    )
    turned = actual[kept] / np.abs(actual[kept]) - x[kept] / np.abs(x[kept])
    assert np.max(np.abs(turned)) < 8 * float(jnp.finfo(dtype).eps)


def test_powers_lead_from_soft_to_hard():
    x = jnp.linspace(-3, 3, 61)
    np.testing.assert_array_equal(proximal.power(1)(x, 1.0), proximal.soft(x, 1.0))
    np.testing.assert_allclose(
        proximal.power(200)(x, 0.95), proximal.hard(x, 0.95), rtol=1e-5
    )
    assert proximal.hard(x, 1.0).tolist() == np.where(np.abs(x) <= 1, 0, x).tolist()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 2.0])
def test_derivatives_of_powers_are_finite_but_just_above_the_threshold(at, threshold):
    by_x, by_threshold, by_p = jax.grad(power_threshold, argnums=(0, 1, 2))(
        at, threshold, 3.0
    )
    if at <= threshold:
        assert by_x == by_threshold == by_p == 0
    elif threshold == 0:
        assert (by_x, by_threshold, by_p) == (1, 0, 0)
    else:  # w^3 = x^3 - L^3
        w = float(power_threshold(at, threshold, 3.0))
        assert by_x == pytest.approx(at**2 / w**2, rel=1e-5)
        assert by_threshold == pytest.approx(-(threshold**2) / w**2, rel=1e-5)


def test_third_powers_are_right_at_all_distances_and_scales():
    beyond = 1 + jnp.logspace(-6, 6, 500)  # |x| / L
    for scale in (2.0**-60, 1.0, 2.0**60):
        actual = np.asarray(power_threshold(beyond * scale, scale, 3), np.float64)
        x = np.asarray(beyond, np.float64)
        expected = x * np.cbrt(-np.expm1(-3 * np.log(x)))
        # Just beyond the threshold, 1 - (L / |x|)^3 has few bits left of it.
        left = np.finfo(np.float32).eps / (x - 1)
        np.testing.assert_array_less(abs(actual / scale / expected - 1), 1e-6 + left)


def test_derivatives_of_the_third_power_are_those_of_its_root():
    x, threshold = jnp.array([1.1, 2.0, -5.0]), jnp.array(1.0)
    cube = functools.partial(power_threshold, p=3)
    check_grads(cube, (x, threshold), order=2, rtol=2e-2, atol=2e-2)
    by_x = jax.vmap(jax.grad(cube), (0, None))(x, threshold)
    np.testing.assert_allclose(by_x, x**2 / cube(x, threshold) ** 2, rtol=1e-5)


@pytest.mark.parametrize("p", [0.5, 0, -1, float("nan")])
def test_powers_below_one_are_refused(p):
    with pytest.raises(ValueError, match="p must be >= 1, got"):
        proximal.power(p)
    with pytest.raises(ValueError, match="p must be >= 1, got"):
        power_threshold(jnp.ones(2), 0.5, p)


def test_hard_threshold_keeps_what_is_beyond_it():
    x = jnp.array([-2.0, -1.0, 0.5, jnp.nan, 1.5], jnp.bfloat16)
    result = hard_threshold(x, 1.0)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        result.astype("float32"), np.float32([-2, 0, 0, np.nan, 1.5])
    )
    assert jax.grad(lambda x: hard_threshold(x, 1.0))(1.5) == 1


def test_infinity_and_nan_stay_visible():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 2.0])
    expected = [np.inf, -np.inf, np.nan, 1.0]
    np.testing.assert_array_equal(soft(x, 1.0), expected)
    assert np.isnan(group_soft(x[2:], 1.0, axis=0)[0])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_arrays(shape):
    x = jnp.ones(shape)
    assert soft(x, 1.0).shape == shape
    assert group_soft(x, 1.0, axis=0).shape == shape


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_nan_stays_nan(dtype):
    assert np.isnan(soft(jnp.full(1, np.nan, dtype), 0.5)).all()
