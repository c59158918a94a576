"""Directional pruning by its definition, and the usual rules to compare it with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optax_grda._points import check_points
from optax_grda._trees import combine, norm, subtract, widen

PyTree = Any


class DirectionalScores(NamedTuple):
    """What :func:`directional_scores` returns."""

    scores: PyTree  # s_j, like the params
    residual: jax.Array  # of the linear system, relative to sign(w). shape=()


def directional_scores(
    params: PyTree,
    matvec: Callable[[PyTree], PyTree],
    cutoff: jax.typing.ArrayLike,
    *,
    tolerance: float = 1e-3,
    max_products: int = 100,
) -> DirectionalScores:
    r"""How flat the loss is for each weight: the scores of directional pruning.

    .. math:: s_j = \mathrm{sign}(w_j)\, (P_\epsilon\, \mathrm{sign}(w))_j, \qquad
      P_\epsilon = (I + G / \epsilon)^{-1}

    The paper defines scores by :math:`P_0`, the projection onto the directions in which
    the loss has no curvature. :math:`P_\epsilon` tends to it as :math:`\epsilon \to 0`:
    it shrinks a direction of curvature :math:`\lambda` to the fraction
    :math:`1 / (1 + \lambda / \epsilon)`. Only its product with one vector is needed, so
    there is no eigenvector to find: conjugate gradients
    (:func:`jax.scipy.sparse.linalg.cg`) take some products, and the memory of four
    vectors beside that of a product.

    Positive scores ask for shrinkage, negative ones for growth. Their mean over the
    weights that are not zero is the fraction of sign(w) that is flat, between 0 and 1.

    Pure and jittable; a :class:`GaussNewton` may be an argument under ``jit``.

    Args:
      params: w, the solution of SGD: pytree of float32 or float64 arrays.
      matvec: multiplies a pytree like params by G, which must be positive semidefinite,
        such as a :class:`GaussNewton`. A :class:`Hessian` rarely is where SGD stopped,
        and an eigenvalue below :math:`-\epsilon` keeps the method from converging.
      cutoff: :math:`\epsilon > 0`, the curvature that counts as half flat. The smaller
        it is beside the largest eigenvalue, the more products are needed.
      tolerance: the residual at which to stop.
      max_products: the number of products at which to stop, whatever the residual.
        (The start and the residual take one more each.)

    Returns:
      :class:`DirectionalScores`. The residual :math:`|r| / |\mathrm{sign}(w)|` bounds
      the root mean square error of the scores (over weights that are not zero), since
      no eigenvalue of :math:`I + G / \epsilon` is below 1. On digits the error was a
      tenth of it, or less.

    Raises:
      ValueError: if cutoff is a number that is not positive; if params hold no array.
      TypeError: if a leaf of params is not of a real float dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.curvature import directional_scores
      >>> def matvec(v):  # a valley along the last two weights
      ...     return jnp.array([1.0, 0.0, 0.0]) * v
      >>> result = directional_scores(jnp.array([0.5, -2.0, 3.0]), matvec, 0.001)
      >>> print(result.scores.round(2))
      [0. 1. 1.]

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Definition 1.1.
    """
    if isinstance(cutoff, (int, float, np.number)) and not cutoff > 0:
        raise ValueError(f"cutoff must be > 0, got {cutoff}")
    check_points(params=params)

    def system(vector):
        return combine(vector, (1.0, vector), (1 / cutoff, matvec(vector)))

    signs = jax.tree.map(jnp.sign, params)
    flat_part, _ = jax.scipy.sparse.linalg.cg(
        system, signs, tol=tolerance, maxiter=max_products
    )
    residual = subtract(signs, system(flat_part))
    return DirectionalScores(
        scores=jax.tree.map(jnp.multiply, signs, flat_part),
        residual=norm(residual) / norm(signs),
    )


def directional_pruning(
    params: PyTree, scores: PyTree, strength: jax.typing.ArrayLike
) -> PyTree:
    r"""Directional pruning by its definition: in closed form, without retraining.

    .. math:: w^* = \arg\min_x\, \tfrac{1}{2} |w - x|^2 + \lambda \sum_j s_j |x_j|,
      \qquad w^*_j = \mathrm{sign}(w_j) \max(|w_j| - \lambda s_j,\, 0)

    Where the score is positive, a weight shrinks, and is exactly zero once
    :math:`|w_j| / s_j \le \lambda`. Where it is negative, a weight grows.

    Pure and jittable.

    Args:
      params: w, the solution of SGD: pytree of real float arrays.
      scores: s of the same shapes, from :func:`directional_scores`.
      strength: :math:`\lambda \ge 0`, a scalar. :func:`strength_for_sparsity` gives the
        one for a wanted sparsity. The theory of gRDA names its threshold
        :math:`c\, \gamma^{1/2} (n \gamma)^\mu`, ``threshold`` in its state.

    Returns:
      :math:`w^*`, pytree like params.

    Raises:
      ValueError: if scores differ from params in structure, shapes or dtypes; if
        strength is a number below 0.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import directional_pruning
      >>> params = jnp.array([0.5, -2.0, 0.5, 0.5])
      >>> scores = jnp.array([1.0, 1.0, 0.0, -1.0])
      >>> print(directional_pruning(params, scores, 1.0))
      [ 0.  -1.   0.5  1.5]

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Definition 1.1.
    """
    check_points(params=params, scores=scores)
    if isinstance(strength, (int, float, np.number)) and not strength >= 0:
        raise ValueError(f"strength must be >= 0, got {strength}")

    def prune(w, s, like):
        threshold = jnp.asarray(strength, w.dtype)
        moved = jnp.sign(w) * jnp.maximum(jnp.abs(w) - threshold * s, 0)
        pruned = _strength_that_prunes(w, s) <= threshold
        return jnp.where(pruned, 0, moved).astype(jnp.result_type(like))

    return jax.tree.map(prune, widen(params), widen(scores), params)


def strength_for_sparsity(params: PyTree, scores: PyTree, sparsity: float) -> jax.Array:
    r"""The strength at which :func:`directional_pruning` reaches a wanted sparsity.

    Exact, by order statistics: a weight with a positive score becomes zero at
    :math:`|w_j| / s_j`, and one without never does.

    Not for use under ``jit``: it raises an error that depends on values.

    Args:
      params: w, the solution of SGD: pytree of real float arrays.
      scores: s of the same shapes, from :func:`directional_scores`.
      sparsity: the wanted fraction of exact zeros, in [0, 1].

    Returns:
      Scalar array: the smallest :math:`\lambda` that leaves the whole number of zeros
      nearest to that fraction (or more, in a tie).

    Raises:
      ValueError: if sparsity is out of range, or larger than the share of weights that
        can become zero, which the message states; if scores differ from params in
        structure, shapes or dtypes.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import directional_pruning, strength_for_sparsity
      >>> params = jnp.array([0.5, -2.0, 0.5, 0.5])
      >>> scores = jnp.array([1.0, 1.0, 0.0, -1.0])
      >>> strength = strength_for_sparsity(params, scores, sparsity=0.25)
      >>> print(strength, directional_pruning(params, scores, strength))
      0.5 [ 0.  -1.5  0.5  1. ]
    """
    check_points(params=params, scores=scores)
    strengths, _ = ravel_pytree(
        jax.tree.map(_strength_that_prunes, widen(params), widen(scores))
    )
    zeros = _number_of_zeros(sparsity, strengths.size)
    strength = jnp.sort(strengths)[zeros - 1] if zeros else jnp.zeros_like(strengths[0])
    if jnp.isinf(strength):
        most = int(jnp.sum(jnp.isfinite(strengths))) / strengths.size
        raise ValueError(
            f"sparsity must be at most {most}, the share of weights that are zero or "
            f"have a positive score: got {sparsity}"
        )
    return strength


def prune_smallest(params: PyTree, saliencies: PyTree, sparsity: float) -> PyTree:
    r"""Zeroes the weights of smallest saliency, over all leaves, and keeps the others.

    The usual rules of pruning, to compare with. Saliencies :math:`|w_j|` make it
    magnitude pruning; :math:`\tfrac{1}{2} h_{jj} w_j^2`, with the diagonal of
    :meth:`GaussNewton.diagonal`, make it Optimal Brain Damage.

    Pure and jittable, with sparsity static.

    Args:
      params: w, pytree of real float arrays.
      saliencies: pytree of the same shapes.
      sparsity: the fraction of weights to zero, in [0, 1], rounded to a whole number of
        them.

    Returns:
      Pytree like params.

    Raises:
      ValueError: if sparsity is out of range; if saliencies differ from params in
        structure, shapes or dtypes.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import prune_smallest
      >>> params = jnp.array([0.5, -2.0, 0.1, 0.3])
      >>> print(prune_smallest(params, jnp.abs(params), sparsity=0.5))
      [ 0.5 -2.   0.   0. ]

    References:
      LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989.
    """
    check_points(params=params, saliencies=saliencies)
    flat, unravel = ravel_pytree(widen(saliencies))
    smallest = jnp.argsort(flat)[: _number_of_zeros(sparsity, flat.size)]
    kept = unravel(jnp.ones_like(flat).at[smallest].set(0))
    return jax.tree.map(lambda w, k: jnp.where(k == 1, w, 0), params, kept)


def _strength_that_prunes(w: jax.Array, s: jax.Array) -> jax.Array:
    """The smallest strength at which a weight is zero; infinity where there is none."""
    strength = jnp.where(s > 0, jnp.abs(w) / jnp.where(s > 0, s, 1), jnp.inf)
    return jnp.where(w == 0, 0, strength)


def _number_of_zeros(sparsity: float, size: int) -> int:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    return round(sparsity * size)
