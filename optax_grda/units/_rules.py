"""What primitives do with axes: those that sum over none."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda.units import _values
from optax_grda.units._dims import Dim, concatenation, freeze, pieces, product, unify
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Sources, Walk, rule

# Computed by NumPy where entries are known; the others by JAX.
_NUMPY = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "copy": np.positive,
    "cos": np.cos,
    "div": lambda x, y: (
        x / y if x.dtype.kind != "i" else np.trunc(x / y).astype(x.dtype)
    ),
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
_JAX = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "clamp"),
    *("complex", "conj", "cosh", "digamma", "erf", "erf_inv", "erfc", "imag"),
    *("integer_pow", "lgamma", "nextafter", "population_count", "pow", "real", "rem"),
    *("round", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("sinh", "tan"),
}
_IDENTITIES = {
    *("copy_p", "device_put", "name", "optimization_barrier", "reduce_precision"),
    *("reshard", "sharding_constraint", "stop_gradient"),
}


def _unified(equation: JaxprEqn, inputs: Sequence[Array]) -> tuple[list[Dim], Sources]:
    """The axes of arrays that are run over together; scalars have none."""
    long = [array for array in inputs if array.dims]
    if not long:
        return [], ()
    dims = list(long[0].dims)
    for other in long[1:]:
        for axis, (x, y) in enumerate(zip(dims, other.dims, strict=True)):
            if x.size == y.size:
                unify(x, y, equation)
            elif x.size == 1:  # which is repeated
                dims[axis] = y
    sources = zip(*(array.sources for array in long), strict=True)
    return dims, tuple(frozenset().union(*axis) for axis in sources)


ELEMENTWISE = ("mul", "convert_element_type", "select_n", *_NUMPY, *_JAX)


@rule(*ELEMENTWISE)
def _elementwise(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    dims, sources = _unified(equation, inputs)

    def value() -> Value:
        values: list[Any] = [array.value for array in inputs]
        name = equation.primitive.name
        if name == "mul":
            return _values.times(*values, len(dims))
        if name == "select_n":
            return _select(values, len(dims))
        function = _NUMPY.get(name)
        if name == "convert_element_type":
            dtype = equation.params["new_dtype"]
            function = lambda x: x.astype(dtype)  # noqa: E731
        result = _values.elementwise(function or _in_jax(equation), values, len(dims))
        return _values.where_known(result.array, result.known)

    return [walk.array(dims, inputs, value, sources)]


def _in_jax(equation: JaxprEqn) -> Any:
    def function(*arrays: np.ndarray) -> np.ndarray:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        full = (jnp.asarray(np.broadcast_to(array, shape)) for array in arrays)
        return np.asarray(equation.primitive.bind(*full, **equation.params))

    return function


def _select(values: Sequence[Value], ndim: int) -> Value:
    """One of the cases: the one chosen where that is known, or what all are."""
    which, *cases = values
    if not which.known.all():
        return _values.joined(cases)

    def choose(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
        return np.choose(which.astype(np.int32), cases)

    def known(x: np.ndarray) -> Value:
        return _values.exactly(x)

    array, chosen = (
        _values.elementwise(choose, [which, *map(known, parts)], ndim).array
        for parts in ([c.array for c in cases], [c.known for c in cases])
    )
    return _values.where_known(array, chosen)


@rule(*_IDENTITIES)
def _identity(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    return [
        walk.array(a.dims, [a], lambda a=a: a.value, a.sources)  # pyright: ignore
        for a in inputs
    ]


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
    if equation.params["dimensions"] is not None:
        raise NotImplementedError("a reshape that also transposes")
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
    params, (source,) = equation.params, equation.invars[:1]
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


@rule("concatenate")
def _concatenate(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    axis = equation.params["dimension"]
    dims, _ = _unified(equation, [_without(array, axis) for array in inputs])
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
    dims, _ = _unified(equation, inputs)
    for axis in axes:
        freeze(dims[axis], equation)

    def value(array: Array) -> Value:
        zero = _values.elementwise(lambda x: x == 0, [array.value], len(dims))  # pyright: ignore
        moves = equation.primitive.name in ("rev", "sort", "cumsum")
        known = zero.array & zero.known & moves
        for axis in axes:
            known = known.all(axis=axis, keepdims=True)
        nothing = np.zeros(known.shape, array.value.array.dtype)  # pyright: ignore
        return _values.where_known(nothing, known)

    return [walk.array(dims, inputs, lambda a=a: value(a)) for a in inputs]


def _shape(equation: JaxprEqn) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape  # pyright: ignore
