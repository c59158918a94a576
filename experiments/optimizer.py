"""The optimizer and the learning-rate schedule of a configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import Config
from optax_grda import grda


def learning_rates(config: Config) -> np.ndarray:
    """The learning rate of every epoch, float64, shape (epochs,)."""
    epoch = np.arange(1, config.epochs + 1)
    progress = epoch / config.epochs
    factors = {
        "constant": np.ones(config.epochs),
        # Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of
        # DNNs", NeurIPS 2018: the schedule of all CIFAR runs of the paper.
        "garipov": np.where(
            progress <= 0.9, np.minimum(1, 1 - 0.99 * (progress - 0.5) / 0.4), 0.01
        ),
        "step-141": np.where(epoch < 141, 1.0, 0.1),
        "step-30": 0.1 ** ((epoch - 1) // 30),
    }
    return config.learning_rate * factors[config.schedule]


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by the count of updates, each of config.accumulation steps."""
    rates = jnp.asarray(learning_rates(config), jnp.float32)

    def schedule(count):
        epoch = count * config.accumulation // steps_per_epoch
        return rates[jnp.minimum(epoch, rates.size - 1)]

    return schedule


def make_optimizer(
    config: Config,
    steps_per_epoch: int,
    c: jax.Array | None = None,
    mu: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration.

    Args:
      config: the experiment.
      steps_per_epoch: calls of update an epoch: batches times config.accumulation.
      c: traced value in place of config.c.
      mu: traced value in place of config.mu.
    """
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer == "grda":
        optimizer = grda(
            schedule,
            c=config.c if c is None else c,
            mu=config.mu if mu is None else mu,
        )
    elif config.optimizer == "adam":
        optimizer = optax.adam(schedule)
    else:
        optimizer = optax.sgd(
            schedule, momentum=0.9 if config.optimizer == "momentum" else None
        )
    if config.accumulation == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulation).gradient_transformation()
