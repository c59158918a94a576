"""Tests of experiments.streaming."""

import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.training import streaming
from experiments.training.errors import UserError

# Width and height of the training images; labels are their places here.
SIZES = [
    (50, 40),
    (40, 50),
    (64, 64),
    (33, 47),
    (90, 30),
    (28, 70),
    (300, 200),
    (40, 40),
]
SIZES += [(41, 60), (55, 35), (48, 48)]
VALIDATION = 5  # the first so many are also the images of validation
SIZE = 28  # of the crops


def picture(width, height):
    """Smooth colours that change from left to right and from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, (red + green) / 2], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def as_jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def data_dir(write_tfds, tmp_path_factory):
    """A directory with a small imagenet2012."""
    directory = tmp_path_factory.mktemp("tfds")
    splits = {
        "train": [example(label) for label in range(len(SIZES))],
        "validation": [example(label) for label in range(VALIDATION)],
    }
    write_tfds("imagenet2012", directory, splits)
    return directory


def example(label):
    image = picture(*SIZES[label])
    if label == 3:
        image = image.convert("L")  # some images of ImageNet are grey
    return {"image": as_jpeg(image), "label": label, "file_name": f"{label}.JPEG"}


@pytest.fixture(scope="module")
def train_source(data_dir):
    return streaming.imagenet("train", data_dir)


@pytest.fixture(scope="module")
def validation_source(data_dir):
    return streaming.imagenet("validation", data_dir)


def training(source, **options):
    options = {"batch_size": 4, "seed": 0, "image_size": SIZE} | options
    return streaming.training_batches(source, **options)


def evaluation(source, **options):
    options = {"batch_size": 4, "image_size": SIZE} | options
    return streaming.evaluation_batches(source, **options)


def take(batches, n=None):
    """The first n batches, all by default; ends what reads them."""
    iterator = iter(batches)
    try:
        return list(itertools.islice(iterator, n))
    finally:
        iterator.close()


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        assert batch.keys() == reference.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], reference[name])


def test_training_batches_hold_bytes_and_labels(train_source):
    (batch,) = take(training(train_source), 1)
    assert batch["input"].shape == (4, SIZE, SIZE, 3)
    assert batch["input"].dtype == np.uint8
    assert batch["label"].shape == (4,)
    assert batch["label"].dtype == np.int32


def test_same_seed_gives_the_same_stream_and_another_seed_another(train_source):
    first, again = (take(training(train_source), 4) for _ in range(2))
    assert_equal(first, again)
    (other,) = take(training(train_source, seed=1), 1)
    assert (other["input"] != first[0]["input"]).any()


def test_epochs_leave_out_the_remainder_and_differ_in_order_and_crops(train_source):
    batches = take(training(train_source), 2 * 6)  # 11 images, 2 batches an epoch
    epochs = [batches[start : start + 2] for start in range(0, 12, 2)]
    orders = [np.concatenate([b["label"] for b in epoch]).tolist() for epoch in epochs]
    assert all(len(set(order)) == 8 for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert set().union(*orders) == set(
        range(11)
    )  # the remainder is not always the same
    crops = [
        {label: crop.tobytes() for batch in epoch for label, crop in by_label(batch)}
        for epoch in epochs
    ]
    common = crops[0].keys() & crops[1].keys()
    assert common
    assert all(crops[0][label] != crops[1][label] for label in common)


def by_label(batch):
    return zip(batch["label"].tolist(), np.asarray(batch["input"]), strict=True)


def test_half_of_the_training_images_are_mirrored(train_source):
    batches = take(training(train_source), 40)
    crops = [crop for batch in batches for k, crop in by_label(batch) if k != 3]
    # Red rises from left to right in the coloured images.
    mirrored = [crop[:, 0, 0].mean() > crop[:, -1, 0].mean() for crop in crops]
    assert abs(np.mean(mirrored) - 0.5) < 5 * 0.5 / np.sqrt(len(crops))


def test_stream_goes_on_from_any_batch(train_source):
    batches = take(training(train_source), 7)
    for start in (1, 2, 5):
        rest = take(training(train_source, start=start), 7 - start)
        assert_equal(rest, batches[start:])


def test_state_of_an_iterator_restores_it(train_source):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = streaming.prefetch_to_device(training(train_source), sharding)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()  # of what was taken, though more was prefetched
    iterator.close()
    restored = iter(batches)
    restored.set_state(state)
    assert_equal([next(restored)], take(training(train_source, start=3), 1))
    restored.close()


def test_processes_split_the_batches_that_one_process_would_read(train_source):
    whole = take(training(train_source), 5)
    parts = [
        take(training(train_source, process_index=i, process_count=2), 5)
        for i in range(2)
    ]
    for batch, *shards in zip(whole, *parts, strict=True):
        assert all(shard["input"].shape == (2, SIZE, SIZE, 3) for shard in shards)
        expected = {label: crop.tobytes() for label, crop in by_label(batch)}
        found = [(k, crop.tobytes()) for shard in shards for k, crop in by_label(shard)]
        assert len(found) == len(expected) == 4
        assert dict(found) == expected


def test_evaluation_covers_every_image_once(validation_source):
    batches = take(evaluation(validation_source))
    assert [batch["input"].shape for batch in batches] == [(4, SIZE, SIZE, 3)] * 2
    weights = np.concatenate([batch["weight"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    images = np.concatenate([batch["input"] for batch in batches])
    np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(labels[:VALIDATION], range(VALIDATION))
    assert (images[:VALIDATION] > 0).any(axis=(1, 2, 3)).all()
    assert not images[VALIDATION:].any()


def test_processes_evaluate_equally_many_batches(validation_source):
    parts = [
        take(evaluation(validation_source, process_index=i, process_count=4))
        for i in range(4)
    ]
    assert [len(part) for part in parts] == [2] * 4
    batches = [batch for part in parts for batch in part]
    weighted = [
        label
        for batch in batches
        for label, weight in zip(batch["label"], batch["weight"], strict=True)
        if weight
    ]
    assert sorted(weighted) == list(range(VALIDATION))


@pytest.mark.slow
def test_workers_deliver_what_the_main_process_does_also_after_signals(train_source):
    expected = take(training(train_source), 6)
    iterator = iter(training(train_source, workers=2))
    batches = [next(iterator) for _ in range(2)]  # one of each: both are at work
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    batches += [next(iterator) for _ in range(4)]
    iterator.close()
    assert_equal(batches, expected)
    assert not any(worker.is_alive() for worker in workers)


READ_AND_DIE = """
import multiprocessing, os, signal, sys
from experiments.training import streaming

