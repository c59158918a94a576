"""Tests of experiments.training, and of an epoch on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import data
from experiments.training.config import Config
from experiments.training.devices import data_mesh, replicated
from experiments.training.trainer import Metrics


@pytest.fixture(scope="module")
def digits():
    """The first 101 training and 37 test images of the digits."""
    full = data.load("digits")
    return dataclasses.replace(
        full,
        train_images=full.train_images[:101],
        train_labels=full.train_labels[:101],
        test_images=full.test_images[:37],
        test_labels=full.test_labels[:37],
    )


def never():
    return False


def train(config, dataset, devices, epochs):
    """The state, the loss of every step and the test loss of every epoch."""
    mesh = data_mesh(jax.devices()[:devices])
    source = MemorySource(config, dataset, mesh)
    state = jax.jit(source.trainer.init, out_shardings=replicated(mesh))(config.seed)
    losses, tested = [], []
    for _ in range(epochs):
        state, steps = source.epoch(state, never)
        losses.append(np.asarray(steps.loss))
        tested.append(float(source.evaluate(state).loss))
    return state, np.concatenate(losses), tested


def assert_close(tree, expected, **tolerances):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerances), tree, expected
    )


# A step differs by some roundings of float32, 6e-8 each, where eight devices sum in
# another order than one; training passes the difference on, and thirty steps of these
# networks enlarge it less than a hundredfold.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def one_device(digits):
    """What four epochs on one device give, in batches of 16 and a last one of 5."""
    return train(Config(batch_size=16), digits, devices=1, epochs=4)


def assert_same_run(run, expected):
    state, losses, tested = run
    expected_state, expected_losses, expected_tested = expected
    np.testing.assert_allclose(losses, expected_losses, **ROUNDING)
    np.testing.assert_allclose(tested, expected_tested, **ROUNDING)
    assert_close(state.params, expected_state.params, **ROUNDING)
    assert_close(state.batch_stats, expected_state.batch_stats, **ROUNDING)


def test_eight_devices_give_the_loss_curve_of_one(digits, one_device):
    eight = train(Config(batch_size=16), digits, devices=8, epochs=4)
    assert_same_run(eight, one_device)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight[0]))


def test_batches_that_do_not_divide_by_the_devices_give_the_same_curve(digits):
    config = Config(batch_size=12)
    one = train(config, digits, devices=1, epochs=4)
    assert_same_run(train(config, digits, devices=8, epochs=4), one)


def test_eight_devices_split_a_batch_and_sum_its_gradients(digits):
    mesh = data_mesh()
    trainer = Trainer(Config(batch_size=16), 10, 101, mesh)
    state = jax.jit(trainer.init, out_shardings=replicated(mesh))(0)
    arrays = (digits.train_images, digits.train_labels)
    images, labels = jax.device_put(arrays, replicated(mesh))
    step = jax.jit(trainer.train_step_at, out_shardings=replicated(mesh))
    text = step.lower(state, images, labels, np.arange(16)).compile().as_text()
    assert "all-reduce" in text
    assert "f32[2,64]" in text  # each device has 2 of the 16 images
    assert "f32[16,64]" not in text


def test_batch_norm_on_eight_devices_has_the_statistics_of_the_whole_batch(
    tiny_vgg, tiny_images
):
    config = Config(
        model=tiny_vgg,
        dataset=tiny_images,
        augmentation="flip-crop",
        batch_size=16,
        c=0.005,
    )
    dataset = data.load(tiny_images)
    one = train(config, dataset, devices=1, epochs=3)
    assert_same_run(train(config, dataset, devices=8, epochs=3), one)
    assert jax.tree.leaves(one[0].batch_stats)


def test_seeds_trained_at_once_equal_single_runs(digits, one_device):
    config = Config(batch_size=16)
    trainer = Trainer(config, 10, 101)
    init, epoch = jax.vmap(trainer.init), jax.vmap(trainer.train_epoch, (0, None, None))
    arrays = (digits.train_images, digits.train_labels)
    _, steps = jax.jit(epoch)(jax.jit(init)(np.arange(2)), *arrays)
    other = train(dataclasses.replace(config, seed=1), digits, devices=1, epochs=1)
    for seed, (_, losses, _) in enumerate((one_device, other)):
        np.testing.assert_allclose(steps.loss[seed], losses[:7], **ROUNDING)
    assert not np.allclose(steps.loss[0], steps.loss[1], **ROUNDING)


@pytest.mark.usefixtures("standard_promotion")
def test_accumulated_gradients_equal_those_of_the_full_batch(digits):
    dataset = dataclasses.replace(
        digits,
        train_images=digits.train_images[:96],
        train_labels=digits.train_labels[:96],
    )
    config = Config(batch_size=32, schedule="garipov", epochs=4)
    state, losses, tested = train(
        dataclasses.replace(config, accumulation=4), dataset, devices=1, epochs=4
    )
    # A loss of the full batch is the mean of four.
    parts = state, losses.reshape(-1, 4).mean(1), tested
    assert_same_run(parts, train(config, dataset, devices=1, epochs=4))


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own(digits):
    trainer = Trainer(Config(batch_size=16), 10, 101)
    state = jax.jit(trainer.init)(0)
    orders = [
        trainer.order(state._replace(step=jnp.int32(step))) for step in (0, 6, 7, 14)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(101))
    first, within_first, second, third = map(np.asarray, orders)
    np.testing.assert_array_equal(first, within_first)
    assert not (first == second).all()
    assert not (second == third).all()
    other_seed = state._replace(key=jax.random.key(1))
    assert not (first == np.asarray(trainer.order(other_seed))).all()


def test_the_last_batch_counts_by_its_size_in_the_epochs_means(one_device):
    trainer = Trainer(Config(batch_size=16), 10, 101)
    values, tested = jnp.arange(7.0), Metrics(jnp.ones(()), jnp.zeros(()))
    steps = Metrics(loss=values, accuracy=-values)
    row = jax.jit(trainer.report)(one_device[0], steps, tested)
    mean = np.average(np.arange(7), weights=[16] * 6 + [5])
    assert row["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert row["train_accuracy"] == pytest.approx(-mean, rel=1e-6)
    assert (row["test_loss"], row["test_accuracy"], row["step"]) == (1, 0, 28)


def test_only_grda_and_target_sparsity_report_a_threshold():
    one = Metrics(jnp.ones(1), jnp.ones(1))
    for optimizer in ("sgd", "grda", "target-sparsity"):
        trainer = Trainer(Config(optimizer=optimizer), 10, 32)
        state = jax.eval_shape(trainer.init, 0)
        row = jax.eval_shape(trainer.report, state, one, one)
        assert ("threshold" in row) == (optimizer != "sgd")


def test_evaluation_is_the_mean_over_images_that_do_not_fill_the_last_part():
    rng = np.random.default_rng(0)
    images = rng.random((1030, 8, 8, 1), np.float32)
    labels = rng.integers(0, 10, 1030).astype(np.int32)
    trainer = Trainer(Config(), 10, 32)
    state = jax.jit(trainer.init)(0)
    evaluated = jax.jit(trainer.evaluate)(
        state.params, state.batch_stats, images, labels
    )
    each = jax.jit(trainer.metrics)(state.params, state.batch_stats, images, labels)
    assert each.loss.shape == (1030,)
    np.testing.assert_allclose(evaluated.loss, each.loss.mean(), rtol=1e-6)
    np.testing.assert_allclose(evaluated.accuracy, each.accuracy.mean(), rtol=1e-6)


def test_an_epoch_is_traced_once(digits, monkeypatch):
    traced = []

    def train_epoch(*args, original=Trainer.train_epoch):
        traced.append(args)
        return original(*args)

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    train(Config(batch_size=16), digits, devices=8, epochs=3)
    assert len(traced) == 1


def test_bfloat16_is_what_layers_compute_in_and_float32_what_the_state_is_kept_in():
    trainer = Trainer(Config(dtype="bfloat16", batch_size=16), 10, 101)
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
