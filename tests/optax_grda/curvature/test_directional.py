import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from threadpoolctl import threadpool_limits

from optax_grda import sparsity
from optax_grda.curvature import (
    GaussNewton,
    directional_pruning,
    directional_scores,
    prune_smallest,
    strength_for_sparsity,
)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# Scores

# Compiled once for all cutoffs and numbers of products.
jitted_scores = jax.jit(directional_scores)


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
    valley, dtype, cutoffs, rounding
):
    matrix, projection = valley
    rng = np.random.default_rng(1)
    with jax.enable_x64(dtype == "float64"):
        # A tree, with some weights at zero.
        params = {
            "kernel": jnp.asarray(rng.normal(size=(5, 5)), dtype).at[0].set(0),
            "bias": jnp.asarray(rng.normal(size=5), dtype),
        }
        unravel = ravel_pytree(params)[1]

        @jax.tree_util.Partial
        def matvec(vector):
            return unravel(jnp.asarray(matrix, dtype) @ ravel_pytree(vector)[0])

        signs = np.sign(flat(params))
        expected = signs * (projection @ signs)
        for cutoff in cutoffs:
            scores, residual = jitted_scores(params, matvec, cutoff, tolerance=rounding)
            assert {s.dtype.name for s in jax.tree.leaves(scores)} == {dtype}
            assert residual <= 2 * rounding
            # The least curvature of the others is 0.5: they fade to this, or less.
            filtered = cutoff / (cutoff + 0.5)
            error = np.linalg.norm(flat(scores) - expected) / np.linalg.norm(signs)
            assert error < filtered + 2 * rounding
    np.testing.assert_array_equal(scores["kernel"][0], 0)
    np.testing.assert_allclose(flat(scores), expected, atol=20 * cutoff + rounding)


CUTOFF = 1e-4


@pytest.fixture(scope="module")
def gauss_newton(network):
    return GaussNewton(
        network.model_fn, network.cross_entropy, network.params, network.batches
    )


@pytest.fixture(scope="module")
def steep(dense_gauss_newton):
    """The eigenvectors with eigenvalues above the cutoff, in descending order, in rows.

    On one thread: those of BLAS are slow where tests share the cores.
    """
    with threadpool_limits(1):
        _, vectors = scipy.linalg.eigh(
            dense_gauss_newton, subset_by_value=[CUTOFF, np.inf]
        )
    return vectors.T[::-1]


def projected_scores(params, steep):
    """The scores by definition: sign(w) is rid of its part along steep directions."""
    signs = np.sign(flat(params)).astype(np.float64)
    scores = signs * (signs - steep.T @ (steep @ signs))
    return ravel_pytree(params)[1](jnp.asarray(scores, jnp.float32))


@pytest.mark.parametrize("max_products", [30, 100])
def test_residual_bounds_the_error_of_scores(
    network, gauss_newton, dense_gauss_newton, max_products
):
    scores, residual = jitted_scores(
        network.params, gauss_newton, CUTOFF, max_products=max_products
    )
    signs = np.sign(flat(network.params)).astype(np.float64)
    filtered = signs * flat(scores)
    system = np.eye(len(signs)) + dense_gauss_newton / CUTOFF
    actual = np.linalg.norm(signs - system @ filtered) / np.linalg.norm(signs)
    np.testing.assert_allclose(residual, actual, rtol=1e-2)
    error = filtered - np.linalg.solve(system, signs)
    assert np.sqrt(np.mean(error**2)) < residual


def test_scores_of_a_network_follow_the_projection(network, gauss_newton, steep):
    params = network.params
    projected = projected_scores(params, steep)
    scores, _ = jitted_scores(params, gauss_newton, CUTOFF, max_products=100)
    assert np.corrcoef(flat(scores), flat(projected))[0, 1] > 0.95

    def loss_at_70_percent(scores):
        strength = strength_for_sparsity(params, scores, 0.7)
        pruned = directional_pruning(params, scores, strength)
        return network.loss_fn(pruned, network.whole)

    loss, expected = loss_at_70_percent(scores), loss_at_70_percent(projected)
    assert abs(loss - expected) < 0.15 * expected
    # Better than magnitudes, and than a projection that takes too much for flat.
    magnitudes = prune_smallest(params, jax.tree.map(jnp.abs, params), 0.7)
    assert loss < 0.6 * network.loss_fn(magnitudes, network.whole)
    assert loss < 0.1 * loss_at_70_percent(projected_scores(params, steep[:10]))


@pytest.mark.parametrize("cutoff", [0, -1e-4, float("nan")])
def test_cutoff_is_positive(cutoff):
    with pytest.raises(ValueError, match=f"cutoff must be > 0, got {cutoff}"):
        directional_scores(jnp.ones(3), lambda v: v, cutoff)