if __name__ == "__main__":
    source = streaming.imagenet("train", sys.argv[1])
    batches = streaming.training_batches(
        source, batch_size=4, seed=0, image_size=28, workers=1
    )
    iterator = iter(batches)
    next(iterator)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_main_process_and_import_no_tensorflow(
    data_dir, tmp_path
):
    # Found before an installed one, if there is one; importing it leaves a trace.
    trace = tmp_path / "imported"
    (tmp_path / "tensorflow.py").write_text(f"open({str(trace)!r}, 'w').close()")
    program = tmp_path / "read_and_die.py"
    program.write_text(READ_AND_DIE)
    search = os.pathsep.join([str(tmp_path), *sys.path])
    # No pipe: a worker that stayed would hold it open.
    with (tmp_path / "printed").open("w+") as printed:
        main = subprocess.run(
            [sys.executable, program, data_dir],
            env=os.environ | {"PYTHONPATH": search},
            stdout=printed,
        )
        printed.seek(0)
        worker = int(printed.read())
    assert main.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    if is_running(worker):
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived the main process by 30 seconds")
    assert not trace.exists()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_batches_reach_the_devices_in_their_order(train_source):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batches = take(streaming.prefetch_to_device(training(train_source), sharding), 4)
    for array in jax.tree.leaves(batches):
        assert array.sharding == sharding
    assert_equal(batches, take(training(train_source), 4))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (10, 400), (400, 10), (1, 1)])
