"""What finds the units of a network."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda._paths import dtype_of, named_leaves
from optax_grda.units import _elementwise, _moves, _slices, _sums  # noqa: F401  rules
from optax_grda.units._dims import Dim, Reason, freeze, units_along
from optax_grda.units._units import Frozen, Member, UnitClass, Units
from optax_grda.units._walk import Array, LeafAxis, Walk

PyTree = Any


def find_units(fn: Callable[..., Any], params: PyTree, *args: Any) -> Units:
    """Finds out which axes of a network's parameters run over the same units.

    A unit is what can be cut out of a network as a whole: an output of a hidden layer,
    with its column of the kernel and its entries of the bias and of the norm behind,
    and the rows of the kernels that sum over it. The channels of a residual stream are
    units of all layers that write to it; attention heads are units, and so are the
    entries of the values' heads; a flattened map has several places a channel, and a
    unit of a recurrent state a column of every gate.

    ``fn`` is traced, nothing is computed; what it does with every axis is known from
    the primitives that it consists of. Nothing is cut out where that would change what
    the others compute, or where it isn't known: such axes are *frozen*. Frozen are axes
    of inputs, outputs and constants, those that are reduced (by the means of LayerNorm:
    they would be others), scanned over or sorted, those that queries and keys are
    multiplied along (products are scaled by their number), and all that a primitive
    without a rule touches. :class:`Units` says which froze what.

    Args:
      fn: a pure function of params and args, in evaluation mode: of Flax NNX,
        ``lambda state, x: nnx.merge(graphdef, state)(x)``; of Linen, ``module.apply``;
        of Equinox, ``lambda arrays, x: eqx.combine(arrays, static)(x)``. BatchNorm's
        statistics are best part of ``params``: they are cut with the rest.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``.
      *args: other arguments of fn, arrays or ``jax.ShapeDtypeStruct`` in pytrees.

    Returns:
      The units. ``grda(..., proximal=groups(units))`` makes them zero as wholes; see
      :meth:`Units.groups` for which entries those are. :func:`shrink` cuts out those
      that are.

    Raises:
      TypeError: if params has leaves that are no arrays; what fn raises.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_grda.units import find_units
      >>> def apply(params, x):
      ...     hidden = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
      ...     return hidden @ params["out"]["kernel"]
      >>> params = {
      ...     "in": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
      ...     "out": {"kernel": jnp.ones((8, 2))},
      ... }
      >>> find_units(apply, params, jnp.ones(4))
      units  outputs        summed over by
      8      in/bias [0]    out/kernel [0]
             in/kernel [1]
      <BLANKLINE>
      frozen             by
      in/kernel [0]   4  an argument
      out/kernel [1]  2  an output
    """
    program = trace(fn, params, args)
    walk, leaves = Walk(values=False), []
    for _, leaf in named_leaves(params):
        leaves.append(leaf_array(len(leaves), leaf, None))
    finish(walk, program, leaves, args)
    return units_of(walk, params, leaves)


def trace(fn: Callable[..., Any], params: PyTree, args: tuple[Any, ...]) -> Any:
    """The closed jaxpr of fn, of the leaves of params and args."""
    return jax.make_jaxpr(fn)(params, *args)


def leaf_array(number: int, leaf: Any, value: Any) -> Array:
    """A leaf of params, at the start of a walk."""
    shape = np.shape(leaf)
    weight = jnp.issubdtype(dtype_of(leaf), jnp.inexact)
    reason = None if weight else "an array of no weights"
    dims = tuple(Dim(length, reason) for length in shape)
    sources = tuple(frozenset([(number, axis)]) for axis in range(len(shape)))
    return Array(dims, sources, False, value)


def finish(
    walk: Walk, program: Any, leaves: Sequence[Array], args: tuple[Any, ...]
) -> list[Array]:
    """Walks over the program, from leaves and unknown inputs; its outputs."""
    inputs = []
    for arg in jax.tree.leaves(args):
        dims = [Dim(length, "an argument") for length in np.shape(arg)]
        start = Array((), (), True, None)
        aval = jax.typeof(arg) if not hasattr(arg, "dtype") else arg
        inputs.append(walk.unknown(dims, [start], aval))
    outputs = walk.run_closed(program, [*leaves, *inputs])
    walk.meet([*outputs, Array((), (), True, None)])
    for array in outputs:
        for dim in array.dims:
            freeze(dim, "an output")
    used = {id(array) for node in walk.nodes for array in node.inputs}
    used |= {id(array) for array in outputs}
    for leaf in leaves:
        if id(leaf) not in used:
            for dim in leaf.dims:
                freeze(dim, "nothing: fn doesn't use it")
    _freeze_own_lengths(walk, leaves)
    return outputs


def _freeze_own_lengths(walk: Walk, leaves: Sequence[Array]) -> None:
    """Freezes what a single leaf sums over, and no other runs along.

    Its length is a number of fn's: of ``x.repeat(2)``, say.
    """
    places: dict[Dim, list[LeafAxis]] = {}
    for number, leaf in enumerate(leaves):
        for axis, dim in enumerate(leaf.dims):
            for atom in dim.atoms:
                places.setdefault(atom, []).append((number, axis))
    for atom, some in places.items():
        if len(some) == 1 and some[0] not in walk.produced:
            freeze(atom, "a length of its own")


def units_of(walk: Walk, params: PyTree, leaves: Sequence[Array]) -> Units:
    """The units, when the walk is over."""
    names = [name for name, _ in named_leaves(params)]
    members: dict[Dim, list[Member]] = {}
    frozen = []
    for number, (name, array) in enumerate(zip(names, leaves, strict=True)):
        for axis, dim in enumerate(array.dims):
            if dim.size <= 1:
                continue
            produces = (number, axis) in walk.produced
            reasons = []
            for atom, index in units_along(dim).items():
                if atom.frozen is None and atom.size > 1:
                    member = Member(name, axis, index, produces)
                    members.setdefault(atom, []).append(member)
                elif atom.frozen is not None:
                    reasons.append(atom.frozen)
            if reasons and len(reasons) == len(list(dim.atoms)):
                frozen.append(Frozen(name, axis, dim.size, _words(reasons[0])))
    classes = [UnitClass(atom.size, tuple(some)) for atom, some in members.items()]
    shapes = {name: array.shape for name, array in zip(names, leaves, strict=True)}
    return Units(tuple(classes), tuple(frozen), shapes)


def _words(reason: Reason) -> str:
    """Why an axis is frozen: the primitive, and the user's line that asked for it."""
    if isinstance(reason, str):
        return reason
    place = line_of(reason)
    return reason.primitive.name + (f" at {place}" if place else "")


def line_of(equation: JaxprEqn) -> str:
    """The innermost line of a program that isn't JAX's own, "" if nobody knows."""
    traceback = getattr(equation.source_info, "traceback", None)
    home = os.path.dirname(jax.__file__) + os.sep
    for frame in getattr(traceback, "frames", ()):
        if not frame.file_name.startswith((home, "<")):
            return f"{frame.file_name}:{frame.line_num}"
    return ""
