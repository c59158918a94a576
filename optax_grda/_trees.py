"""Pytrees of weights as vectors, in at least float32.

Sums run over one leaf at a time with ``jnp.sum``, which XLA adds up as a tree: right to
a few roundings at any size, and at home on any sharding (``jnp.vdot`` would flatten the
leaves first, and gather them). Each function is one program, also outside of ``jit``.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._arrays import at_least_float32

PyTree = Any


@jax.jit
def widen(tree: PyTree) -> PyTree:
    """The leaves as arrays of at least float32."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, at_least_float32(jnp.result_type(x))), tree
    )


@jax.jit
def combine(like: PyTree, *terms: tuple[jax.typing.ArrayLike, PyTree]) -> PyTree:
    """The sum of scalar * tree over the terms, rounded to the dtypes of ``like``."""
    scalars, trees = zip(*terms, strict=True)

    def leaf(x, *leaves):
        scaled = (
            jnp.asarray(scalar, y.dtype) * y
            for scalar, y in zip(scalars, leaves, strict=True)
        )
        return functools.reduce(operator.add, scaled).astype(jnp.result_type(x))

    return jax.tree.map(leaf, like, *map(widen, trees))


def widest(tree: PyTree) -> jnp.dtype:
    """The dtype of a leaf that is as wide as any."""
    dtypes = (jnp.result_type(leaf) for leaf in jax.tree.leaves(tree))
    return max(dtypes, key=lambda dtype: dtype.itemsize)


@jax.jit
def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a - b, in at least float32."""
    return jax.tree.map(jnp.subtract, widen(a), widen(b))


@jax.jit
def total(tree: PyTree) -> jax.Array:
    """The sum of all entries, in the widest dtype of a leaf."""
    sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(tree)]
    dtype = widest(sums)
    return jnp.sum(jnp.stack([s.astype(dtype) for s in sums]))


@jax.jit
def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The inner product, of trees that are widened already."""
    return total(jax.tree.map(jnp.multiply, a, b))


@jax.jit
def norm(a: PyTree) -> jax.Array:
    """The Euclidean norm, of a tree that is widened already."""
    return jnp.sqrt(dot(a, a))
