"""Pruning in one shot: by directional pruning's definition, and the usual rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._checks import check_number
from optax_grda._points import check_points
from optax_grda._trees import widen
from optax_grda.curvature import _order

PyTree = Any


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
    check_number("strength", strength, ">= 0", lambda x: x >= 0)

    return _shrink(params, scores, strength)


def strength_for_sparsity(params: PyTree, scores: PyTree, sparsity: float) -> jax.Array:
    r"""The strength at which :func:`directional_pruning` reaches a wanted sparsity.

    Exact, by order statistics: a weight with a positive score becomes zero at
    :math:`|w_j| / s_j`, and one without never does. The leaves are counted where they
    are, whatever their sharding.

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
        structure, shapes or dtypes; if params hold 2^32 entries or more.
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
    strengths = _strengths_that_prune(params, scores)
    size = _order.entries(params)
    zeros = _number_of_zeros(sparsity, size)
    strength = _order.nth_smallest(strengths, np.uint32(max(zeros, 1)))
    if zeros == 0:
        return jnp.zeros_like(strength)
    if jnp.isinf(strength):
        finite = jax.tree.map(lambda x: int(jnp.sum(jnp.isfinite(x))), strengths)
        raise ValueError(
            f"sparsity must be at most {sum(jax.tree.leaves(finite)) / size}, the "
            "share of weights that are zero or have a positive score: got "
            f"{sparsity}"
        )
    return strength


def prune_smallest(params: PyTree, saliencies: PyTree, sparsity: float) -> PyTree:
    r"""Zeroes the weights of smallest saliency, over all leaves, and keeps the others.

    The usual rules of pruning, to compare with. Saliencies :math:`|w_j|` make it
    magnitude pruning; :math:`\tfrac{1}{2} h_{jj} w_j^2`, with the diagonal of
    :meth:`GaussNewton.diagonal`, make it Optimal Brain Damage.

    Pure and jittable, with sparsity static. Exact, and without a sort: saliencies are
    counted where they are, whatever their sharding.

    Args:
      params: w, pytree of real float arrays.
      saliencies: pytree of the same shapes. Of equal ones, those that come first in the
        order of leaves and rows go first; NaN goes last.
      sparsity: the fraction of weights to zero, in [0, 1], rounded to a whole number of
        them.

    Returns:
      Pytree like params.

    Raises:
      ValueError: if sparsity is out of range; if saliencies differ from params in
        structure, shapes or dtypes; if params hold 2^32 entries or more.
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
    zeros = _number_of_zeros(sparsity, _order.entries(params))
    return _zero_smallest(params, saliencies, np.uint32(zeros))


@jax.jit
def _shrink(params: PyTree, scores: PyTree, strength: jax.Array) -> PyTree:
    def shrink(w, s, prunes, like):
        threshold = jnp.asarray(strength, w.dtype)
        moved = jnp.sign(w) * jnp.maximum(jnp.abs(w) - threshold * s, 0)
        return jnp.where(prunes <= threshold, 0, moved).astype(jnp.result_type(like))

    prunes = _strengths_that_prune(params, scores)
    return jax.tree.map(shrink, widen(params), widen(scores), prunes, params)


@jax.jit
def _zero_smallest(params: PyTree, saliencies: PyTree, number: jax.Array) -> PyTree:
    pruned = _order.smallest(saliencies, number)
    return jax.tree.map(lambda w, prune: jnp.where(prune, 0, w), params, pruned)


@jax.jit
def _strengths_that_prune(params: PyTree, scores: PyTree) -> PyTree:
    """The smallest strength at which a weight is zero; infinity where there is none."""

    def smallest(w, s):
        strength = jnp.where(s > 0, jnp.abs(w) / jnp.where(s > 0, s, 1), jnp.inf)
        return jnp.where(w == 0, 0, strength)

    return jax.tree.map(smallest, widen(params), widen(scores))


def _number_of_zeros(sparsity: float, size: int) -> int:
    if isinstance(sparsity, jax.Array):
        sparsity = float(sparsity)
    check_number("sparsity", sparsity, "in [0, 1]", lambda s: 0 <= s <= 1)
    return round(sparsity * size)
