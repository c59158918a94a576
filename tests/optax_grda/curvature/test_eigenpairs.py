import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from optax_grda.curvature import Hessian, top_eigenpairs
from optax_grda.curvature._lanczos import Krylov

K = 10


def diagonal(entries):
    """The product with a diagonal matrix, in float32, on the host."""
    entries = np.asarray(entries, np.float32)
    return lambda v: entries * np.asarray(v)


def like(entries):
    return np.zeros(len(entries), np.float32)


def rows(tree):
    leaves = [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1).astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenpairs_are_those_of_the_dense_hessian(network, dense_hessian, dtype):
    size = len(dense_hessian)
    values, vectors = scipy.linalg.eigh(
        dense_hessian, subset_by_index=[size - K, size - 1]
    )
    values, vectors = values[::-1], vectors.T[::-1]
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
        np.linalg.norm(residuals, axis=1), pairs.residual_norms, atol=4e-6 * values[0]
    )
    assert np.all(np.asarray(pairs.residual_norms) <= 1e-5 * values[0])


def test_largest_means_algebraically_largest():
    entries = np.append(-np.arange(5.0, 45.0), [1, 3])
    pairs = top_eigenpairs(diagonal(entries), like(entries), k=2)
    np.testing.assert_allclose(pairs.eigenvalues, [3, 1], rtol=1e-5)
    np.testing.assert_allclose(np.abs(pairs.eigenvectors[:, -1]), [1, 0], atol=1e-4)


# Copies


def test_ninefold_eigenvalues_are_returned_nine_times():
    """Softmax regression at 0: the outputs' Hessian is a multiple of a projection."""
    images = np.random.default_rng(0).normal(size=(50, 8)) * np.linspace(3, 1, 8)
    covariance = (images.T @ images / 50).astype(np.float32)
    centred = (np.eye(10) / 10 - 0.01).astype(np.float32)

    def product(v):
        return covariance @ np.asarray(v) @ centred

    exact = np.sort(np.kron(np.linalg.eigvalsh(covariance), [0.1] * 9 + [0]))[::-1]
    for k in (1, 5, 9, 10, 20, 80):
        pairs = top_eigenpairs(product, np.zeros((8, 10), np.float32), k)
        np.testing.assert_allclose(pairs.eigenvalues, exact[:k], atol=1e-5 * exact[0])
        found = rows(pairs.eigenvectors)
        np.testing.assert_allclose(found @ found.T, np.eye(k), atol=1e-5)


def test_no_copy_is_left_out_of_clustered_spectra():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        size, clusters = rng.integers(30, 70), rng.integers(2, 8)
        centres = rng.uniform(-1, 1, clusters) ** 3
        widths = 10 ** rng.uniform(-9, -2) * (seed % 3 > 0)
        spread = 1 + widths * rng.normal(size=size)
        values = np.sort(centres[rng.integers(0, clusters, size)] * spread)[::-1]
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        matrix = ((basis * values) @ basis.T).astype(np.float32)
        k = rng.integers(1, 12)
        pairs = top_eigenpairs(lambda v, m=matrix: m @ np.asarray(v), like(values), k)
        np.testing.assert_allclose(
            *(pairs.eigenvalues, values[:k]),
            rtol=0,
            atol=2e-5 * np.abs(values).max(),
            err_msg=f"{seed=}",
        )


def test_what_is_excluded_is_not_there():
    """The bound of the last start is above the largest eigenvalue, and comes close."""
    values = np.append(np.linspace(0, 1, 200), 1.1)
    for seed in range(20):
        start = np.random.default_rng(seed).normal(size=len(values))
        krylov = Krylov(start, np.empty((0, len(values))), capacity=12)
        products = 0
        while True:
            products += 1
            krylov.extend(lambda v: values * v)
            assert not krylov.excludes(1.1 * (1 - 1e-12))
            if krylov.excludes(1.1 * (1 + 1e-5)):
                break
            if krylov.full:
                krylov.restart(6)
        assert 20 < products < 60


# Scales


@pytest.mark.parametrize("scale", [1e-20, 1e-5, 1e20])
def test_any_scale_will_do(scale):
    entries = scale * np.linspace(0, 1, 50) ** 4
    pairs = top_eigenpairs(diagonal(entries), like(entries), 3)
    np.testing.assert_allclose(pairs.eigenvalues, entries[:-4:-1], rtol=1e-5)
    assert np.all(np.asarray(pairs.residual_norms) <= 1e-5 * entries[-1])


@pytest.mark.parametrize("rank", [0, 3])
def test_zeros_are_eigenvalues_as_others_are(rank):
    entries = np.append(np.zeros(500), np.arange(1.0, rank + 1))
    pairs = top_eigenpairs(diagonal(entries), like(entries), 6)
    expected = np.append(np.arange(rank, 0.0, -1), np.zeros(6 - rank))
    np.testing.assert_allclose(pairs.eigenvalues, expected, atol=1e-5)
    found = rows(pairs.eigenvectors)
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-5)


