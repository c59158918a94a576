"""What the outputs of a network depend on: the way back through its program.

What is needed of an array is a mask, with axes of length 1 where it doesn't vary. A
channel of a residual stream may be needed at one place of the stream and not at
another: it is kept if it is anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_grda.units._dims import Dim, any_over, kept, mark
from optax_grda.units._elementwise import ELEMENTWISE
from optax_grda.units._moves import MOVES, reshape_value
from optax_grda.units._values import Side, Value
from optax_grda.units._walk import Array, Contraction, Node, Walk

# By atom, which units are needed.
Needed = dict[Dim, np.ndarray]
Mask = np.ndarray


def find_needed(
    walk: Walk,
    leaves: Sequence[Array],
    outputs: Sequence[Array],
    takes_constants: Mapping[int, Any],
    least: int,
) -> Needed:
    """By atom of the leaves, the units that the outputs depend on.

    Args:
      walk: over the program.
      leaves, outputs: of the program.
      takes_constants: by id of a contraction, whether there is a place for constants
        that are no longer summed over.
      least: how many units of each class stay in any case.
    """
    needed: Needed = {
        atom: np.arange(atom.size) < least
        for leaf in leaves
        for dim in leaf.dims
        for atom in dim.atoms
        if atom.frozen is None and atom.size > 1
    }
    sums = {id(some.output): some for some in walk.contractions}
    changes = True
    while changes:  # more than once if there are loops
        changes = False
        masks = {id(array): np.ones((1,) * len(array.dims), bool) for array in outputs}
        for node in reversed(walk.nodes):
            wanted = [_wanted(node, array, masks) for array in node.outputs]
            if not any(mask.any() for mask in wanted):
                continue
            some = sums.get(id(node.outputs[0]))
            if some is None:
                found = _back(node, wanted)
            else:
                constants = bool(takes_constants[id(some)])
                found, new = _demand(some, wanted[0], constants, needed)
                changes |= new
            for array, mask in zip(node.inputs, found, strict=True):
                masks[id(array)] = masks.get(id(array), False) | mask
    return needed


def _wanted(node: Node, array: Array, masks: dict[int, Mask]) -> Mask:
    """What is needed of an output; of those in loops, everything."""
    nothing = np.zeros((1,) * len(array.dims), bool)
    return masks.get(id(array), nothing) if node.once else ~nothing


def _back(node: Node, wanted: Sequence[Mask]) -> list[Mask]:
    """What is needed of the inputs of an equation that sums over no units."""
    name = node.equation.primitive.name
    if name in ELEMENTWISE:
        return _elementwise(node, wanted[0])
    if name in MOVES or name in _RULES:
        rule = _RULES[name]
        first = rule(node, *wanted)
        return first if isinstance(first, list) else [first, *_all(node.inputs[1:])]
    return _all(node.inputs)


def _all(arrays: Sequence[Array]) -> list[Mask]:
    return [np.ones((1,) * len(array.dims), bool) for array in arrays]


def _elementwise(node: Node, wanted: Mask) -> list[Mask]:
    """Entries of factors of zero aren't needed, nor what doesn't change the result."""
    value: Any = node.outputs[0].value
    found = []
    for number, array in enumerate(node.inputs):
        own: Any = array.value
        if not array.dims:
            found.append(np.asarray(wanted.any()))
            continue
        mask = wanted & (own.known | ~value.known)
        if node.equation.primitive.name == "mul":
            mask = mask & node.inputs[1 - number].value.nonzero  # pyright: ignore
        repeated = [
            axis
            for axis, (n, m) in enumerate(
                zip(array.shape, node.outputs[0].shape, strict=True)
            )
            if n != m
        ]
        found.append(any_over(mask, repeated, keepdims=True))
    return found


def _transpose(node: Node, wanted: Mask) -> Mask:
    order = node.equation.params["permutation"]
    return wanted.transpose(np.argsort(order).tolist())


def _squeeze(node: Node, wanted: Mask) -> Mask:
    return np.expand_dims(wanted, tuple(node.equation.params["dimensions"]))


def _broadcast(node: Node, wanted: Mask) -> Mask:
    places = node.equation.params["broadcast_dimensions"]
    x, y = node.inputs[0], node.outputs[0]
    same = [p for p, dim in zip(places, x.dims, strict=True) if dim.size == y.shape[p]]
    others = tuple(axis for axis in range(wanted.ndim) if axis not in same)
    wanted = any_over(wanted, others, keepdims=True)
    new = tuple(axis for axis in range(wanted.ndim) if axis not in places)
    return np.squeeze(wanted, new)


def _reshape(node: Node, wanted: Mask) -> Mask:
    old, new = node.outputs[0].shape, node.inputs[0].shape
    return reshape_value(Value(wanted, np.ones_like(wanted)), old, new).array


def _reduce(node: Node, wanted: Mask) -> Mask:
    return np.expand_dims(wanted, node.equation.params["axes"])


def _where_same(node: Node, wanted: Mask) -> Mask:
    """Along axes that stay, what is needed; along others all, if any is."""
    x, y = node.inputs[0], node.outputs[0]
    others = tuple(
        axis
        for axis, (before, after) in enumerate(zip(x.dims, y.dims, strict=True))
        if before.root is not after.root
    )
    return any_over(wanted, others, keepdims=True)


def _along(node: Node, *wanted: Mask) -> list[Mask]:
    """Those that mix entries along some axes."""
    params = node.equation.params
    axes = params.get("dimensions", [params.get("axis", params.get("dimension"))])
    mask = wanted[0]
    for other in wanted[1:]:
        mask = mask | other
    return [any_over(mask, axes, keepdims=True)] * len(node.inputs)


def _concatenate(node: Node, wanted: Mask) -> list[Mask]:
    axis = node.equation.params["dimension"]
    if wanted.shape[axis] == 1:
        return [wanted] * len(node.inputs)
    ends = np.cumsum([array.shape[axis] for array in node.inputs])
    return np.split(wanted, ends[:-1], axis)


def _split(node: Node, *wanted: Mask) -> Mask:
    axis = node.equation.params["axis"]
    lengths = [array.shape[axis] for array in node.outputs]
    shape = np.broadcast_shapes(
        *((*m.shape[:axis], 1, *m.shape[axis + 1 :]) for m in wanted)
    )
    parts = [
        np.broadcast_to(mask, (*shape[:axis], length, *shape[axis + 1 :]))
        for mask, length in zip(wanted, lengths, strict=True)
    ]
    return np.concatenate(parts, axis)


def _stack(node: Node, wanted: Mask) -> list[Mask]:
    axis = node.equation.params["axis"]
    last = wanted.shape[axis] - 1  # 0 where all are wanted alike
    return [wanted.take(min(n, last), axis) for n in range(len(node.inputs))]


def _unstack(node: Node, *wanted: Mask) -> Mask:
    shape = np.broadcast_shapes(*(mask.shape for mask in wanted))
    full = [np.broadcast_to(mask, shape) for mask in wanted]
    return np.stack(full, node.equation.params["axis"])


def _slice(node: Node, wanted: Mask) -> Mask:
    params, shape = node.equation.params, list(wanted.shape)
    x, y = node.inputs[0].shape, node.outputs[0].shape
    places = []
    strides = params["strides"] or (1,) * len(x)
    for axis, bounds in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        if x[axis] == y[axis]:
            places.append(slice(None))
        else:
            shape[axis] = x[axis]
            places.append(slice(*bounds))
    mask = np.zeros(shape, bool)
    mask[tuple(places)] = wanted
    return mask


def _pad(node: Node, wanted: Mask) -> list[Mask]:
    places, once = [], []
    for axis, (low, high, interior) in enumerate(
        node.equation.params["padding_config"]
    ):
        if wanted.shape[axis] == 1:
            places.append(slice(None))
        elif low < 0 or high < 0 or interior:
            once.append(axis)
            places.append(slice(None))
        else:
            places.append(slice(low, wanted.shape[axis] - high))
    mask = any_over(wanted[tuple(places)], once, keepdims=True)
    return [mask, np.ones((), bool)]


_RULES: dict[str, Callable[..., Any]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _where_same,
    "dynamic_slice": _where_same,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _where_same
    ),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "sort"), _along
    ),
}


def _demand(
    some: Contraction, wanted: Mask, takes_constants: bool, needed: Needed
) -> tuple[list[Mask], bool]:
    """What is needed of the factors of a contraction; marks the units summed over."""
    (a, b), (dims, others) = some.sides, some.dims
    wanted = some.begin(np.broadcast_to(wanted, some.output.shape))
    alive, place = ([], []), len(a.batch)
    for side, mine, axes in zip((a, b), alive, (dims, others), strict=True):
        for axis in side.free:
            rest = tuple(x for x in range(wanted.ndim) if x != place)
            mine.append(any_over(wanted, rest) & kept(axes[axis], needed))
            place += 1

    def terms(x: Mask, y: Mask) -> Mask:
        return _reach(a, x, alive[0]) & _reach(b, y, alive[1])

    found = terms(a.nonzero, b.nonzero)
    if takes_constants:  # of units that go; those that stay are summed over
        varies = terms(a.nonzero & ~a.known, b.nonzero)
        varies = varies | terms(a.nonzero, b.nonzero & ~b.known)
        stays = _outer([kept(dims[axis], needed) for axis in a.contracted])
        found = varies | (found & stays)
    left = _outer([kept(dims[axis], needed) for axis in a.batch])
    found = found & left.reshape(left.shape + (1,) * len(a.contracted))
    summed = any_over(found, range(len(a.batch)))
    new = False
    for place, axis in enumerate(a.contracted):
        rest = tuple(x for x in range(summed.ndim) if x != place)
        new |= mark(dims[axis], any_over(summed, rest), needed)
    return some.back(found), new


def _outer(masks: Sequence[Mask]) -> Mask:
    result = np.ones((), bool)
    for mask in masks:
        result = np.logical_and.outer(result, mask)
    return result


def _reach(side: Side, mask: Mask, alive: Sequence[Mask]) -> Mask:
    """Where a mask of a side reaches anything needed: (batch, contracted)."""
    for axis, living in zip(side.free, alive, strict=True):
        shape = [1] * mask.ndim
        if mask.shape[axis] == 1:
            living = any_over(living, [0], keepdims=True)
        shape[axis] = -1
        mask = any_over(mask & living.reshape(shape), [axis], keepdims=True)
    mask = mask.transpose(*side.batch, *side.contracted, *side.free)
    return mask.reshape(mask.shape[: mask.ndim - len(side.free)])
