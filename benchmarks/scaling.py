"""What devices tell each other in a training step, and what that costs on many of them.

    python -m benchmarks.scaling [--step-ms vgg16 MS resnet50 MS]

Compiles an epoch (its order, gather, augmentation and steps) for 1, 2, 4 and 8
simulated CPU devices, and counts the collectives of its steps. Goal: the gradient's
all-reduce, BatchNorm's statistics and two metrics, nothing else, the same for SGD and
gRDA.

Likewise where each device keeps its part of the state, as with --sharding fully-sharded
of experiments.train. Goal: an all-gather of the parameters besides, and nothing else of
size. A device needs but its part of the gradient's sum; XLA's compiler
for CPUs has them all-reduce it whole and cuts the part out, where those for GPUs and
TPUs make a reduce-scatter of the two, half as many bytes on a ring.

From the collectives follows how long the devices of a cluster of H100s would wait for
each other where each keeps the whole state, and the efficiency at a fixed batch a
device:

    efficiency = step / (step + waiting)
    waiting    = all-reduces x latency(n) + 2 (n - 1) / n x bytes / bandwidth(n)

The second term is that of a ring all-reduce. Nothing is assumed to overlap with
anything, so the efficiency is a lower bound, as far as the assumed figures hold.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks import train_step
from benchmarks.measure import markdown, size, write_result
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from experiments.training.config import METHODS, Grda
from experiments.training.devices import data_mesh, replicated
from experiments.training.trainer import make_trainer

# A cluster of DGX H100: 8 GPUs a host.
HOST = 8
# NVIDIA H100 data sheet: NVLink 900 GB/s a GPU, the sum of both directions.
NVLINK = 450e9  # bytes/s, one direction
# NVIDIA DGX H100 user guide: 8 ConnectX-7 of 400 Gb/s; a ring through many hosts is cut
# into 8 that leave a host by an adapter each.
NETWORK = 8 * 50e9  # bytes/s, one direction
# NVIDIA/nccl, src/graph/tuning.cc at b647562: seconds of an all-reduce of few bytes,
# over a tree of hosts and a chain in each: its start, a hop in a host, a hop between.
START, NVLINK_HOP, NETWORK_HOP = 6.8e-6, 0.6e-6, 5.0e-6

ACCELERATORS = (8, 64, 512)
IMAGES = 4  # a device in the compiled programs; the collectives do not depend on it
KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    *("all-to-all", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Counts collectives, and predicts the efficiency on many devices."""

    networks: tuple[str, ...] = ("vgg16", "wrn28x10", "resnet50")
    """Networks to compile."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices."""
    step_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    """Milliseconds of gRDA's step on one accelerator, by network, from
    benchmarks.train_step. Others are measured here if the default device is a GPU; a
    CPU's step would tell nothing of a cluster."""


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """The collectives of a program compiled for CPUs.

    Args:
      program: its HLO text.

    Returns:
      How many there are of each kind, and how many bytes one device gets from them.
    """
    found = collections.defaultdict(lambda: (0, 0))
    for shapes, kind in re.findall(rf"= (.+?) ({'|'.join(KINDS)})\(", program):
        count, total = found[kind]
        # f32[3,3,64]{2,1,0}, alone or in a tuple; pred is one byte.
        for dtype, lengths in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
            bits = int(re.sub(r"\D", "", dtype) or 8)
            total += math.prod(map(int, filter(None, lengths.split(",")))) * bits // 8
        found[kind] = count + 1, total
    return dict(found)


