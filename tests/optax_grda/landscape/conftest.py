"""Weights to test on: small random pytrees, on one device or split over eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@pytest.fixture
def points():
    """``points(n)``: n random pytrees of one structure, float32 or another dtype."""

    def make(number, dtype=np.float32):
        rng = np.random.default_rng(7)
        return [
            {
                "dense": {
                    "kernel": jnp.asarray(rng.normal(size=(16, 8)), dtype),
                    "bias": jnp.asarray(rng.normal(size=8), dtype),
                },
                "scale": jnp.asarray(rng.normal(), dtype),
            }
            for _ in range(number)
        ]

    return make


@pytest.fixture
def flat():
    """A pytree as one float64 vector: where the oracles count."""

    def flatten(tree):
        leaves = [
            np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)
        ]
        return np.concatenate(leaves)

    return flatten


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def shard(request):
    """Splits the first axis of every leaf over the eight devices, where it has one."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(request.param,))

    def split(tree):
        def place(leaf):
            spec = PartitionSpec("model") if jnp.ndim(leaf) else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    with jax.set_mesh(mesh):
        yield split
