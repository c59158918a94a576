"""Weights to test on: small random pytrees."""

import jax
import numpy as np
import pytest


@pytest.fixture
def points():
    """``points(n)``: n random pytrees of one structure, float32 or another dtype."""

    def make(number, dtype=np.float32):
        rng = np.random.default_rng(7)
        return [
            {
                "dense": {
                    "kernel": rng.normal(size=(16, 8)).astype(dtype),
                    "bias": rng.normal(size=8).astype(dtype),
                },
                "scale": np.asarray(rng.normal()).astype(dtype),
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
