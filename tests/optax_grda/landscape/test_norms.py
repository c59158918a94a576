"""The ratio of the norms, its bounds, and how exactly it is summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda.landscape import l2_over_l1


def test_ratio_is_that_of_the_concatenated_entries(points, flat):
    (params,) = points(1)
    w = flat(params)
    expected = np.sqrt(np.sum(w**2)) / np.sum(np.abs(w))
    for ratio in (l2_over_l1, jax.jit(l2_over_l1)):
        np.testing.assert_allclose(ratio(params), expected, rtol=1e-6)


def test_ratio_is_smallest_for_equal_moduli_and_largest_for_one_entry():
    signs = jnp.array([1.0, -1.0, -1.0, 1.0])
    assert l2_over_l1({"kernel": 3 * jnp.outer(signs, signs)}) == 16**-0.5
    assert l2_over_l1({"kernel": jnp.zeros((4, 4)).at[1, 2].set(-7.0)}) == 1


def test_zeros_do_not_count():
    assert l2_over_l1([jnp.zeros(12), jnp.full(4, -2.0)]) == 0.5
    assert jnp.isnan(l2_over_l1(jnp.zeros(3)))


def test_ratio_of_normal_entries_is_near_its_expectation():
    params = jax.random.normal(jax.random.key(0), (100_000,))
    # E|w| is (2 / pi)^(1/2); either norm varies by about 1 / sqrt(2 d).
    expected = np.sqrt(np.pi / 2) * 100_000**-0.5
    np.testing.assert_allclose(l2_over_l1(params), expected, rtol=4e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_over_many_entries_do_not_saturate(dtype):
    # Added one by one, ones stop counting at 2^24 in float32 and at 2^8 in bfloat16.
    params = {"kernel": jnp.ones((2**12, 2**13), dtype)}
    np.testing.assert_allclose(l2_over_l1(params), 2**-12.5, rtol=1e-6)


def test_leaves_of_several_dtypes_are_summed_in_the_widest():
    with jax.enable_x64(True):
        params = [
            jnp.full(3, 1.0, dtype) for dtype in ("bfloat16", "float32", "float64")
        ]
        ratio = l2_over_l1(params)
        assert ratio.dtype == jnp.float64
        np.testing.assert_allclose(ratio, 1 / 3, rtol=1e-15)
    assert l2_over_l1(params[:2]).dtype == jnp.float32


def test_ratio_under_vmap(points):
    trees = points(3)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    expected = [l2_over_l1(tree) for tree in trees]
    np.testing.assert_allclose(jax.vmap(l2_over_l1)(stacked), expected, rtol=1e-6)


def test_bad_params_are_refused():
    with pytest.raises(ValueError, match="params must hold at least one array, got"):
        l2_over_l1({})
    message = "params must have real float leaves, got int32 at layers/0"
    with pytest.raises(TypeError, match=message):
        l2_over_l1({"layers": [jnp.arange(3)]})
