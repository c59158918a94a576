import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from optax_grda.curvature import (
    GaussNewton,
    directional_pruning,
    directional_scores,
    strength_for_sparsity,
)

CUTOFF = 1e-4


@pytest.fixture(scope="module")
def valley():
    """A matrix with 12 flat directions and curvatures of 0.5 to 3 in the other 18."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    curvatures = np.concatenate([np.zeros(12), np.linspace(0.5, 3, 18)])
    flat_directions = basis[:, :12]
    return (basis * curvatures) @ basis.T, flat_directions @ flat_directions.T


@pytest.mark.parametrize(
    ("dtype", "cutoffs", "rounding"),
    [("float32", [1e-1, 1e-2, 1e-3], 2e-4), ("float64", [1e-2, 1e-4, 1e-6], 1e-9)],
)
def test_scores_tend_to_the_projection_on_flat_directions(
    valley, flat, unflat, dtype, cutoffs, rounding
):
    matrix, projection = valley
    rng = np.random.default_rng(1)
    with jax.enable_x64(dtype == "float64"):
        # A tree, with some weights at zero.
        params = {"kernel": rng.normal(size=(5, 5)), "bias": rng.normal(size=5)}
        params["kernel"][0] = 0
        params = jax.tree.map(lambda x: x.astype(dtype), params)

        def matvec(vector):
            return unflat(matrix.astype(dtype) @ flat(vector), vector)

        signs = np.sign(flat(params))
        expected = signs * (projection @ signs)
        for cutoff in cutoffs:
            scores, residual = directional_scores(
                matvec, params, cutoff, tolerance=rounding
            )
            assert {s.dtype.name for s in jax.tree.leaves(scores)} == {dtype}
            assert residual <= 2 * rounding
            # The least curvature of the others is 0.5: they fade to this, or less.
            filtered = cutoff / (cutoff + 0.5)
            error = np.linalg.norm(flat(scores) - expected) / np.linalg.norm(signs)
            assert error < filtered + 2 * rounding
    np.testing.assert_array_equal(scores["kernel"][0], 0)
    np.testing.assert_allclose(flat(scores), expected, atol=20 * cutoff + rounding)


@pytest.fixture(scope="module")
def gauss_newton(network):
    return GaussNewton(
        network.model_fn, network.cross_entropy, network.params, network.batches
    )


def test_residual_bounds_the_error_of_scores(
    network, gauss_newton, dense_gauss_newton, flat
):
    signs = np.sign(flat(network.params)).astype(np.float64)
    system = np.eye(len(signs)) + dense_gauss_newton / CUTOFF
    exact = np.linalg.solve(system, signs)
    rounding = np.finfo(np.float32).eps * np.linalg.norm(system, 2)  # of a product
    for max_products in (30, 100):
        scores, residual = directional_scores(
            gauss_newton, network.params, CUTOFF, tolerance=0, max_products=max_products
        )
        filtered = signs * flat(scores)
        actual = np.linalg.norm(signs - system @ filtered) / np.linalg.norm(signs)
        np.testing.assert_allclose(residual, actual, rtol=2e-2, atol=rounding)
        assert np.sqrt(np.mean((filtered - exact) ** 2)) < residual


def test_scores_of_a_network_follow_the_projection(
    network, gauss_newton, dense_gauss_newton, flat, unflat
):
    params = network.params
    signs = np.sign(flat(params)).astype(np.float64)
    _, steep = scipy.linalg.eigh(dense_gauss_newton, subset_by_value=[CUTOFF, np.inf])

    def projected(steep):
        """The scores by definition: signs are rid of their part along these columns."""
        return unflat(signs * (signs - steep @ (steep.T @ signs)), params)

    projection = projected(steep)
    scores, _ = directional_scores(gauss_newton, params, CUTOFF)
    assert np.corrcoef(flat(scores), flat(projection))[0, 1] > 0.95

    loss_fn = jax.jit(network.loss_fn)

    def loss_at_70_percent(scores):
        strength = strength_for_sparsity(params, scores, 0.7)
        pruned = directional_pruning(params, scores, strength)
        return loss_fn(pruned, network.whole)

    loss, expected = loss_at_70_percent(scores), loss_at_70_percent(projection)
    assert abs(loss - expected) < 0.3 * expected
    # Better than magnitudes, and than a projection that takes too much for flat.
    w = flat(params)
    magnitudes = unflat(w * (np.abs(w) > np.quantile(np.abs(w), 0.7)), params)
    assert loss < 0.6 * loss_fn(magnitudes, network.whole)
    assert loss < 0.1 * loss_at_70_percent(projected(steep[:, -10:]))


def test_products_are_counted_and_their_number_is_bounded(valley):
    matrix, _ = valley
    products = []

    def matvec(v):
        products.append(v)
        return matrix.astype(np.float32) @ np.asarray(v)

    signs = np.sign(np.random.default_rng(2).normal(size=30)).astype(np.float32)
    result = directional_scores(matvec, signs, 1e-2, max_products=np.int64(5))
    assert len(products) == 6
    assert result.residual > 1e-3
    result = directional_scores(matvec, signs, 1e-2, tolerance=0.1)
    assert result.residual < 0.1
    assert len(products) < 6 + 30


def test_weights_that_are_all_zero_have_scores_of_zero():
    scores, residual = directional_scores(lambda v: v, np.zeros(30, np.float32), 1.0)
    np.testing.assert_array_equal(scores, np.zeros(30))
    assert residual == 0


def test_negative_curvature_is_an_error():
    curvatures = np.append(np.ones(20), np.full(10, -0.5)).astype(np.float32)

    def matvec(v):
        return curvatures * np.asarray(v)

    with pytest.raises(ValueError, match="matvec must multiply by a positive semidef"):
        directional_scores(matvec, curvatures, 0.1)
    # Above -cutoff it does no harm.
    assert directional_scores(matvec, curvatures, 1.0).residual < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="matvec must return finite numbers, got NaN"):
        directional_scores(lambda v: bad * np.asarray(v), np.ones(30, np.float32), 1.0)


def test_products_are_like_the_params():
    with pytest.raises(ValueError, match=r"matvec\(v\) must have the shapes of params"):
        directional_scores(lambda v: v[:2], np.ones(3, np.float32), 1.0)


def test_narrow_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"params must have leaves .*, got bfloat16 at"):
        directional_scores(lambda v: v, jnp.ones(3, jnp.bfloat16), 1.0)


@pytest.mark.parametrize("cutoff", [0, -1e-4, float("nan"), np.float32(0)])
def test_cutoff_is_positive(cutoff):
    with pytest.raises(ValueError, match=f"cutoff must be > 0, got {cutoff}"):
        directional_scores(lambda v: v, np.ones(3, np.float32), cutoff)
    with pytest.raises(ValueError, match=r"cutoff must be > 0, got -1\.0"):
        directional_scores(lambda v: v, np.ones(3, np.float32), jnp.asarray(-1.0))


def test_options_keep_their_rules():
    params = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="tolerance must be >= 0, got -1"):
        directional_scores(lambda v: v, params, 1.0, tolerance=-1)
    with pytest.raises(ValueError, match="max_products must be an integer >= 1, got 0"):
        directional_scores(lambda v: v, params, 1.0, max_products=0)
    with pytest.raises(TypeError, match=r"max_products must be an integer .* got True"):
        directional_scores(lambda v: v, params, 1.0, max_products=True)
