"""The check that pytrees are points of one space."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_grda._arrays import at_least_float32
from optax_grda._paths import dtype_of, named_leaves, structure_difference

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
        for place, leaf in named_leaves(point, name):
            dtype = dtype_of(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(
                    f"{name} must have real float leaves, got {dtype} at "
                    f"{place or 'the root'}"
                )
    for name, point in others:
        if difference := structure_difference(reference, point):
            raise ValueError(f"{name} must have the structure of {first}: {difference}")
        leaves = zip(named_leaves(reference), jax.tree.leaves(point), strict=True)
        for (place, expected), leaf in leaves:
            _check_leaf(name, first, place or "the root", expected, leaf)


def _check_leaf(name, first, place, expected, leaf):
    for what, trait in (
        ("shapes", jnp.shape),
        ("dtypes", lambda x: at_least_float32(jnp.result_type(x))),
    ):
        if trait(leaf) != trait(expected):
            raise ValueError(
                f"{name} must have the {what} of {first}, {trait(expected)} at "
                f"{place}: got {trait(leaf)}"
            )


def check_wide(**points: PyTree) -> None:
    """Raises unless all leaves are of float32 or float64."""
    for name, point in points.items():
        for place, leaf in named_leaves(point, name):
            dtype = dtype_of(leaf)
            if dtype not in (jnp.float32, jnp.float64):
                raise TypeError(
                    f"{name} must have leaves of float32 or float64, got {dtype} at "
                    f"{place or 'the root'}"
                )
