"""The check that pytrees are points of one space."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._arrays import at_least_float32
from optax_grda._sparsity import leaf_name

PyTree = Any


def check_points(**points: PyTree) -> None:
    """Raises unless all are points of one space: the first one's, by its name here.

    Leaves must be real floats, of the first point's structure, shapes and dtypes, where
    dtypes narrower than float32 count as float32.
    """
    (first, reference), *others = points.items()
    if not jax.tree.leaves(reference):
        raise ValueError(f"{first} must hold at least one array, got {reference}")
    for name, point in points.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(point):
            dtype = jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(
                    f"{name} must have real float leaves, got {dtype} at {_at(path)}"
                )
    for name, point in others:
        expected, structure = jax.tree.structure(reference), jax.tree.structure(point)
        if structure != expected:
            raise ValueError(
                f"{name} must have the structure of {first}, {expected}: "
                f"got {structure}"
            )
        jax.tree_util.tree_map_with_path(
            lambda path, x, y, name=name: _check_leaf(name, first, path, x, y),
            reference,
            point,
        )


def _check_leaf(name, first, path, expected, leaf):
    for what, trait in (
        ("shapes", jnp.shape),
        ("dtypes", lambda x: at_least_float32(jnp.result_type(x))),
    ):
        if trait(leaf) != trait(expected):
            raise ValueError(
                f"{name} must have the {what} of {first}, {trait(expected)} at "
                f"{_at(path)}: got {trait(leaf)}"
            )


def _at(path: jax.tree_util.KeyPath) -> str:
    return leaf_name(path) or "the root"
