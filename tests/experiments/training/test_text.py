"""Tests of experiments.training.text, and of training on what it reads."""

import dataclasses
import functools
import re
import runpy
import string

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from experiments import train
from experiments.training import data, session, text
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config, Grda, Target
from experiments.training.directory import read_json
from experiments.training.errors import UserError
from experiments.training.trainer import make_trainer
from models import _registry
from models.recurrent import GRU
from models.transformer import Transformer
from optax_grda import sparsity_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty files, each of one letter again and again, and some to pass over."""
    folder = tmp_path_factory.mktemp("letters")
    (folder / "more").mkdir()
    for number, letter in enumerate(string.ascii_lowercase[:20]):
        path = folder / ("more" if number % 2 else "") / f"{letter}.txt"
        path.write_text(letter * 200)
    (folder / ".git").mkdir()
    for name in (".hidden", ".git/index"):
        (folder / name).write_bytes(b"!" * 200)
    return str(folder)


def test_the_label_of_a_byte_is_the_next_one(folder):
    dataset = data.load(folder)
    assert dataset.num_classes == 256
    for part in ("train", "test"):
        inputs = getattr(dataset, f"{part}_inputs")
        labels = getattr(dataset, f"{part}_labels")
        assert (inputs.dtype, labels.dtype) == (np.uint8, np.int32)
        assert inputs.shape == labels.shape == (len(inputs), text.LENGTH)
        stream, following = inputs.ravel(), labels.ravel()
        np.testing.assert_array_equal(stream[1:], following[:-1])


def test_a_tenth_of_the_files_is_held_out_whole(folder):
    dataset = data.load(folder)
    train, test = set(dataset.train_inputs.flat), set(dataset.test_inputs.flat)
    assert len(test) == 2
    assert len(train) == 18
    assert not train & test
    assert train | test == set(string.ascii_lowercase[:20].encode())
    again = data.load(folder)
    np.testing.assert_array_equal(dataset.train_inputs, again.train_inputs)


def test_more_text_than_fits_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(text, "TRAIN_BYTES", 5 * text.LENGTH + 1)
    assert len(data.load(folder).train_inputs) == 5


def test_the_standard_library_is_python():
    dataset = data.load(text.STDLIB)
    assert dataset.train_inputs.size <= text.TRAIN_BYTES
    assert dataset.test_inputs.size <= text.TEST_BYTES
    for inputs in (dataset.train_inputs, dataset.test_inputs):
        assert inputs.size > 2**17
        assert inputs.tobytes().count(b"def ") > 100


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "one").write_text("only one file" * 100)
    with pytest.raises(UserError, match=r"must hold two files, .* got 1 in"):
        data.load(str(tmp_path))
    (tmp_path / "two").write_text("")
    with pytest.raises(UserError, match="must hold more than 128 bytes, got 0"):
        data.load(str(tmp_path))


TEXTS = np.zeros((3, 4), np.uint8)
LABELS = np.zeros((3, 4), np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_inputs": TEXTS.astype(np.int32)}, "train texts must be uint8"),
        ({"train_inputs": TEXTS + np.uint8(9)}, r"lie in \[0, 5\), got .* 0 to 9"),
        ({"train_labels": LABELS[:, 0]}, r"train_labels must have the shape \(3, 4\)"),
        ({"test_inputs": TEXTS[:, :2], "test_labels": LABELS[:, :2]}, "must be like"),
    ],
)
def test_texts_are_checked(changes, message):
    arrays = {
        **{"train_inputs": TEXTS, "test_inputs": TEXTS},
        **{"train_labels": LABELS, "test_labels": LABELS},
    }
    with pytest.raises(UserError, match=message):
        data.Dataset("mine", **(arrays | changes), num_classes=5)


# Training

KERNELS = Grda(c=0.1, direction="adam", thresholds="kernels")


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Names of networks that train in seconds."""
    networks = {
        "tiny-transformer": functools.partial(Transformer, width=8, blocks=1, heads=1),
        "tiny-gru": functools.partial(GRU, width=8),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, network in networks.items():
            spec = models.Spec(network, (text.LENGTH,))
            patch.setitem(_registry._SPECS, name, spec)
        yield


@pytest.fixture(scope="module")
def config(folder):
    return Config(
        model="tiny-transformer",
        dataset=folder,
        method=KERNELS,
        learning_rate=0.02,
        epochs=1,
        batch_size=9,
    )


@pytest.fixture
def trainer(config):
    return make_trainer(config, 256, 27)


def test_the_loss_of_a_text_is_the_mean_over_its_bytes(trainer, folder):
    state = jax.jit(trainer.init)(0)
    dataset = data.load(folder)
    inputs, labels = dataset.train_inputs[:3], dataset.train_labels[:3]
    found = jax.jit(trainer.metrics)(state.params, {}, inputs, labels)
    logits = np.float64(trainer.logits(state.params, {}, jnp.asarray(inputs)))
    right = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - right
    np.testing.assert_allclose(found.loss, losses.mean(1), rtol=1e-5)
    hits = logits.argmax(-1) == labels
    np.testing.assert_allclose(found.accuracy, hits.mean(1), rtol=1e-6)


def test_a_batch_in_parts_is_as_if_whole(trainer, folder):
    dataset = data.load(folder)
    batch = dataset.train_inputs[:9], dataset.train_labels[:9]
    state = jax.jit(trainer.init)(0)
    parts = dataclasses.replace(trainer, accumulation=3)
    whole, split = (
        jax.jit(t._gradients)(state, *batch, state.key) for t in (trainer, parts)
    )
    jax.tree.map(
        # Sums of float32 in another order.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        split,
    )


TARGET = Target(0.6, proximal="power3", direction="adam", thresholds="kernels")


@pytest.mark.usefixtures("standard_promotion")
def test_kernels_become_sparse_and_all_else_stays_dense(config, tmp_path):
    config = dataclasses.replace(
        config, method=TARGET, batch_size=1, epochs=16, schedule="warmup-cosine"
    )
    directory = session.train(config, tmp_path / "run")
    summary = read_json(directory / "summary.json")
    kernels, others = [], []
    for leaf in summary["sparsity_report"]["leaves"]:
        (kernels if leaf["path"].endswith("kernel") else others).append(leaf)
    size, nonzero = (sum(leaf[n] for leaf in kernels) for n in ("size", "nonzero"))
    assert 1 - nonzero / size == pytest.approx(0.6, abs=0.02)
    assert all(leaf["nonzero"] == leaf["size"] for leaf in others)
    assert summary["train_loss"] < 4 < np.log(256)


@pytest.mark.usefixtures("standard_promotion")
def test_a_recurrent_network_gets_the_zeros_asked_for_too(config, folder):
    config = dataclasses.replace(
        config,
        model="tiny-gru",
        method=TARGET,
        batch_size=1,
        epochs=16,
        schedule="warmup-cosine",
    )
    trainer, dataset = make_trainer(config, 256, 27), data.load(folder)
    state, epoch = jax.jit(trainer.init)(0), jax.jit(trainer.train_epoch)
    losses = []
    for _ in range(config.epochs):
        state, found = epoch(state, dataset.train_inputs, dataset.train_labels)
        losses.append(found.loss.mean())
    kernels, others = [], []
    for leaf in sparsity_report(state.params).leaves:
        (kernels if leaf.path.endswith("kernel") else others).append(leaf)
    size, nonzero = (sum(getattr(k, n) for k in kernels) for n in ("size", "nonzero"))
    assert 1 - nonzero / size == pytest.approx(0.6, abs=0.02)
    assert all(leaf.nonzero == leaf.size for leaf in others)
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_with_dense_weights_beside_sparse_ones_goes_on_to_the_bit(
    config, tmp_path
):
    twice = dataclasses.replace(config, epochs=2)
    session.train(config, tmp_path / "resumed")
    session.train(twice, tmp_path / "resumed", resume=True)
    session.train(twice, tmp_path / "whole")
    trainer = make_trainer(twice, 256, 27)

    def last(name):
        like = jax.jit(trainer.init)(0)
        state = Checkpoints(tmp_path / name, twice, trainer).restore(like)
        return state._replace(key=jax.random.key_data(state.key))

    resumed, whole = last("resumed"), last("whole")
    assert optax.tree.norm(whole.params) > 0
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.usefixtures("standard_promotion")
def test_a_person_is_told_the_perplexity_but_gets_no_card(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("experiments.training.devices.start_processes", lambda *_: None)
    directory = tmp_path / "run"
    train.run(train.Options(config, output=directory))
    loss = read_json(directory / "summary.json")["test_loss"]
    (told,) = re.findall(r"perplexity (\S+) a byte", capsys.readouterr().out)
    assert float(told) == pytest.approx(np.exp(loss), abs=0.005)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["card", str(directory), "--output", "card"])
    with pytest.raises(SystemExit, match=r"^error: run must be of images, .* of text$"):
        runpy.run_module("experiments.card", run_name="__main__", alter_sys=True)


def test_augmentation_of_text_is_refused(trainer):
    trainer = dataclasses.replace(trainer, augmentation="crop-flip")
    with pytest.raises(ValueError, match="augmentation must be none unless of images"):
        trainer.check_inputs((text.LENGTH,), (text.LENGTH,))
