"""How flat the loss is for each weight, by conjugate gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._checks import check_integer, check_number
from optax_grda._points import check_points, check_wide
from optax_grda._trees import combine, dot, norm, subtract

PyTree = Any


class DirectionalScores(NamedTuple):
    """What :func:`directional_scores` returns."""

    scores: PyTree  # s_j, like the params
    residual: jax.Array  # of the linear system, relative to sign(w). shape=()


def directional_scores(
    matvec: Callable[[PyTree], PyTree],
    params: PyTree,
    cutoff: float,
    *,
    tolerance: float = 1e-3,
    max_products: int = 100,
) -> DirectionalScores:
    r"""Computes directional pruning's scores: how flat the loss is for each weight.

    .. math:: s_j = \mathrm{sign}(w_j)\, (P_\epsilon\, \mathrm{sign}(w))_j, \qquad
      P_\epsilon = (I + G / \epsilon)^{-1}

    The paper defines scores by :math:`P_0`, the projection onto the directions in which
    the loss has no curvature. :math:`P_\epsilon` tends to it as :math:`\epsilon \to 0`:
    it shrinks a direction of curvature :math:`\lambda` to the fraction
    :math:`1 / (1 + \lambda / \epsilon)`. Only its product with one vector is needed, so
    there is no eigenvector to find: conjugate gradients take some products, and the
    memory of a few vectors beside that of a product.

    Positive scores ask for shrinkage, negative ones for growth. Their mean over the
    weights that are not zero is the fraction of sign(w) that is flat, between 0 and 1.

    Not for use under ``jit``: the loop is Python's, between products. Vectors stay in
    the params' shardings.

    Args:
      matvec: multiplies a pytree like params by G, which must be positive semidefinite,
        such as a :class:`GaussNewton`. (A :class:`Hessian` rarely is where SGD stopped;
        an eigenvalue below :math:`-\epsilon` is an error where it is met.) It is called
        from Python, so it may stream batches from disk.
      params: w, the solution of SGD: pytree of float32 or float64 arrays.
      cutoff: :math:`\epsilon > 0`, the curvature that counts as half flat. The smaller
        it is beside the largest eigenvalue, the more products are needed.
      tolerance: the residual at which to stop, >= 0.
      max_products: the number of products at which to stop, whatever the residual, at
        least 1. (Measuring the residual takes one more.)

    Returns:
      :class:`DirectionalScores`. The residual :math:`|r| / |\mathrm{sign}(w)|` bounds
      the root mean square error of the scores (over weights that are not zero), since
      no eigenvalue of :math:`I + G / \epsilon` is below 1.

    Raises:
      ValueError: if cutoff, tolerance or max_products is out of range; if params hold
        no array; if a product differs from params in structure, shapes or dtypes, is
        not finite, or shows that G is not positive semidefinite.
      TypeError: if a leaf of params is neither float32 nor float64; if max_products is
        not an integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.curvature import directional_scores
      >>> def matvec(v):  # a valley along the last two weights
      ...     return jnp.array([1.0, 0.0, 0.0]) * v
      >>> result = directional_scores(matvec, jnp.array([0.5, -2.0, 3.0]), 0.001)
      >>> print(result.scores.round(2))
      [0. 1. 1.]

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Definition 1.1.
    """
    check_points(params=params)
    check_wide(params=params)
    if isinstance(cutoff, jax.Array):
        cutoff = float(cutoff)
    check_number("cutoff", cutoff, "> 0", lambda x: x > 0)
    check_number("tolerance", tolerance, ">= 0", lambda x: x >= 0)
    check_integer("max_products", max_products, "an integer >= 1", lambda n: n >= 1)

    def product(vector):
        result = matvec(vector)
        check_points(**{"params": params, "matvec(v)": result})
        return result

    start = _start(params)
    squares = initial = float(start.squares)
    step = start
    for _ in range(max_products):
        if squares <= tolerance**2 * initial:
            break
        step, curvature = _advance(step, product(step.direction), cutoff)
        squares = float(step.squares)
        _check_curvature(float(curvature))
    return _finish(params, start.direction, step.flat, product(step.flat), cutoff)


class _Step(NamedTuple):
    """Where conjugate gradients are. See Shewchuk's or any other introduction."""

    flat: PyTree  # the solution so far, P_eps sign(w)
    residual: PyTree
    direction: PyTree
    squares: jax.Array  # of the residual's entries, summed


@jax.jit
def _start(params: PyTree) -> _Step:
    signs = jax.tree.map(jnp.sign, params)
    return _Step(jax.tree.map(jnp.zeros_like, signs), signs, signs, dot(signs, signs))


@jax.jit
def _advance(
    step: _Step, product: PyTree, cutoff: jax.Array
) -> tuple[_Step, jax.Array]:
    """The next step, and the curvature of I + G / cutoff in the direction taken."""
    flat, residual, direction, squares = step
    system = combine(direction, (1.0, direction), (1 / cutoff, product))
    curvature = dot(direction, system)
    length = squares / curvature
    flat = combine(flat, (1.0, flat), (length, direction))
    residual = combine(residual, (1.0, residual), (-length, system))
    left = dot(residual, residual)
    direction = combine(direction, (1.0, residual), (left / squares, direction))
    return _Step(flat, residual, direction, left), curvature


def _check_curvature(curvature: float) -> None:
    if not np.isfinite(curvature):
        raise ValueError("matvec must return finite numbers, got NaN or infinity")
    if curvature <= 0:
        raise ValueError(
            "matvec must multiply by a positive semidefinite matrix, got one with an "
            "eigenvalue below -cutoff: take a GaussNewton instead of a Hessian"
        )


@jax.jit
def _finish(params, signs, flat, product, cutoff) -> DirectionalScores:
    system = combine(flat, (1.0, flat), (1 / cutoff, product))
    return DirectionalScores(
        scores=jax.tree.map(jnp.multiply, signs, flat),
        # All weights may be zero.
        residual=norm(subtract(signs, system)) / jnp.maximum(norm(signs), 1),
    )
