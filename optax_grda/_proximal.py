"""Proximal operators: the soft threshold of gRDA and its group form."""

import jax
import jax.numpy as jnp
import numpy as np


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype itself, or float32 if its real part has fewer than 32 bits."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of the real part: float32 for float32 and for complex64."""
    return jnp.finfo(dtype).dtype


def _checked(x, threshold) -> tuple[jax.Array, jax.Array]:
    """x as an inexact array of at least 32 bits, threshold in its real dtype."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"x must have a float or complex dtype, got {x.dtype}")
    if isinstance(threshold, (int, float, np.number)) and not threshold >= 0:
        raise ValueError(f"threshold must be >= 0, got {threshold}")
    x = x.astype(at_least_float32(x.dtype))
    return x, jnp.asarray(threshold).astype(real_dtype(x.dtype))


def soft_threshold(
    x: jax.typing.ArrayLike, threshold: jax.typing.ArrayLike
) -> jax.Array:
    r"""Moves every entry towards zero by the threshold, and no further than zero.

    .. math:: S(x, L) = \mathrm{sign}(x) \max(|x| - L, 0)

    the proximal operator of :math:`L |x|_1`; for complex entries, of
    :math:`L \sum_j |x_j|`: the modulus shrinks and the phase stays.

    Entries with ``|x| <= threshold`` become exactly 0 in every dtype: narrow dtypes
    are compared with the threshold, and shrunk by it, in float32.

    Args:
      x: array of any shape and of float or complex dtype.
      threshold: the real threshold L >= 0, a scalar or an array that broadcasts
        against x.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      TypeError: if x is neither float nor complex.
      ValueError: if threshold is a Python number below 0 or NaN. (Arrays are not
        checked, so that they may be traced.)

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import soft_threshold
      >>> print(soft_threshold(jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 1.0))
      [-2.  0.  0.  0.  2.]

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Section 3.
    """
    dtype = jnp.asarray(x).dtype
    x, threshold = _checked(x, threshold)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        modulus = jnp.abs(x)
        pruned = modulus <= threshold  # not where it is NaN, which must be seen
        shrinkage = 1 - threshold / jnp.where(pruned, 1, modulus)
        return jnp.where(pruned, 0, x * shrinkage.astype(x.dtype)).astype(dtype)
    # The same values as sign(x) max(|x| - L, 0), from fewer operations.
    threshold = jnp.broadcast_to(threshold, x.shape)
    return (x - jax.lax.clamp(-threshold, x, threshold)).astype(dtype)


def group_soft_threshold(
    x: jax.typing.ArrayLike,
    threshold: jax.typing.ArrayLike,
    axis: int | tuple[int, ...],
) -> jax.Array:
    r"""Shrinks whole groups of entries by their Euclidean norm.

    .. math:: x_G \mapsto \max(1 - L \sqrt{|G|} / \|x_G\|_2,\; 0)\, x_G

    the proximal operator of the group lasso :math:`L \sum_G \sqrt{|G|} \|x_G\|_2`.
    The factor :math:`\sqrt{|G|}` makes one L fit groups of every size: a group of
    equal entries is shrunk exactly as :func:`soft_threshold` would shrink it.

    A group with norm at most ``threshold * sqrt(size)`` becomes exactly 0. A group of
    zeros stays zero, and derivatives there are 0, not NaN.

    Args:
      x: array of any shape and of float or complex dtype.
      threshold: the real threshold L >= 0, a scalar or an array that broadcasts
        against x with the axes of ``axis`` of length 1.
      axis: the axes that run within a group. The columns of a matrix are its groups
        with ``axis=0``, the output channels of a (height, width, in, out) kernel with
        ``axis=(0, 1, 2)``.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      TypeError: if x is neither float nor complex.
      ValueError: if threshold is a Python number below 0 or NaN, or if ``axis`` is
        out of range for x.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import group_soft_threshold
      >>> kernel = jnp.array([[2.0, 0.5], [2.0, 0.5], [2.0, 0.5], [2.0, 0.5]])
      >>> print(group_soft_threshold(kernel, 1.0, axis=0))  # a column a group
      [[1. 0.]
       [1. 0.]
       [1. 0.]
       [1. 0.]]

    References:
      Yuan and Lin, `Model selection and estimation in regression with grouped
      variables <https://doi.org/10.1111/j.1467-9868.2005.00532.x>`_, JRSS B, 2006.
    """
    dtype = jnp.asarray(x).dtype
    x, threshold = _checked(x, threshold)
    modulus = jnp.abs(x)
    # A group whose largest entry is within the threshold is zero. In units of that
    # entry, the squares of the others neither over- nor underflow, nor do derivatives;
    # above 1 / tiny the unit's own reciprocal would.
    largest = jax.lax.stop_gradient(jnp.max(modulus, axis, keepdims=True, initial=0))
    alive = largest > threshold
    unit = jnp.where(alive, jnp.minimum(largest, 1 / jnp.finfo(x.dtype).tiny), 1)
    squares = jnp.where(alive, jnp.square(modulus / unit), 1)
    root_mean_square = jnp.sqrt(jnp.mean(squares, axis, keepdims=True))
    shrinkage = jnp.maximum(1 - threshold / unit / root_mean_square, 0)
    shrinkage = jnp.where(alive, shrinkage, 0)
    dies = (shrinkage == 0) & ~jnp.isnan(x)  # to 0, where a product would leave -0
    return jnp.where(dies, 0, x * shrinkage.astype(x.dtype)).astype(dtype)
