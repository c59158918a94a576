"""Tests of experiments.training.loop: on the device, from the host, and together."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
from experiments.training import data, loop
from experiments.training.config import Config, Grda
from experiments.training.devices import data_mesh, replicated
from experiments.training.errors import UserError
from experiments.training.loop import (
    FromHost,
    OnDevice,
    open_passes,
    run_epochs,
    train_together,
)
from experiments.training.trainer import Trainer, make_trainer
from models import _registry
from models.mlp import MLP

# Sums of float32 in another order, passed on by a few steps.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", autouse=True)
def tiny_mlp():
    """A network for color images of 8x8 pixels, quick to compile."""
    spec = models.spec("digits-mlp")._replace(
        network=functools.partial(MLP, features=(4,)),
        input_shape=(8, 8, 3),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )

    def order(self, key, epoch):  # a permutation takes a second to compile
        return jnp.roll(jnp.arange(self.num_examples), 3 * epoch + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_registry._SPECS, "tiny-mlp", spec)
        patch.setattr(Trainer, "order", order)
        yield


CONFIG = Config(model="tiny-mlp", method=Grda(c=0.1), batch_size=4, epochs=2)


@pytest.fixture(scope="module")
def dataset():
    """18 training and 5 test images."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 18), ("test", 5)):
        splits[f"{split}_inputs"] = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        splits[f"{split}_labels"] = rng.integers(0, 3, n, np.int32)
    return data.Dataset("random", **splits, num_classes=3)


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
def stream(imagenet_dir):
    """Opens the stream, with batches of 4 images, and makes a first state."""
    opened = []

    def open_stream(devices=1):
        mesh = data_mesh(jax.devices()[:devices])
        config = dataclasses.replace(CONFIG, dataset="imagenet2012")
        opened.append(open_passes(config, mesh, imagenet_dir))
        return opened[-1], first_state(opened[-1].trainer)

    yield open_stream
    for passes in opened:
        passes.close()


def first_state(trainer, seed=0):
    sharding = None if trainer.mesh is None else replicated(trainer.mesh)
    return jax.jit(trainer.init, out_shardings=sharding)(seed)


def never():
    return False


def assert_same_to_the_bit(state, expected):
    for tree in ("params", "opt_state", "step"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(state, tree), getattr(expected, tree)
        )


# A stream


def test_an_epoch_has_the_whole_batches_of_the_stream(stream):
    passes, state = stream()
    assert isinstance(passes, FromHost)
    state, steps = passes.train(state, never)
    assert int(state.step) == len(steps.loss) == 2  # 9 images, batches of 4
    assert np.isfinite(steps.loss).all()


def test_a_stream_resumed_at_a_step_continues_to_the_bit(stream):
    passes, state = stream()
    state, _ = passes.train(state, never)
    saved = jax.tree.map(lambda x: x.copy(), state)
    state, _ = passes.train(state, never)
    resumed, _ = stream()[0].train(saved, never)
    assert_same_to_the_bit(resumed, state)


def test_evaluation_counts_every_image_once(stream):
    passes, state = stream()
    tested = passes.evaluate(state, "test")
    batches = list(passes._evaluation("test"))
    images, labels = (
        np.concatenate([batch[name] for batch in batches])[:5]
        for name in ("input", "label")
    )
    metrics = passes.trainer.metrics(state.params, state.batch_stats, images, labels)
    # The mean of five float32 numbers, summed in another order.
    np.testing.assert_allclose(tested.loss, metrics.loss.mean(), rtol=1e-6)
    np.testing.assert_allclose(tested.accuracy, metrics.accuracy.mean(), rtol=1e-6)
    assert 0 < passes.evaluate(state, "train").loss < np.inf


def test_a_stream_over_four_devices_gives_the_losses_of_one(stream):
    losses = []
    for devices in (1, 4):
        passes, state = stream(devices)
        losses.append(passes.train(state, never)[1].loss)
    np.testing.assert_allclose(*losses, **ROUNDING)


def test_a_batch_must_not_be_larger_than_the_data(imagenet_dir):
    config = dataclasses.replace(CONFIG, dataset="imagenet2012", batch_size=10)
    with pytest.raises(UserError, match="at most the number of images, 9: got 10"):
        open_passes(config, data_mesh(), imagenet_dir)


# Data in memory


@pytest.fixture(scope="module")
def trainer(dataset):
    return make_trainer(CONFIG, dataset.num_classes, dataset.num_examples)


@pytest.fixture
def from_host(trainer, dataset):
    """Passes over the data in memory, a dispatch a batch."""
    batches = functools.partial(loop.shuffled, trainer, dataset)
    return FromHost(trainer, batches, dataset.evaluation)


@pytest.fixture(scope="module")
def on_device(trainer, dataset):
    """What both epochs end with, where each is one dispatch."""
    passes = OnDevice(trainer, dataset)
    ends = []
    for epoch in run_epochs(passes, first_state(trainer), range(1, 3), "digits"):
        state = jax.tree.map(lambda x: x.copy(), epoch.state)
        ends.append(epoch._replace(state=state))
    return ends


