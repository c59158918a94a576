"""Dense descent under a mask: what methods share that differ only in their masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._task import Task

PyTree = Any
# Steps taken, weights, gradients at them, mask: the next mask.
Change = Callable[[jax.Array, PyTree, PyTree, PyTree], PyTree]
# Steps taken: whether it is time.
When = Callable[[jax.Array], jax.typing.ArrayLike]


class MaskedState(NamedTuple):
    """What `masked` keeps between steps."""

    count: jax.Array  # steps taken. shape=(), dtype=jnp.int32
    mask: PyTree  # True where weights may differ from 0. Shapes of params, dtype=bool
    descent: optax.OptState  # of `Task.descent`


def dense(params: PyTree) -> PyTree:
    """The mask that holds every weight."""
    return jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)


def masked(
    task: Task,
    when: When,
    change: Change,
    *,
    start: Callable[[PyTree], PyTree] = dense,
    restart: When = lambda count: False,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes steps of dense descent with the weights that a mask holds; the rest is 0.

    .. math::

      m_n = \text{change}(n, w_n, g_n, m_{n-1}), \qquad
      w_{n+1} = m_n \odot (w_n + \text{descent}(g_n))

    The mask changes first, by the gradient at hand; the step follows in the same
    update. A weight that enters the mask starts at 0 with its momentum at 0.

    Args:
      task: what to do.
      when: the counts at which the mask changes.
      change: the mask's rule.
      start: the mask before the first change, made of the params.
      restart: the counts at which all momentum starts at 0.
    """
    descent = task.descent()

    def init(params):
        return MaskedState(jnp.int32(0), start(params), descent.init(params))

    def update(gradients, state, params, **extra_args):
        count, before, descended = state
        mask = jax.lax.cond(
            when(count), change, lambda *_: before, count, params, gradients, before
        )

        def keep(moment, is_on, was_on):
            return jnp.where(is_on & was_on & ~jnp.bool(restart(count)), moment, 0.0)

        descended = optax.tree.map_params(descent, keep, descended, mask, before)
        steps, descended = descent.update(gradients, descended, params)
        updates = jax.tree.map(
            lambda is_on, step, x: jnp.where(is_on, step, -x), mask, steps, params
        )
        return updates, MaskedState(count + 1, mask, descended)

    return optax.GradientTransformationExtraArgs(init, update)
