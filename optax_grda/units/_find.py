"""The units of a network."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda._paths import dtype_of, named_leaves
from optax_grda.units import _rules, _sums  # noqa: F401  registers what they know
from optax_grda.units._dims import Dim, Reason, freeze, units_along
from optax_grda.units._walk import Array, Walk

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Member:
    """The axis of a leaf along which units lie.

    Attributes:
      leaf: the leaf's path, as :func:`optax_grda.sparsity_report` prints it.
      axis: the axis, from 0.
      index: the unit at every place of the axis, int (length,); -1 where none is.
      produces: whether the units are outputs there, as of a kernel's columns, a bias,
        an embedding; else they are only summed over, as by a kernel's rows.
    """

    leaf: str
    axis: int
    index: np.ndarray
    produces: bool

    @property
    def offset(self) -> int:
        """The first place of unit 0."""
        return int(np.argmax(self.index == 0))

    @property
    def stride(self) -> int:
        """How far the first place of unit 1 is from that of unit 0."""
        return int(np.argmax(self.index == 1)) - self.offset

    def __str__(self) -> str:
        plain = np.array_equal(self.index, np.arange(len(self.index)))
        where = "" if plain else f" (offset {self.offset}, stride {self.stride})"
        return f"{self.leaf} [{self.axis}]{where}"


@dataclasses.dataclass(frozen=True)
class UnitClass:
    """Units that are cut out one by one, each from all members.

    Attributes:
      size: how many units.
      members: where they lie.
    """

    size: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """That of the first leaf that produces them, for tables."""
        producers = [member for member in self.members if member.produces]
        return (producers or self.members)[0].leaf


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An axis of a leaf of which nothing can be cut out, and why."""

    leaf: str
    axis: int
    size: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Where the units that a leaf produces lie, for the optimizer.

    Attributes:
      axis: the axis of the leaf.
      index: the number of the unit at every place, int (length,), -1 where none is; a
        unit has one number in all leaves of a layer.
      layer: which leaves share units.
      units: how many the layer has.
    """

    axis: int
    index: np.ndarray
    layer: str
    units: int


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of a network, found by :func:`find_units`. It prints as a table.

    ``optax_grda.proximal.groups`` takes it as it is.

    Attributes:
      classes: the classes of units.
      frozen: the other axes of the leaves, those of length 1 left out.
      shapes: of all leaves, by their paths.
    """

    classes: tuple[UnitClass, ...]
    frozen: tuple[Frozen, ...]
    shapes: dict[str, tuple[int, ...]]

    def groups(self) -> dict[str, Group]:
        """By leaf, the units that its entries produce: those of one axis a leaf.

        The entries of kernels' outputs, with biases, norms and embeddings, are in a
        unit's group; what sums over it is not. Where the axes of a leaf are of several
        classes (heads, and the entries of each), the class that produces more entries
        has the leaf, and the others have no group.
        """
        return _groups(self)

    def under(self, prefix: str) -> "Units":
        """The units as far as they lie in a part of params, under the names there.

        For an optimizer that is given a part only: ``units.under("params")`` for a
        module of Linen, whose variables are ``{"params": ..., "batch_stats": ...}``.
        """
        start = prefix + "/"

        def below(some: Any) -> list[Any]:
            return [
                dataclasses.replace(each, leaf=each.leaf.removeprefix(start))
                for each in some
                if each.leaf.startswith(start)
            ]

        classes = (UnitClass(c.size, tuple(below(c.members))) for c in self.classes)
        shapes = {
            name.removeprefix(start): shape
            for name, shape in self.shapes.items()
            if name.startswith(start)
        }
        if not shapes:
            raise ValueError(
                f"prefix must be the first keys of leaves' paths, got {prefix!r} for "
                f"{', '.join(self.shapes)}"
            )
        return Units(
            tuple(some for some in classes if some.members),
            tuple(below(self.frozen)),
            shapes,
        )

    def __str__(self) -> str:
        rows = [("units", "outputs", "summed over by")]
        for some in self.classes:
            outputs, inputs = (
                [str(m) for m in some.members if m.produces == produces]
                for produces in (True, False)
            )
            for row in range(max(len(outputs), len(inputs))):
                cells = [(c[row : row + 1] or [""])[0] for c in (outputs, inputs)]
                rows.append((str(some.size) if row == 0 else "", *cells))
        lines = _table(rows)
        if self.frozen:
            rows = [
                (f"{f.leaf} [{f.axis}]", str(f.size), f.reason) for f in self.frozen
            ]
            lines += ["", *_table([("frozen", "", "by"), *rows])]
        return "\n".join(lines)

    __repr__ = __str__


def find_units(fn: Callable[..., Any], params: PyTree, *args: Any) -> Units:
    """Finds out which axes of a network's parameters run over the same units.

    A unit is what can be cut out of a network as a whole: an output of a hidden layer,
    with its column of the kernel and its entries of the bias and of the norm behind,
    and the rows of the kernels that sum over it. The channels of a residual stream are
    units of all layers that write to it; attention heads are units, and so are the
    entries of the values' heads; a flattened map has several places a channel.

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
      >>> find_units(apply, params, jnp.ones((1, 4)))
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
    return outputs


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


def _groups(units: Units) -> dict[str, Group]:
    producers = [[m for m in some.members if m.produces] for some in units.classes]

    def entries(number: int) -> int:
        return sum(
            math.prod(units.shapes[member.leaf]) * int((member.index >= 0).sum())
            // len(member.index)
            for member in producers[number]
        )  # fmt: skip

    # By leaf: the axis, and the classes along it with their indices.
    taken: dict[str, tuple[int, list[tuple[int, np.ndarray]]]] = {}

    def is_free(member: Member) -> bool:
        axis, lines = taken.get(member.leaf, (member.axis, []))
        return axis == member.axis and not any(
            ((index >= 0) & (member.index >= 0)).any() for _, index in lines
        )

    for number in sorted(range(len(producers)), key=entries, reverse=True):
        some = producers[number]
        several = len({member.leaf for member in some}) < len(some)
        if some and not several and all(map(is_free, some)):
            for member in some:
                lines = taken.setdefault(member.leaf, (member.axis, []))[1]
                lines.append((number, member.index))
    return _numbered(units, taken)


def _numbered(
    units: Units, taken: dict[str, tuple[int, list[tuple[int, np.ndarray]]]]
) -> dict[str, Group]:
    """Puts classes that share leaves into one layer, and numbers its units."""
    layer_of: dict[int, int] = {}  # the first class of the layer
    for _, lines in taken.values():
        numbers = [number for number, _ in lines]
        known = {layer_of.get(number, number) for number in numbers}
        first = min(known)
        for number, layer in [*layer_of.items(), *((n, n) for n in numbers)]:
            if layer in known:
                layer_of[number] = first
    starts, totals = {}, {}
    for number in sorted(layer_of):
        layer = layer_of[number]
        starts[number] = totals.get(layer, 0)
        totals[layer] = starts[number] + units.classes[number].size
    groups = {}
    for leaf, (axis, lines) in taken.items():
        index = np.full(len(lines[0][1]), -1)
        for number, line in lines:
            index = np.where(line >= 0, line + starts[number], index)
        layer = layer_of[lines[0][0]]
        groups[leaf] = Group(axis, index, units.classes[layer].name, totals[layer])
    return groups


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


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
