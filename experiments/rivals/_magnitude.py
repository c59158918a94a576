"""The largest entries of a pytree, as many as are wanted."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def largest(tree: PyTree, sparsity: jax.typing.ArrayLike) -> PyTree:
    """True where an entry is among the largest moduli of all leaves, False elsewhere.

    Args:
      tree: float32 arrays.
      sparsity: the fraction of entries that are not, to the nearest entry; more where
        several have the modulus of the last of them. It may be traced.
    """
    threshold = quantile(tree, sparsity)
    return jax.tree.map(lambda x: jnp.abs(x) > threshold, tree)


def largest_by_leaf(tree: PyTree, sparsity: PyTree) -> PyTree:
    """As `largest`, for every leaf on its own: a tree of sparsities."""
    return jax.tree.map(largest, tree, sparsity)


def quantile(tree: PyTree, fraction: jax.typing.ArrayLike) -> jax.Array:
    """The modulus within which that fraction of all entries lies, to the nearest one.

    -1 where the fraction rounds to no entry. Bits of nonnegative floats are ordered as
    integers: the largest integer below which too few lie is found bit by bit.
    """
    bits = jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32), tree
    )
    leaves = jax.tree.leaves(bits)
    size = sum(math.prod(x.shape) for x in leaves)
    wanted = jnp.round(fraction * size).astype(jnp.int32)

    def below(limit):
        counts = [jnp.sum(x < limit, dtype=jnp.int32) for x in leaves]
        return functools.reduce(operator.add, counts)

    def decide(step, found):
        candidate = found | (1 << (30 - step))
        return jnp.where(below(candidate) < wanted, candidate, found)

    found = jax.lax.fori_loop(0, 31, decide, jnp.int32(0))
    return jnp.where(wanted > 0, jax.lax.bitcast_convert_type(found, jnp.float32), -1.0)
