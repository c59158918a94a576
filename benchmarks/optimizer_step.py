"""What a step of gRDA costs beside SGD, momentum SGD and Adam.

    python -m benchmarks.optimizer_step

For the parameter shapes of ResNet-50, VGG16 and WideResNet-28-10: the time of a jitted
update and apply with donated parameters and state, as a ratio to momentum SGD, which
moves the same number of bytes. Goals: gRDA within 1.05 of momentum SGD, no temporary
the size of a parameter, and a state of one copy of the parameters; the dial, whole
units (those of each leaf, along its last axis) and the third power within 1.10 of gRDA;
the recipe of the guide, which has a trace too, within 1.15 of Adam.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from benchmarks.measure import markdown, ratio, size, write_result
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from optax_grda import grda, proximal, target_sparsity


def add_one(gradients, params):
    """The least that a step can do: read every parameter and write it."""
    del gradients
    return jax.tree.map(jnp.ones_like, params)


def units(path, shape):
    """Every leaf is a layer of its own, and its last axis counts the units."""
    del shape
    return path, -1


OPTIMIZERS = {
    "momentum SGD": (optax.sgd(0.1, momentum=0.9), 5),
    "SGD": (optax.sgd(0.1), 3),
    "gRDA": (grda(0.1, c=5e-4, mu=0.6), 5),
    "gRDA, power(3)": (grda(0.1, c=5e-4, mu=0.6, proximal=proximal.power(3)), 5),
    "gRDA, groups": (grda(0.1, c=5e-4, mu=0.6, proximal=proximal.groups(units)), 6),
    "target_sparsity": (target_sparsity(0.1, 0.9), 5),
    "recipe": (
        target_sparsity(
            0.1, 0.9, momentum=0.9, proximal=proximal.power(3), weight_decay=5e-4
        ),
        7,
    ),
    "Adam": (optax.adam(1e-3), 7),
    "add 1": (optax.stateless(add_one), 2),
}  # and how many times the size of the parameters is read or written


@dataclasses.dataclass(frozen=True)
class Options:
    """Times optimizer steps."""

    networks: tuple[str, ...] = ("resnet50", "vgg16", "wrn28x10")
    """Networks whose parameter shapes are used."""
    steps: int = 1
    """Steps in one call. On a GPU, where a step is shorter than a call, many."""
    rounds: int = 40
    """Times that every optimizer is timed."""


class Stepper:
    """Steps one optimizer; calling it takes some steps and returns the parameters."""

    def __init__(
        self, optimizer: optax.GradientTransformation, params, gradients, steps: int
    ):
        def step(carried, gradients):
            # Tied to the parameters, or work on gradients would leave the loop.
            (params, state), gradients = jax.lax.optimization_barrier(
                (carried, gradients)
            )
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        def run(carried, gradients):
            return jax.lax.fori_loop(0, steps, lambda _, x: step(x, gradients), carried)

        self.gradients = gradients
        self.params = jax.tree.map(jnp.copy, params)
        self.state = jax.jit(optimizer.init)(params)
        self.program = (
            jax.jit(run, donate_argnums=0)
            .lower((self.params, self.state), gradients)
            .compile()
        )

    def __call__(self):
        self.params, self.state = self.program(
            (self.params, self.state), self.gradients
        )
        return self.params


def random_like(shapes, seed: int):
    """A pytree of normal numbers of scale 0.01, on the default device."""
    rng = np.random.default_rng(seed)
    return jax.device_put(
        jax.tree.map(lambda x: 0.01 * rng.standard_normal(x.shape, np.float32), shapes)
    )


def measure(network: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: one an optimizer."""
    model = nnx.eval_shape(
        lambda: models.create(network, num_classes=10, rngs=nnx.Rngs(0))
    )
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params, gradients = random_like(shapes, 0), random_like(shapes, 1)
    steppers = {
        name: Stepper(optimizer, params, gradients, steps)
        for name, (optimizer, _) in OPTIMIZERS.items()
    }
    seconds = interleaved(steppers, rounds)
    reference = seconds["momentum SGD"]
    rows = []
    for name, (_, moved) in OPTIMIZERS.items():
        median = float(np.median(seconds[name])) / steps
        stepper = steppers[name]
        temporary = stepper.program.memory_analysis().temp_size_in_bytes
        rows.append(
            {
                "network": network,
                "step": name,
                "ms, median": f"{1e3 * median:.3f}",
                "ratio to momentum SGD (quartiles)": ratio(seconds[name], reference),
                "GB/s": f"{moved * size(params) / median / 1e9:.1f}",
                "temporary MB": f"{temporary / 1e6:.3f}",
                "state / parameters": f"{size(stepper.state) / size(params):.6f}",
            }
        )
    return rows


def main(options: Options) -> None:
    """Measures and writes the table."""
    rows = [
        row
        for network in options.networks
        for row in measure(network, options.steps, options.rounds)
    ]
    write_result("optimizer_step", markdown(rows))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
