"""Weights as a function of hidden variables, which are what is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Variables = dict[str, PyTree]


class ReparametrisedState(NamedTuple):
    count: jax.Array  # steps taken, int32
    variables: Variables  # what the weights are made of
    descents: dict[str, optax.OptState]  # of every variable


def reparametrised(
    hidden: Callable[[PyTree], Variables],
    weights: Callable[[Variables, jax.Array], PyTree],
    descents: dict[str, optax.GradientTransformation],
    penalty: Callable[[Variables, jax.Array], jax.Array] | None = None,
    repair: Callable[[Variables], Variables] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descends on the variables v of w = weights(v, n) after n steps.

    g_v = (dw/dv)^T g_w + d penalty(v, n) / dv,   v <- repair(v + descent(g_v))

    Args:
      hidden: from kernels to the first variables, by name.
      weights: from variables and the count of steps to kernels; what it draws at random
        depends on the count alone, so that gradients are pulled back through the very
        draw that they were taken at; its backward pass is the method's own.
      descents: how each variable moves, by name; may ascend too.
      penalty: a scalar of variables and count, added to the loss.
      repair: brings variables back to where they may be.
    """

    def init(params):
        variables = jax.tree.map(jnp.copy, hidden(params))
        moving = {name: descents[name].init(variables[name]) for name in variables}
        return ReparametrisedState(jnp.zeros([], jnp.int32), variables, moving)

    def update(gradients, state, params, **_):
        count, variables, moving = state
        _, pull_back = jax.vjp(lambda v: weights(v, count), variables)
        (slopes,) = pull_back(gradients)
        if penalty is not None:
            slopes = jax.tree.map(jnp.add, slopes, jax.grad(penalty)(variables, count))
        moved = {
            name: descents[name].update(slopes[name], moving[name], variables[name])
            for name in variables
        }
        moving = {name: after for name, (_, after) in moved.items()}
        steps = {name: step for name, (step, _) in moved.items()}
        variables = optax.apply_updates(variables, steps)
        if repair is not None:
            variables = repair(variables)
        wanted = weights(variables, count + 1)
        updates = jax.tree.map(jnp.subtract, wanted, params)
        return updates, ReparametrisedState(count + 1, variables, moving)

    return optax.GradientTransformationExtraArgs(init, update)


def straight_through(value: jax.Array, proxy: jax.Array) -> jax.Array:
    """The value, exactly, with the derivative of the proxy."""
    return jax.lax.stop_gradient(value) + (proxy - jax.lax.stop_gradient(proxy))


def cubic_ramp(count: jax.Array, steps: float) -> jax.Array:
    """1 - (1 - n / steps)^3, from 0 to 1, and 1 from there on."""
    return 1 - (1 - jnp.minimum(jnp.float32(count) / steps, 1)) ** 3


def by_unit(x: jax.Array) -> tuple[int, ...]:
    """The axes of a kernel that all weights into one output unit share."""
    return tuple(range(x.ndim - 1))
