"""What primitives do with axes: those that take parts of them, or join some."""

import functools
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda.units import _values
from optax_grda.units._dims import (
    Dim,
    any_over,
    concatenation,
    freeze,
    pieces,
    product,
    unify,
)
from optax_grda.units._elementwise import unified
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Walk, rule


@rule("concatenate")
def _concatenate(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    axis = equation.params["dimension"]
    dims, _ = unified(equation, [_without(array, axis) for array in inputs])
    dims.insert(axis, concatenation([array.dims[axis] for array in inputs]))
    sources = [
        frozenset().union(*(array.sources[a] for array in inputs))
        for a in range(len(dims))
    ]

    def value() -> Value:
        values: list[Any] = [
            _values.expand(array.value, [axis], array.shape)  # pyright: ignore
            for array in inputs
        ]
        lengths = [
            max(value.array.shape[a] for value in values) for a in range(len(dims))
        ]
        others = [a for a in range(len(dims)) if a != axis]
        values = [_values.expand(value, others, lengths) for value in values]
        return _values.where_known(
            np.concatenate([value.array for value in values], axis),
            np.concatenate([value.known for value in values], axis),
        )

    return [walk.array(dims, inputs, value, tuple(sources))]


def _without(array: Array, axis: int) -> Array:
    dims, sources = list(array.dims), list(array.sources)
    del dims[axis], sources[axis]
    return Array(tuple(dims), tuple(sources), array.data, None)


@rule("slice")
def _slice(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    params = equation.params
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    dims = []
    ranges = [slice(*some) for some in zip(starts, limits, strides, strict=True)]
    for dim, length, places in zip(x.dims, _shape(equation), ranges, strict=True):
        if length == dim.size:
            dims.append(dim)
        elif places.step == 1:
            sizes = (places.start, length, dim.size - places.stop)
            dims.append(pieces(dim, sizes, equation)[1])
        else:
            freeze(dim, equation)
            dims.append(Dim(length, equation))

    def value() -> Value:
        long = [n > 1 for n in x.value.array.shape]  # pyright: ignore
        index = tuple(
            r if n else slice(None) for n, r in zip(long, ranges, strict=True)
        )
        found = _values.apply(lambda array: array[index], x.value)  # pyright: ignore
        return _values.where_known(found.array, found.known)

    return [walk.array(dims, [x], value, x.sources)]


@rule("split")
def _split(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    parts = pieces(x.dims[axis], sizes, equation)
    outputs, start = [], 0
    for part in parts:
        places = slice(start, start + part.size)
        start += part.size

        def value(places: slice = places) -> Value:
            value: Any = x.value
            if value.array.shape[axis] == 1:
                return value
            index = (*[slice(None)] * axis, places)
            found = _values.apply(lambda array: array[index], value)
            return _values.where_known(found.array, found.known)

        dims = [*x.dims[:axis], part, *x.dims[axis + 1 :]]
        outputs.append(walk.array(dims, [x], value, x.sources))
    return outputs


@rule("unstack")
def _unstack(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    axis = equation.params["axis"]
    freeze(x.dims[axis], equation)
    left = _without(x, axis)

    def value(place: int) -> Value:
        assert x.value is not None
        place = min(place, x.value.array.shape[axis] - 1)
        found = _values.apply(lambda array: array.take(place, axis), x.value)
        return _values.where_known(found.array, found.known)

    return [
        walk.array(left.dims, [x], functools.partial(value, place), left.sources)
        for place in range(x.shape[axis])
    ]


@rule("stack")
def _stack(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    axis = equation.params["axis"]
    dims, sources = unified(equation, inputs)
    dims.insert(axis, Dim(len(inputs), equation))

    def value() -> Value:
        values: list[Any] = [array.value for array in inputs]
        lengths = np.broadcast_shapes(*(v.array.shape for v in values))
        values = [_values.expand(v, range(len(lengths)), lengths) for v in values]
        return _values.where_known(
            np.stack([v.array for v in values], axis),
            np.stack([v.known for v in values], axis),
        )

    sources = (*sources[:axis], frozenset(), *sources[axis:])
    return [walk.array(dims, inputs, value, sources)]


@rule("tile")
def _tile(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    reps = equation.params["reps"]
    dims = [
        dim if n == 1 else product([Dim(n), dim])
        for n, dim in zip(reps, x.dims, strict=True)
    ]

    def value() -> Value:
        assert x.value is not None
        counts = [
            n if length > 1 else 1
            for n, length in zip(reps, x.value.array.shape, strict=True)
        ]
        return _values.apply(lambda array: np.tile(array, counts), x.value)

    return [walk.array(dims, [x], value, x.sources)]


@rule("pad")
def _pad(walk: Walk, equation: JaxprEqn, x: Array, padding: Array) -> list[Array]:
    dims, config = [], equation.params["padding_config"]
    for dim, (low, high, interior) in zip(x.dims, config, strict=True):
        if (low, high, interior) == (0, 0, 0):
            dims.append(dim)
        elif interior or low < 0 or high < 0:
            freeze(dim, equation)
            length = max(0, low + high + dim.size + interior * max(0, dim.size - 1))
            dims.append(Dim(length, equation))
        else:
            ends = Dim(low, equation), Dim(high, equation)
            dims.append(concatenation([ends[0], dim, ends[1]]))

    def value() -> Value:
        value, filler = x.value, padding.value
        assert value is not None
        assert filler is not None
        padded = [axis for axis, some in enumerate(config) if any(some)]
        if any(interior or min(low, high) < 0 for low, high, interior in config):
            reshaped = _values.apply(lambda f: f.reshape((1,) * len(dims)), filler)
            return _values.joined([_all_of(value), reshaped])
        value = _values.expand(value, padded, x.shape)
        widths = [(low, high) for low, high, _ in config]
        return _values.where_known(
            np.pad(value.array, widths, constant_values=filler.array.item()),
            np.pad(value.known, widths, constant_values=filler.known.item()),
        )

    return [walk.array(dims, [x, padding], value, x.sources)]


def _all_of(value: Value) -> Value:
    """What all entries are, if they are the same."""
    for axis in range(value.array.ndim):
        value = _values.joined_along(value, axis)
    return value


@rule("iota")
def _iota(walk: Walk, equation: JaxprEqn, *_: Array) -> list[Array]:
    params, shape = equation.params, _shape(equation)
    axis = params["dimension"]
    lengths = [1] * len(shape)
    lengths[axis] = shape[axis]

    def value() -> Value:
        places = np.arange(shape[axis]).astype(params["dtype"])
        return _values.exactly(places.reshape(lengths))

    dims = [Dim(n) if a != axis else Dim(n, equation) for a, n in enumerate(shape)]
    return [walk.array(dims, [], value)]


@rule("gather")
def _gather(walk: Walk, equation: JaxprEqn, x: Array, indices: Array) -> list[Array]:
    """Whole slices, as of embeddings; along the axes gathered from, all is frozen."""
    params = equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    whole = [size == dim.size for size, dim in zip(sizes, x.dims, strict=True)]
    for dim, is_whole in zip(x.dims, whole, strict=True):
        if not is_whole:
            freeze(dim, equation)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    left = [axis for axis in range(len(x.dims)) if axis not in gone]
    rest = iter(indices.dims[:-1])
    dims, sources, lengths = [], [], []
    value = x.value
    for axis in range(len(x.dims)):
        if value is not None and (not whole[axis] or axis in gone):
            value = _values.joined_along(value, axis)
    for place, length in enumerate(_shape(equation)):
        if place in numbers.offset_dims:
            axis = left[numbers.offset_dims.index(place)]
            dims.append(x.dims[axis] if whole[axis] else Dim(length, equation))
            sources.append(x.sources[axis])
            lengths.append(1 if value is None else value.array.shape[axis])
        else:
            dims.append(next(rest))
            sources.append(frozenset())
            lengths.append(1)
    for dim in indices.dims:  # batching axes are those of x too
        if numbers.operand_batching_dims:
            freeze(dim, equation)

    def found() -> Value:
        assert value is not None
        return _values.apply(lambda array: array.reshape(lengths), value)

    return [walk.array(dims, [x, indices], found, tuple(sources))]


@rule("dynamic_slice")
def _dynamic_slice(walk: Walk, equation: JaxprEqn, x: Array, *at: Array) -> list[Array]:
    dims, value = [], x.value
    for axis, length in enumerate(_shape(equation)):
        dim = x.dims[axis]
        if length == dim.size:
            dims.append(dim)
            continue
        freeze(dim, equation)
        dims.append(Dim(length, equation))
        if value is not None:
            value = _values.joined_along(value, axis)
    return [walk.array(dims, [x, *at], lambda: value, x.sources)]  # pyright: ignore


@rule("dynamic_update_slice")
def _dynamic_update_slice(
    walk: Walk, equation: JaxprEqn, x: Array, update: Array, *at: Array
) -> list[Array]:
    for dim, other in zip(x.dims, update.dims, strict=True):
        if dim.size == other.size:
            unify(dim, other, equation)
        else:
            freeze(dim, equation)
            freeze(other, equation)

    def value() -> Value:
        update_value, value = update.value, x.value
        assert update_value is not None
        for axis, (dim, other) in enumerate(zip(x.dims, update.dims, strict=True)):
            if dim.size != other.size:
                update_value = _values.joined_along(update_value, axis)
        return _values.joined([value, update_value])  # pyright: ignore

    return [walk.array(x.dims, [x, update, *at], value)]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "sort")
def _along(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    """Those that mix or move entries along some axes, which are frozen."""
    params = equation.params
    axes = params.get("dimensions", [params.get("axis", params.get("dimension"))])
    dims, _ = unified(equation, inputs)
    for axis in axes:
        freeze(dims[axis], equation)

    def value(array: Array) -> Value:
        assert array.value is not None
        zero = array.value.known & (array.value.array == 0)
        if equation.primitive.name not in ("rev", "sort", "cumsum"):
            zero = np.zeros_like(zero)
        zero = ~any_over(~zero, axes, keepdims=True)
        return _values.where_known(np.zeros(zero.shape, array.value.array.dtype), zero)

    return [walk.array(dims, inputs, lambda a=a: value(a)) for a in inputs]


def _shape(equation: JaxprEqn) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape  # pyright: ignore
