"""Streams as the source of a training run."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.training.config import Config
from experiments.training.devices import data_mesh, replicated


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory, write_tfds):
    """Nine training and five validation images of various sizes."""
    rng = np.random.default_rng(0)

    def jpeg():
        pixels = rng.integers(0, 256, (*rng.integers(40, 90, 2), 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        file.seek(0)
        return file

    directory = tmp_path_factory.mktemp("tfds")
    splits = {
        split: [
            {"image": jpeg(), "label": int(n % 3), "file_name": f"{split}{n}.JPEG"}
            for n in range(size)
        ]
        for split, size in {"train": 9, "validation": 5}.items()
    }
    write_tfds("imagenet2012", directory, splits)
    return directory


@pytest.fixture
def stream(imagenet_dir, tiny_vgg):
    """Opens the stream for a tiny network, with batches of 4 images."""
    opened = []

    def open_stream(devices=1):
        config = Config(
            model=tiny_vgg, dataset="imagenet2012", batch_size=4, epochs=2, c=0.01
        )
        mesh = data_mesh(jax.devices()[:devices])
        source = open_source(config, imagenet_dir, mesh, workers=0)
        opened.append(source)
        init = jax.jit(source.trainer.init, out_shardings=replicated(mesh))
        return source, init(0)

    yield open_stream
    for source in opened:
        source.close()


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


def test_an_epoch_has_the_whole_batches_of_the_stream(stream):
    source, state = stream()
    assert isinstance(source, StreamSource)
    assert source.trainer.num_classes == 1000
    state, steps = source.epoch(state, lambda: False)
    assert int(state.step) == len(steps.loss) == 2  # 9 images, batches of 4
    assert np.isfinite(steps.loss).all()


def test_a_stream_resumed_at_a_step_continues_to_the_bit(stream):
    source, state = stream()
    state, _ = source.epoch(state, lambda: False)
    saved = jax.tree.map(lambda x: x.copy(), state)
    state, _ = source.epoch(state, lambda: False)
    resumed, _ = stream()[0].epoch(saved, lambda: False)
    for a, b in zip(leaves(state), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluation_counts_every_image_once(stream):
    source, state = stream()
    tested = source.evaluate(state)
    images = [batch["image"] for batch in source._testing]
    labels = [batch["label"] for batch in source._testing]
    metrics = source.trainer.metrics(
        state.params,
        state.batch_stats,
        np.concatenate(images)[:5],
        np.concatenate(labels)[:5],
    )
    # The mean of five float32 numbers, summed in another order.
    np.testing.assert_allclose(tested.loss, metrics.loss.mean(), rtol=1e-6)
    np.testing.assert_allclose(tested.accuracy, metrics.accuracy.mean(), rtol=1e-6)


def test_a_stream_over_four_devices_gives_the_losses_of_one(stream):
    losses = []
    for devices in (1, 4):
        source, state = stream(devices)
        losses.append(source.epoch(state, lambda: False)[1].loss)
    # Two steps in float32 with sums in another order.
    np.testing.assert_allclose(*losses, rtol=1e-5)
