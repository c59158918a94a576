import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda
from optax_grda.curvature import (
    Hessian,
    agreement,
    directional_pruning,
    directional_scores,
    projection_fraction,
)


def test_projection_fraction_is_that_of_the_projected_vector(random_like, flat, unflat):
    tree = {"kernel": np.zeros((7, 3), np.float32), "bias": np.zeros(3, np.float32)}
    orthonormal = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 5)))[0].T
    eigenvectors = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(unflat(v, tree) for v in orthonormal)
    )
    delta = random_like(tree)
    entries = flat(delta).astype(np.float64)
    expected = np.sum((orthonormal @ entries) ** 2) / np.sum(entries**2)
    fraction = jax.jit(projection_fraction)(delta, eigenvectors)
    np.testing.assert_allclose(fraction, expected, rtol=1e-5)


def test_projection_fraction_is_one_inside_and_zero_outside_the_span():
    axes = np.eye(4, dtype=np.float32)[:2]
    for delta, expected in (([3, -4, 0, 0], 1.0), ([0, 0, 2, 1], 0.0)):
        assert projection_fraction(np.array(delta, np.float32), axes) == expected
    assert np.isnan(projection_fraction(np.zeros(4, np.float32), axes))


def test_eigenvectors_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="eigenvectors must have the shapes of delta"):
        projection_fraction(jnp.ones(4), jnp.ones((3, 3)))


def test_agreement_is_that_of_displacements_and_of_zeros():
    def solution(*kernel):
        return {
            "kernel": np.array(kernel, np.float32).reshape(2, 2),
            "bias": np.full(1, 4, np.float32),
        }

    result = agreement(
        solution(1, -2, 3, 0.5), solution(0, -2, 0, 0), solution(0, 0, 3, 0)
    )
    # (-1, 0, -3, -0.5) and (-1, 2, 0, -0.5); two of three zeros.
    np.testing.assert_allclose(result.cosine, 1.25 / (10.25 * 5.25) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(result.overlap, 2 / 3, rtol=1e-6)


def test_agreement_without_displacement_or_zeros_is_nan():
    ones = np.ones(3, np.float32)
    result = agreement(ones, ones, 0 * ones)
    assert np.isnan(result.cosine)
    assert np.isnan(result.overlap)


def test_grda_agrees_with_the_definition_where_the_theorem_is_exact():
    """A quadratic loss, steep in one weight and flat in the rest.

    gRDA's accumulator then stays put along flat directions, so its weights there are
    the definition's to rounding, at the strength of its threshold.
    """
    sgd = np.array([2.0, 0.3, -0.8, 0.1, -0.05], np.float32)

    def loss_fn(w, batch):
        return jnp.square(w[0] - 2.0) / 2

    scores, _ = directional_scores(Hessian(loss_fn, sgd, np.zeros(1)), sgd, 1e-6)
    optimizer = grda(0.1, c=0.2, mu=0.6)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, 0), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(sgd):
        return jax.lax.scan(step, (sgd, optimizer.init(sgd)), length=500)[0]

    params, state = train(sgd)
    definition = directional_pruning(sgd, scores, state.threshold)
    np.testing.assert_allclose(params[1:], definition[1:], atol=1e-5)
    result = agreement(sgd, params, definition)
    # The steep weight lags behind the threshold by 0.008, the flat ones move by 0.66.
    assert result.cosine > 0.9998
    assert result.overlap == 1
    assert np.sum(params == 0) == 3


@pytest.mark.parametrize("argument", ["grda", "definition"])
def test_solutions_must_be_of_one_network(argument):
    solutions = {"grda": jnp.ones(3), "definition": jnp.ones(3), argument: jnp.ones(2)}
    with pytest.raises(ValueError, match=f"{argument} must have the shapes of sgd"):
        agreement(jnp.ones(3), **solutions)
