"""What random zeros are worth in inference: latency by runtime, threads and sparsity.

    python -m benchmarks.sparse_inference [--blocks 4]

The networks have their initial weights, of which some fractions, drawn at random, are
made zero: kernels alone, alike in all layers. Trained networks have their zeros
elsewhere, and more of them in some layers than in others: see experiments.card. One
image a call; JAX takes all threads that there are. All runs of a network take turns.
Goal: with 90 % zeros MNN takes half as long as the fastest runtime takes for the dense
network.
"""

import dataclasses
import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from benchmarks.measure import markdown, ratio, write_result
from benchmarks.train_step import num_classes, preset
from experiments.analyses import card
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command

Run = tuple[float, str, int]  # sparsity, runtime, threads


@dataclasses.dataclass(frozen=True)
class Options:
    """Times networks with random zeros."""

    networks: tuple[str, ...] = ("vgg16", "wrn28x10", "resnet50")
    """Networks, each at its own image size."""
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98)
    """Fractions of zeros; the dense network is timed too."""
    blocks: int = 1
    """Neighbouring output channels that are zero together."""
    rounds: int = 30
    """Times that every latency is measured."""

    def __post_init__(self):
        if not all(0 < sparsity < 1 for sparsity in self.sparsities):
            raise ValueError(f"sparsities must be in (0, 1), got {self.sparsities}")
        for name in ("blocks", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


def sparse_network(name: str, sparsity: float, blocks: int) -> nnx.Module:
    """A network in evaluation mode; the weights left are larger, or logits vanish."""
    rng = np.random.default_rng(0)

    def thinned(kernel):
        if kernel.ndim == 1:  # a bias, or BatchNorm's
            return kernel
        *inputs, outputs = kernel.shape
        kept = rng.random((*inputs, -(-outputs // blocks))) >= sparsity
        kept = np.repeat(kept, blocks, axis=-1)[..., :outputs]
        return jnp.where(kept, kernel / np.sqrt(1 - sparsity).astype(np.float32), 0)

    classes = num_classes(preset(name))
    network = models.create(name, num_classes=classes, rngs=nnx.Rngs(0))
    nnx.update(network, jax.tree.map(thinned, nnx.state(network, nnx.Param)))
    network.eval()
    return network


def measure(name: str, options: Options) -> list[dict[str, Any]]:
    """Rows of the table: one a sparsity, runtime and number of threads."""
    shape = models.spec(name).input_shape
    image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    runs: dict[Run, card.Predict] = {}
    for sparsity in (0.0, *options.sparsities):
        network = sparse_network(name, sparsity, options.blocks)
        runs[sparsity, card.JAX, os.cpu_count() or 1] = card.in_jax(network)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "network")
            for runtime, threads, run in card.exported(network, shape, path):
                runs[sparsity, runtime, threads] = run
    calls = {key: functools.partial(run, image) for key, run in runs.items()}
    seconds = interleaved(calls, options.rounds)
    rows = []
    for (sparsity, runtime, threads), taken in seconds.items():
        dense = [s for key, s in seconds.items() if key[0] == 0 and key[2] == threads]
        rows.append(
            {
                "network": name,
                "zeros, %": f"{100 * sparsity:g}",
                "runtime": runtime,
                "threads": threads,
                "ms, min": f"{1e3 * taken.min():.2f}",
                "ms, median": f"{1e3 * np.median(taken):.2f}",
                "ratio to the fastest dense of as many threads (quartiles)": ratio(
                    taken, min(dense, key=np.median)
                ),
            }
        )
    return rows


def main(options: Options) -> None:
    """Measures and writes the table."""
    rows = [row for name in options.networks for row in measure(name, options)]
    heading = f"Random zeros in blocks of output channels: {options.blocks}."
    for package in ("onnxruntime", "MNN"):
        if any(importlib.metadata.distributions(name=package)):
            heading += f" {package} {importlib.metadata.version(package)}."
    blocks = "" if options.blocks == 1 else f"-blocks-of-{options.blocks}"
    write_result(f"sparse_inference{blocks}", f"{heading}\n\n{markdown(rows)}")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
