"""Whether smaller parameters compute the same, and where not, why."""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from optax_grda._paths import dtype_of, weights_of
from optax_grda.units._dims import Dim, kept
from optax_grda.units._find import finish, leaf_array, line_of, trace
from optax_grda.units._walk import Node, Walk

PyTree = Any
SCALES = (0.1, 1, 100)  # of random inputs
TOLERANCE = 1e-5  # relative to the largest output; float32 rounds by 6e-8


def takes(fn: Callable[..., Any], params: PyTree, args: tuple[Any, ...]) -> bool:
    """Whether fn runs on parameters of these shapes."""
    try:
        jax.eval_shape(fn, params, *args)
    except Exception:
        return False
    return True


def check_same(
    fn: Callable[..., Any],
    params: PyTree,
    small: PyTree,
    args: tuple[Any, ...],
    nodes: Sequence[Node],
    needed: dict[Dim, np.ndarray],
) -> None:
    """Raises ValueError if outputs change by more than rounding, or fn fails.

    Args:
      fn, params, args: those of shrink.
      small: the smaller parameters.
      nodes: fn's program.
      needed: the units that are left.
    """
    try:
        shapes = [jax.eval_shape(fn, tree, *args) for tree in (params, small)]
    except Exception as error:
        raise ValueError(
            "fn must take its widths from params, but it fails with smaller ones, at "
            f"{_place(error)}: {type(error).__name__}: {error}"
        ) from error
    with jax.default_matmul_precision("highest"):
        same = shapes[0] == shapes[1] and all(
            _agree(_outputs(fn, params, inputs), _outputs(fn, small, inputs), params)
            for inputs in _inputs(args)
        )
    if not same:
        raise ValueError(
            "fn must take its widths from params, but it computes something else with "
            f"smaller ones{_difference(fn, small, args, nodes, needed)}"
        )


def _inputs(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Arguments like these, with random numbers in place of floats."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any, scale: float) -> Any:
        dtype = dtype_of(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            numbers = scale * rng.standard_normal(np.shape(leaf))
            return jnp.asarray(numbers.astype(dtype))
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros(leaf.shape, dtype)
        return leaf

    for scale in SCALES:
        yield jax.tree.map(lambda leaf, s=scale: draw(leaf, s), args)


def _outputs(fn: Callable[..., Any], params: PyTree, inputs: Any) -> list[np.ndarray]:
    # Compiles in half the time, and is as fast for a few examples.
    quickly = {
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
    }
    outputs = jax.jit(fn, compiler_options=quickly)(params, *inputs)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]


def _agree(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], params: PyTree
) -> bool:
    for before, after in zip(expected, found, strict=True):
        if not jnp.issubdtype(before.dtype, jnp.inexact):
            if not np.array_equal(before, after):
                return False
            continue
        dtypes = [before.dtype, *(dtype_of(leaf) for _, leaf in weights_of(params))]
        tolerance = max(TOLERANCE, *(8 * float(jnp.finfo(d).eps) for d in dtypes))
        wide = np.result_type(before.dtype, np.float32)
        before, after = before.astype(wide), after.astype(wide)
        largest = np.nanmax(np.abs(before), initial=0)
        if not np.isclose(after, before, 0, tolerance * largest, equal_nan=True).all():
            return False
    return True


def _place(error: Exception) -> str:
    """The innermost line of a program that isn't JAX's own."""
    homes = os.path.dirname(jax.__file__) + os.sep, os.path.dirname(__file__) + os.sep
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith((*homes, "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown place"


def _difference(
    fn: Callable[..., Any],
    small: PyTree,
    args: tuple[Any, ...],
    nodes: Sequence[Node],
    needed: dict[Dim, np.ndarray],
) -> str:
    """The first equation that is not as it must be, in words."""
    walk = Walk(values=False)
    leaves = [
        leaf_array(n, leaf, None) for n, leaf in enumerate(jax.tree.leaves(small))
    ]
    finish(walk, trace(fn, small, args), leaves, args)
    for before, after in zip(nodes, walk.nodes, strict=False):
        name, line = after.equation.primitive.name, line_of(after.equation)
        if name != before.equation.primitive.name:
            return f", first at {line}"
        for old, new in zip(before.outputs, after.outputs, strict=True):
            fits = tuple(int(kept(dim, needed).sum()) for dim in old.dims)
            if new.shape != fits:
                return (
                    f", first at {line}: {name} to {new.shape}, where {fits} would fit"
                )
        if _numbers(before) != _numbers(after):
            return f", first at {line}: {name} with a number that depends on the width"
    return ""


def _numbers(node: Node) -> list[Any]:
    """The constants of an equation, where they are single numbers."""
    operands = [v.val for v in node.equation.invars if isinstance(v, Literal)]
    return [np.asarray(x).item() for x in operands if np.ndim(x) == 0]