def test_batches_from_the_host_are_those_of_an_epoch_on_the_device(
    from_host, on_device, trainer
):
    epochs = run_epochs(from_host, first_state(trainer), range(1, 3), "digits")
    for epoch, expected in zip(epochs, on_device, strict=True):
        assert epoch.number == expected.number
        np.testing.assert_allclose(epoch.steps.loss, expected.steps.loss, **ROUNDING)
        assert epoch.row.keys() == expected.row.keys()
        for name, value in epoch.row.items():
            np.testing.assert_allclose(value, expected.row[name], **ROUNDING)


def test_an_epoch_from_the_host_stops_and_goes_on_within_to_the_bit(
    from_host, trainer, monkeypatch
):
    whole, _ = from_host.train(first_state(trainer), never)
    from_host._open = None  # as in another process
    asked = iter((False, True))
    monkeypatch.setattr(loop, "STEPS_BETWEEN_QUESTIONS", 2)
    epochs = run_epochs(
        from_host, first_state(trainer), range(1, 2), "", lambda: next(asked)
    )
    (stopped,) = epochs
    assert (int(stopped.state.step), stopped.row) == (4, None)
    assert stopped.health.finite
    from_host._open = None
    monkeypatch.undo()
    (resumed,) = run_epochs(from_host, stopped.state, range(1, 2), "")
    assert_same_to_the_bit(resumed.state, whole)
    assert resumed.row["step"] == 5


def test_an_epoch_stopped_on_the_host_goes_on_where_epochs_are_on_the_device(
    from_host, on_device, trainer, dataset
):
    batch = next(from_host._batches(first_state(trainer)))
    state, _ = from_host._step(first_state(trainer), batch["input"], batch["label"])
    epochs = run_epochs(OnDevice(trainer, dataset), state, range(1, 3), "resumed")
    for epoch, expected in zip(epochs, on_device, strict=True):
        assert epoch.row["step"] == expected.row["step"]
        loss, whole = epoch.row["test_loss"], expected.row["test_loss"]
        np.testing.assert_allclose(loss, whole, **ROUNDING)


def test_convolutions_on_a_cpu_take_their_batches_from_the_host(tiny_vgg, tiny_images):
    config = Config(model=tiny_vgg, dataset=tiny_images, batch_size=16)
    assert isinstance(open_passes(config, data_mesh()), FromHost)
    digits = open_passes(Config(), data_mesh())
    assert isinstance(digits, OnDevice)


def test_an_epoch_is_traced_once(dataset, trainer, monkeypatch):
    traced = []

    def train_epoch(*args, original=Trainer.train_epoch):
        traced.append(args)
        return original(*args)

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    mesh = data_mesh()
    passes = OnDevice(dataclasses.replace(trainer, mesh=mesh), dataset)
    state = first_state(passes.trainer)
    for _ in run_epochs(passes, state, range(1, 4), "digits"):
        pass
    assert len(traced) == 1


def test_an_epoch_is_two_dispatches_and_comes_to_the_host_at_once(
    dataset, trainer, monkeypatch
):
    passes, calls = OnDevice(trainer, dataset), []

    def noted(name, call, *args):
        calls.append(name)
        return call(*args)

    for of, name in (
        *((passes, name) for name in ("_train", "_evaluate", "_report")),
        (jax, "device_get"),
    ):
        call = functools.partial(noted, name, getattr(of, name))
        monkeypatch.setattr(of, name, call)
    epochs = list(run_epochs(passes, first_state(trainer), range(1, 3), "digits"))
    assert calls == 2 * ["_train", "_report", "device_get"]
    for epoch in epochs:
        told = jax.tree.leaves((epoch.steps, epoch.row, epoch.health))
        assert all(isinstance(value, np.ndarray | np.generic) for value in told)
        assert epoch.health.finite
        assert epoch.health.sparsity == epoch.row["sparsity"]


def test_data_that_the_network_cannot_train_on_are_refused(tiny_images):
    rule = r"digits-mlp cannot train on the 32 inputs of .*, of shape \(8, 8, 3\), with"
    with pytest.raises(UserError, match=rule):
        open_passes(Config(dataset=tiny_images), data_mesh())


# Together


def test_runs_that_train_together_equal_single_ones(dataset, on_device):
    methods, seeds = [Grda(c=0.1), Grda(c=0.5)], [0, 3]
    rows = []
    trained = train_together(
        CONFIG, dataset, methods, seeds, after=lambda epoch: rows.append(epoch.row)
    )
    assert len(rows) == 2
    assert trained.row is rows[-1]
    assert trained.seconds > 0
    np.testing.assert_array_equal(rows[0]["step"], [5] * 4)
    # The first method with the first seed is the run above.
    first = jax.tree.map(lambda leaf: leaf[0], trained.state.params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **ROUNDING),
        first,
        on_device[-1].state.params,
    )
    thresholds = trained.row["threshold"].reshape(2, 2)
    np.testing.assert_allclose(thresholds[1], 5 * thresholds[0], rtol=1e-6)
    kernels = np.asarray(trained.state.params["layers"][0]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
