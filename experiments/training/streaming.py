"""ImageNet-2012 as a stream of batches, for machines whose memory does not hold it.

TensorFlow Datasets reads the records (without TensorFlow), Pillow decodes them, and
Grain orders, batches and runs the worker processes::

    source = imagenet("train", data_dir)
    batches = training_batches(source, batch_size=256, seed=0, workers=16)
    iterator = iter(prefetch_to_device(batches, sharding))
    batch = next(iterator)  # {"input": (256, 224, 224, 3) uint8, "label": (256,) int32}
    iterator.close()  # ends the workers

What the n-th batch of a run holds, and how each of its images is cropped, follows from
the source, the batch size, the seed and n alone. It is the same for any number of
workers, and for any number of processes but for the order within the batch. So the
position n is all that a checkpoint needs to keep.

Pixels stay uint8 until they are on the device, where
:func:`experiments.training.augmentation.normalise` takes over. Workers hand batches
over in shared memory, some three batches a worker at a time: in a container, /dev/shm
must be that large.
"""

import functools
import io
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from experiments.training.config import Config
from experiments.training.data import Batch, tfds_source
from experiments.training.errors import UserError
from experiments.training.trainer import TrainState, network_spec

Example = dict[str, Any]


class ImageNet:
    """ImageNet as a training run takes it: batches over the devices of all processes.

    Workers hand batches over in shared memory, about three each: in a container,
    /dev/shm must hold them (38 MB each at 256 images of 224 x 224).
    """

    def __init__(
        self, config: Config, mesh: Mesh, data_dir: Path | None = None, workers: int = 0
    ):
        """Opens it.

        Args:
          config: batch size, seed, and a network that says the size of the images.
          mesh: of devices.data_mesh.
          data_dir: as for :func:`experiments.training.data.load`.
          workers: processes that read and decode; 0 means a thread of this process.

        Raises:
          FileNotFoundError, UserError: as experiments.training.data.tfds_source.
        """
        self.splits = {
            "train": imagenet("train", data_dir),
            "test": imagenet("validation", data_dir),
        }
        train = self.splits["train"]
        self.num_classes = train.dataset_info.features["label"].num_classes
        # The stream leaves out what does not fill a batch.
        self.num_examples = len(train) // config.batch_size * config.batch_size
        if not self.num_examples:
            raise UserError(
                f"batch_size must be at most the number of images, {len(train)}: "
                f"got {config.batch_size}"
            )
        self.input_shape = network_spec(config.model).input_shape
        self.label_shape = ()
        self.sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.seed = config.seed
        self.options = {
            "batch_size": config.batch_size,
            "image_size": self.input_shape[0],
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "workers": workers,
        }

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """Training batches from a state's step on, without end."""
        batches = training_batches(
            self.splits["train"], seed=self.seed, start=int(state.step), **self.options
        )
        return iter(prefetch_to_device(batches, self.sharding))

    def evaluation(self, split: str) -> Iterator[Batch]:
        """One pass over a split, with weights."""
        batches = evaluation_batches(self.splits[split], **self.options)
        return iter(prefetch_to_device(batches, self.sharding))


def imagenet(
    split: str, data_dir: str | os.PathLike | None = None
) -> Sequence[Example]:
    """The records of ImageNet-2012, with images as JPEG bytes.

    Args:
      split: ``"train"`` (1,281,167 images) or ``"validation"`` (50,000).
      data_dir: as for :func:`experiments.training.data.load`.

    Returns:
      A sequence with random access, of dicts with at least ``image`` and ``label``.

    Raises:
      FileNotFoundError, UserError: as :func:`experiments.training.data.tfds_source`.
    """
    decoders = {"image": tfds.decode.SkipDecoding()}
    return tfds_source("imagenet2012", split, data_dir, decoders)


def training_batches(
    source: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    image_size: int = 224,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> grain.IterDataset[Batch]:
    """This process's part of an endless stream of random crops.

    Every epoch has ``len(source) // batch_size`` batches, in an order of its own; what
    remains is left out, other images each time. The crop and the flip of an image come
    from (seed, epoch, index of the image).

    Args:
      source: examples with ``image``, encoded bytes, and ``label``.
      batch_size: images a batch, over all processes.
      seed: of the order, the crops and the flips; from 0 to 2**32 - 1.
      start: batches of the stream to leave out, because a run that is being resumed
        has seen them.
      image_size: height and width of the crops.
      process_index: which part of each batch to read.
      process_count: into how many parts a batch is split.
      workers: processes that read and decode; 0 means a thread of this process.

    Returns:
      A dataset of dicts: ``input`` (batch_size / process_count, image_size, image_size,
      3) uint8, and ``label`` (batch_size / process_count,) int32.

    Raises:
      UserError: if process_count does not divide batch_size.
    """
    local_batch_size = _local_batch_size(batch_size, process_count)
    images = len(source) // batch_size * batch_size
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .random_map(functools.partial(_training_example, size=image_size))
        .shuffle()[:images][process_index::process_count]
        .batch(local_batch_size)
        .repeat()[start:]
    )
    return _read_ahead(dataset, workers)


