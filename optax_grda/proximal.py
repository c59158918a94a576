r"""Proximal maps: from the accumulator and the threshold to the weights.

:func:`soft`, :func:`hard`, ``power(p)``, ``groups(...)`` and ``n_of_m(n, m)`` are for
pytrees: each is, or makes, a function of an accumulator and a scalar threshold, the
``proximal`` of :func:`optax_grda.grda` and its relatives. A function of your own may
stand in their place. What they do to one array, and to thresholds with axes, is
:func:`soft_threshold`, :func:`hard_threshold`, :func:`power_threshold` and
:func:`group_soft_threshold`.

They differ in what becomes of an entry beyond the threshold :math:`L`: the soft
threshold takes :math:`L` off however large it is, the hard one takes nothing off, and
the power :math:`p` is between. All of them make exactly the entries zero that are
within the threshold, in every dtype: narrow dtypes are computed in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._arrays import at_least_float32, real_dtype, replicated
from optax_grda._checks import check_integer, check_number
from optax_grda._paths import map_named, named_leaves
from optax_grda.units import Units

PyTree = Any
# From the accumulator and the threshold to the weights, in the accumulator's dtypes.
Proximal = Callable[[PyTree, jax.Array], PyTree]
# From the path and the shape of a leaf to the name of its layer and the axis, or axes,
# that count the layer's units; or to None.
Groups = Callable[[str, tuple[int, ...]], tuple[str, int | tuple[int, ...]] | None]


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


def groups(
    units: Groups | Units,
    *,
    elementwise: float = 0.0,
    p: jax.typing.ArrayLike = 1,
) -> Proximal:
    r"""Makes a proximal map under which whole units become zero.

    A unit is an index along an axis, of every leaf that names the same layer: the
    column of a dense kernel with its entry of the bias, or the output channel of a
    convolution with its bias and the scale and bias of its BatchNorm. With :math:`v_G`
    the entries of a unit, :math:`L` the threshold and :math:`\alpha` the share
    ``elementwise``,

    .. math::

      w_G = \max\Big(1 - \frac{(1 - \alpha) L \sqrt{|G|}}{\|u_G\|_2},\; 0\Big)\, u_G,
      \qquad u_G = S(v_G, \alpha L)

    which is the proximal operator of the sparse group lasso
    :math:`L\,(\alpha |w|_1 + (1 - \alpha) \sum_G \sqrt{|G|} \|w_G\|_2)`. With
    :math:`\alpha = 0` a unit dies when its root mean square reaches the threshold; in
    between, units die and the rest of the weights becomes sparse. A unit that died can
    be cut out; that is the point of it.

    With an exponent p, :math:`(1 - (\dots)^p)_+^{1/p}` takes the place of
    :math:`\max(1 - \dots, 0)`, and :func:`power_threshold` that of :math:`S`: units
    that stay keep more of themselves, which counts where most units go.

    Squares are summed leaf by leaf, and each leaf is multiplied by one factor a unit:
    no leaf is moved, and over a mesh one sum a leaf is all that devices exchange.

    On the digits network (64-128-64-10, hidden units as groups, 5 seeds), by test
    accuracy, with the entries left in the kernels once dead units are cut out: plain
    gRDA 97.9 %, 9,700 entries; groups 97.9 %, 3,600; half and half 98.1 %, 3,100 (of
    17,024).

    This is an extension in the spirit of structured directional pruning, not that
    paper's algorithm, and the theory of gRDA was not extended with it.

    Args:
      units: those that :func:`optax_grda.units.find_units` found in a network, or a
        function that names them.

        Found units are where a leaf's entries produce them: the columns of kernels,
        biases, norms, embeddings, and not the rows that sum over them. All layers that
        write to a residual stream share the units of its channels. Outputs, such as
        classes, are in no unit. Leaves without units are thresholded entry by entry.

        A function maps the path of a leaf, as :func:`optax_grda.sparsity_report` prints
        it, and its shape to ``(layer, axis)``: leaves with the same ``layer``, any
        string, share units, counted along ``axis``. Several axes count units together:
        those of stacked layers, which :func:`jax.lax.scan` runs over, are ``(layer, (0,
        -1))``, for kernels and for biases. ``None`` leaves a leaf out: its entries are
        thresholded by L one by one. Leave the last layer out, where units are classes.
      elementwise: :math:`\alpha`, in [0, 1]. 1 is :func:`soft`, or ``power(p)``.
      p: the exponent, a scalar >= 1; it may be traced.

    Returns:
      A function of a pytree and a threshold that returns a pytree like the first. It
      raises ValueError where ``units`` names no leaf, an axis that a leaf does not
      have, or one twice, leaves of one layer that differ in units or dtype, or where
      units were found in a network with other leaves.

    Raises:
      ValueError: if ``elementwise`` is outside [0, 1], or p a number below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import grda, proximal
      >>> def hidden_units(path, shape):
      ...     layer, _, _ = path.rpartition("/")
      ...     return None if layer == "head" else (layer, -1)
      >>> by_unit = proximal.groups(hidden_units)
      >>> optimizer = grda(0.1, c=0.01, mu=0.6, proximal=by_unit)
      >>> hidden = {"kernel": jnp.array([[2.0, 0.5]]), "bias": jnp.array([2.0, 1.1])}
      >>> weights = by_unit({"hidden": hidden}, 1.0)
      >>> print(weights["hidden"]["kernel"], weights["hidden"]["bias"])
      [[1. 0.]] [1. 0.]

    References:
      Simon et al., `A sparse-group lasso
      <https://doi.org/10.1080/10618600.2012.681250>`_, JCGS, 2013.

      Li et al., `Structured Directional Pruning via Perturbation Orthogonal Projection
      <https://arxiv.org/abs/2107.05328>`_, 2021, for the idea.
    """
    check_number("elementwise", elementwise, "in [0, 1]", lambda x: 0 <= x <= 1)
    check_number("p", p, ">= 1", lambda x: x >= 1)
    find = _found_members(units) if isinstance(units, Units) else _members(units)

    def map_units(tree: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
        leaves = named_leaves(tree, "accumulator")
        weights = []
        layers: dict[str, list[tuple[int, _Member]]] = {}  # places, and what they have
        for name, leaf in leaves:
            found = find(name, leaf.shape)
            if found is None:
                weights.append(power_threshold(leaf, threshold, p))
            else:
                layer, member = found
                layers.setdefault(layer, []).append((len(weights), member))
                weights.append(
                    power_threshold(leaf, elementwise * threshold, p)
                    if elementwise
                    else leaf
                )
        if not layers:
            raise ValueError(
                "groups must name a layer for at least one leaf, got None for all of "
                f"{[name for name, _ in leaves]}"
            )
        for layer, members in layers.items():
            shrunk = _shrink_layer(
                layer,
                [(weights[place], member) for place, member in members],
                (1 - elementwise) * threshold,
                p,
            )
            for (place, _), leaf in zip(members, shrunk, strict=True):
                weights[place] = leaf
        return jax.tree.unflatten(jax.tree.structure(tree), weights)

    return map_units


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
    x, threshold = _checked(x, threshold)
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
    x, threshold = _checked(x, threshold)
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
    x, threshold = _checked(x, threshold)
    return _scale_alive(x, threshold, lambda ratio: _left(ratio, p)).astype(dtype)


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
      >>> from optax_grda.proximal import group_soft_threshold
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
    squares = jnp.sum(_squares(x, threshold), axis, keepdims=True)
    entries = x.size // max(squares.size, 1)
    return _shrink(x, _group_factor(squares, entries, threshold)).astype(dtype)


def _checked(x, threshold) -> tuple[jax.Array, jax.Array]:
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


def _unit(threshold: jax.Array) -> jax.Array:
    """In what groups are measured: the threshold, as a constant; 1 where that is 0."""
    return jax.lax.stop_gradient(jnp.where(threshold > 0, threshold, 1))


def _squares(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """(|x| / L)^2: in units of the threshold, so that nothing over- or underflows.

    A group within the threshold is zero however small its squares are, and one far
    beyond it keeps all, however large.
    """
    most = jnp.finfo(threshold.dtype).max ** 0.5 / 1e5  # leaves room for a sum
    return jnp.square(jnp.minimum(jnp.abs(x) / _unit(threshold), most))


def _group_factor(
    squares: jax.Array,
    entries: int | np.ndarray,
    threshold: jax.Array,
    p: jax.typing.ArrayLike = 1,
) -> jax.Array:
    """(1 - (L / root mean square)^p)_+^(1/p), from sums of squares in units of L."""
    limit = threshold / _unit(threshold)  # 1, but for its derivative; 0 where L is 0
    mean = squares / np.maximum(entries, 1).astype(squares.dtype)
    alive = mean > limit  # no derivative of a root at 0
    ratio = jnp.where(alive, limit / jnp.sqrt(jnp.where(alive, mean, 1)), 0)
    return jnp.where(alive, _left(ratio, p), 0)


def _shrink(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x times the factor; to 0 where a product would be -0, and NaN stays NaN."""
    dies = (factor == 0) & ~jnp.isnan(x)
    return jnp.where(dies, 0, x * factor.astype(x.dtype))