def test_random_boxes_keep_to_the_image_and_to_the_ratio(size):
    width, height = size
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, w, h = streaming._random_box(rng, width, height)
        assert 0 <= left <= left + w <= width
        assert 0 <= top <= top + h <= height
        # Sides are rounded to whole pixels.
        assert 3 / 4 * (h - 0.5) <= w + 0.5
        assert w - 0.5 <= 4 / 3 * (h + 0.5)


def test_random_boxes_have_the_areas_and_ratios_of_torchvision():
    rng = np.random.default_rng(0)
    boxes = np.array([streaming._random_box(rng, 1000, 1000) for _ in range(4000)])
    width, height = boxes[:, 2], boxes[:, 3]
    area, ratio = width * height / 1e6, width / height
    assert 0.079 < area.min() < 0.09
    assert 0.749 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.335
    # Uniform from 0.08 to 1, but for large boxes that do not fit and are drawn again:
    # at these areas all boxes fit, so each tenth of the range is equally likely.
    counts, _ = np.histogram(area, bins=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert np.ptp(counts) < 8 * np.sqrt(counts.mean())
    # Log-uniform: as often wide as high.
    assert abs(np.mean(width > height) - 0.5) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("size", [(60, 45), (600, 450), (2000, 1500)])
def test_random_resized_crop_shows_the_part_that_was_drawn(size):
    image, seed = picture(*size), 3
    left, top, width, height = streaming._random_box(np.random.default_rng(seed), *size)
    part = image.crop((left, top, left + width, top + height))
    expected = part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    crop = streaming.random_resized_crop(
        Image.open(as_jpeg(image)), np.random.default_rng(seed), SIZE
    )
    assert crop.size == (SIZE, SIZE)
    # Colours rise by at most 255 / 28 = 9 levels a pixel of the crop: wrong by a fifth
    # of a pixel would show, JPEG and decoding at reduced size make up to 2 levels.
    error = np.asarray(crop, float) - np.asarray(expected, float)
    assert abs(error.mean(axis=(0, 1))).max() < 1
    assert abs(error[1:-1, 1:-1]).max() < 5


def test_centre_crop_rounds_as_torchvision():
    # Shorter side 256 already: nothing is scaled, and the crop begins at (38, 16).
    pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    crop = streaming.centre_crop(Image.fromarray(pixels), 224)
    np.testing.assert_array_equal(crop, pixels[16:240, 38:262])
    crop = streaming.centre_crop(Image.fromarray(pixels.transpose(1, 0, 2)), 224)
    np.testing.assert_array_equal(crop, pixels.transpose(1, 0, 2)[38:262, 16:240])
    # 500 x 375 becomes 341 x 256, of which columns 58 to 282 remain.
    image = picture(500, 375)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized, int)[16:240, 58:282]
    crop = np.asarray(streaming.centre_crop(image, 224), int)
    # Places in the image are float32 in Pillow: a level can round the other way.
    assert abs(crop - expected).max() <= 1


def test_missing_directory_says_where_what_and_how(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        streaming.imagenet("train", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "imagenet2012" / "5.1.0") in message
    assert "imagenet2012-*.array_record*" in message
    assert f"tfds build imagenet2012 --data_dir={tmp_path}" in message
    assert "ILSVRC2012_img_train.tar" in message


def test_missing_split_lists_those_there(data_dir):
    with pytest.raises(UserError, match=r"test.*train.*validation"):
        streaming.imagenet("test", data_dir)


@pytest.mark.parametrize("batches", [training, evaluation])
def test_batch_must_split_evenly_over_processes(train_source, batches):
    with pytest.raises(
        UserError, match="multiple of the number of processes, 3: got 4"
    ):
        batches(train_source, process_count=3)
