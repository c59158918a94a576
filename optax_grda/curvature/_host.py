"""Products with pytrees, as products with NumPy's vectors."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding, PartitionSpec

from optax_grda._points import check_points
from optax_grda._trees import widest

PyTree = Any


class HostOperator:
    """Multiplies vectors on the host; products are taken where the params are.

    Vectors come and go leaf by leaf, in the dtypes and shardings of the params. They
    are divided by the largest entry of the first product, ``unit``, so that no norm of
    them can over- or underflow.
    """

    def __init__(self, matvec: Callable[[PyTree], PyTree], params: PyTree):
        self._matvec = matvec
        self._params = jax.device_put(params)
        self.dtype = np.dtype(widest(self._params))
        self.size = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        self.products = 0
        self.unit = 1.0

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """The product with a vector of shape (size,), in units of ``unit``."""
        tree = self._matvec(self.to_params(vector))
        check_points(**{"params": self._params, "matvec(v)": tree})
        leaves = [_gathered(leaf).ravel() for leaf in jax.tree.leaves(tree)]
        product = np.concatenate([leaf.astype(self.dtype) for leaf in leaves])
        if not np.isfinite(product).all():
            raise ValueError("matvec must return finite numbers, got NaN or infinity")
        if not self.products:
            self.unit = float(np.abs(product).max()) or 1.0
        self.products += 1
        return product / self.dtype.type(self.unit)

    def to_params(self, vectors: np.ndarray) -> PyTree:
        """A pytree like the params, of the last axis' entries; other axes lead."""
        leaves, structure = jax.tree.flatten(self._params)
        ends = np.cumsum([leaf.size for leaf in leaves])
        parts = np.split(vectors, ends[:-1], axis=-1)
        return jax.tree.unflatten(structure, map(_like, leaves, parts))


def _like(leaf: jax.Array, part: np.ndarray) -> jax.Array:
    leading = part.shape[:-1]
    # A copy, which JAX may keep.
    entries = part.reshape((*leading, *leaf.shape)).astype(leaf.dtype)
    if not leaf.committed:
        return jax.device_put(entries)
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        spec = PartitionSpec(*[None] * len(leading), *sharding.spec)
        sharding = NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return jax.make_array_from_callback(
        entries.shape, sharding, lambda index: entries[index]
    )


def _gathered(leaf: jax.Array) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
