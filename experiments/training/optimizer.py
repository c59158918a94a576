"""The optimizer and the learning-rate schedule of a configuration."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from experiments.training.config import Config
from models.units import hidden_units
from optax_grda import grda, sparsity_ramp, target_sparsity
from optax_grda.proximal import groups as group_proximal

PyTree = Any


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


def make_proximal(config: Config) -> Callable[[PyTree, jax.Array], PyTree] | None:
    """What makes weights of accumulator and threshold; None: entry by entry."""
    return None if config.groups == "none" else _proximal(config.model, config.groups)


@functools.cache  # one function a network, so that what takes it compiles once
def _proximal(model: str, groups: str) -> Callable[[PyTree, jax.Array], PyTree]:
    network = nnx.eval_shape(
        lambda: models.create(model, num_classes=1, rngs=nnx.Rngs(0))
    )
    share = 0.5 if groups == "units-and-weights" else 0.0
    return group_proximal(hidden_units(network), elementwise=share)


def make_optimizer(
    config: Config, steps_per_epoch: int, **settings: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration.

    Args:
      config: the experiment.
      steps_per_epoch: calls of update an epoch: batches times config.accumulation.
      **settings: traced values in place of the configuration's c, mu or sparsity.
    """
    schedule = make_schedule(config, steps_per_epoch)
    settings = vars(config) | settings
    if config.optimizer == "grda":
        c, mu = settings["c"], settings["mu"]
        optimizer = grda(schedule, c, mu, proximal=make_proximal(config))
    elif config.optimizer == "target-sparsity":
        # Half of all updates: from there on, garipov's learning rate falls.
        updates = config.epochs * steps_per_epoch // config.accumulation
        ramp = sparsity_ramp(settings["sparsity"], max(1, updates // 2))
        optimizer = target_sparsity(schedule, ramp, proximal=make_proximal(config))
    elif config.optimizer == "adam":
        optimizer = optax.adam(schedule)
    else:
        optimizer = optax.sgd(
            schedule, momentum=0.9 if config.optimizer == "momentum" else None
        )
    if config.accumulation == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulation).gradient_transformation()
