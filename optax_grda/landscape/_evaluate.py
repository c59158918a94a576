"""Metrics of the weights along a curve and on a plane, and the height of a barrier."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_grda.landscape._checks import (
    check_batch_size,
    check_unit_interval,
    check_vector,
)

PyTree = Any


def evaluate_along(
    curve: Callable[[jax.Array], PyTree],
    ts: jax.typing.ArrayLike,
    metric_fn: Callable[[PyTree], PyTree],
    *,
    batch_size: int | None = None,
) -> PyTree:
    """The metrics of the weights at points along a curve.

    Args:
      curve: a :class:`Bezier`, or another function from t in [0, 1] to weights.
      ts: array of shape (points,) with entries in [0, 1]: ``jnp.linspace(0, 1, 61)`` in
        the paper.
      metric_fn: maps weights to metrics, any pytree of arrays. Whatever belongs to a
        point happens here: BatchNorm statistics are re-estimated by a pass over the
        training batches, as below.
      batch_size: how many points are computed at once (``jax.vmap``). By default one
        after the other, in the memory of one; more pays on an accelerator that one
        point does not fill.

    Returns:
      The metrics, each with a first axis of length points.

    Raises:
      ValueError: if ts is not one-dimensional or leaves [0, 1] (traced ts are not
        checked), or if batch_size is below 1.
      TypeError: if batch_size is neither None nor an integer.

    Example:
      One layer with BatchNorm. Its statistics at every point are the plain average over
      the training batches:

      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.landscape import Bezier, evaluate_along
      >>> images = jax.random.normal(jax.random.key(0), (5, 32, 8))  # five batches
      >>> def layer(params, batch):
      ...     return batch @ params["kernel"]
      >>> def metric_fn(params):
      ...     def statistics(batch):
      ...         x = layer(params, batch)
      ...         return x.mean(axis=0, keepdims=True), x.var(axis=0, keepdims=True)
      ...
      ...     mean, variance = jax.tree.map(
      ...         lambda s: jnp.mean(s, axis=0), jax.lax.map(statistics, images)
      ...     )
      ...     normalised = (layer(params, images[0]) - mean) / jnp.sqrt(variance)
      ...     return {"loss": jnp.mean(jnp.square(normalised)), "variance": variance}
      >>> kernels = jax.random.normal(jax.random.key(1), (2, 8, 4))
      >>> line = Bezier.straight({"kernel": kernels[0]}, {"kernel": kernels[1]})
      >>> metrics = evaluate_along(line, jnp.linspace(0, 1, 61), metric_fn)
      >>> print({name: value.shape for name, value in metrics.items()})
      {'loss': (61,), 'variance': (61, 1, 4)}

      To call it again and again, put it into a function of the curve (and the data)
      under ``jax.jit``: by itself it compiles on every call.
    """
    check_vector("ts", ts)
    check_unit_interval("ts", ts)
    check_batch_size(batch_size)
    return jax.lax.map(
        lambda t: metric_fn(curve(t)), jnp.asarray(ts), batch_size=batch_size
    )


def evaluate_grid(
    plane: Callable[[jax.Array, jax.Array], PyTree],
    xs: jax.typing.ArrayLike,
    ys: jax.typing.ArrayLike,
    metric_fn: Callable[[PyTree], PyTree],
    *,
    batch_size: int | None = None,
) -> PyTree:
    """The metrics of the weights on a grid in a plane.

    Args:
      plane: a :class:`Plane`, or another function from x and y to weights.
      xs: array of shape (columns,), as from :meth:`Plane.grid`.
      ys: array of shape (rows,).
      metric_fn: maps weights to metrics, any pytree of arrays; as in
        :func:`evaluate_along`, with BatchNorm statistics estimated inside.
      batch_size: how many points are computed at once (``jax.vmap``). By default one
        after the other, in the memory of one.

    Returns:
      The metrics, each of shape (rows, columns, ...): [i, j] is at (xs[j], ys[i]).

    Raises:
      ValueError: if xs or ys are not one-dimensional, or if batch_size is below 1.
      TypeError: if batch_size is neither None nor an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.landscape import evaluate_grid
      >>> xs, ys = jnp.array([0.0, 1.0, 2.0]), jnp.array([10.0, 20.0])
      >>> print(evaluate_grid(lambda x, y: {"w": x + y}, xs, ys, lambda p: p["w"]))
      [[10. 11. 12.]
       [20. 21. 22.]]
    """
    check_vector("xs", xs)
    check_vector("ys", ys)
    check_batch_size(batch_size)
    x, y = jnp.meshgrid(jnp.asarray(xs), jnp.asarray(ys))
    metrics = jax.lax.map(
        lambda point: metric_fn(plane(*point)),
        (x.ravel(), y.ravel()),
        batch_size=batch_size,
    )
    return jax.tree.map(lambda m: m.reshape(*x.shape, *m.shape[1:]), metrics)


def barrier_height(losses: jax.typing.ArrayLike) -> jax.Array:
    """By how much the largest loss along a path exceeds the larger of its ends.

    Args:
      losses: array of shape (points, ...), in the order of the path.

    Returns:
      Array of shape (...), at least 0. NaN where a loss is.

    Raises:
      ValueError: if losses hold fewer than two points.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.landscape import barrier_height
      >>> print(barrier_height(jnp.array([0.0, 0.5, 2.0, 0.25])))
      1.75
    """
    losses = jnp.asarray(losses)
    if losses.ndim == 0 or len(losses) < 2:
        raise ValueError(f"losses must hold two points or more, got {losses.shape}")
    return jnp.max(losses, axis=0) - jnp.maximum(losses[0], losses[-1])
