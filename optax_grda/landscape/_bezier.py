"""Quadratic Bezier curves between two solutions, trained to stay in the valley."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_grda._loops import scan, stack_length
from optax_grda._points import check_points
from optax_grda._trees import combine, dot, norm, subtract
from optax_grda.landscape._checks import (
    check_scalar,
    check_unit_interval,
)

PyTree = Any


# Compared by identity, so that `curve` and its methods are functions JAX can hash.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bezier:
    r"""A quadratic Bezier curve between two pytrees of weights, itself a pytree.

    .. math:: w(t) = (1 - t)^2 w_0 + 2 t (1 - t) w_1 + t^2 w_2, \quad t \in [0, 1]

    ``curve(t)`` are the weights at t: exactly ``start`` at 0 and ``end`` at 1. They are
    differentiable in t and in all three points, and a curve may pass through ``jit``.

    The three points are pytrees of real float arrays with one structure and one set of
    shapes; their dtypes may differ where they are narrower than float32, so that the
    bend between bfloat16 ends can be trained in float32. Points are computed in at
    least float32 and rounded to the dtypes of ``start``.

    Example:
      The quarter of a circle, nearly, and its chord:

      >>> import jax.numpy as jnp
      >>> from optax_grda.landscape import Bezier
      >>> start, end = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> curve = Bezier(start, jnp.array([0.9, 0.9]), end)
      >>> print(curve(0.5), curve(1.0))
      [0.7 0.7] [0. 1.]
      >>> print(f"{curve.arc_length():.3f} {curve.chord_length():.3f}")
      1.553 1.414
      >>> print(Bezier.straight(start, end)(0.5))
      [0.5 0.5]

    References:
      Garipov et al., `Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs
      <https://arxiv.org/abs/1802.10026>`_, NeurIPS 2018.
    """

    start: PyTree  # w_0
    bend: PyTree  # w_1, the control point in the middle; the curve does not meet it
    end: PyTree  # w_2

    @classmethod
    def straight(cls, start: PyTree, end: PyTree) -> "Bezier":
        """The straight line: the bend at the midpoint, where its training starts.

        Args:
          start: pytree of real float arrays.
          end: pytree of the same structure and shapes.

        Returns:
          A :class:`Bezier` whose bend has the dtypes of ``start``, but at least
          float32: in bfloat16 it would miss the midpoint, and small steps of its
          training would be lost.

        Raises:
          ValueError: if the structures, shapes or dtypes of the two differ.
          TypeError: if a leaf is not of a real float dtype.
        """
        check_points(start=start, end=end)
        to_end = subtract(end, start)
        return cls(start, combine(to_end, (1.0, start), (0.5, to_end)), end)

    def __call__(self, t: jax.typing.ArrayLike) -> PyTree:
        """The weights at t, in the dtypes of ``start``.

        Args:
          t: a scalar in [0, 1].

        Returns:
          Pytree of the structure and dtypes of ``start``.

        Raises:
          ValueError: if t is not a scalar or lies outside [0, 1] (a traced t is not
            checked); if the structures, shapes or dtypes of the three points differ.
          TypeError: if a leaf is not of a real float dtype.
        """
        check_scalar("t", t)
        check_unit_interval("t", t)
        start, bend, end = self._points()
        s = 1 - t
        return combine(start, (s * s, start), (2 * s * t, bend), (t * t, end))

    def chord_length(self) -> jax.Array:
        """The distance between the ends: a scalar, float32 (float64 if a leaf is)."""
        start, _, end = self._points()
        return norm(subtract(end, start))

    def arc_length(self) -> jax.Array:
        r"""The length of the curve, :math:`\int_0^1 |w'(t)| dt`.

        With :math:`w'(t) = 2 (1 - t) a + 2 t b`, where :math:`a = w_1 - w_0` and
        :math:`b = w_2 - w_1`, the integrand needs three inner products of weights, and
        the integral is taken by Gauss-Legendre quadrature at 64 points. That is right
        to float32 rounding unless the curve all but stops on its way to turn back: 4e-4
        at worst.

        Returns:
          Scalar, float32 (float64 if a leaf is).
        """
        start, bend, end = self._points()
        a, b = subtract(bend, start), subtract(end, bend)
        return _length(dot(a, a), dot(a, b), dot(b, b))

    def _points(self) -> tuple[PyTree, PyTree, PyTree]:
        # Checked on use: JAX also builds curves whose leaves are no arrays.
        check_points(start=self.start, bend=self.bend, end=self.end)
        return self.start, self.bend, self.end


@jax.jit
def _length(aa: jax.Array, ab: jax.Array, bb: jax.Array) -> jax.Array:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t = jnp.asarray((nodes + 1) / 2, aa.dtype)
    squares = (1 - t) ** 2 * aa + 2 * t * (1 - t) * ab + t**2 * bb
    # Rounding may leave less than nothing where the curve stops.
    speed = 2 * jnp.sqrt(jnp.maximum(squares, 0))
    return jnp.sum(jnp.asarray(weights / 2, aa.dtype) * speed)


def bend_loss(loss_fn: Callable[[PyTree, Any], Any]) -> Callable[..., Any]:
    """The loss of a bend: that of the weights at one uniform t per batch.

    For training loops of your own; :func:`train_bend` is one over a stack of batches.

    Args:
      loss_fn: ``loss_fn(params, batch)``, anything that :func:`jax.value_and_grad` can
        take: a scalar, or a scalar and auxiliary values.

    Returns:
      ``loss(bend, start, end, key, batch)``, which returns what ``loss_fn`` returns at
      a point of ``Bezier(start, bend, end)`` drawn with ``key``. Differentiate it in
      its first argument.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_grda.landscape import Bezier, bend_loss
      >>> def loss_fn(w, batch):  # a valley along the circle |w| = 1
      ...     return jnp.square(jnp.sum(jnp.square(w)) - 1)
      >>> line = Bezier.straight(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
      >>> optimizer = optax.sgd(0.1)
      >>> @jax.jit
      ... def step(bend, state, key, batch):
      ...     loss, gradients = jax.value_and_grad(bend_loss(loss_fn))(
      ...         bend, line.start, line.end, key, batch
      ...     )
      ...     updates, state = optimizer.update(gradients, state, bend)
      ...     return optax.apply_updates(bend, updates), state, loss
      >>> bend, state = line.bend, optimizer.init(line.bend)
      >>> for key in jax.random.split(jax.random.key(0), 100):
      ...     bend, state, loss = step(bend, state, key, None)
      >>> bool(loss_fn(Bezier(line.start, bend, line.end)(0.5), None) < 0.01)
      True
    """

    def loss(bend, start, end, key, batch):
        return loss_fn(Bezier(start, bend, end)(jax.random.uniform(key)), batch)

    return loss


def train_bend(
    loss_fn: Callable[[PyTree, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    curve: Bezier,
    opt_state: optax.OptState,
    batches: PyTree,
    key: jax.Array,
) -> tuple[Bezier, optax.OptState, jax.Array]:
    """Moves the bend by one optimizer step per batch, each at a t of its own.

    Start with ``Bezier.straight(start, end)``, and call it once an epoch. The ends stay
    as they are.

    Pure. Called from Python, it loops over the batches there, and compiles a step once
    for each ``loss_fn`` and ``optimizer``; called under :func:`jax.jit`, with both
    static, it is one :func:`jax.lax.scan`. On a CPU call it from Python if the model
    has convolutions: they are some 20 times slower in a loop inside a program.

    BatchNorm: ``loss_fn`` normalises by the statistics of the batch and drops the
    running ones, which would mix those of all t. They are estimated afterwards, at each
    point of the curve: see :func:`evaluate_along`.

    Args:
      loss_fn: ``loss_fn(params, batch)``, a scalar. What else it needs (a key for
        dropout, say) may come in the batch.
      optimizer: any Optax optimizer.
      curve: the curve to start from.
      opt_state: ``optimizer.init(curve.bend)``, or what an earlier call returned.
      batches: pytree of arrays, batches stacked along the first axis.
      key: a JAX random key.

    Returns:
      The curve with its new bend, the new state of the optimizer, and the loss of every
      batch before its step, of shape (batches,).

    Raises:
      ValueError: if the leaves of batches differ in length or hold no batch; if the
        structures, shapes or dtypes of the curve's points differ.
      TypeError: if a leaf of the curve is not of a real float dtype.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_grda.landscape import (
      ...     Bezier, barrier_height, evaluate_along, train_bend
      ... )
      >>> def loss_fn(w, batch):  # a valley along the circle |w| = 1, and noise
      ...     return jnp.square(jnp.sum(jnp.square(w)) - 1) + jnp.sum(w * batch)
      >>> line = Bezier.straight(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
      >>> batches = 0.1 * jax.random.normal(jax.random.key(0), (1000, 2))
      >>> optimizer = optax.sgd(optax.linear_schedule(0.2, 0.0, 1000))
      >>> curve, _, losses = jax.jit(train_bend, static_argnums=(0, 1))(
      ...     loss_fn, optimizer, line, optimizer.init(line.bend), batches,
      ...     jax.random.key(1),
      ... )
      >>> def along(curve):
      ...     ts = jnp.linspace(0, 1, 61)
      ...     return evaluate_along(curve, ts, lambda w: loss_fn(w, jnp.zeros(2)))
      >>> print(f"{barrier_height(along(line)):.2f} {barrier_height(along(curve)):.2f}")
      0.25 0.00
    """
    keys = jax.random.split(key, stack_length("batches", batches))
    functions = map(jax.tree_util.Partial, (loss_fn, optimizer.update))
    constants = (*functions, (curve.start, curve.end))
    carry = curve.bend, opt_state
    (bend, opt_state), losses = scan(_bend_step, constants, carry, (keys, batches))
    return dataclasses.replace(curve, bend=bend), opt_state, losses


def _bend_step(constants: PyTree, carry: PyTree, key_and_batch: PyTree):
    loss_fn, update, ends = constants
    bend, opt_state = carry
    loss, gradients = jax.value_and_grad(bend_loss(loss_fn))(
        bend, *ends, *key_and_batch
    )
    updates, opt_state = update(gradients, opt_state, bend)
    return (optax.apply_updates(bend, updates), opt_state), loss
