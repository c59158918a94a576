"""Fixtures of the tests of experiments."""

import fcntl
import functools
import os

import numpy as np
import pytest

import models
from models import _registry
from models.vgg import VGG


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory):
    """A temporary directory that all workers of this session of tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def demo_run(shared_directory):
    """The directory that `make demo` makes, but with two seeds. Not to change.

    Made once, by the worker that comes first; beside it stands printed.txt.
    """
    from experiments import compare

    output = shared_directory / "demo"
    with (shared_directory / "demo.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # others wait here
        if not (shared_directory / "printed.txt").exists():
            printed = Printed()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("COLUMNS", "140")
                patch.setattr("sys.stdout", printed)
                # ONNX's packages take seconds to load.
                patch.setattr("experiments.analyses.card.exported", lambda *_: ())
                options = compare.Options(seeds=2, checkpoint_every=30, output=output)
                assert compare.main(options) == output
            (shared_directory / "printed.txt").write_text(printed.text)
    return output


@pytest.fixture(scope="session")
def paper_runs(demo_run, tmp_path_factory):
    """A directory of its runs of SGD and gRDA alone, without those of the recipe."""
    directory = tmp_path_factory.mktemp("paper")
    for name in ("sgd-0", "sgd-1", "grda-0", "grda-1"):
        (directory / name).symlink_to(demo_run / name)
    return directory


class Printed:
    """Stands in for standard output where the fixture capsys cannot."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture(scope="session")
def write_tfds():
    """A function that prepares a small TFDS directory in the real format.

    It takes the name of a dataset that TFDS knows, a data_dir, and the examples of each
    split, with images as files.
    """
    import tensorflow_datasets as tfds

    def write(name, data_dir, splits):
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.data_path.mkdir(parents=True)
        writer = tfds.core.SequentialWriter(
            builder.info, max_examples_per_shard=4, file_format="array_record"
        )
        writer.initialize_splits(list(splits))
        writer.add_examples(splits)
        writer.close_all()

    return write


@pytest.fixture(scope="module")
def tiny_vgg():
    """The name of a VGG with BatchNorm and dropout that trains in seconds."""
    network = functools.partial(
        VGG, blocks=((4,), (8,)), hidden=8, batch_norm=True, dropout=0.2
    )
    spec = models.spec("vgg16bn")._replace(network=network, input_shape=(8, 8, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_registry._SPECS, "tiny-vgg", spec)
        yield "tiny-vgg"


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """The path of an .npz file of 32 training and 20 test images for that network."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    arrays = {}
    for split, n in (("train", 32), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 4, n)
    np.savez(path, **arrays, class_names=list("abcd"))
    return str(path)
