import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from optax_grda import grda
from optax_grda.curvature import (
    Hessian,
    agreement,
    directional_pruning,
    directional_scores,
    projection_fraction,
)


def test_projection_fraction_is_that_of_the_projected_vector(random_like):
    tree = {"kernel": jnp.zeros((7, 3)), "bias": jnp.zeros(3)}
    _, unravel = ravel_pytree(tree)
    orthonormal = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 5)))[0].T
    eigenvectors = jax.vmap(unravel)(jnp.asarray(orthonormal, jnp.float32))
    delta = random_like(tree)
    flat = np.asarray(ravel_pytree(delta)[0], np.float64)
    expected = np.sum((orthonormal @ flat) ** 2) / np.sum(flat**2)
    fraction = jax.jit(projection_fraction)(delta, eigenvectors)
    np.testing.assert_allclose(fraction, expected, rtol=1e-5)


def test_projection_fraction_is_one_inside_and_zero_outside_the_span():
    axes = jnp.eye(4)[:2]
    for delta, expected in (([3, -4, 0, 0], 1.0), ([0, 0, 2, 1], 0.0)):
        assert projection_fraction(jnp.array(delta, jnp.float32), axes) == expected
    assert jnp.isnan(projection_fraction(jnp.zeros(4), axes))


def test_eigenvectors_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="eigenvectors must have the shapes of delta"):
        projection_fraction(jnp.ones(4), jnp.eye(3))


def test_agreement_is_that_of_displacements_and_of_zeros():
    sgd = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([4.0])}
    found = {"kernel": jnp.array([[0.0, -2.0], [0.0, 0.0]]), "bias": jnp.array([4.0])}
    defined = {"kernel": jnp.array([[0.0, 0.0], [3.0, 0.0]]), "bias": jnp.array([4.0])}
    result = agreement(sgd, found, defined)
    # (-1, 0, -3, -0.5) and (-1, 2, 0, -0.5); two of three zeros.
    np.testing.assert_allclose(result.cosine, 1.25 / (10.25 * 5.25) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(result.overlap, 2 / 3, rtol=1e-6)


def test_agreement_without_displacement_or_zeros_is_nan():
    result = agreement(jnp.ones(3), jnp.ones(3), jnp.zeros(3))
    assert jnp.isnan(result.cosine)
    assert jnp.isnan(result.overlap)


def test_grda_agrees_with_the_definition_where_the_theorem_is_exact():
    """A quadratic loss, steep in one weight and flat in the rest.

    gRDA's accumulator then stays put along flat directions, so its weights there are
    the definition's to rounding, at the strength of its threshold.
    """
    sgd = jnp.array([2.0, 0.3, -0.8, 0.1, -0.05])

    def loss_fn(w, batch):
        return jnp.square(w[0] - 2.0) / 2

    scores, _ = directional_scores(sgd, Hessian(loss_fn, sgd, jnp.zeros(1)), 1e-6)
    optimizer = grda(0.1, c=0.2, mu=0.6)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, 0), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (sgd, optimizer.init(sgd)), length=500)
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
