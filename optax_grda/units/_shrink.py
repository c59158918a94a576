"""Networks made smaller: units without influence are cut out."""

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._paths import dtype_of, named_leaves
from optax_grda.units import _values
from optax_grda.units._check import check_same
from optax_grda.units._dims import Dim, freeze, kept
from optax_grda.units._find import finish, leaf_array, trace
from optax_grda.units._moves import MOVES, move
from optax_grda.units._needs import Needed, find_needed
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Contraction, Node, Walk

PyTree = Any


def shrink(
    fn: Callable[..., Any], params: PyTree, *args: Any, keep: Sequence[str] = ()
) -> PyTree:
    """Cuts out of the parameters the units that have no influence on the outputs.

    A unit (see :func:`find_units`) has none if everything that sums over it does so
    with weights of zero, or if it is zero itself, on its way there: as all its incoming
    weights are, its bias, and what an activation makes of zero. If it is another
    constant, that times the weights is added to the bias behind, or taken off the
    running mean of a BatchNorm behind, and the unit goes: but it stays where there is
    neither, where they have other uses, and before a convolution that pads its input,
    whose border sees zeros in place of the constant. Units that nothing but such units
    read go as well; shrinking again would find nothing more.

    Nothing is trained or compressed here: outputs stay, to rounding. ``fn`` is traced
    and its units are found as :func:`find_units` finds them; what is known of zeros and
    constants is found on the way through its primitives, in NumPy. Then ``fn`` is run
    on random inputs, with the parameters and with the smaller ones.

    Args:
      fn: as for :func:`find_units`. It must take its widths from the parameters: if it
        fixes them, as modules of Linen do, it must be built anew.
      params: pytree of arrays.
      *args: other arguments of fn, arrays or ``jax.ShapeDtypeStruct`` in pytrees. The
        comparison draws random numbers in place of floats, and takes other arrays as
        they are (zeros in place of those without values). Few examples suffice.
      keep: patterns of paths, as of :func:`optax_grda.label_by_path`: leaves that keep
        their shapes, and so do others what they share with them. For heads, whose
        number modules fix: ``keep=["*attention*"]``.

    Returns:
      params with smaller arrays, of width 0 where nothing is left. Leaves that fn does
      not use have length 0 along their last axis.

    Raises:
      ValueError: if fn fixes a width itself, so that it does not take the smaller
        parameters or computes something else with them; the message names the place.
      TypeError: if params has leaves that are no arrays.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_grda.units import shrink
      >>> def apply(params, x):
      ...     hidden = jax.nn.relu(x @ params["in"]) @ params["out"]
      ...     return hidden + params["bias"]
      >>> params = {
      ...     "in": jnp.ones((4, 8)).at[:, :3].set(0),  # are zero
      ...     "out": jnp.ones((8, 1)).at[6:].set(0),  # are not read
      ...     "bias": jnp.ones((1, 1)),
      ... }
      >>> small = shrink(apply, params, jnp.ones((1, 4)))
      >>> small["in"].shape, small["out"].shape
      ((4, 3), (3, 1))
    """
    given = [leaf for _, leaf in named_leaves(params)]
    arrays = [_host(leaf) for leaf in given]
    walk, program = Walk(values=True), trace(fn, params, args)
    leaves = [
        leaf_array(number, leaf, _value(leaf, array))
        for number, (leaf, array) in enumerate(zip(given, arrays, strict=True))
    ]
    names = [name for name, _ in named_leaves(params)]
    for pattern in keep:
        matching = [fnmatch.fnmatchcase(name, pattern) for name in names]
        if not any(matching):
            raise ValueError(
                f"keep must match a leaf: {pattern!r} matches none of {names}"
            )
        for leaf in itertools.compress(leaves, matching):
            for dim in leaf.dims:
                freeze(dim, "keep")
    outputs = finish(walk, program, leaves, args)
    readers = _readers(walk.nodes, outputs)
    starts = _starts(walk.nodes, leaves, readers)
    sinks = {id(some): _sink(some, starts, readers) for some in walk.contractions}
    needed, folded = find_needed(walk, leaves, outputs, sinks), list(arrays)
    for some in walk.contractions:
        _fold(some, sinks[id(some)], needed, folded)
    small = []
    for leaf, before, array, start in zip(given, arrays, folded, leaves, strict=True):
        if id(start) in readers or not start.dims:
            small.append(_cut(leaf, array, array is not before, start.dims, needed))
        else:
            small.append(leaf[..., :0])
    result = jax.tree.unflatten(jax.tree.structure(params), small)
    check_same(fn, params, result, args, walk.nodes, needed)
    return result


def _host(leaf: Any) -> Any:
    """The leaf as an array of NumPy; random keys as they are."""
    extended = jnp.issubdtype(dtype_of(leaf), jax.dtypes.extended)
    return leaf if extended else np.asarray(jax.device_get(leaf))


def _value(leaf: Any, array: Any) -> Value:
    if isinstance(array, np.ndarray):
        return _values.exactly(array)
    return _values.unknown(len(leaf.shape), leaf.dtype)


