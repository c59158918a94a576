"""Weights under a soft threshold of their layer, which is learned."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task

INITIAL = -5.0  # s at the start: a threshold of 0.007


def learned_by_layer(
    task: Task, weight: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Trains kernels v and a scalar s a layer, whose threshold is sigmoid(s).

    Args:
      task: what to do; s decays by task.strength, in place of the weights' decay.
      weight: of v, |v| - sigmoid(s) and the count of steps, the weights.
    """

    def hidden(params):
        return {
            "weights": params,
            "thresholds": jax.tree.map(lambda _: jnp.float32(INITIAL), params),
        }

    def weights(variables, count):
        return jax.tree.map(
            lambda v, s: weight(v, jnp.abs(v) - jax.nn.sigmoid(s), count),
            variables["weights"],
            variables["thresholds"],
        )

    descents = {
        "weights": task.descent(),
        "thresholds": task._replace(weight_decay=task.strength).descent(),
    }
    return reparametrised(hidden, weights, descents)
