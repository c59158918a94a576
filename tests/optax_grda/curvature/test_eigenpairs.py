import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from threadpoolctl import threadpool_limits

from optax_grda.curvature import Hessian, top_eigenpairs

K = 10


@pytest.fixture(scope="module")
def dense_pairs(dense_hessian):
    """The largest eigenvalues in descending order, and their vectors in rows.

    On one thread: those of BLAS are slow where tests share the cores.
    """
    size = len(dense_hessian)
    with threadpool_limits(1):
        values, vectors = scipy.linalg.eigh(
            dense_hessian, subset_by_index=[size - K, size - 1]
        )
    return values[::-1], vectors.T[::-1]


def rows(tree):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(tree), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenpairs_are_those_of_the_dense_hessian(
    network, dense_hessian, dense_pairs, dtype
):
    values, vectors = dense_pairs
    with jax.enable_x64(dtype == "float64"):
        network = network.astype(dtype)
        hessian = Hessian(network.loss_fn, network.params, network.batches)
        pairs = top_eigenpairs(hessian, network.params, K)
        found = rows(pairs.eigenvectors)
        assert pairs.eigenvalues.dtype == pairs.residual_norms.dtype == dtype
    np.testing.assert_allclose(pairs.eigenvalues, values, rtol=1e-4)
    # The sine of the largest angle between the two subspaces.
    assert np.linalg.norm(vectors - vectors @ found.T @ found, 2) < 1e-3
    np.testing.assert_allclose(found @ found.T, np.eye(K), atol=1e-5)
    # What it says of its residuals is true, up to the rounding of products.
    residuals = found @ dense_hessian - np.asarray(pairs.eigenvalues)[:, None] * found
    np.testing.assert_allclose(
        np.linalg.norm(residuals, axis=1), pairs.residual_norms, atol=1e-6 * values[0]
    )
    assert np.all(np.asarray(pairs.residual_norms) <= 1e-5 * values[0])


def test_largest_means_algebraically_largest():
    diagonal = jnp.concatenate([-jnp.arange(5.0, 45.0), jnp.array([1.0, 3.0])])
    pairs = top_eigenpairs(lambda v: diagonal * v, diagonal, k=2)
    np.testing.assert_allclose(pairs.eigenvalues, [3, 1], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(pairs.eigenvectors[:, -1]), [1, 0], atol=1e-4)


def test_sharded_params_give_the_same_eigenpairs(network):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))
    params = jax.device_put(network.params, replicated)
    params["hidden"]["kernel"] = jax.device_put(params["hidden"]["kernel"], split)
    hessian = Hessian(network.loss_fn, params, jax.device_put(network.batches, split))
    pairs = top_eigenpairs(hessian, params, 3)
    single = Hessian(network.loss_fn, network.params, network.batches)
    expected = top_eigenpairs(single, network.params, 3)
    np.testing.assert_allclose(pairs.eigenvalues, expected.eigenvalues, rtol=1e-5)
    cosines = rows(pairs.eigenvectors) @ rows(expected.eigenvectors).T
    np.testing.assert_allclose(np.abs(cosines), np.eye(3), atol=1e-4)


def test_every_call_finds_the_same():
    diagonal = jnp.linspace(0.0, 1.0, 50) ** 4
    first, second = (top_eigenpairs(lambda v: diagonal * v, diagonal, 3) for _ in "ab")
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_running_out_of_restarts_says_how_far_it_got():
    # The top one stands out, the others are too close together for a single restart.
    diagonal = jnp.append(jnp.linspace(0.9, 1.0, 999), 5.0)
    with pytest.raises(
        RuntimeError, match=r"only 1 of k = 3 eigenpairs .*\[(4\.9|5\.)"
    ):
        top_eigenpairs(lambda v: diagonal * v, diagonal, 3, max_restarts=1)


def test_inaccurate_products_are_found_out():
    diagonal = jnp.linspace(0.0, 1.0, 50) ** 4

    def product(v):  # ten bits of mantissa, as in TF32
        return diagonal * jax.lax.reduce_precision(v, 8, 10)

    with pytest.raises(RuntimeError, match="exceed tolerance 1e-05 times the largest"):
        top_eigenpairs(product, diagonal, 3)
    pairs = top_eigenpairs(product, diagonal, 3, tolerance=1e-2)
    np.testing.assert_allclose(pairs.eigenvalues, diagonal[:-4:-1], rtol=1e-2)


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_from_1_to_the_number_of_parameters_minus_1(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to .*4: got {k}"):
        top_eigenpairs(lambda v: v, jnp.ones(5), k)


def test_tolerance_is_positive():
    with pytest.raises(ValueError, match="tolerance must be > 0, got 0"):
        top_eigenpairs(lambda v: v, jnp.ones(5), 2, tolerance=0)


def test_narrow_dtypes_are_refused():
    with pytest.raises(TypeError, match="params must be float32 or float64, got bfl"):
        top_eigenpairs(lambda v: v, jnp.ones(5, jnp.bfloat16), 2)