class _Member(NamedTuple):
    """Where units lie in a leaf.

    Attributes:
      axes: those that count units.
      shape: how many there are, along each of the axes.
      places: the unit at every place of the only axis, -1 where none is; None where the
        axes have the units one by one.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    places: np.ndarray | None = None

    def entries(self, size: int) -> np.ndarray:
        """How many of a leaf's entries each unit has."""
        if self.places is None:
            return np.full(self.shape, size // max(math.prod(self.shape), 1))
        counts = np.bincount(self.places[self.places >= 0], minlength=self.shape[0])
        return counts * (size // max(len(self.places), 1))

    def gather(self, sums: jax.Array) -> jax.Array:
        """From sums along the leaf's axes, in their order, to sums of units."""
        if self.places is None:
            return jnp.transpose(sums, _ranks(self.axes))
        (units,) = self.shape
        places = np.where(self.places < 0, units, self.places)
        return jax.ops.segment_sum(sums, places, num_segments=units + 1)[:units]

    def spread(self, factor: jax.Array) -> jax.Array:
        """From a factor a unit to one along the leaf's axes."""
        if self.places is None:
            return jnp.transpose(factor, np.argsort(self.axes).tolist())
        return factor[np.maximum(self.places, 0)]


_Find = Callable[[str, tuple[int, ...]], tuple[str, _Member] | None]


def _members(groups: Groups) -> _Find:
    """What a function of the user's says of a leaf."""

    def find(name: str, shape: tuple[int, ...]) -> tuple[str, _Member] | None:
        unit = groups(name, shape)
        if unit is None:
            return None
        layer, axis = unit
        axes = _unit_axes(axis, shape, name)
        return layer, _Member(axes, tuple(shape[axis] for axis in axes))

    return find


def _found_members(units: Units) -> _Find:
    """What is known of a leaf from the network's program."""
    groups = units.groups()

    def find(name: str, shape: tuple[int, ...]) -> tuple[str, _Member] | None:
        if name not in units.shapes:
            raise ValueError(
                "units must be those of the network whose weights are thresholded, got "
                f"none for {name}"
            )
        if name not in groups:
            return None
        group = groups[name]
        if shape[group.axis : group.axis + 1] != group.index.shape:
            raise ValueError(
                f"units must be those of the network: got {len(group.index)} places "
                f"along axis {group.axis} of {name}, which has shape {shape}"
            )
        return group.layer, _Member((group.axis,), (group.units,), group.index)

    return find


def _shrink_layer(
    layer: str,
    members: list[tuple[jax.Array, _Member]],
    threshold: jax.typing.ArrayLike,
    p: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """The leaves of a layer, each unit of theirs shrunk by its norm over all leaves.

    Args:
      layer: its name, for errors.
      members: leaves, and where their units lie.
      threshold: L of all groups.
      p: the exponent.
    """
    kinds = {(member.shape, leaf.dtype.name) for leaf, member in members}
    if len(kinds) > 1:
        raise ValueError(
            "groups must give leaves of one layer the same number of units and dtype, "
            f"got {sorted(kinds)} in {layer!r}"
        )
    arrays = [(_checked(leaf, threshold), member) for leaf, member in members]
    entries = sum(member.entries(leaf.size) for leaf, member in members)
    squares = [
        member.gather(replicated(_sums(x, limit, member.axes)))
        for (x, limit), member in arrays
    ]
    (_, limit), _ = arrays[0]
    factor = _group_factor(functools.reduce(jnp.add, squares), entries, limit, p)
    shrunk = []
    for ((x, _), member), (leaf, _) in zip(arrays, members, strict=True):
        others = _others(x, member.axes)
        weights = _shrink(x, jnp.expand_dims(member.spread(factor), others))
        if member.places is not None and (member.places < 0).any():
            single = np.expand_dims(member.places < 0, others)
            weights = jnp.where(single, power_threshold(x, limit, p), weights)
        shrunk.append(weights.astype(leaf.dtype))
    return shrunk


def _sums(x: jax.Array, threshold: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The squares of each unit, summed; its axes are left in the order of the leaf."""
    return jnp.sum(_squares(x, threshold), _others(x, axes))


def _others(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis not in axes)


def _ranks(axes: tuple[int, ...]) -> list[int]:
    return [sorted(axes).index(axis) for axis in axes]


def _unit_axes(
    axis: int | tuple[int, ...], shape: tuple[int, ...], name: str
) -> tuple[int, ...]:
    """The axes as numbers from 0."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    places = tuple(a % len(shape) for a in axes if -len(shape) <= a < len(shape))
    if len(set(places)) < len(axes) or not axes:
        raise ValueError(
            f"groups must name an axis of {name}, of shape {shape}: got {axis}"
        )
    return places
