import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda.curvature import (
    directional_pruning,
    prune_smallest,
    strength_for_sparsity,
)


@pytest.fixture
def weights():
    """A thousand weights, a tenth of them zero, with scores of both signs."""
    rng = np.random.default_rng(0)
    w, s = rng.normal(size=(2, 1000)).astype(np.float32)
    w[::10] = 0
    s[w == 0] = 0
    return tuple({"kernel": x[:900].reshape(30, 30), "bias": x[900:]} for x in (w, s))


@pytest.fixture
def zeros(flat):
    return lambda tree: np.sum(flat(tree) == 0)


def test_closed_form_is_the_minimum(weights, flat):
    params, scores = weights
    strength = 0.7
    pruned = flat(directional_pruning(params, scores, strength))
    w, s = flat(params), flat(scores)
    # Nowhere on a fine grid of weights is the objective smaller.
    x = np.linspace(-6, 6, 1201)[:, None]
    grid = np.min((w - x) ** 2 / 2 + strength * s * np.abs(x), axis=0)
    value = (w - pruned) ** 2 / 2 + strength * s * np.abs(pruned)
    assert np.all(value <= grid + 1e-6)
    assert np.any(pruned[s > 0] == 0)
    assert np.all(np.abs(pruned[s < 0]) > np.abs(w[s < 0]))


def test_strength_zero_changes_nothing(weights):
    params, scores = weights
    pruned = directional_pruning(params, scores, 0)
    jax.tree.map(np.testing.assert_array_equal, pruned, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_pruning_keeps_dtypes_under_jit(weights, zeros, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, scores = jax.tree.map(lambda x: jnp.asarray(x, dtype), weights)
        strength = strength_for_sparsity(params, scores, 0.4)
        assert strength.dtype == ("float64" if dtype == "float64" else "float32")
        pruned = jax.jit(directional_pruning)(params, scores, strength)
        assert {x.dtype.name for x in jax.tree.leaves(pruned)} == {dtype}
        assert zeros(pruned) == 400


@pytest.mark.parametrize("wanted", [0.101, 0.2346, 0.5])
def test_wanted_sparsity_is_reached_at_the_smallest_strength(weights, zeros, wanted):
    strength = strength_for_sparsity(*weights, wanted)
    pruned = directional_pruning(*weights, strength)
    assert zeros(pruned) == round(1000 * wanted)
    less = directional_pruning(*weights, float(strength) * (1 - 1e-6))
    assert zeros(less) == round(1000 * wanted) - 1


@pytest.mark.parametrize("wanted", [0, 0.1])
def test_zeros_count_towards_sparsity(weights, wanted):
    assert strength_for_sparsity(*weights, wanted) == 0


def test_unreachable_sparsity_is_an_error_that_says_what_is_reachable(
    weights, flat, zeros
):
    params, scores = weights
    reachable = np.mean((flat(params) == 0) | (flat(scores) > 0))
    strength = strength_for_sparsity(params, scores, reachable)
    assert zeros(directional_pruning(params, scores, strength)) == 1000 * reachable
    with pytest.raises(ValueError, match=rf"at most {reachable}, .* got 0\.9"):
        strength_for_sparsity(params, scores, 0.9)


@pytest.mark.parametrize("wanted", [-0.1, 1.1, float("nan")])
def test_sparsity_is_a_fraction(weights, wanted):
    for function in (strength_for_sparsity, prune_smallest):
        with pytest.raises(
            ValueError, match=rf"sparsity must be in \[0, 1\], got {wanted}"
        ):
            function(*weights, wanted)
        with pytest.raises(TypeError, match=r"sparsity must be a number .*got True"):
            function(*weights, True)


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


# Order statistics


@pytest.mark.parametrize("wanted", [0, 0.25, 0.999, 1])
def test_smallest_saliencies_are_zeroed_and_the_rest_kept(weights, flat, wanted):
    params, saliencies = weights
    prune = jax.jit(prune_smallest, static_argnums=2) if wanted == 1 else prune_smallest
    pruned = prune(params, saliencies, wanted)
    expected = flat(params).copy()
    expected[np.argsort(flat(saliencies), kind="stable")[: round(1000 * wanted)]] = 0
    np.testing.assert_array_equal(flat(pruned), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_order_is_that_of_floats_and_ties_go_in_order(flat, dtype):
    """All kinds of numbers, most of them several times, in two leaves."""
    kinds = [-np.inf, -2.0, -2e-38, -0.0, 0.0, 2e-38, 1.0, 1 + 2**-8, np.inf, np.nan]
    values = np.random.default_rng(0).permutation(np.array(kinds * 4))
    with jax.enable_x64(dtype == "float64"):
        values = jnp.asarray(values, dtype)
        saliencies = [values[:16].reshape(2, 4, 2), values[16:]]
        params = [jnp.ones((2, 4, 2), dtype), jnp.ones(24, dtype)]
        order = np.argsort(flat(saliencies).astype(np.float64), kind="stable")
        for number in (0, 7, 8, 18, 33, 40):
            pruned = flat(prune_smallest(params, saliencies, number / 40)) == 0
            np.testing.assert_array_equal(
                np.flatnonzero(pruned), sorted(order[:number])
            )


def test_leaves_of_two_widths_are_compared_in_the_wider(flat):
    with jax.enable_x64(True):
        params = [jnp.float32([1, 2]), jnp.float64([1 - 1e-12, 1 + 1e-12])]
        pruned = prune_smallest(params, params, 0.5)
        np.testing.assert_array_equal(flat(pruned) == 0, [True, False, True, False])
        assert [x.dtype.name for x in pruned] == ["float32", "float64"]
        strength = strength_for_sparsity(params, jax.tree.map(jnp.ones_like, params), 1)
        assert strength == 2


def test_counts_that_could_overflow_are_refused():
    huge = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 entries, got 4294967296"):
        jax.eval_shape(lambda w: prune_smallest(w, w, 0.5), huge)
