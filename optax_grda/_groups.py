"""gRDA on groups: whole units become zero, over all the leaves that belong to them."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._accumulator import Proximal
from optax_grda._checks import check_number
from optax_grda._paths import named_leaves
from optax_grda._proximal import group_soft_threshold, soft_threshold

PyTree = Any
# From the path and the shape of a leaf to the name of its layer and the axis that
# counts the layer's units, or to None.
Groups = Callable[[str, tuple[int, ...]], tuple[str, int] | None]


def group_proximal(groups: Groups, *, elementwise: float = 0.0) -> Proximal:
    r"""A proximal operator for :func:`grda` under which whole units become zero.

    A unit is an index along one axis, of every leaf that names the same layer: the
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

    On the digits network (64-128-64-10, hidden units as groups, 5 seeds), by test
    accuracy, with the entries left in the kernels once dead units are cut out: plain
    gRDA 97.9 %, 9,700 entries; groups 97.9 %, 3,600; half and half 98.1 %, 3,100 (of
    17,024).

    This is an extension in the spirit of structured directional pruning, not that
    paper's algorithm, and the theory of gRDA was not extended with it.

    Args:
      groups: maps the path of a leaf, as :func:`sparsity_report` prints it, and its
        shape to ``(layer, axis)``: leaves with the same ``layer``, any string, share
        units, counted along ``axis``. ``None`` leaves a leaf out: its entries are
        soft-thresholded by L, as in :func:`grda`. Leave the last layer out, where units
        are classes.
      elementwise: :math:`\alpha`, in [0, 1]. 1 is plain gRDA.

    Returns:
      A function of a pytree and a threshold that returns a pytree like the first: the
      ``proximal`` of :func:`grda`, :func:`target_sparsity` and :func:`grda_params`. It
      raises ValueError where ``groups`` names no leaf, an axis that a leaf does not
      have, or leaves of one layer that differ in units or dtype.

    Raises:
      ValueError: if ``elementwise`` is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import grda, group_proximal
      >>> def hidden_units(path, shape):
      ...     layer, _, _ = path.rpartition("/")
      ...     return None if layer == "head" else (layer, -1)
      >>> optimizer = grda(0.1, c=0.01, mu=0.6, proximal=group_proximal(hidden_units))
      >>> hidden = {"kernel": jnp.array([[2.0, 0.5]]), "bias": jnp.array([2.0, 1.1])}
      >>> weights = group_proximal(hidden_units)({"hidden": hidden}, 1.0)
      >>> print(weights["hidden"]["kernel"], weights["hidden"]["bias"])
      [[1. 0.]] [1. 0.]

    References:
      Simon et al., `A sparse-group lasso
      <https://doi.org/10.1080/10618600.2012.681250>`_, JCGS, 2013.

      Li et al., `Structured Directional Pruning via Perturbation Orthogonal Projection
      <https://arxiv.org/abs/2107.05328>`_, 2021, for the idea.
    """
    check_number("elementwise", elementwise, "in [0, 1]", lambda x: 0 <= x <= 1)

    def proximal(accumulator: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
        leaves = named_leaves(accumulator, "accumulator")
        weights = []
        layers: dict[str, list[tuple[int, int]]] = {}  # places in weights, and axes
        for name, leaf in leaves:
            group = groups(name, leaf.shape)
            if group is None:
                weights.append(soft_threshold(leaf, threshold))
            else:
                layer, axis = group
                layers.setdefault(layer, []).append((len(weights), axis))
                weights.append(soft_threshold(leaf, elementwise * threshold))
        if not layers:
            raise ValueError(
                "groups must name a layer for at least one leaf, got None for all of "
                f"{[name for name, _ in leaves]}"
            )
        for layer, members in layers.items():
            rows = [_rows(weights[i], axis, leaves[i][0]) for i, axis in members]
            _check_alike(layer, rows)
            shrunk = group_soft_threshold(
                jnp.concatenate(rows), (1 - elementwise) * threshold, axis=0
            )
            ends = list(itertools.accumulate(map(len, rows)))[:-1]
            for (i, axis), part in zip(members, jnp.split(shrunk, ends), strict=True):
                weights[i] = _unrows(part, weights[i].shape, axis)
        return jax.tree.unflatten(jax.tree.structure(accumulator), weights)

    return proximal


def _rows(leaf: jax.Array, axis: int, name: str) -> jax.Array:
    """The leaf as a matrix whose columns are the units, counted along the axis."""
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"groups must name an axis of {name}, of shape {leaf.shape}: got {axis}"
        )
    units = leaf.shape[axis]
    return jnp.moveaxis(leaf, axis, -1).reshape(leaf.size // max(units, 1), units)


def _unrows(rows: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """The inverse of _rows."""
    moved = (*shape[:axis], *shape[axis:][1:], shape[axis])
    return jnp.moveaxis(rows.reshape(moved), -1, axis)


def _check_alike(layer: str, rows: list[jax.Array]) -> None:
    kinds = {(part.shape[1], part.dtype.name) for part in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"groups must give leaves of one layer the same number of units and dtype, "
            f"got {sorted(kinds)} in {layer!r}"
        )
