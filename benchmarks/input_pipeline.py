"""What reading data costs: in memory beside a resident batch, and streamed, a core.

    python -m benchmarks.input_pipeline [--dataset cifar10.npz] [--imagenet-dir DIR]

In memory: the time of an epoch of the training program, which gathers and augments, as
a ratio to as many steps on one batch that lies on the device as it is. Goal: 1.05.

Streamed: images of ImageNet's size a second, read, decoded, cropped and batched by one
thread and by a process a core; and how many such cores keep a GPU busy that trains
ResNet-50. Without --imagenet-dir they are JPEGs made here, as large as ImageNet's.
"""

import dataclasses
import functools
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from benchmarks.measure import markdown, ratio, write_result
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from experiments.training import data
from experiments.training.devices import data_mesh, replicated
from experiments.training.loop import loops_are_slow, passes_in_memory
from experiments.training.presets import PRESETS
from experiments.training.trainer import TrainState, make_trainer

# Images a second of ResNet-50 v1.5, mixed precision, on one A100 80 GB:
# NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md.
RESNET50_NEED = 2470


@dataclasses.dataclass(frozen=True)
class Options:
    """Times input pipelines."""

    preset: str = "cifar10-keras-cnn"
    """Preset that trains on data in memory."""
    dataset: str | None = None
    """Its data, as experiments.train takes them; by default the preset's own."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    images: int = 12_800
    """Training images used of them, at most."""
    batch_size: int = 128
    """Images a step."""
    rounds: int = 5
    """Epochs of each kind."""
    imagenet_dir: Path | None = None
    """Where TFDS keeps ImageNet; by default JPEGs of its size are made."""
    stream_images: int = 2_048
    """Images to stream, by each number of workers."""


class Epochs:
    """Trains; calling it trains an epoch and returns the parameters."""

    def __init__(self, state: TrainState, epoch: Callable[[TrainState], TrainState]):
        self.state, self.epoch = state, epoch

    def __call__(self):
        self.state = self.epoch(self.state)
        return self.state.params


def in_memory(options: Options) -> list[dict[str, Any]]:
    """Rows of the first table: an epoch of real data, and of a resident batch."""
    size = options.batch_size
    config = dataclasses.replace(PRESETS[options.preset], batch_size=size)
    dataset = data.load(options.dataset or config.dataset, options.data_dir)
    images = min(options.images, len(dataset.train_labels)) // size * size
    dataset = dataclasses.replace(
        dataset,
        train_inputs=dataset.train_inputs[:images],
        train_labels=dataset.train_labels[:images],
    )
    mesh = data_mesh()
    trainer = make_trainer(config, dataset.num_classes, images, mesh)
    passes = passes_in_memory(trainer, dataset)
    batch = jax.device_put(
        (dataset.train_inputs[:size], dataset.train_labels[:size]),
        NamedSharding(mesh, PartitionSpec("data")),
    )
    plain = dataclasses.replace(trainer, augmentation="none")
    jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
    init, step = jit(plain.init), jit(plain.train_step, donate_argnums=0)

    def steps(state: TrainState, batch) -> TrainState:
        return jax.lax.scan(
            lambda state, _: plain.train_step(state, *batch),
            state,
            length=plain.steps_per_epoch,
        )

    scan = jit(steps, donate_argnums=0)

    def resident_epoch(state: TrainState) -> TrainState:
        if not loops_are_slow(state.params):
            return scan(state, batch)[0]
        for _ in range(plain.steps_per_epoch):  # as FromHost does, and why
            state, _ = step(state, *batch)
        return state

    def real_epoch(state: TrainState) -> TrainState:
        return passes.train(state, stopping=lambda: False)[0]

    epochs = {
        "real data": Epochs(init(0), real_epoch),
        "resident batch": Epochs(init(0), resident_epoch),
    }
    seconds = interleaved(epochs, options.rounds)
    return [
        {
            "preset": options.preset,
            "images": images,
            "epoch of": name,
            "s, median": f"{np.median(seconds[name]):.3f}",
            "ratio (quartiles)": ratio(seconds[name], seconds["resident batch"]),
        }
        for name in epochs
    ]


def jpegs(number: int) -> list[dict[str, Any]]:
    """Random JPEGs of 500 x 375 pixels and some 115 kB.

    That is what the images of ImageNet's training archive have on average: 147.9 GB
    for 1,281,167 images.
    """
    rng = np.random.default_rng(0)
    examples = []
    for label in range(number):
        # Like photographs: the finer the structure, the weaker.
        pixels = np.full((375, 500, 3), 128, np.float32)
        for scale in (125, 25, 5, 1):
            noise = rng.integers(0, 256, (375 // scale, 500 // scale, 3), np.uint8)
            smooth = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            pixels += (np.asarray(smooth, np.float32) - 128) * (0.17 + scale / 500)
        file = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file, "JPEG", quality=95)
        examples.append({"image": file.getvalue(), "label": label})
    return examples


def streamed(
    source: Sequence[dict[str, Any]], images: int, workers: int, batch_size: int = 64
) -> dict[str, Any]:
    """A row of the second table."""
    from experiments.training.streaming import training_batches

    batches = iter(
        training_batches(source, batch_size=batch_size, seed=0, workers=workers)
    )
    for _ in range(3 * max(workers, 1)):  # until the workers and their buffers are full
        next(batches)
    steps = -(-images // batch_size)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    speed = steps * batch_size / (time.perf_counter() - start)
    batches.close()
    cores = min(max(workers, 1), os.cpu_count())
    sizes = [len(source[i]["image"]) for i in range(min(256, len(source)))]
    return {
        "workers": workers or "a thread",
        "kB an image": f"{np.mean(sizes) / 1e3:.0f}",
        "images/s": f"{speed:.0f}",
        "a core": f"{speed / cores:.0f}",
        f"cores for {RESNET50_NEED} images/s": f"{RESNET50_NEED * cores / speed:.1f}",
    }


def main(options: Options) -> None:
    """Measures and writes both tables."""
    memory = markdown(in_memory(options))
    if options.imagenet_dir is None:
        source = jpegs(256)
    else:
        from experiments.training.streaming import imagenet

        source = imagenet("train", options.imagenet_dir)
    stream = markdown(
        [
            streamed(source, options.stream_images, workers)
            for workers in (0, os.cpu_count())
        ]
    )
    write_result("input_pipeline", f"{memory}\n\n{stream}")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
