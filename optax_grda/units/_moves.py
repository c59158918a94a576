"""What primitives do with axes: those that move whole axes, merge or split them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda.units import _values
from optax_grda.units._dims import Dim, freeze, product, unify
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Walk, freeze_all, rule


@rule("transpose")
def _transpose(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    order = equation.params["permutation"]
    return [_moved(walk, equation, x, order)]


@rule("squeeze")
def _squeeze(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    gone = [axis % len(x.dims) for axis in equation.params["dimensions"]]
    order = [axis for axis in range(len(x.dims)) if axis not in gone]
    return [_moved(walk, equation, x, order)]


@rule("broadcast_in_dim")
def _broadcast(walk: Walk, equation: JaxprEqn, x: Array, *_: Array) -> list[Array]:
    places, shape = equation.params["broadcast_dimensions"], equation.params["shape"]
    dims = [Dim(length) for length in shape]
    sources = [frozenset()] * len(shape)
    for axis, place in enumerate(places):
        if x.dims[axis].size == shape[place]:
            dims[place], sources[place] = x.dims[axis], x.sources[axis]
    return [
        walk.array(dims, [x], lambda: move(equation, x.value), tuple(sources))  # pyright: ignore
    ]


def _moved(walk: Walk, equation: JaxprEqn, x: Array, order: Sequence[int]) -> Array:
    dims, sources = ([some[a] for a in order] for some in (x.dims, x.sources))
    return walk.array(dims, [x], lambda: move(equation, x.value), tuple(sources))  # pyright: ignore


@rule("reshape")
def _reshape(walk: Walk, equation: JaxprEqn, x: Array, *_: Array) -> list[Array]:
    shape = equation.params["new_sizes"]
    if equation.params["dimensions"] is not None:  # it also transposes
        return freeze_all(walk, equation, x)
    dims = [Dim(length) for length in shape]
    sources = [frozenset()] * len(shape)
    for before, after in _reshaped(x.shape, shape):
        old = [x.dims[axis] for axis in before if x.dims[axis].size != 1]
        new = [axis for axis in after if shape[axis] != 1]
        if 0 in x.shape:
            for dim in (*old, *dims):
                freeze(dim, equation)
        elif len(old) == len(new) == 1:
            dims[new[0]] = old[0]
        elif new:
            unify(product(old), product([dims[axis] for axis in new]), equation)
        for axis in new:
            sources[axis] = frozenset().union(*(x.sources[a] for a in before))
    return [
        walk.array(dims, [x], lambda: move(equation, x.value), tuple(sources))  # pyright: ignore
    ]


def move(equation: JaxprEqn, value: Value) -> Value:
    """What a transpose, reshape, broadcast or cast makes of a value."""
    params = equation.params
    source: Any = equation.invars[0]
    match equation.primitive.name:
        case "transpose":
            order = params["permutation"]
            return _values.apply(lambda x: x.transpose(order), value)
        case "squeeze":
            gone = params["dimensions"]
            return _values.apply(lambda x: np.squeeze(x, tuple(gone)), value)
        case "broadcast_in_dim":
            lengths = [1] * len(params["shape"])
            for place, n in zip(
                params["broadcast_dimensions"], value.array.shape, strict=True
            ):
                lengths[place] = n
            return _values.apply(lambda x: x.reshape(lengths), value)
        case "reshape":
            return reshape_value(value, source.aval.shape, params["new_sizes"])
        case _:  # a cast, or a copy
            return value


MOVES = ("transpose", "squeeze", "broadcast_in_dim", "reshape", "convert_element_type")


def reshape_value(value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    lengths = [1] * len(new)
    for before, after in _reshaped(old, new):
        if any(value.array.shape[axis] != 1 for axis in before):
            value = _values.expand(value, before, old)
            for axis in after:
                lengths[axis] = new[axis]
    value = _values.apply(lambda x: x.reshape(lengths), value)
    return _values.where_known(value.array, value.known)


def _reshaped(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes that a reshape maps to runs of axes."""
    if 0 in old:
        return [(range(len(old)), range(len(new)))]
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start, before, after = (i, j), 1, 1
        if i < len(old):
            before, i = old[i], i + 1
        if j < len(new):
            after, j = new[j], j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        runs.append((range(start[0], i), range(start[1], j)))
    return runs