def compile_epoch(
    network: str, optimizer: str, devices: Sequence[jax.Device], sharded: bool
) -> str:
    """The HLO text of an epoch of two steps; its loop's body stands there once."""
    batch_size = IMAGES * len(devices)
    config = train_step.preset(
        network, method=METHODS[optimizer](), batch_size=batch_size
    )
    mesh = data_mesh(devices)
    classes = train_step.num_classes(config)
    trainer = make_trainer(config, classes, 2 * batch_size, mesh, sharded=sharded)
    shape = (2 * batch_size, *models.spec(network).input_shape)
    whole, state = replicated(mesh), trainer.state_sharding()
    jitted = jax.jit(
        trainer.train_epoch,
        in_shardings=(state, whole, whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )
    arguments = (
        jax.eval_shape(trainer.init, 0),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
        jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    )
    # The machine code, which takes most of the time to make, is not used.
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return jitted.lower(*arguments).compile(options).as_text()


def count(
    network: str, optimizer: str, devices: int, sharded: bool = False
) -> dict[str, Any]:
    """What devices exchange in a step: all-reduces, their bytes, and other kinds."""
    chosen = jax.devices("cpu")[:devices]
    found = collectives(compile_epoch(network, optimizer, chosen, sharded))
    number, total = found.pop("all-reduce", (0, 0))
    return {"all-reduces": number, "bytes": total, "others": found}


def waiting(all_reduces: int, total: int, accelerators: int) -> float:
    """Seconds a step that accelerators wait for each other, without any overlap."""
    hosts = accelerators // HOST
    hops = (HOST - 1) * NVLINK_HOP + math.log2(hosts) * NETWORK_HOP
    latency = START + 2 * hops
    bandwidth = NVLINK if hosts == 1 else NETWORK
    ring = 2 * (accelerators - 1) / accelerators * total / bandwidth
    return all_reduces * latency + ring


def gradient_bytes(network: str) -> int:
    """Bytes of a network's gradient."""
    config = train_step.preset(network)
    trainer = make_trainer(config, train_step.num_classes(config), config.batch_size)
    return size(jax.eval_shape(trainer.init, 0).params)


def step_ms(network: str) -> float:
    """Milliseconds of gRDA's step on the default device, at the paper's batch size."""
    config = train_step.preset(network, method=Grda())
    stepper = train_step.Stepper(config, train_step.random_batch(config), steps=1)
    stepper.start()
    return 1e3 * float(np.median(interleaved({"": stepper}, rounds=3)[""]))


def predict(network: str, step: float | None, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the second table: what a step exchanges, and what comes of it."""
    row = {"network": network, "step on one device, ms": f"{step:.2f}" if step else ""}
    for accelerators in ACCELERATORS:
        ms = 1e3 * waiting(found["all-reduces"], found["bytes"], accelerators)
        row |= {
            f"waiting on {accelerators}, ms": f"{ms:.2f}",
            f"efficiency on {accelerators}": f"{step / (step + ms):.3f}"
            if step
            else "",
        }
    return row


def _named(others: dict[str, tuple[int, int]]) -> str:
    """Kinds of collectives, with their numbers and bytes."""
    texts = [f"{n} {kind}, {b / 1e6:.3f} MB" for kind, (n, b) in others.items()]
    return "; ".join(texts) or "none"


def main(options: Options) -> None:
    """Counts, predicts and writes both tables."""
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    counts, predictions = [], []
    for network in options.networks:
        gradient = gradient_bytes(network)
        for devices in options.devices:
            for sharded, optimizer in itertools.product((True, False), ("sgd", "grda")):
                found = count(network, optimizer, devices, sharded)
                rest = max(found["bytes"] - gradient, 0)
                counts.append(
                    {
                        "network": network,
                        "devices": devices,
                        "state": "in parts" if sharded else "whole",
                        "optimizer": optimizer,
                        "all-reduces": found["all-reduces"],
                        "MB": f"{found['bytes'] / 1e6:.3f}",
                        "of it besides the gradient": f"{rest / 1e6:.3f}",
                        "other collectives": _named(found["others"]),
                    }
                )
        step = options.step_ms.get(network)
        if step is None and jax.default_backend() == "gpu":
            step = step_ms(network)
        predictions.append(predict(network, step, found))  # of gRDA's whole state
    write_result("scaling", "\n\n".join([markdown(counts), markdown(predictions)]))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
