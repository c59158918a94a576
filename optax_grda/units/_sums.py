"""What primitives do with axes: those that sum, or take a maximum, over some."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda.units import _values
from optax_grda.units._dims import Dim, any_over, freeze, split, unify
from optax_grda.units._values import Side, Value
from optax_grda.units._walk import Array, Contraction, Walk, rule


@rule("dot_general")
def _dot_general(walk: Walk, equation: JaxprEqn, a: Array, b: Array) -> list[Array]:
    contracting, batch = equation.params["dimension_numbers"]
    for axes in (contracting, batch):
        for x, y in zip(*axes, strict=True):
            unify(a.dims[x], b.dims[y], equation)
    if a.data and b.data:
        # Scores are as a rule scaled by the length of what they are summed over.
        for axis in contracting[0]:
            freeze(a.dims[axis], equation)
    free = [
        [axis for axis in range(len(x.dims)) if axis not in (*c, *d)]
        for x, c, d in zip((a, b), contracting, batch, strict=True)
    ]
    places = [(a, axis) for axis in (*batch[0], *free[0])]
    places += [(b, axis) for axis in free[1]]
    _produce(walk, a, b, contracting)
    sources = tuple(array.sources[axis] for array, axis in places)
    dims = [array.dims[axis] for array, axis in places]
    sides = _sides(a, b, contracting, batch) if walk.values else None
    output = walk.array(dims, (a, b), lambda: _values.dot(*sides), sources)  # pyright: ignore
    if sides:
        once, axes = not walk.depth, (a.dims, b.dims)
        walk.contractions.append(
            Contraction(sides, axes, output, _same, _same, _back(sides), once)
        )
    return [output]


def _same(x: Any) -> Any:
    return x


def _back(sides: tuple[Side, Side]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """From a mask (batch, contracted) to masks of both factors."""

    def back(mask: np.ndarray) -> list[np.ndarray]:
        masks = []
        for side in sides:
            order = (*side.batch, *side.contracted, *side.free)
            mine = mask.reshape(mask.shape + (1,) * len(side.free))
            masks.append(mine.transpose(np.argsort(order).tolist()))
        return masks

    return back


def _sides(a: Array, b: Array, contracting: Any, batch: Any) -> tuple[Side, Side]:
    sides = []
    for array, contracted, batched in zip((a, b), contracting, batch, strict=True):
        assert array.value is not None
        value = _values.expand(array.value, contracted, array.shape)
        sides.append(
            Side(
                value.array,
                value.known,
                value.nonzero,
                array.data,
                tuple(contracted),
                tuple(batched),
            )
        )
    return sides[0], sides[1]


def _produce(walk: Walk, a: Array, b: Array, contracting: Any) -> None:
    """Notes the units that weights make of data: not those that they sum over."""
    for array, other, contracted in zip((a, b), (b, a), contracting, strict=True):
        if other.data:
            for axis, sources in enumerate(array.sources):
                if axis not in contracted:
                    walk.produced.update(sources)


@rule("conv_general_dilated")
def _conv(walk: Walk, equation: JaxprEqn, x: Array, kernel: Array) -> list[Array]:
    params = equation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    _, channel, *pixels = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    if params["batch_group_count"] != 1:
        for dim in (*x.dims, *kernel.dims):
            freeze(dim, equation)
    for array, axes in ((x, pixels), (kernel, window)):
        for axis in axes:
            freeze(array.dims[axis], equation)
    depth, features = kernel.dims[into], kernel.dims[out]
    group, inner = split(x.dims[channel], (groups, depth.size), equation)
    unify(inner, depth, equation)
    same, outer = split(features, (groups, features.size // groups), equation)
    unify(group, same, equation)
    _produce(walk, x, kernel, ([channel], [into]))

    aval: Any = equation.outvars[0].aval
    batch, place, *_ = numbers.out_spec
    dims = [Dim(length, equation) for length in aval.shape]
    dims[batch], dims[place] = x.dims[numbers.lhs_spec[0]], features
    if not walk.values:
        return [walk.unknown(dims, (x, kernel), aval)]

    lengths = [1] * len(dims)
    lengths[place] = features.size

    def finish(value: Value) -> Value:
        """From (groups, features of one) to the axes of the output."""
        value = _values.expand(value, (0, 1), (groups, outer.size))
        return _values.apply(lambda array: array.reshape(lengths), value)

    def begin(mask: np.ndarray) -> np.ndarray:
        others = tuple(axis for axis in range(len(dims)) if axis != place)
        return mask.any(axis=others).reshape(groups, outer.size)

    def back(mask: np.ndarray) -> list[np.ndarray]:
        lengths = [1] * len(dims)
        lengths[channel] = mask.size
        return [mask.reshape(lengths), np.ones((1,) * len(dims), bool)]

    taps = _taps(kernel, into, out, groups)
    sides = _channels(x, channel, groups, _pads(params)), taps
    output = walk.array(dims, (x, kernel), lambda: finish(_values.dot(*sides)))
    axes = (group, inner), (group, inner, outer)
    walk.contractions.append(
        Contraction(sides, axes, output, finish, begin, back, not walk.depth)
    )
    return [output]


def _pads(params: dict[str, Any]) -> bool:
    """Whether some taps may meet zeros that are not of the image."""
    padding, dilation = params["padding"], params["lhs_dilation"]
    return any(any(some) for some in padding) or any(d != 1 for d in dilation)


def _channels(x: Array, channel: int, groups: int, pads: bool) -> Side:
    """The image, (groups, channels of one): what is known of a channel everywhere."""
    assert x.value is not None
    value = x.value
    for axis in range(len(x.dims)):
        if axis != channel:
            value = _values.joined_along(value, axis)
    value = _values.expand(value, [channel], x.shape)
    shape = groups, x.shape[channel] // groups
    array, known = value.array.reshape(shape), value.known.reshape(shape)
    if pads:
        known = known & (array == 0)
    return Side(array, known, ~known | (array != 0), x.data, (1,), (0,))


def _taps(kernel: Array, into: int, out: int, groups: int) -> Side:
    """The kernel, (groups, channels of one, features of one)."""
    assert kernel.value is not None
    value = _values.expand(kernel.value, range(len(kernel.dims)), kernel.shape)

    def arrange(array: np.ndarray) -> np.ndarray:
        """(taps, groups, channels, features)"""
        array = np.moveaxis(array, (into, out), (-2, -1))
        *window, depth, features = array.shape
        taps = math.prod(window)
        array = array.reshape(taps, depth, groups, features // groups)
        return array.swapaxes(1, 2)

    dtype = np.result_type(value.array.dtype, np.float32)
    return Side(
        arrange(value.array).sum(axis=0, dtype=dtype),
        ~any_over(arrange(~value.known), [0]),
        any_over(arrange(value.nonzero), [0]),
        kernel.data,
        (1,),
        (0,),
    )


@rule(
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
)
def _reduce(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    """A mean over units would be another one if some were cut out: so none are."""
    axes = equation.params["axes"]
    for axis in axes:
        freeze(x.dims[axis], equation)
    left = [axis for axis in range(len(x.dims)) if axis not in axes]
    dims = [x.dims[axis] for axis in left]
    sources = tuple(x.sources[axis] for axis in left)
    aval: Any = equation.outvars[0].aval
    if not equation.primitive.name.startswith("reduce"):
        return [walk.unknown(dims, [x], aval)]
    return [
        walk.array(
            dims, [x], lambda: _reduced(equation, x, tuple(axes)), tuple(sources)
        )
    ]


def _reduced(equation: JaxprEqn, x: Array, axes: tuple[int, ...]) -> Value:
    assert x.value is not None
    array, known = x.value.array, x.value.known
    hidden = math.prod(
        n for a, n in enumerate(x.shape) if a in axes and array.shape[a] == 1
    )
    known = known.all(axis=axes)
    with np.errstate(all="ignore"):
        match equation.primitive.name:
            case "reduce_sum":
                found = array.sum(axis=axes, dtype=array.dtype) * array.dtype.type(
                    hidden
                )
            case "reduce_max" if 0 not in array.shape:
                found = array.max(axis=axes)
            case "reduce_min" if 0 not in array.shape:
                found = array.min(axis=axes)
            case "reduce_and":
                found = array.all(axis=axes)
            case "reduce_or":
                found = array.any(axis=axes)
            case _:
                found, known = array.sum(axis=axes), np.zeros_like(known)
    return _values.where_known(np.asarray(found), np.asarray(known))


@rule("reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _reduce_window(walk: Walk, equation: JaxprEqn, x: Array) -> list[Array]:
    params: Any = equation.params
    aval: Any = equation.outvars[0].aval
    windows, padding = params["window_dimensions"], params["padding"]
    dims = []
    for dim, length, window in zip(x.dims, aval.shape, windows, strict=True):
        if window == 1 and length == dim.size:
            dims.append(dim)
        else:
            freeze(dim, equation)
            dims.append(Dim(length, equation))

    def value() -> Value:
        assert x.value is not None
        value = x.value
        for axis, (dim, same) in enumerate(zip(dims, x.dims, strict=True)):
            if dim is not same:
                value = _values.joined_along(value, axis)
        if equation.primitive.name != "reduce_window_sum":
            return value
        array = value.array * value.array.dtype.type(math.prod(windows))
        pads = any(any(some) for some in padding) or any(
            dilation != 1 for dilation in params["base_dilation"]
        )
        known = value.known & (array == 0) if pads else value.known
        return _values.where_known(array, known)

    return [walk.array(dims, [x], value, x.sources)]