# Pruning


@pytest.fixture
def weights():
    """A thousand weights, a tenth of them zero, with scores of both signs."""
    rng = np.random.default_rng(0)
    w, s = rng.normal(size=(2, 1000)).astype(np.float32)
    w[::10] = 0
    s[w == 0] = 0
    return tuple(
        {"kernel": jnp.asarray(x[:900].reshape(30, 30)), "bias": jnp.asarray(x[900:])}
        for x in (w, s)
    )


def test_closed_form_is_the_minimum(weights):
    params, scores = weights
    strength = 0.7
    pruned = flat(directional_pruning(params, scores, strength))
    w, s = flat(params), flat(scores)
    # Nowhere on a fine grid of weights is the objective smaller.
    x = np.linspace(-6, 6, 12001)[:, None]
    grid = np.min((w - x) ** 2 / 2 + strength * s * np.abs(x), axis=0)
    value = (w - pruned) ** 2 / 2 + strength * s * np.abs(pruned)
    assert np.all(value <= grid + 1e-6)
    assert np.any(pruned[s > 0] == 0)
    assert np.all(np.abs(pruned[s < 0]) > np.abs(w[s < 0]))


def test_strength_zero_changes_nothing(weights):
    params, scores = weights
    pruned = directional_pruning(params, scores, 0)
    jax.tree.map(np.testing.assert_array_equal, pruned, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_pruning_keeps_dtypes_under_jit(weights, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, scores = optax.tree.cast(weights, dtype)
        strength = strength_for_sparsity(params, scores, 0.4)
        pruned = jax.jit(directional_pruning)(params, scores, strength)
        assert {x.dtype.name for x in jax.tree.leaves(pruned)} == {dtype}
        np.testing.assert_allclose(sparsity(pruned), 0.4, rtol=1e-6)


@pytest.mark.parametrize("wanted", [0.101, 0.2346, 0.5])
def test_wanted_sparsity_is_reached_at_the_smallest_strength(weights, wanted):
    def zeros(strength):
        return np.sum(flat(directional_pruning(*weights, strength)) == 0)

    strength = strength_for_sparsity(*weights, wanted)
    assert zeros(strength) == round(1000 * wanted)
    assert zeros(strength * (1 - 1e-6)) == round(1000 * wanted) - 1


def test_zeros_count_towards_sparsity(weights):
    assert strength_for_sparsity(*weights, 0.1) == 0


def test_unreachable_sparsity_is_an_error_that_says_what_is_reachable(weights):
    params, scores = weights
    reachable = np.mean((flat(params) == 0) | (flat(scores) > 0))
    strength = strength_for_sparsity(params, scores, reachable)
    pruned = directional_pruning(params, scores, strength)
    np.testing.assert_allclose(sparsity(pruned), reachable, rtol=1e-6)
    with pytest.raises(ValueError, match=rf"at most {reachable}, .* got 0\.9"):
        strength_for_sparsity(params, scores, 0.9)


@pytest.mark.parametrize("wanted", [-0.1, 1.1, float("nan")])
def test_sparsity_is_a_fraction(weights, wanted):
    for function in (strength_for_sparsity, prune_smallest):
        with pytest.raises(
            ValueError, match=rf"sparsity must be in \[0, 1\], got {wanted}"
        ):
            function(*weights, wanted)


def test_strength_is_not_negative(weights):
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        directional_pruning(*weights, -1)


def test_trees_must_match(weights):
    params, _ = weights
    wrong = {"kernel": params["kernel"], "bias": params["bias"][:3]}
    for function, name in (
        (lambda: directional_pruning(params, wrong, 1.0), "scores"),
        (lambda: strength_for_sparsity(params, wrong, 0.5), "scores"),
        (lambda: prune_smallest(params, wrong, 0.5), "saliencies"),
    ):
        with pytest.raises(ValueError, match=f"{name} must have the shapes of params"):
            function()


def test_smallest_saliencies_are_zeroed_and_the_rest_kept(weights):
    params, saliencies = weights
    pruned = jax.jit(prune_smallest, static_argnums=2)(params, saliencies, 0.25)
    smallest = np.argsort(flat(saliencies))[:250]
    expected = flat(params).copy()
    expected[smallest] = 0
    np.testing.assert_array_equal(flat(pruned), expected)


@pytest.mark.parametrize("wanted", [0.0, 0.4, 1.0])
def test_ties_do_not_zero_more_than_wanted(wanted):
    pruned = prune_smallest(
        {"kernel": jnp.ones((5, 2))}, {"kernel": jnp.ones((5, 2))}, wanted
    )
    assert sparsity(pruned) == np.float32(wanted)
