"""Tests of experiments.training.data."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from experiments.training import data
from experiments.training.errors import UserError


def images(n, shape=(4, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def npz_arrays(**changes):
    """The arrays of a valid .npz file, with changes; None leaves one out."""
    arrays = {
        "train_images": images(6),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": images(3, seed=1),
        "test_labels": np.array([2, 1, 0], np.uint8),
    } | changes
    return {name: array for name, array in arrays.items() if array is not None}


def write_npz(path, **changes):
    np.savez(path, **npz_arrays(**changes))
    return str(path)


def run_python(code, *arguments, path=()):
    """Runs code in a process of its own; returns what it printed."""
    search = os.pathsep.join([*map(str, path), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": search},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_digits_are_scaled_to_the_unit_interval():
    digits = data.load("digits")
    assert digits.train_inputs.shape == (1437, 8, 8, 1)
    assert digits.test_inputs.shape == (360, 8, 8, 1)
    assert digits.train_inputs.dtype == digits.test_inputs.dtype == np.float32
    assert (digits.train_inputs.min(), digits.train_inputs.max()) == (0, 1)
    assert digits.num_classes == 10


def test_digits_are_split_by_the_stated_permutation():
    digits, bunch = data.load("digits"), sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    joined = np.concatenate([digits.train_inputs, digits.test_inputs])
    np.testing.assert_array_equal(joined[..., 0] * 16, bunch.images[order])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    np.testing.assert_array_equal(labels, bunch.target[order])


EXTRA_FEATURES = {
    "mnist": {},
    "cifar10": {"id": "0"},
    "cifar100": {"id": "0", "coarse_label": 0},
}


def prepare(write_tfds, name, data_dir, train, train_labels, test, test_labels):
    def examples(images, labels):
        for image, label in zip(images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image.squeeze()).save(png, "PNG")
            png.seek(0)
            yield EXTRA_FEATURES[name] | {"image": png, "label": label}

    splits = {
        "train": list(examples(train, train_labels)),
        "test": list(examples(test, test_labels)),
    }
    write_tfds(name, data_dir, splits)


@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [
        ("mnist", (28, 28, 1), 10),
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_tfds_directories_are_read_as_they_were_written(
    write_tfds, tmp_path, name, shape, num_classes
):
    train, test = images(9, shape), images(5, shape, seed=1)
    train_labels = np.arange(9) % num_classes
    test_labels = num_classes - 1 - np.arange(5)
    prepare(write_tfds, name, tmp_path, train, train_labels, test, test_labels)
    dataset = data.load(name, tmp_path)
    np.testing.assert_array_equal(dataset.train_inputs, train)
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_inputs, test)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert dataset.train_labels.dtype == np.int32
    assert dataset.num_classes == num_classes


def test_tfds_directories_are_read_without_importing_tensorflow(write_tfds, tmp_path):
    train, test = images(3, (28, 28, 1)), images(2, (28, 28, 1), seed=1)
    prepare(write_tfds, "mnist", tmp_path, train, range(3), test, range(2))
    # Found before an installed one, if there is one; importing it leaves a trace.
    fake, trace = tmp_path / "fake" / "tensorflow.py", tmp_path / "imported"
    fake.parent.mkdir()
    fake.write_text(f"open({str(trace)!r}, 'w').close()")
    printed = run_python(
        "import sys; from experiments.training import data\n"
        "print(data.load('mnist', sys.argv[1]).train_labels)",
        tmp_path,
        path=[fake.parent],
    )
    assert printed == "[0 1 2]\n"
    assert not trace.exists()


def test_missing_tfds_directory_says_where_what_and_how(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar10", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "cifar10" / "3.0.2") in message
    assert "cifar10-*.array_record*" in message
    command = f"tfds build cifar10 --data_dir={tmp_path} --file_format=array_record"
    assert command in message


def test_tfds_directory_in_another_format_says_how_to_convert_it(write_tfds, tmp_path):
    train, test = images(1, (28, 28, 1)), images(1, (28, 28, 1), seed=1)
    prepare(write_tfds, "mnist", tmp_path, train, [0], test, [0])
    directory = tmp_path / "mnist" / "3.0.1"
    for file in directory.iterdir():
        if "array_record" in file.name:
            file.rename(directory / file.name.replace("array_record", "tfrecord"))
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", tmp_path)
    message = str(caught.value)
    assert "found tfrecord" in message
    assert f"tfds convert_format --dataset_version_dir={directory}" in message


def test_without_tfds_the_error_offers_npz_files(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install .* \.npz file"):
        data.load("cifar10")


def test_npz_file_is_read_as_it_was_written(tmp_path):
    dataset = data.load(write_npz(tmp_path / "mine.npz"))
    for name, array in npz_arrays().items():
        name = name.replace("images", "inputs")
        np.testing.assert_array_equal(getattr(dataset, name), array)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.num_classes == 3


def test_npz_file_may_hold_float_images(tmp_path):
    train, test = (x.astype(np.float32) / 255 for x in (images(6), images(3)))
    path = write_npz(tmp_path / "mine.npz", train_images=train, test_images=test)
    np.testing.assert_array_equal(data.load(path).train_inputs, train)


def test_class_names_in_an_npz_file_count_the_classes(tmp_path):
    names = np.array(["a", "b", "c", "d"])
    path = write_npz(tmp_path / "mine.npz", class_names=names)
    assert data.load(path).num_classes == 4


def test_npz_files_and_digits_need_neither_tfds_nor_grain(tmp_path):
    blocked = ("tensorflow_datasets", "grain", "array_record", "PIL")
    printed = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from experiments.training import data\n"
        "print(data.load(sys.argv[1]).name, data.load('digits').name)",
        write_npz(tmp_path / "mine.npz"),
    )
    assert printed == f"{tmp_path / 'mine.npz'} digits\n"


FLOATS = images(6).astype(np.float32) / 255


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "test_labels missing"),
        ({"train_images": images(6) * 1.0}, "train_images .* float64"),
        ({"train_images": images(6, (4, 4))}, r"train_images .* \(6, 4, 4\)"),
        ({"test_images": images(0)}, r"test_images .* \(0, 4, 4, 3\)"),
        ({"train_images": FLOATS * 2}, r"train_images .* \[0, 1\]"),
        ({"train_images": FLOATS * np.float32("nan")}, "train_images .* nan"),
        ({"test_images": images(3, (4, 5, 3))}, r"like .* got \(4, 5, 3\)"),
        ({"train_images": FLOATS}, "like .* float32: got .* uint8"),
        ({"train_labels": np.zeros(6)}, "train_labels .* float64"),
        ({"train_labels": np.arange(3)}, r"train_labels .* \(3,\)"),
        ({"test_labels": np.array([0, -1, 0])}, "test_labels .* from -1"),
        ({"test_labels": np.array([0, 3, 0])}, r"\[0, 3\), .* to 3"),
        ({"class_names": np.array(["a", "b"])}, r"\[0, 2\), .* to 2"),
        ({"test_labels": np.array([0, 1, None])}, "allow_pickle"),
        # As int32 these would be valid classes.
        ({"test_labels": np.array([0, 2**32 + 1, 0])}, r"\[0, 3\), .* to 4294967297"),
        ({"train_labels": np.full(6, 2**64 - 1, np.uint64)}, "largest is 184467440737"),
        # More classes than images are a mistake, unless they are said.
        (
            {"train_labels": np.array([0, 1, 2, 0, 1, 6])},
            "below their number, 6, unless",
        ),
    ],
    ids=str,
)
def test_npz_file_is_checked(tmp_path, changes, message):
    path = write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(UserError, match=message):
        data.load(path)


def test_more_classes_than_images_are_fine_where_they_are_named(tmp_path):
    changes = {"train_labels": np.arange(6) + 4, "class_names": np.arange(10)}
    assert data.load(write_npz(tmp_path / "mine.npz", **changes)).num_classes == 10


def test_an_archive_that_is_cut_or_damaged_is_named(tmp_path):
    path = tmp_path / "mine.npz"
    whole = Path(write_npz(path)).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:300] + b"damage" + whole[306:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mine\.npz must"):
            data.load(str(path))


def test_batches_follow_the_order_and_the_last_may_be_smaller():
    dataset = dataclasses.replace(data.load("digits"), name="few")
    order = np.array([7, 3, 5, 1, 9])
    batches = list(dataset.batches(order, 2))
    assert [len(batch["label"]) for batch in batches] == [2, 2, 1]
    for name in ("input", "label"):
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined, getattr(dataset, f"train_{name}s")[order])


def test_evaluation_fills_its_last_batch_with_images_that_do_not_count():
    dataset = data.load("digits")
    batches = list(dataset.evaluation("test", 100))
    assert [len(batch["label"]) for batch in batches] == [100] * 4
    assert [batch["weight"].sum() for batch in batches] == [100, 100, 100, 60]
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:360], dataset.test_labels)


def test_file_that_is_no_npz_archive_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(b"not a zip archive")
    with pytest.raises(UserError, match=r"must be an \.npz file"):
        data.load(str(path))


def test_missing_npz_file_says_where_and_what(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "train_images, train_labels, test_images, test_labels" in message
    assert "numpy.savez" in message


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"digits.*cifar10.*\.npz .*, got 'svhn'"):
        data.load("svhn")
