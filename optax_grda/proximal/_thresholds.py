"""Thresholds of one array, entry by entry."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._arrays import at_least_float32, real_dtype
from optax_grda._checks import check_number


def soft_threshold(
    x: jax.typing.ArrayLike, threshold: jax.typing.ArrayLike
) -> jax.Array:
    r"""Moves every entry towards zero by the threshold, and no further than zero.

    .. math:: S(x, L) = \mathrm{sign}(x) \max(|x| - L, 0)

    the proximal operator of :math:`L |x|_1`; for complex entries, of
    :math:`L \sum_j |x_j|`: the modulus shrinks and the phase stays.

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
      >>> from optax_grda.proximal import soft_threshold
      >>> print(soft_threshold(jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 1.0))
      [-2.  0.  0.  0.  2.]

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Section 3.
    """
    dtype = jnp.asarray(x).dtype
    x, threshold = checked(x, threshold)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _scale_alive(x, threshold, lambda ratio: 1 - ratio).astype(dtype)
    # The same values as sign(x) max(|x| - L, 0), from fewer operations.
    return (x - jnp.maximum(jnp.minimum(x, threshold), -threshold)).astype(dtype)


def hard_threshold(
    x: jax.typing.ArrayLike, threshold: jax.typing.ArrayLike
) -> jax.Array:
    r"""Zeroes the entries with modulus at most the threshold, and keeps the others.

    .. math:: H(x, L) = x \; [\,|x| > L\,]

    It jumps at the threshold; its derivative by x is 1 where an entry is kept and 0
    elsewhere, that by L is 0.

    Args:
      x, threshold: as for :func:`soft_threshold`.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      TypeError, ValueError: as :func:`soft_threshold`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.proximal import hard_threshold
      >>> print(hard_threshold(jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 1.0))
      [-3.  0.  0.  0.  3.]
    """
    dtype = jnp.asarray(x).dtype
    x, threshold = checked(x, threshold)
    # Not within it is also NaN, which must be seen.
    return jnp.where(jnp.abs(x) <= threshold, 0, x).astype(dtype)


def power_threshold(
    x: jax.typing.ArrayLike,
    threshold: jax.typing.ArrayLike,
    p: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Shrinks entries the less, the further they are beyond the threshold.

    .. math:: P(x, L) = \mathrm{sign}(x) (|x|^p - L^p)_+^{1/p}

    For p = 1 it is :func:`soft_threshold`, for large p nearly :func:`hard_threshold`.
    Entries well beyond the threshold lose about :math:`L^p / (p |x|^{p-1})`: at
    :math:`|x| = 2 L` half of themselves for p = 1, 4 % for p = 3.

    It is the proximal operator of the penalty

    .. math:: \varphi(w) = \int_0^{|w|} \big((s^p + L^p)^{1/p} - s\big)\, ds

    which starts as :math:`L |w|` and flattens, so that it is convex for p = 1 alone.
    P is continuous. For p > 1 its derivative is infinite where :math:`|x|` comes down
    to L: an entry that passes the threshold appears, and vanishes, as a root does.
    Under :func:`jax.grad` the derivative of entries within L is 0, and that just beyond
    is large but finite, as the next float beyond L is not at L. Under ``jit`` and
    ``vmap`` nothing is special. Narrow dtypes are computed in float32 and rounded at
    the end: in bfloat16 the smallest entries that are kept are about
    :math:`L\,(p\, 2^{-8})^{1/p}`.

    Args:
      x, threshold: as for :func:`soft_threshold`.
      p: the exponent, a scalar >= 1; it may be traced. Python integers cost least.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      TypeError: if x is neither float nor complex, or p not a number.
      ValueError: as :func:`soft_threshold`, or if p is a number below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.proximal import power_threshold
      >>> print(power_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0, p=2).round(2))
      [-2.83  0.    1.73]
    """
    check_number("p", p, ">= 1", lambda x: x >= 1)
    if isinstance(p, (int, float)) and p == 1:
        return soft_threshold(x, threshold)
    dtype = jnp.asarray(x).dtype
    x, threshold = checked(x, threshold)
    return _scale_alive(x, threshold, lambda ratio: _left(ratio, p)).astype(dtype)


def checked(x, threshold) -> tuple[jax.Array, jax.Array]:
    """x as an inexact array of at least 32 bits, threshold in its real dtype."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"x must have a float or complex dtype, got {x.dtype}")
    if isinstance(threshold, (int, float, np.number)) and not threshold >= 0:
        raise ValueError(f"threshold must be >= 0, got {threshold}")
    x = x.astype(at_least_float32(x.dtype))
    return x, jnp.asarray(threshold).astype(real_dtype(x.dtype))


def _scale_alive(
    x: jax.Array, threshold: jax.Array, factor: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """x times factor(L / |x|) where |x| > L, and 0 elsewhere."""
    modulus = jnp.abs(x)
    pruned = modulus <= threshold  # not where it is NaN, which must be seen
    ratio = threshold / jnp.where(pruned, 1, modulus)
    ratio = jnp.where(pruned, 0, ratio)  # no derivative of what is not used
    return jnp.where(pruned, 0, x * factor(ratio).astype(x.dtype))


def _left(ratio: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
    """(1 - ratio^p)^(1/p), of a ratio of at most 1: what the power p leaves."""
    if isinstance(p, (int, float)) and p == 1:
        return 1 - ratio
    if not isinstance(p, int):
        p = jnp.asarray(p).astype(ratio.dtype)
    rest = 1 - ratio**p
    alive = rest > 0  # rounding may leave nothing of it, and a root has no slope
    return jnp.where(alive, _root(jnp.where(alive, rest, 1), p), 0)


def _root(x: jax.Array, p: int | jax.Array) -> jax.Array:
    """The p-th root of numbers > 0, to 1e-6."""
    if isinstance(p, int) and p == 2:
        return jnp.sqrt(x)
    if isinstance(p, int) and p == 3 and x.dtype == jnp.float32:
        return _cube_root(x)
    return jnp.exp(jnp.log(x) / p)


@jax.custom_jvp
def _cube_root(x: jax.Array) -> jax.Array:
    """The cube root of float32 numbers in (1e-30, 1e30), to 5e-7, by products alone.

    On a CPU a third power by logarithms takes twice a whole step's time. The bits of a
    float, read as an integer, are about its logarithm: they give u = x^(-1/3) to a
    tenth, and three steps of Newton's method on u^-3 - x the rest.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32).astype(x.dtype)
    bits = (1_419_910_400 - bits / 3).astype(jnp.int32)
    u = jax.lax.bitcast_convert_type(bits, x.dtype)
    for _ in range(3):
        u = u * (4 / 3 - (x / 3) * (u * u * u))
    return x * u * u


_cube_root.defjvps(lambda tangent, root, x: tangent * root / (3 * x))
