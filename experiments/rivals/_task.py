"""What every method of the arena is asked to do."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Task(NamedTuple):
    """Sparse kernels of one network, at the end of one training run.

    A method makes of it an Optax transformation, which sees kernels alone: takes their
    gradients at the weights that it last made, and returns what leads to the next.
    Numbers may be traced: so runs that differ in them train side by side.
    """

    rate: optax.Schedule  # learning rate by the count of steps
    steps: int  # of the whole run
    sparsity: jax.typing.ArrayLike  # wanted fraction of zeros, in [0, 1)
    strength: jax.typing.ArrayLike  # of a penalty, for methods that know no sparsity
    key: jax.Array  # for methods that draw
    momentum: float | None = 0.9  # None for plain SGD, and for Adam, which has its own
    weight_decay: float = 0.0
    direction: Literal["gradient", "adam"] = "gradient"  # of the steps

    def descent(self) -> optax.GradientTransformation:
        """Dense training: SGD with momentum, and weight decay as part of the gradient.

        Or AdamW, where the direction is Adam's. The part of a method that takes the
        steps; and the dense twin of all.
        """
        if self.direction == "adam":
            return optax.adamw(self.rate, weight_decay=self.weight_decay)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.rate, self.momentum),
        )

    def travel(self) -> jax.Array:
        """How far a unit gradient moves a weight in the whole run."""
        rates = jax.vmap(self.rate)(jnp.arange(self.steps))
        return jnp.sum(rates) / (1 - (self.momentum or 0.0))