@dataclasses.dataclass
class Sink:
    """A leaf that is added behind a sum, and so can take a constant.

    Attributes:
      leaf: its number.
      sign: -1 where it is taken off.
      path: what happens to the sum on its way to the leaf.
      places: of the array there, the entry of the leaf that is added.
    """

    leaf: int
    sign: int
    path: list[Node]
    places: np.ndarray

    def takes(self, value: Value) -> bool:
        """Whether it has a place for every entry of a value of the sum."""
        shapes = self.arrive(value).array.shape, self.places.shape
        return len(shapes[0]) == len(shapes[1]) and all(
            n in (1, m) for n, m in zip(*shapes, strict=True)
        )

    def arrive(self, value: Value) -> Value:
        """What a value of the sum is when it arrives."""
        for node in self.path:
            if node.equation.primitive.name in MOVES:
                value = move(node.equation, value)
        return value


Readers = dict[int, list[Node | None]]


def _readers(nodes: Sequence[Node], outputs: Sequence[Array]) -> Readers:
    """By id of an array, what reads it; None for fn's outputs."""
    readers: Readers = {}
    for node in nodes:
        for array in node.inputs:
            readers.setdefault(id(array), []).append(node)
    for array in outputs:
        readers.setdefault(id(array), []).append(None)
    return readers


def _starts(
    nodes: Sequence[Node], leaves: Sequence[Array], readers: Readers
) -> dict[int, tuple[int, np.ndarray]]:
    """By id, arrays that are a leaf and nothing else: which, and where its entries lie.

    Those that have other uses as well are left out.
    """
    found = {}
    for number, leaf in enumerate(leaves):
        if len(readers.get(id(leaf), [])) == 1:
            places = np.arange(math.prod(leaf.shape)).reshape(leaf.shape)
            found[id(leaf)] = number, places
    for node in nodes:
        (array, *_) = node.inputs or [None]
        if node.equation.primitive.name in MOVES and id(array) in found:
            (output,) = node.outputs
            if len(readers.get(id(output), [])) == 1:
                number, places = found[id(array)]
                value = move(node.equation, _values.exactly(places))
                found[id(output)] = number, value.array
    return found


def _sink(
    contraction: Contraction,
    starts: dict[int, tuple[int, np.ndarray]],
    readers: Readers,
) -> Sink | None:
    """The bias or mean that is added to a sum, if there is one."""
    if not contraction.once:
        return None
    array, sign, path = contraction.output, 1, []
    while len(found := readers.get(id(array), [])) == 1:
        (node,) = found
        name = "" if node is None else node.equation.primitive.name
        if node is None or len(node.outputs) != 1:
            return None
        if name in ("add", "add_any", "sub"):
            a, b = node.inputs
            other = b if a is array else a
            if other is array or len(array.dims) != len(node.outputs[0].dims):
                return None
            taken_off = name == "sub" and other is b
            if name == "sub" and other is a:
                sign = -sign
            if id(other) in starts:
                leaf, places = starts[id(other)]
                sink = Sink(leaf, -sign if taken_off else sign, path, places)
                return sink if sink.takes(_shape_of(contraction)) else None
        elif name not in MOVES:
            return None
        path.append(node)
        (array,) = node.outputs
    return None


def _shape_of(contraction: Contraction) -> Value:
    """A value of the shape that a contraction's constants have, of distinct entries."""
    a, b = contraction.sides
    batch = np.broadcast_shapes(
        *(tuple(side.array.shape[axis] for axis in side.batch) for side in (a, b))
    )
    free = [side.array.shape[axis] for side in (a, b) for axis in side.free]
    shape = (*batch, *free)
    entries = np.arange(math.prod(shape)).reshape(shape)
    return contraction.finish(_values.exactly(entries))


def _fold(
    some: Contraction, sink: Sink | None, needed: Needed, arrays: list[Any]
) -> None:
    """Adds the constants of units that go to the bias behind a sum."""
    if sink is None:
        return
    (a, b), (dims, _) = some.sides, some.dims
    gone = np.zeros((), bool)
    for axis in a.contracted:
        gone = np.logical_or.outer(gone, ~kept(dims[axis], needed))
    shape = [1] * a.array.ndim
    for axis, n in zip(a.contracted, gone.shape, strict=True):
        shape[axis] = n
    order = np.argsort(a.contracted).tolist()
    leaving = gone.transpose(order).reshape(shape)
    constant = np.where(leaving & a.known, a.array, 0).astype(np.float64)
    if not constant.any():
        return
    factors = (
        dataclasses.replace(side, array=array, known=np.ones_like(side.known))
        for side, array in ((a, constant), (b, np.float64(b.array)))
    )
    shift = sink.arrive(some.finish(_values.dot(*factors))).array
    leaf, places = arrays[sink.leaf], sink.places
    total = leaf.astype(np.float64).reshape(-1)
    total[places] += sink.sign * np.broadcast_to(shift, places.shape)
    arrays[sink.leaf] = total.reshape(leaf.shape).astype(leaf.dtype)


def _cut(
    given: Any, array: Any, folded: bool, dims: Sequence[Dim], needed: Needed
) -> Any:
    """A leaf without the units that are not needed."""
    places = [np.flatnonzero(kept(dim, needed)) for dim in dims]
    if all(len(p) == dim.size for p, dim in zip(places, dims, strict=True)):
        return jnp.asarray(array) if folded else given
    return jnp.asarray(array[np.ix_(*places)])
