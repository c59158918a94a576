"""Proximal maps that go entry by entry over a pytree."""

from collections.abc import Callable
from typing import Any

import jax

from optax_grda._checks import check_number
from optax_grda.proximal._thresholds import (
    hard_threshold,
    power_threshold,
    soft_threshold,
)

PyTree = Any
# From the accumulator and the threshold to the weights, in the accumulator's dtypes.
Proximal = Callable[[PyTree, jax.Array], PyTree]


def soft(tree: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
    """Soft-thresholds every entry of a pytree: :func:`soft_threshold`, leaf by leaf.

    The proximal map of the paper, and the default.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import proximal
      >>> print(proximal.soft({"bias": jnp.array([-3.0, 0.5])}, 1.0)["bias"])
      [-2.  0.]
    """
    return jax.tree.map(lambda leaf: soft_threshold(leaf, threshold), tree)


def hard(tree: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
    """Zeroes every entry within the threshold: :func:`hard_threshold`, leaf by leaf.

    The limit of ``power(p)`` for large p. As the gradient at the weights moves the
    whole accumulator, that of zeros included, dual averaging with it is what is
    elsewhere called magnitude pruning with a straight-through estimator.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import proximal
      >>> print(proximal.hard({"bias": jnp.array([-3.0, 0.5])}, 1.0)["bias"])
      [-3.  0.]
    """
    return jax.tree.map(lambda leaf: hard_threshold(leaf, threshold), tree)


def power(p: jax.typing.ArrayLike) -> Proximal:
    """Makes a proximal map between :func:`soft`, p = 1, and :func:`hard`.

    See :func:`power_threshold`, which it applies leaf by leaf.

    Args:
      p: the exponent, a scalar >= 1; it may be traced.

    Returns:
      A function of a pytree and a threshold that returns a pytree like the first.

    Raises:
      ValueError: if p is a number below 1, or an array with axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import grda, proximal
      >>> optimizer = grda(0.1, c=0.05, proximal=proximal.power(3))
      >>> print(proximal.power(3)(jnp.array([-3.0, 0.5, 1.1]), 1.0).round(2))
      [-2.96  0.    0.69]
    """
    check_number("p", p, ">= 1", lambda x: x >= 1)

    def map_leaves(tree: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
        return jax.tree.map(lambda leaf: power_threshold(leaf, threshold, p), tree)

    return map_leaves
