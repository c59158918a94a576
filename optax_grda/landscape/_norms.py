"""How evenly the weights are spread: their Euclidean norm over their sum of moduli."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._points import check_points
from optax_grda._trees import norm, total, widen

PyTree = Any


def l2_over_l1(params: PyTree) -> jax.Array:
    r"""The ratio :math:`\|w\|_2 / \|w\|_1` over all leaves, large for sparse weights.

    With :math:`k` nonzero entries among :math:`d`,

    .. math:: d^{-1/2} \le k^{-1/2} \le \|w\|_2 / \|w\|_1 \le 1

    by Cauchy-Schwarz: the ratio is :math:`d^{-1/2}` where all entries have one modulus,
    :math:`k^{-1/2}` where all nonzero ones have, and 1 where a single one is left. For
    independent normal entries it is near :math:`(\pi / 2)^{1/2} d^{-1/2}`.

    Pure and jittable: log it from inside a training step.

    Args:
      params: pytree of real float arrays of any shapes.

    Returns:
      Scalar, float32 (float64 if a leaf is), right to a few roundings at any number of
      parameters. NaN if all entries are zero.

    Raises:
      ValueError: if params hold no array.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.landscape import l2_over_l1
      >>> print(l2_over_l1({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(4)}), 16**-0.5)
      0.25 0.25
      >>> print(l2_over_l1({"kernel": jnp.zeros((4, 3)), "bias": jnp.ones(4)}), 4**-0.5)
      0.5 0.5

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020: a figure of the introduction
      follows this ratio over training, for SGD and for gRDA.
    """
    check_points(params=params)
    return _l2_over_l1(params)


@jax.jit
def _l2_over_l1(params: PyTree) -> jax.Array:
    w = widen(params)
    return norm(w) / total(jax.tree.map(jnp.abs, w))