def test_every_call_finds_the_same():
    entries = np.linspace(0, 1, 50) ** 4
    first, second = (top_eigenpairs(diagonal(entries), like(entries), 3) for _ in "ab")
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_leaves_may_be_of_float32_and_of_float64():
    with jax.enable_x64(True):
        params = {"a": np.zeros((2, 3)), "b": np.float32(0)}

        def product(v):
            assert [x.dtype for x in jax.tree.leaves(v)] == [jnp.float64, jnp.float32]
            v = jax.tree.map(np.asarray, v)
            return {"a": np.arange(6.0).reshape(2, 3) * v["a"], "b": 9 * v["b"]}

        pairs = top_eigenpairs(product, params, 7)
        assert pairs.eigenvalues.dtype == jnp.float64
        np.testing.assert_allclose(pairs.eigenvalues, [9, 5, 4, 3, 2, 1, 0], atol=1e-6)
        assert pairs.eigenvectors["a"].shape == (7, 2, 3)
        assert pairs.eigenvectors["b"].dtype == jnp.float32


# What cannot be answered


def test_running_out_of_products_says_how_far_it_got():
    # The top one stands out, the others are close together.
    entries = np.append(np.linspace(0.9, 1, 999), 5)
    with pytest.raises(
        RuntimeError, match=r"only 1 of k = 3 .*max_products = 30: eigenvalues \[[45]\."
    ):
        top_eigenpairs(diagonal(entries), like(entries), 3, max_products=30)


def test_running_out_of_products_says_what_is_not_known():
    entries = np.append(np.linspace(0, 1, 500), [3, 4, 5])
    with pytest.raises(
        RuntimeError, match="within max_products = 14, but whether larger ones were"
    ):
        top_eigenpairs(diagonal(entries), like(entries), 3, max_products=14)


def test_inaccurate_products_are_found_out():
    entries = np.linspace(0, 1, 50) ** 4

    def product(v):  # ten bits of mantissa, as in TF32
        return entries.astype(np.float32) * jax.lax.reduce_precision(v, 8, 10)

    with pytest.raises(RuntimeError, match="not accurate enough"):
        top_eigenpairs(product, like(entries), 3)
    pairs = top_eigenpairs(product, like(entries), 3, tolerance=1e-2)
    np.testing.assert_allclose(pairs.eigenvalues, entries[:-4:-1], rtol=1e-2)


@pytest.mark.parametrize("size", [2, 30])
def test_operators_that_are_not_symmetric_are_found_out(size):
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    with pytest.raises(RuntimeError, match="matvec is not symmetric, or not accurate"):
        top_eigenpairs(lambda v: matrix @ np.asarray(v), like(matrix), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="matvec must return finite numbers, got NaN"):
        top_eigenpairs(lambda v: bad * np.asarray(v), np.ones(5, np.float32), 2)


def test_products_are_like_the_params():
    with pytest.raises(ValueError, match=r"matvec\(v\) must have the shapes of params"):
        top_eigenpairs(lambda v: np.asarray(v)[:3], np.ones(5, np.float32), 2)


@pytest.mark.parametrize("k", [0, 6])
def test_k_is_from_1_to_the_number_of_parameters(k):
    with pytest.raises(ValueError, match=f"k must be an integer from 1 to 5.*got {k}"):
        top_eigenpairs(lambda v: v, np.ones(5, np.float32), k)


@pytest.mark.parametrize("k", [True, 2.0, None])
def test_k_is_an_integer(k):
    with pytest.raises(TypeError, match=f"k must be an integer .*got {k}"):
        top_eigenpairs(lambda v: v, np.ones(5, np.float32), k)


def test_k_may_be_of_numpy_and_as_large_as_the_params():
    pairs = top_eigenpairs(diagonal([3, 1, 2]), like(range(3)), np.int64(3))
    np.testing.assert_allclose(pairs.eigenvalues, [3, 2, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("keyword", "value", "rule"),
    [
        ("tolerance", 0, "> 0"),
        ("tolerance", float("nan"), "> 0"),
        ("max_products", 0, "an integer >= 1"),
    ],
)
def test_options_keep_their_rules(keyword, value, rule):
    with pytest.raises(ValueError, match=f"{keyword} must be {rule}, got {value}"):
        top_eigenpairs(lambda v: v, np.ones(5, np.float32), 2, **{keyword: value})


def test_narrow_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"params must have leaves .*, got bfloat16 at"):
        top_eigenpairs(lambda v: v, jnp.ones(5, jnp.bfloat16), 2)
