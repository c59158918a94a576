import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals._layers import erdos_renyi_kernel

KERNELS = {
    "a": jax.ShapeDtypeStruct((3, 3, 4, 5), jnp.float32),  # 180, ratio 15 / 180
    "b": jax.ShapeDtypeStruct((20, 30), jnp.float32),  # 600, 50 / 600: the same ratio
    "c": jax.ShapeDtypeStruct((30, 2), jnp.float32),  # 60, 32 / 60
}


def densities(sparsity):
    found = jax.jit(lambda s: erdos_renyi_kernel(KERNELS, s))(sparsity)
    return np.array([1 - found[name] for name in "abc"])


def test_densities_are_proportional_to_sums_over_products():
    # epsilon (15 + 50 + 32) = 0.05 * 840
    expected = 0.05 * 840 / 97 * np.array([15 / 180, 50 / 600, 32 / 60])
    np.testing.assert_allclose(densities(0.95), expected, rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.85])
def test_layers_are_at_most_dense_and_the_others_make_up_for_it(sparsity):
    found = densities(sparsity)
    # epsilon * 32 / 60 > 1 below a sparsity of 0.78.
    if sparsity < 0.78:
        rest = (840 * (1 - sparsity) - 60) / 780
        np.testing.assert_allclose(found, [rest, rest, 1], rtol=1e-5)
    np.testing.assert_allclose(found @ [180, 600, 60], 840 * (1 - sparsity), rtol=1e-6)