def evaluation_batches(
    source: Sequence[Example],
    *,
    batch_size: int,
    image_size: int = 224,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> grain.IterDataset[Batch]:
    """This process's part of one pass over all images, centre crops in their order.

    Arguments, dicts and errors are those of :func:`training_batches`; the dicts have
    ``weight`` as well, (batch_size / process_count,) float32: 1 for an image, 0 for the
    black images that fill up the last batch, so that every process sees equally many
    batches of one shape.
    """
    local_batch_size = _local_batch_size(batch_size, process_count)
    steps = -(-len(source) // batch_size)
    read = functools.partial(_evaluation_example, source=source, size=image_size)
    examples = grain.MapDataset.range(steps * batch_size).map(read)
    dataset = examples[process_index::process_count].batch(local_batch_size)
    return _read_ahead(dataset, workers)


def prefetch_to_device(
    batches: grain.IterDataset[Batch], sharding: jax.sharding.Sharding
) -> grain.IterDataset[dict[str, jax.Array]]:
    """Moves batches to the devices while the step before still runs.

    Args:
      batches: this process's part of each batch.
      sharding: of the first axis of the whole batch, over the devices of all processes.

    Returns:
      A dataset of dicts of global arrays; its iterators stay two batches ahead.
    """

    def put(batch):
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }

    return grain.experimental.ThreadPrefetchIterDataset(
        batches.map(put), prefetch_buffer_size=2
    )


def random_resized_crop(
    image: Image.Image, rng: np.random.Generator, size: int
) -> Image.Image:
    """Cuts out a random part of an image and scales it to size x size pixels.

    The part covers 8 % to 100 % of the image, uniformly, at an aspect ratio from 3/4 to
    4/3, log-uniformly, as in torchvision's RandomResizedCrop.
    """
    full_width, full_height = image.size
    left, top, width, height = _random_box(rng, full_width, full_height)
    # A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if the crop stays large.
    image.draft(None, (full_width * size // width, full_height * size // height))
    box = (
        left * image.width / full_width,
        top * image.height / full_height,
        (left + width) * image.width / full_width,
        (top + height) * image.height / full_height,
    )
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to 8/7 of size, then cuts out the centre.

    For size 224 these are the 256 and 224 of the usual evaluation, rounded as in
    torchvision's Resize and CenterCrop.
    """
    shorter = size * 8 // 7
    width, height = (side * shorter // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    # Only the pixels of the crop are computed.
    scale_x, scale_y = image.width / width, image.height / height
    box = (
        left * scale_x,
        top * scale_y,
        (left + size) * scale_x,
        (top + size) * scale_y,
    )
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def _training_example(example: Example, rng: np.random.Generator, size: int) -> Batch:
    image = random_resized_crop(Image.open(io.BytesIO(example["image"])), rng, size)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _as_arrays(image, example["label"])


def _evaluation_example(index: int, source: Sequence[Example], size: int) -> Batch:
    if index >= len(source):
        black = Image.new("RGB", (size, size))
        return _as_arrays(black, 0) | {"weight": np.float32(0)}
    example = source[index]
    image = centre_crop(Image.open(io.BytesIO(example["image"])), size)
    return _as_arrays(image, example["label"]) | {"weight": np.float32(1)}


def _as_arrays(image: Image.Image, label: int) -> Batch:
    # Some images of ImageNet are grey.
    return {"input": np.asarray(image.convert("RGB")), "label": np.int32(label)}


def _random_box(
    rng: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a part of an image."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers((width - w + 1, height - h + 1)).tolist()
            return left, top, w, h
    # The image is long and narrow: the largest part in its centre that has the ratio.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def _local_batch_size(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size must be a positive multiple of the number of processes, "
            f"{process_count}: got {batch_size}"
        )
    return batch_size // process_count


def _read_ahead(
    dataset: grain.MapDataset[Batch], workers: int
) -> grain.IterDataset[Batch]:
    """Reads batches in worker processes, or in one thread if there are none."""
    # Threads beside the decoding one would only wait for it: one batch ahead is enough.
    batches = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    if workers == 0:
        return batches
    # Grain's workers ask for absl flags, which only absl's own programs parse.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
        worker_init_fn=_start_worker,
    )


def _start_worker(index: int, count: int) -> None:
    """Ties a worker to the main process, which is the one to answer signals."""
    del index, count
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends a worker whose main process was killed; by itself it would stay for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
