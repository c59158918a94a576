"""What is known of an array before there are inputs: the zeros, and constants.

A :class:`Value` stands for an array of any length along axes over which it does not
vary: those have length 1 in it. So an activation whose channels are constants, or not
known, is as small as its channels, and everything here is cheap NumPy.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Value:
    """Entries, and which are known.

    Attributes:
      array: the entries, 0 where they are not known; as many axes as the array it
        stands for, of its length or of length 1.
      known: bool, of the same shape.
    """

    array: np.ndarray
    known: np.ndarray

    @property
    def nonzero(self) -> np.ndarray:
        """Where an entry may be other than zero."""
        return ~self.known | (self.array != 0)


def exactly(array: Any) -> Value:
    """The value of an array that is known."""
    array = np.asarray(array)
    return Value(array, np.ones(array.shape, bool))


def unknown(ndim: int, dtype: Any) -> Value:
    """The value of an array of which nothing is known."""
    shape = (1,) * ndim
    dtype = np.float32 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype
    return Value(np.zeros(shape, dtype), np.zeros(shape, bool))


def where_known(array: np.ndarray, known: np.ndarray) -> Value:
    """The value without the axes along which it does not vary."""
    array = np.where(known, array, np.zeros((), array.dtype))
    for axis, length in enumerate(array.shape):
        if length > 1:
            first = array.take([0], axis), known.take([0], axis)
            if (array == first[0]).all() and (known == first[1]).all():
                array, known = first
    return Value(array, known)


def expand(value: Value, axes: Sequence[int], shape: Sequence[int]) -> Value:
    """The value at the full length along some axes."""
    full = list(value.array.shape)
    for axis in axes:
        full[axis] = shape[axis]
    return Value(np.broadcast_to(value.array, full), np.broadcast_to(value.known, full))


def apply(function: Callable[[np.ndarray], np.ndarray], value: Value) -> Value:
    """A function that moves entries, of entries and of what is known of them."""
    return Value(function(value.array), function(value.known))


def joined(values: Sequence[Value]) -> Value:
    """What is known of an array that may have any of the values."""
    shape = np.broadcast_shapes(*(value.array.shape for value in values))
    first, *others = (expand(v, range(len(shape)), shape) for v in values)
    known = first.known
    for other in others:
        known = known & other.known & (other.array == first.array)
    return where_known(first.array, known)


def joined_along(value: Value, axis: int) -> Value:
    """What is known of a slice at an unknown place; the axis has length 1 then."""
    first = apply(lambda x: x.take([0], axis), value)
    same = (value.array == first.array) & value.known
    return where_known(first.array, same.all(axis=axis, keepdims=True))


def equal(a: Value, b: Value) -> bool:
    """Whether the same is known."""
    return np.array_equal(a.known, b.known) and np.array_equal(a.array, b.array)


def elementwise(
    function: Callable[..., Any], values: Sequence[Value], ndim: int
) -> Value:
    """A function of entries that are known together."""
    values = [
        apply(lambda x: x.reshape((1,) * (ndim - x.ndim) + x.shape), v) for v in values
    ]
    shape = np.broadcast_shapes(*(value.array.shape for value in values))
    with np.errstate(all="ignore"):
        array = np.asarray(function(*(value.array for value in values)))
    known = np.ones(shape, bool)
    for value in values:
        known = known & value.known
    array = np.broadcast_to(array, shape)
    return Value(np.where(known, array, np.zeros((), array.dtype)), known)


def times(a: Value, b: Value, ndim: int) -> Value:
    """The product, which is zero where one factor is, whatever the other is."""
    result = elementwise(np.multiply, (a, b), ndim)
    zero = elementwise(lambda x, y: x & y, (_bools(a), _bools(b)), ndim)
    return Value(result.array, result.known | ~zero.array)


def _bools(value: Value) -> Value:
    return exactly(value.nonzero)


@dataclasses.dataclass(frozen=True)
class Side:
    """A factor of a dot product, its contracted axes in full.

    Attributes:
      array: the entries; of a convolution's kernel, summed over the window.
      known: whether they are known.
      nonzero: where something may be other than zero.
      data: whether it depends on the inputs.
      contracted, batch: its axes that are summed over, and that both factors have.
    """

    array: np.ndarray
    known: np.ndarray
    nonzero: np.ndarray
    data: bool
    contracted: tuple[int, ...]
    batch: tuple[int, ...]

    @property
    def free(self) -> tuple[int, ...]:
        """Its other axes."""
        taken = (*self.contracted, *self.batch)
        return tuple(axis for axis in range(self.array.ndim) if axis not in taken)


def dot(a: Side, b: Side) -> Value:
    """The dot product, of axes (batch, free ones of a, free ones of b)."""

    def any_term(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return _dot(a, x.astype(np.float32), b, y.astype(np.float32)) > 0

    varies = any_term(a.nonzero & ~a.known, b.nonzero)
    if not b.known.all():
        varies = varies | any_term(a.nonzero, b.nonzero & ~b.known)
    dtype = np.result_type(a.array.dtype, np.float32)
    total = _dot(a, a.array.astype(dtype), b, b.array.astype(dtype))
    return where_known(total.astype(a.array.dtype), ~varies)


def _dot(a: Side, x: np.ndarray, b: Side, y: np.ndarray) -> np.ndarray:
    """The dot product of arrays of the sides' shapes; one may lack batch axes."""
    (x, batch, free_a), (y, others, free_b) = _matrices(a, x), _matrices(b, y)
    with np.errstate(all="ignore"):
        product = np.matmul(x, np.swapaxes(y, -1, -2))
    lengths = np.broadcast_shapes(batch, others)
    return product.reshape(*lengths, *free_a, *free_b)


def _matrices(side: Side, array: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """The array as (batch, free, contracted), and the lengths it had there."""
    shape = array.shape
    batch, free, contracted = (
        tuple(shape[axis] for axis in axes)
        for axes in (side.batch, side.free, side.contracted)
    )
    array = array.transpose(*side.batch, *side.free, *side.contracted)
    return (
        array.reshape(*batch, math.prod(free), math.prod(contracted)),
        batch,
        free,
    )
