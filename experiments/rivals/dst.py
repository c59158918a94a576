"""Learns a threshold for every output unit, through a long-tailed step: DST.

    w = v S(|v| - t_u)   for output unit u,   S(x) = 1 where x > 0, else 0
    dS/dx := 2 - 4 |x| for |x| <= 0.4,  0.4 for 0.4 < |x| <= 1,  0 beyond
    minimise  loss + alpha sum_u exp(-t_u)

Source: Liu et al., "Dynamic Sparse Training: Find Efficient Sparse Network From Scratch
With Trainable Masked Layers", ICLR 2020 (arXiv 2005.06870).

Left open by the paper / changed here:

- task.strength is alpha (theirs: 5e-4 for MNIST, 5e-6 for CIFAR-10).
- A layer with no more than 1 % of its weights left gets thresholds of 0 again (their
  code): so zeros become fewer again with a large alpha.
- Thresholds start at 0 and take the weights' rate, without decay.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task

FEWEST = 0.01  # weights left in a layer, as a share


@jax.custom_jvp
def step(x: jax.Array) -> jax.Array:
    """1 where x > 0, else 0, with a derivative of long tails."""
    return (x > 0).astype(x.dtype)


@step.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    size = jnp.abs(x)
    slope = jnp.where(size <= 0.4, 2 - 4 * size, jnp.where(size <= 1, 0.4, 0))
    return step(x), slope * dx


def dst(task: Task) -> optax.GradientTransformationExtraArgs:
    """DST with a threshold by output unit; uses task.strength: alpha."""

    def hidden(params):
        def zeros(v):
            return jnp.zeros((1,) * (v.ndim - 1) + v.shape[-1:])

        return {"weights": params, "thresholds": jax.tree.map(zeros, params)}

    def weights(variables, count):
        return jax.tree.map(
            lambda v, t: v * step(jnp.abs(v) - t),
            variables["weights"],
            variables["thresholds"],
        )

    def penalty(variables, count):
        explored = jax.tree.map(lambda t: jnp.exp(-t), variables["thresholds"])
        return task.strength * optax.tree.sum(explored)

    def repair(variables):
        def leaf(v, t):
            left = jnp.mean(jnp.abs(v) > t, dtype=jnp.float32)
            return jnp.where(left <= FEWEST, 0, t)

        reset = jax.tree.map(leaf, variables["weights"], variables["thresholds"])
        return variables | {"thresholds": reset}

    descents = {
        "weights": task.descent(),
        "thresholds": task._replace(weight_decay=0.0).descent(),
    }
    return reparametrised(hidden, weights, descents, penalty, repair)
