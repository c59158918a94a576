"""What looking at the curvature costs, for two sizes of a network.

    python -m benchmarks.curvature

For the digits network and for Keras's MNIST network (24 times the parameters), on
random images, after an epoch of SGD: a Hessian-vector product and a Gauss-Newton
product in units of a gradient of the same loss, taken in turn; time and products for
the 10 largest eigenpairs; and the memory of the vectors that they take. Goal: a
product costs at most 3 gradients, and the digits network's eigenpairs at most 30 s.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import markdown, peak_bytes, ratio, write_result
from experiments.analyses._curvature import gauss_newton, hessian
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from experiments.training.config import Config, Sgd
from experiments.training.runs import Task
from experiments.training.trainer import TrainState, make_trainer
from optax_grda.curvature import Hessian, top_eigenpairs

SHAPES = {"digits-mlp": (8, 8, 1), "mnist-mlp": (28, 28, 1)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Times products and eigenpairs."""

    images: int = 2048
    """Training images over which the loss is a mean."""
    pairs: int = 10
    """Eigenpairs."""
    rounds: int = 20
    """Times that every product is timed."""


def trained(model: str, images: int) -> tuple[Task, TrainState]:
    """A network after an epoch on random images, and these."""
    rng = np.random.default_rng(0)
    pixels = rng.random((images, *SHAPES[model]), np.float32)
    data = jax.device_put((pixels, rng.integers(0, 10, images, np.int32)))
    config = Config(model=model, method=Sgd(), learning_rate=0.05)
    trainer = make_trainer(config, num_classes=10, num_examples=images)
    state, _ = jax.jit(trainer.train_epoch)(jax.jit(trainer.init)(0), *data)
    return Task(trainer, data, data, num_classes=10), state


@jax.jit
def gradient(of: Hessian):
    """The gradient of the loss whose Hessian it is."""

    def loss(params):
        def add(total, batch):
            return total + of.loss_fn(params, batch), None

        total, _ = jax.lax.scan(add, jnp.zeros(()), of.batches)
        return total / len(jax.tree.leaves(of.batches)[0])

    return jax.grad(loss)(of.params)


def measure(model: str, options: Options) -> dict[str, Any]:
    """A row of the table."""
    task, state = trained(model, options.images)
    matrix, approximation = hessian(task, state), gauss_newton(task, state)
    vector = jax.tree.map(jnp.ones_like, state.params)
    seconds = interleaved(
        {
            "gradient": lambda: gradient(matrix),
            "Hessian": lambda: matrix(vector),
            "Gauss-Newton": lambda: approximation(vector),
        },
        options.rounds,
    )
    products = 0

    def counted(v):
        nonlocal products
        products += 1
        return matrix(v)

    start = time.perf_counter()
    top_eigenpairs(counted, state.params, options.pairs)
    eigenpairs = time.perf_counter() - start
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    program = jax.jit(lambda m, v: m(v)).lower(matrix, vector).compile()
    return {
        "network": model,
        "parameters": f"{parameters:,}",
        "gradient, ms": f"{1e3 * np.median(seconds['gradient']):.2f}",
        "Hessian / gradient (quartiles)": ratio(
            seconds["Hessian"], seconds["gradient"]
        ),
        "Gauss-Newton / gradient": ratio(seconds["Gauss-Newton"], seconds["gradient"]),
        "product, peak MB": f"{peak_bytes(program) / 1e6:.1f}",
        f"{options.pairs} eigenpairs, s": f"{eigenpairs:.2f}",
        "products": products,
        # As top_eigenpairs documents: so many vectors of float32.
        "vectors, MB": f"{(3 * options.pairs + 20) * parameters * 4 / 1e6:.1f}",
    }


def main(options: Options) -> None:
    """Measures and writes the table."""
    write_result("curvature", markdown([measure(model, options) for model in SHAPES]))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
