"""Patterns of zeros, such as 2:4."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._checks import check_integer, check_number
from optax_grda._paths import map_named
from optax_grda.proximal._maps import Proximal
from optax_grda.proximal._thresholds import power_threshold

PyTree = Any


def n_of_m(n: int, m: int, *, axis: int = -2, p: jax.typing.ArrayLike = 1) -> Proximal:
    r"""Makes a proximal map under which n of every m weights are left, as in 2:4.

    Along an axis, blocks of m neighbours; in each, the n entries of largest modulus are
    kept as they are, and the others thresholded:

    .. math::

      w_j = \begin{cases}
        v_j & \text{if } v_j \text{ is among the } n \text{ largest of its block,} \\
        P(v_j, L) & \text{else,}
      \end{cases}

    with P the map of :func:`power_threshold`. At :math:`L = 0` nothing is pruned; as L
    grows the pattern comes in, and once L is above all the others it is the projection:
    exactly n of every m are left. :func:`optax_grda.target_sparsity` with a ramp to
    1 - n / m steers it in, so that the accuracy survives. Of equal moduli, the first in
    the block is the larger.

    The map jumps where an entry overtakes another of its block, as the projection does.
    JAX has no arithmetic for the pattern: in JAX it saves no time.

    Args:
      n: how many are left of each block, 0 < n < m.
      m: length of a block.
      axis: the axis along which blocks lie, of every leaf. -2 are the inputs of a
        kernel, along which hardware wants them.
      p: the exponent, a scalar >= 1; it may be traced. 1 is soft.

    Returns:
      A function of a pytree and a threshold that returns a pytree like the first. It
      raises ValueError where a leaf does not have the axis, or it is no multiple of m.

    Raises:
      ValueError: if n or m is out of its range, or p a number below 1.
      TypeError: if n or m is no integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import proximal, sparsity_ramp, target_sparsity
      >>> pattern = proximal.n_of_m(2, 4, axis=0)
      >>> ramp = sparsity_ramp(0.5, steps=1000)
      >>> optimizer = target_sparsity(0.1, ramp, proximal=pattern)
      >>> kernel = jnp.array([0.5, -3.0, 1.0, 2.0, 1.0, 1.0, -1.0, 1.0])
      >>> print(pattern(kernel, 0.7), pattern(kernel, 9.0), sep="\n")
      [ 0.  -3.   0.3  2.   1.   1.  -0.3  0.3]
      [ 0. -3.  0.  2.  1.  1.  0.  0.]

    References:
      Mishra et al., `Accelerating Sparse Deep Neural Networks
      <https://arxiv.org/abs/2104.08378>`_, 2021, for the pattern.
    """
    check_integer("m", m, "an integer > 1", lambda x: x > 1)
    check_integer("n", n, f"an integer > 0 and below m, {m}", lambda x: 0 < x < m)
    check_number("p", p, ">= 1", lambda x: x >= 1)

    def map_blocks(tree: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
        def one(name: str, leaf: jax.Array) -> jax.Array:
            shape = jnp.shape(leaf)
            if not -len(shape) <= axis < len(shape) or shape[axis] % m:
                raise ValueError(
                    f"n_of_m must be of leaves whose axis {axis} is a multiple of {m}, "
                    f"got shape {shape} at {name or 'the root'}"
                )
            others = power_threshold(leaf, threshold, p)
            return jnp.where(_among_largest(leaf, n, m, axis), leaf, others)

        return map_named(one, tree)

    return map_blocks


def _among_largest(x: jax.Array, n: int, m: int, axis: int) -> jax.Array:
    """True for the n largest moduli of every m along an axis, the first of equal ones.

    Each is compared with its m - 1 neighbours in turn: nothing larger than x is made.
    """
    axis %= x.ndim
    shape = (*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :])
    modulus = jnp.abs(x).reshape(shape)
    place = jnp.arange(m).reshape(m, *[1] * (x.ndim - axis - 1))
    place = jnp.broadcast_to(place, shape)
    ahead = jnp.zeros(shape, jnp.int32)  # how many of the block are larger
    for shift in range(1, m):
        other = jnp.roll(modulus, shift, axis + 1)
        is_first = place >= shift  # the other stands before it
        larger = (other > modulus) | ((other == modulus) & is_first)
        ahead += larger.astype(jnp.int32)
    return (ahead < n).reshape(x.shape)
