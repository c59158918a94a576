"""Where constants go that a sum has no longer: to the bias behind it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_grda.units import _values
from optax_grda.units._dims import any_over, kept
from optax_grda.units._moves import MOVES, move
from optax_grda.units._needs import Needed
from optax_grda.units._values import Side, Value
from optax_grda.units._walk import Array, Contraction, Node, Walk


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


# By id of an array, what reads it; None stands for an output.
Readers = dict[int, list[Node | None]]


def readers_of(nodes: Sequence[Node], outputs: Sequence[Array]) -> Readers:
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


def find_sinks(
    walk: Walk, leaves: Sequence[Array], readers: Readers
) -> dict[int, Sink | None]:
    """By id of a contraction, the bias or mean that is added to it, if there is one.

    Contractions are replaced by what such a leaf can take: of constants that differ
    from place to place, a bias takes none.
    """
    starts, sinks = _starts(walk.nodes, leaves, readers), {}
    for number, some in enumerate(walk.contractions):
        sink = _added(some, starts, readers) if some.once else None
        if sink is not None and not sink.takes(_shape_of(some)):
            some = dataclasses.replace(some, sides=tuple(map(_uniform, some.sides)))  # pyright: ignore
            walk.contractions[number] = some
            sink = sink if sink.takes(_shape_of(some)) else None
        sinks[id(some)] = sink
    return sinks


def _added(
    contraction: Contraction,
    starts: dict[int, tuple[int, np.ndarray]],
    readers: Readers,
) -> Sink | None:
    """The leaf that is added to a sum that has no other use."""
    array, sign, path = contraction.output, 1, []
    while len(found := readers.get(id(array), [])) == 1:
        (node,) = found
        if node is None:
            return None
        name = node.equation.primitive.name
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
                return Sink(leaf, -sign if taken_off else sign, path, places)
        elif name not in MOVES:
            return None
        path.append(node)
        (array,) = node.outputs
    return None


def _uniform(side: Side) -> Side:
    """The data of a contraction, as far as they don't vary along their free axes.

    Weights, which have one free axis, vary along it.
    """
    if not side.data:
        return side
    array, known, nonzero = side.array, side.known, side.nonzero
    for axis in side.free:
        first = array.take([0], axis)
        known = ~any_over(~known | (array != first), [axis], keepdims=True)
        nonzero = any_over(nonzero, [axis], keepdims=True)
        array = np.where(known, first, 0)
    return dataclasses.replace(side, array=array, known=known, nonzero=nonzero)


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


def fold(
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
