"""Order statistics over all leaves of a pytree: exact, without sorting or moving them.

Floats are ordered as the unsigned integers that their bits spell, but for the sign. The
n-th smallest is found bit by bit, from the highest: each asks for one count of entries,
leaf by leaf and where the leaves are.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._trees import widen, widest

PyTree = Any


@jax.jit
def nth_smallest(tree: PyTree, n: np.uint32) -> jax.Array:
    """The n-th smallest entry of all leaves, n >= 1, in the widest dtype of a leaf.

    NaN counts as larger than all.
    """
    keys = _keys(tree)
    (dtype,) = {key.dtype for key in jax.tree.leaves(keys)}
    key, sign = _nth_smallest_key(keys, n), _highest_bit(dtype)
    bits = jnp.where(key >= sign, key ^ sign, ~key)
    return jax.lax.bitcast_convert_type(bits, f"float{_bits(dtype)}")


@jax.jit
def smallest(tree: PyTree, n: np.uint32) -> PyTree:
    """True for the n smallest entries of all leaves, False for the others.

    Of equal entries, those that come first in the order of leaves and rows. NaN counts
    as larger than all.
    """
    keys = _keys(tree)
    key = _nth_smallest_key(keys, n)
    below = jax.tree.map(lambda x: x < key, keys)
    tied = jax.tree.map(lambda x: x == key, keys)
    places = jax.tree.map(
        lambda tie, place: jnp.where(tie, place, jnp.uint32(2**32 - 1)),
        tied,
        _places(tree),
    )
    last = _nth_smallest_key(places, n - _count(below))
    return jax.tree.map(
        lambda low, tie, place: low | (tie & (place <= last)), below, tied, places
    )


def entries(tree: PyTree) -> int:
    """How many entries all leaves have; more than are counted here are an error."""
    size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))
    if size >= 2**32:
        raise ValueError(f"params must hold fewer than 2**32 entries, got {size}")
    return size


def _keys(tree: PyTree) -> PyTree:
    """Unsigned integers in the order of the entries."""
    tree = widen(tree)
    dtype = widest(tree)
    unsigned = f"uint{_bits(dtype)}"

    def keys(x):
        x = jnp.where(x == 0, 0, jnp.where(jnp.isnan(x), jnp.nan, x.astype(dtype)))
        bits = jax.lax.bitcast_convert_type(x, unsigned)
        sign = _highest_bit(unsigned)
        return jnp.where(bits >= sign, ~bits, bits | sign)

    return jax.tree.map(keys, tree)


def _nth_smallest_key(keys: PyTree, n: jax.typing.ArrayLike) -> jax.Array:
    """The largest key with fewer than n below it."""
    dtype = jax.tree.leaves(keys)[0].dtype

    def decide(step, key):
        candidate = key | (_highest_bit(dtype) >> step.astype(dtype))
        few = _count(jax.tree.map(lambda x: x < candidate, keys)) < n
        return jnp.where(few, candidate, key)

    return jax.lax.fori_loop(0, _bits(dtype), decide, jnp.zeros((), dtype))


def _count(where: PyTree) -> jax.Array:
    counts = [jnp.sum(leaf, dtype=jnp.uint32) for leaf in jax.tree.leaves(where)]
    return functools.reduce(operator.add, counts)


def _places(tree: PyTree) -> PyTree:
    """Numbers the entries of all leaves from 0, in uint32."""
    leaves, structure = jax.tree.flatten(tree)
    start, places = 0, []
    for leaf in leaves:
        shape, stride, place = jnp.shape(leaf), 1, jnp.uint32(start)
        for axis in reversed(range(len(shape))):
            along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            place, stride = place + jnp.uint32(stride) * along, stride * shape[axis]
        places.append(place)
        start += stride
    return jax.tree.unflatten(structure, places)


def _bits(dtype: jax.typing.DTypeLike) -> int:
    return 8 * jnp.dtype(dtype).itemsize


def _highest_bit(dtype: jax.typing.DTypeLike) -> jax.Array:
    return jnp.asarray(1 << (_bits(dtype) - 1), dtype)
