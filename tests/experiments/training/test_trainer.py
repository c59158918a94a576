"""Tests of experiments.training.trainer: steps whole and in parts, on many devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.training.config import Config, Grda, Sgd, Target
from experiments.training.devices import data_mesh, replicated
from experiments.training.errors import UserError
from experiments.training.objective import Metrics
from experiments.training.trainer import Trainer, make_trainer
from models._layers import BatchNorm


class Tiny(nnx.Module):
    """Classifies images of 2x2 pixels by one layer, perhaps with BatchNorm before."""

    def __init__(self, rngs, norm=False):
        self.norm = BatchNorm(4, decay=0.5, rngs=rngs) if norm else None
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images, rngs=None):
        x = images.reshape(len(images), -1)
        return self.layer(x if self.norm is None else self.norm(x))


def tiny_trainer(num_examples=32, norm=False, **options):
    return Trainer(
        build=lambda rngs: Tiny(rngs, norm),
        optimizer=optax.sgd(0.5),
        num_examples=num_examples,
        **{"batch_size": 32, "std": (0.5,)} | options,
    )


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 2, 2, 1), np.float32), rng.integers(0, 3, n, np.int32)


def assert_close(tree, expected, **tolerances):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerances), tree, expected
    )


# Sums of float32 in another order: some roundings of 6e-8, which a few steps pass on.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@functools.cache
def start(norm=False):
    """The first state of the tiny network."""
    return jax.jit(tiny_trainer(norm=norm).init)(0)


# On several devices


@pytest.mark.parametrize("options", [{"norm": True}, {"accumulation": 2}])
def test_eight_devices_train_as_one_does_batch_statistics_included(
    options, monkeypatch
):
    def in_order(self, key, epoch):  # a permutation takes a second to compile
        return jnp.arange(self.num_examples)

    monkeypatch.setattr(Trainer, "order", in_order)
    # Of 38 images in batches of 16, the last has 6, which do not divide by the devices.
    ends, programs = [], []
    for devices in (1, 8):
        mesh = data_mesh(jax.devices()[:devices])
        sharding = replicated(mesh)
        trainer = tiny_trainer(38, batch_size=16, mesh=mesh, **options)
        images, labels = jax.device_put(examples(38), sharding)
        state, losses = jax.device_put(start("norm" in options), sharding), []
        epoch = jax.jit(trainer.train_epoch, out_shardings=sharding)
        epoch = epoch.lower(state, images, labels).compile()
        for _ in range(2):
            state, steps = epoch(state, images, labels)
            losses.append(steps.loss)
        ends.append(jax.device_get((state.params, state.batch_stats, losses)))
        programs.append(epoch.as_text())
    assert_close(*ends, **ROUNDING)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))

    # Each device computes logits of its images of a part, and no other's.
    part = 16 // options.get("accumulation", 1)
    assert f"f32[{part},3]" in programs[0]
    assert f"f32[{part // 8},3]" in programs[1]
    assert f"f32[{part},3]" not in programs[1]
    assert "all-reduce" in programs[1]


@pytest.mark.parametrize(
    ("method", "accumulation"), [(Grda(0.5), 1), (Target(0.5, momentum=0.9), 2)]
)
def test_a_state_in_parts_on_eight_devices_trains_as_a_whole_one(
    method, accumulation, monkeypatch
):
    def in_order(self, key, epoch):  # a permutation takes a second to compile
        return jnp.arange(self.num_examples)

    monkeypatch.setattr(Trainer, "order", in_order)
    config = Config(method=method, batch_size=32, accumulation=accumulation, epochs=1)
    rng, mesh, ends = np.random.default_rng(0), data_mesh(), []
    images = jax.device_put(rng.random((72, 8, 8, 1), np.float32), replicated(mesh))
    labels = jax.device_put(rng.integers(0, 10, 72, np.int32), replicated(mesh))
    for sharded in (False, True):
        trainer = make_trainer(config, 10, 72, mesh, sharded=sharded)
        place = trainer.state_sharding()
        state = jax.jit(trainer.init, out_shardings=place)(0)
        epoch = jax.jit(trainer.train_epoch, out_shardings=(place, replicated(mesh)))
        epoch = epoch.lower(state, images, labels).compile()
        state, steps = epoch(state, images, labels)
        tested = jax.jit(trainer.evaluate)(state.params, {}, images, labels)
        ends.append(jax.device_get((state._replace(key=()), steps, tested)))
    assert_close(*ends, **ROUNDING)
    parts = epoch.memory_analysis().argument_size_in_bytes - images.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(ends[0][0]))
    assert parts < whole / 6  # an eighth, and all of the vectors
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        if leaf.ndim == 2:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8


# In parts


@pytest.mark.parametrize(("size", "parts"), [(32, 2), (29, 5), (3, 5), (1, 2)])
def test_a_batch_in_parts_steps_as_the_whole_does(size, parts, monkeypatch):
    def augment(key, images, order):  # which sees the whole batch
        rows = jnp.arange(len(images), dtype=jnp.float32) / len(images)
        return images * rows.reshape(-1, 1, 1, 1)

    monkeypatch.setattr("experiments.training.trainer.augment", augment)
    whole, accumulated = (tiny_trainer(accumulation=number) for number in (1, parts))
    batch = examples(size)
    expected, metrics = jax.jit(whole.train_step)(start(), *batch)
    state, found = jax.jit(accumulated.train_step)(start(), *batch)
    assert_close(state.params, expected.params, **ROUNDING)
    assert_close(found, metrics, **ROUNDING)
    assert state.step == expected.step == 1


def test_batch_norm_sees_the_parts_one_after_the_other():
    trainer = tiny_trainer(norm=True, accumulation=2)
    images, labels = examples(9)
    state, _ = jax.jit(trainer.train_step)(start(norm=True), images, labels)
    mean = np.zeros(4)
    # Five images and four, each part every other image but for the odd one.
    for part in (images[:5], images[5:]):
        mean = (mean + (part / 0.5).reshape(-1, 4).mean(0)) / 2
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], mean, rtol=1e-5)


def test_steps_of_an_epoch_are_updates_and_each_has_its_epochs_learning_rate():
    config = Config(
        *("digits-mlp", "digits", "none", Sgd()),
        schedule="garipov",
        epochs=10,
        batch_size=16,
        accumulation=4,
    )
    trainer = make_trainer(config, 10, 40)
    assert trainer.steps_per_epoch == 3
    updates, state = trainer.optimizer, trainer.optimizer.init(jnp.ones(2))
    rates = []
    for _ in range(30):
        moved, state = updates.update(jnp.ones(2), state)
        rates.append(-float(moved[0]))
    assert rates[:15] == pytest.approx([0.1] * 15)
    assert len(set(rates[15:18])) == 1
    assert rates[-1] == pytest.approx(0.001)


def test_bfloat16_is_what_layers_compute_in_and_float32_what_the_state_is_kept_in():
    trainer = make_trainer(Config(dtype="bfloat16", batch_size=16), 10, 101)
    state = jax.eval_shape(trainer.init, 0)
    images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((16,), jnp.int32)
    program, (new_state, metrics) = jax.make_jaxpr(
        trainer.train_step, return_shape=True
    )(state, images, labels)
    products = [line for line in str(program).splitlines() if "dot_general" in line]
    assert products
    assert all(":bf16[" in line for line in products)
    kept = (new_state.params, new_state.opt_state.accumulator, metrics)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}


# An epoch and its report


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    trainer = tiny_trainer(101)
    order = jax.jit(trainer.order)
    key = jax.random.key(0)
    first, again, second, third = (np.asarray(order(key, n)) for n in (0, 0, 1, 2))
    np.testing.assert_array_equal(np.sort(first), np.arange(101))
    np.testing.assert_array_equal(first, again)
    assert not (first == second).all()
    assert not (second == third).all()
    assert not (first == np.asarray(order(jax.random.key(1), 0))).all()


def test_the_last_batch_counts_by_its_size_in_the_epochs_means():
    trainer = tiny_trainer(101, batch_size=16)
    values, tested = jnp.arange(7.0), Metrics(jnp.ones(()), jnp.zeros(()))
    steps = Metrics(loss=values, accuracy=-values)
    state = start()._replace(step=jnp.int32(28))
    row, _ = jax.jit(trainer.report)(state, steps, tested)
    mean = np.average(np.arange(7), weights=[16] * 6 + [5])
    assert float(row["train_loss_running"]) == pytest.approx(mean, rel=1e-6)
    assert float(row["train_accuracy_running"]) == pytest.approx(-mean, rel=1e-6)
    assert (row["test_loss"], row["test_accuracy"], row["step"]) == (1, 0, 28)


def test_only_methods_with_a_threshold_report_it():
    one = Metrics(jnp.ones(1), jnp.ones(1))
    for method in (Sgd(), Grda(), Target()):
        trainer = make_trainer(Config(method=method), 10, 32)
        state = jax.eval_shape(trainer.init, 0)
        row, _ = jax.eval_shape(trainer.report, state, one, one)
        assert ("threshold" in row) == method.is_sparse


# Refused


@pytest.mark.parametrize(
    ("images", "options"),
    [(33, {}), (35, {"accumulation": 3}), (2, {"accumulation": 2})],
)
def test_batch_norm_over_one_image_is_refused_before_training(images, options):
    trainer = tiny_trainer(images, norm=True, **options)
    with pytest.raises(ValueError, match="needs at least 2 values a channel, got 1"):
        trainer.check_inputs((2, 2, 1))
    dataclasses.replace(trainer, num_examples=34, accumulation=1).check_inputs(
        (2, 2, 1)
    )
    tiny_trainer(images, **options).check_inputs((2, 2, 1))


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match=r"model must be one of .*: got 'vgg11'"):
        make_trainer(Config(model="vgg11"), 10, 32)
