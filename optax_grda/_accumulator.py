"""The accumulator of dual averaging: a master copy of the weights that gradients move.

What every transformation here shares: check the options, copy the parameters at init,
subtract the scaled gradients, and threshold the accumulator to weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_grda._checks import check_number
from optax_grda._proximal import at_least_float32, soft_threshold

PyTree = Any
# From the accumulator and the threshold to the weights, in the accumulator's dtypes.
Proximal = Callable[[PyTree, jax.Array], PyTree]


def check_options(
    learning_rate: optax.ScalarOrSchedule,
    accumulator_dtype: jax.typing.DTypeLike | None,
) -> None:
    """Raises unless both may be given to a transformation that descends."""
    check_number(
        "learning_rate", learning_rate, "> 0", lambda x: x > 0, or_schedule=True
    )
    if accumulator_dtype is not None and not jnp.issubdtype(
        accumulator_dtype, jnp.inexact
    ):
        raise ValueError(
            f"accumulator_dtype must be float or complex, got {accumulator_dtype}"
        )


def value_at(
    scalar_or_schedule: optax.ScalarOrSchedule, count: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """The number, or the schedule's value at the count, in the dtype."""
    value = scalar_or_schedule
    value = value(count) if callable(value) else value
    return jnp.asarray(value).astype(dtype)


def init_accumulator(params: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
    """v_0 = w_0, in at least float32 unless a dtype is given, in buffers of its own."""

    def copy(path, leaf):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                "params must have float or complex leaves, "
                f"got {leaf.dtype} at {_name(path)}"
            )
        wanted = at_least_float32(leaf.dtype) if dtype is None else jnp.dtype(dtype)
        if jnp.iscomplexobj(leaf) != jnp.issubdtype(wanted, jnp.complexfloating):
            raise ValueError(
                "accumulator_dtype must be complex where params are complex and real "
                f"where they are real, got {wanted} for {leaf.dtype} at {_name(path)}"
            )
        return jnp.array(leaf, dtype=wanted, copy=True)

    return jax.tree_util.tree_map_with_path(copy, params)


def threshold_dtype(accumulator: PyTree) -> jnp.dtype:
    """float32, or float64 where an accumulator's real part is float64."""
    wide = any(jnp.finfo(v.dtype).bits > 32 for v in jax.tree.leaves(accumulator))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_trees(updates: PyTree, accumulator: PyTree, params: PyTree) -> None:
    """Raises ValueError unless all three have the same structure and shapes."""
    if params is None:
        raise ValueError(
            "params must be given to update, as in "
            "`optimizer.update(gradients, state, params)`: got None"
        )
    expected = jax.tree.structure(accumulator)
    for argument, tree in (("updates", updates), ("params", params)):
        structure = jax.tree.structure(tree)
        if structure != expected:
            raise ValueError(
                f"{argument} must have the structure of the params given to init, "
                f"{expected}: got {structure}"
            )
        jax.tree_util.tree_map_with_path(
            lambda path, v, leaf, argument=argument: _check_shape(
                argument, path, jnp.shape(v), jnp.shape(leaf)
            ),
            accumulator,
            tree,
        )


def descend(accumulator: PyTree, updates: PyTree, learning_rate: jax.Array) -> PyTree:
    """v_n = v_{n-1} - gamma_n g_n, in the accumulator's dtypes."""

    def step(v, g):
        return v - learning_rate.astype(v.dtype) * jnp.asarray(g, v.dtype)

    return jax.tree.map(step, accumulator, updates)


def threshold_weights(
    accumulator: PyTree,
    threshold: jax.Array,
    params: PyTree,
    proximal: Proximal | None,
) -> PyTree:
    """w_n = S(v_n, L_n), or what another proximal operator makes, in params' dtypes."""
    if proximal is None:
        weights = jax.tree.map(lambda v: soft_threshold(v, threshold), accumulator)
    else:
        weights = proximal(accumulator, threshold)
    return jax.tree.map(lambda w, p: w.astype(jnp.result_type(p)), weights, params)


def updates_to(weights: PyTree, params: PyTree) -> PyTree:
    """weights - params: weights that are zero are reached exactly."""
    return jax.tree.map(lambda w, p: w - jnp.asarray(p), weights, params)


def _check_shape(argument, path, expected, shape):
    if shape != expected:
        raise ValueError(
            f"{argument} must have the shapes of the params given to init, "
            f"{expected} at {_name(path)}: got {shape}"
        )


def _name(path) -> str:
    return jax.tree_util.keystr(path) or "the root"
