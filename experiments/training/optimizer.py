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
from experiments.training.config import (
    Adam,
    Config,
    Grda,
    Momentum,
    Sgd,
    Target,
    dense_twin,
)
from optax_grda import (
    grda,
    grda_params,
    label_by_path,
    proximal,
    sparsity_ramp,
    target_sparsity,
)
from optax_grda.units import Units, find_units

PyTree = Any

WARMUP = 0.05  # of the steps, in which the schedule warmup-cosine rises
# Of the dial, by the direction. Behind Adam accumulators crowd at the threshold: at 0.5
# the zeros of a transformer ended up to 0.3 points off, at 0.1 where they should.
GAINS = {"gradient": 0.5, "adam": 0.1}


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
        "cosine": 0.5 * (1 + np.cos(np.pi * (epoch - 1) / config.epochs)),
        "warmup-cosine": warmup_cosine((epoch - 0.5) / config.epochs),  # its middle's
        "step-141": np.where(epoch < 141, 1.0, 0.1),
        "step-30": 0.1 ** ((epoch - 1) // 30),
    }
    return config.learning_rate * factors[config.schedule]


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by the count of steps.

    A constant one does not depend on the number of epochs, nor does then the program:
    so a run may go on for more of them to the bit.
    """
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    if config.schedule == "warmup-cosine":
        steps = config.epochs * steps_per_epoch
        return lambda count: config.learning_rate * warmup_cosine(count / steps)
    rates = jnp.asarray(learning_rates(config), jnp.float32)
    return lambda count: rates[jnp.minimum(count // steps_per_epoch, rates.size - 1)]


def warmup_cosine(progress: np.ndarray | jax.Array) -> Any:
    """Factor of the learning rate by the share of steps taken: up to 1, then to 0."""
    wave = 0.5 * (1 + jnp.cos(jnp.pi * (progress - WARMUP) / (1 - WARMUP)))
    return jnp.minimum(progress / WARMUP, wave)


def make_optimizer(
    config: Config, steps_per_epoch: int, **settings: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration.

    Args:
      config: the experiment.
      steps_per_epoch: batches an epoch.
      **settings: traced values in place of fields of the method, such as c.
    """
    schedule = make_schedule(config, steps_per_epoch)
    settings = vars(config.method) | settings
    match config.method:
        case Sgd():
            return optax.sgd(schedule)
        case Momentum():
            return optax.chain(
                optax.add_decayed_weights(settings["weight_decay"]),
                optax.sgd(schedule, momentum=settings["beta"]),
            )
        case Adam():
            return optax.adamw(schedule, weight_decay=settings["weight_decay"])
    sparse = _make_sparse(config, schedule, steps_per_epoch, settings)
    if config.method.direction == "adam":
        sparse = optax.chain(optax.scale_by_adam(), sparse)
    if config.method.clip_norm:
        norm = settings["clip_norm"]
        sparse = optax.chain(optax.clip_by_global_norm(norm), sparse)
    if config.method.thresholds == "all":
        return sparse
    beta, decay = settings["momentum"], settings["weight_decay"]
    dense = make_optimizer(
        dense_twin(config), steps_per_epoch, beta=beta, weight_decay=decay
    )
    kernels = label_by_path({"*kernel": "sparse", "*": "dense"})
    return optax.partition({"sparse": sparse, "dense": dense}, kernels)


def _make_sparse(
    config: Config,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    settings: dict[str, Any],
) -> optax.GradientTransformationExtraArgs:
    """The dual average of a sparse method, behind what gives its direction."""
    shared = {
        # None, and not 0, saves the trace.
        "momentum": settings["momentum"] if config.method.momentum else None,
        "proximal": make_proximal(config),
        "weight_decay": settings["weight_decay"],
    }
    match config.method:
        case Grda():
            return grda(schedule, settings["c"], settings["mu"], **shared)
        case Target():
            # Half of all steps: from there on, garipov's learning rate falls.
            half = max(1, config.epochs * steps_per_epoch // 2)
            ramp = sparsity_ramp(settings["sparsity"], half)
            gain = GAINS[config.method.direction]
            return target_sparsity(schedule, ramp, gain=gain, **shared)
    raise TypeError(f"method must be sparse, got {config.method}")


def make_weights(config: Config) -> Callable[[optax.OptState, PyTree], PyTree] | None:
    """What makes weights of the optimizer's state alone, for methods where that can be.

    A function of the state and of parameters, whose shapes and dtypes count.
    """
    if not isinstance(config.method, Grda | Target):
        return None
    if config.method.thresholds != "all":  # the others are in no accumulator
        return None
    return functools.partial(grda_params, proximal=make_proximal(config))


@functools.cache  # builds the network, if without its arrays
def make_proximal(config: Config) -> proximal.Proximal:
    """What makes weights of accumulator and threshold, as the method's groups say."""
    groups = config.method.groups
    if groups == "none":
        return {
            "soft": proximal.soft,
            "power2": proximal.power(2),
            "power3": proximal.power(3),
            "hard": proximal.hard,
        }[config.method.proximal]
    share = 0.5 if groups == "units-and-weights" else 0.0
    return proximal.groups(network_units(config.model), elementwise=share)


def network_units(name: str) -> Units:
    """The units of the network of that name, whatever its classes."""
    network = nnx.eval_shape(
        lambda: models.create(name, num_classes=1, rngs=nnx.Rngs(0))
    )
    network.eval()
    graphdef, state = nnx.split(network)
    one = models.spec(name).inputs
    inputs = jax.ShapeDtypeStruct((2, *one.shape), one.dtype)
    return find_units(lambda s, x: nnx.merge(graphdef, s)(x), state, inputs)
