"""Tests of experiments.optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.config import Config
from experiments.training.optimizer import learning_rates, make_optimizer, make_proximal
from experiments.training.presets import PRESETS
from optax_grda import grda_params, sparsity_ramp, target_sparsity


def test_a_constant_learning_rate_stays():
    rates = learning_rates(Config(learning_rate=0.3, epochs=4))
    np.testing.assert_array_equal(rates, [0.3] * 4)


@pytest.mark.parametrize("epochs", [200, 600])
def test_garipov_holds_half_the_epochs_then_falls_linearly_to_a_hundredth(epochs):
    rates = learning_rates(Config(schedule="garipov", epochs=epochs))
    # The formula of the paper's CIFAR runs, an epoch at a time.
    for epoch, rate in enumerate(rates, start=1):
        a = epoch / epochs
        if a <= 0.5:
            factor = 1.0
        elif a <= 0.9:
            factor = 1 - 0.99 * (a - 0.5) / 0.4
        else:
            factor = 0.01
        assert rate == pytest.approx(0.1 * factor, rel=1e-12)
    assert rates[epochs // 2 - 1] == 0.1 > rates[epochs // 2]
    np.testing.assert_allclose(rates[epochs * 9 // 10 - 1 :], 0.001, rtol=1e-12)


def test_step_141_drops_to_a_tenth_from_epoch_141():
    rates = learning_rates(Config(schedule="step-141", epochs=153))
    np.testing.assert_allclose(rates, [0.1] * 140 + [0.01] * 13, rtol=1e-12)


def test_step_30_divides_by_ten_every_thirty_epochs():
    rates = learning_rates(Config(schedule="step-30", epochs=121))
    expected = [0.1] * 30 + [0.01] * 30 + [0.001] * 30 + [1e-4] * 30 + [1e-5]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def unit_steps(config, steps_per_epoch, steps):
    """How far each of so many steps moves a weight whose gradient is 1."""
    optimizer = make_optimizer(config, steps_per_epoch)
    params = jnp.zeros(())

    def step(state, _):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        return state, updates

    return -jax.lax.scan(step, optimizer.init(params), length=steps)[1]


def test_every_step_of_an_epoch_has_the_epochs_learning_rate():
    config = Config(optimizer="sgd", schedule="garipov", epochs=10)
    moved = unit_steps(config, steps_per_epoch=3, steps=30)
    expected = np.repeat(learning_rates(config), 3)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)  # float32's 6e-8, twice


@pytest.mark.usefixtures("standard_promotion")
def test_accumulated_steps_move_at_their_epochs_learning_rate():
    config = Config(optimizer="sgd", schedule="garipov", epochs=10, accumulation=2)
    moved = unit_steps(config, steps_per_epoch=6, steps=60).reshape(10, 3, 2)
    np.testing.assert_array_equal(moved[..., 0], 0)
    expected = np.broadcast_to(learning_rates(config)[:, None], (10, 3))
    np.testing.assert_allclose(moved[..., 1], expected, rtol=1e-6)


def test_momentum_is_sgd_with_momentum_of_nine_tenths():
    config = Config(optimizer="momentum", learning_rate=1.0, epochs=1)
    moved = unit_steps(config, steps_per_epoch=3, steps=3)
    np.testing.assert_allclose(moved, [1, 1.9, 2.71], rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_adam_moves_by_the_learning_rate_where_gradients_are_equal():
    config = Config(optimizer="adam", learning_rate=0.01, epochs=1)
    moved = unit_steps(config, steps_per_epoch=3, steps=3)
    # 1 - 0.999 ** n loses four digits of float32's seven.
    np.testing.assert_allclose(moved, 0.01, rtol=1e-3)


# Derived from the paper's formula for its protocols, 391 steps an epoch, to 5 decimals:
# the threshold after some epochs.
THRESHOLDS = {
    "cifar10-vgg16-mu0.4": {1: 0.00069, 100: 0.00432, 300: 0.00671, 600: 0.00771},
    "cifar10-vgg16-mu0.51": {1: 0.00103, 100: 0.01074, 300: 0.01881, 600: 0.02227},
    "cifar10-vgg16-mu0.6": {1: 0.00143, 100: 0.02261, 300: 0.04371, 600: 0.05295},
    "cifar10-vgg16-mu0.7": {1: 0.00206, 100: 0.05170, 300: 0.11155, 600: 0.13840},
    "cifar10-wrn28x10-mu0.4": {1: 0.00137, 50: 0.00655, 100: 0.00865, 200: 0.00992},
    "cifar10-wrn28x10-mu0.501": {1: 0.00198, 50: 0.01409, 100: 0.01994, 200: 0.02352},
    "cifar10-wrn28x10-mu0.55": {1: 0.00238, 50: 0.02042, 100: 0.02990, 200: 0.03572},
    "cifar10-wrn28x10-mu0.6": {1: 0.00285, 50: 0.02983, 100: 0.04522, 200: 0.05470},
    "cifar10-wrn28x10-mu0.65": {1: 0.00343, 50: 0.04358, 100: 0.06838, 200: 0.08371},
}


@pytest.mark.parametrize("preset", THRESHOLDS)
def test_the_threshold_follows_the_paper_through_a_whole_run(preset):
    config = PRESETS[preset]
    optimizer = make_optimizer(config, steps_per_epoch=391)
    zero = jnp.zeros(())

    def step(state, _):
        return optimizer.update(zero, state, zero)[1], None

    def epoch(state, _):
        state, _ = jax.lax.scan(step, state, length=391)
        return state, state.threshold

    @jax.jit
    def run():
        return jax.lax.scan(epoch, optimizer.init(zero), length=config.epochs)[1]

    thresholds = run()
    for after, expected in THRESHOLDS[preset].items():
        assert thresholds[after - 1] == pytest.approx(expected, abs=5.1e-6)


@pytest.mark.parametrize(("field", "value"), [("c", -1.0), ("mu", 2.0), ("mu", 0.0)])
def test_invalid_options_of_grda_fail_when_it_is_made(field, value):
    config = dataclasses.replace(Config(), **{field: value})
    with pytest.raises(ValueError, match=f"{field} must be"):
        make_optimizer(config, steps_per_epoch=1)


def test_only_grda_and_target_sparsity_have_a_threshold():
    params = jnp.ones(3)
    for name in ("sgd", "momentum", "adam", "grda", "target-sparsity"):
        state = make_optimizer(Config(optimizer=name), 1).init(params)
        has_threshold = optax.tree.get(state, "threshold") is not None
        assert has_threshold == (name in ("grda", "target-sparsity"))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_target_is_there_after_half_of_all_updates(accumulation):
    config = Config(
        optimizer="target-sparsity",
        sparsity=0.7,
        schedule="garipov",
        epochs=5,
        accumulation=accumulation,
    )
    updates = 5 * 20
    params = jax.random.normal(jax.random.key(0), (1000,))

    def last_state(optimizer, steps):
        def step(state, _):
            return optimizer.update(0.1 * params, state, params)[1], None

        return jax.lax.scan(step, optimizer.init(params), length=steps)[0]

    made = make_optimizer(config, steps_per_epoch=20 * accumulation)
    found = last_state(made, updates * accumulation)
    rates = jnp.float32(np.repeat(learning_rates(config), 20))
    expected = target_sparsity(lambda n: rates[n], sparsity_ramp(0.7, updates // 2))
    expected = last_state(expected, updates)
    assert optax.tree.get(found, "threshold") == expected.threshold
    assert expected.sparsity == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("optimizer", ["grda", "target-sparsity"])
@pytest.mark.parametrize("groups", ["units", "units-and-weights"])
def test_groups_make_zeros_of_whole_hidden_units_or_of_both(groups, optimizer):
    config = Config(optimizer=optimizer, groups=groups, c=0.0)
    trainer = Trainer(config, num_classes=10, num_examples=64)
    params = jax.jit(trainer.init)(0).params

    @jax.jit
    def step(params):
        made = trainer.optimizer
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = made.init(params)._replace(threshold=jnp.float32(0.2))
        updates, state = made.update(zeros, state, params)
        return optax.apply_updates(params, updates), state

    updated, state = step(params)
    proximal = make_proximal(config)
    expected = jax.jit(lambda *args: grda_params(*args, proximal))(state, params)
    first, _, head = (layer["kernel"] == 0 for layer in updated["layers"].values())
    dead = first.all(0)
    assert 0 < dead.mean() < 1
    assert first[:, ~dead].any() == (groups == "units-and-weights")
    assert head.any()
    jax.tree.map(
        lambda w, e: np.testing.assert_allclose(w, e, atol=1e-6), updated, expected
    )


def test_without_groups_every_weight_is_thresholded_by_itself():
    assert make_proximal(Config(groups="none")) is None
