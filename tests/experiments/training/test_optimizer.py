"""Tests of experiments.training.optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.config import (
    Adam,
    Config,
    Grda,
    Momentum,
    Sgd,
    Target,
    dense_twin,
)
from experiments.training.optimizer import (
    learning_rates,
    make_optimizer,
    make_proximal,
    make_weights,
)
from experiments.training.presets import PRESETS
from experiments.training.trainer import make_trainer
from optax_grda import proximal, sparsity_ramp, target_sparsity


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
    config = Config(method=Sgd(), schedule="garipov", epochs=10)
    moved = unit_steps(config, steps_per_epoch=3, steps=30)
    expected = np.repeat(learning_rates(config), 3)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)  # float32's 6e-8, twice


def test_momentum_is_sgd_with_momentum_of_nine_tenths():
    config = Config(method=Momentum(), learning_rate=1.0, epochs=1)
    moved = unit_steps(config, steps_per_epoch=3, steps=3)
    np.testing.assert_allclose(moved, [1, 1.9, 2.71], rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Momentum(0.9, weight_decay=0.1),
        Grda(c=0.0, momentum=0.9, weight_decay=0.1),
        Target(0.0, momentum=0.9, proximal="hard", weight_decay=0.1),
    ],
)
def test_momentum_and_decay_of_all_methods_are_alike(method):
    """Weights that a decay of gamma / (1 - beta) has brought down without gradients."""
    config = Config(method=method, learning_rate=0.01, epochs=1)
    optimizer, params = make_optimizer(config, 1), jnp.ones(())

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.zeros(()), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    assert params == pytest.approx(np.exp(-200 * 0.1 * 0.1), rel=0.15)


def test_gradients_of_what_is_thresholded_are_clipped():
    config = Config(method=Grda(c=0.0, clip_norm=0.5), learning_rate=0.1, epochs=1)
    optimizer, params = make_optimizer(config, 1), jnp.array([3.0, -4.0])
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.03, 0.04], rtol=1e-5)


def test_the_rate_falls_as_half_a_cosine():
    rates = learning_rates(Config(schedule="cosine", epochs=4, learning_rate=1.0))
    np.testing.assert_allclose(rates, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


@pytest.mark.usefixtures("standard_promotion")
def test_adam_moves_by_the_learning_rate_where_gradients_are_equal():
    config = Config(method=Adam(), learning_rate=0.01, epochs=1)
    moved = unit_steps(config, steps_per_epoch=3, steps=3)
    # 1 - 0.999 ** n loses four digits of float32's seven.
    np.testing.assert_allclose(moved, 0.01, rtol=1e-3)


@pytest.mark.parametrize("thresholds", ["all", "kernels"])
@pytest.mark.usefixtures("standard_promotion")
def test_without_a_threshold_a_sparse_method_is_its_dense_twin(thresholds):
    method = Grda(c=0.0, weight_decay=0.1, direction="adam", thresholds=thresholds)
    config = Config(method=method, learning_rate=0.01, epochs=1)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((4, 3), np.float32), "bias": np.ones(3)}
    params = jax.tree.map(jnp.float32, params)

    @functools.partial(jax.jit, static_argnums=0)
    def trained(config):
        optimizer = make_optimizer(config, 1)

        def step(carry, _):
            params, state = carry
            gradients = jax.tree.map(jnp.sin, params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, length=20)[0][0]

    # The steps are 0.01: float32 rounds weights of order one by 6e-8 in each.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6),
        trained(config),
        trained(dense_twin(config)),
    )


@pytest.mark.usefixtures("standard_promotion")
def test_kernels_alone_are_thresholded_where_it_is_said():
    method = Grda(c=0.0, direction="adam", thresholds="kernels")
    params = {"kernel": jnp.full((4, 3), 0.1), "bias": jnp.full(3, 0.1)}
    optimizer = make_optimizer(Config(method=method, epochs=1), 1, c=jnp.float32(10.0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    updated = optax.apply_updates(params, updates)
    assert (updated["kernel"] == 0).all()
    assert (updated["bias"] != 0).all()


def test_the_rate_warms_up_by_steps_and_then_falls_as_half_a_cosine():
    config = Config(method=Sgd(), schedule="warmup-cosine", learning_rate=1.0, epochs=4)
    moved = unit_steps(config, steps_per_epoch=50, steps=200)
    progress = np.arange(200) / 200
    wave = 0.5 + 0.5 * np.cos(np.pi * (progress - 0.05) / 0.95)
    expected = np.where(progress < 0.05, progress / 0.05, wave)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    rates = learning_rates(config)  # those of the epochs' middles
    np.testing.assert_allclose(rates, expected[25::50], atol=1e-6)


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


def test_grda_and_target_have_a_threshold_and_weights_of_their_state_alone():
    params = jnp.ones(3)
    for method in (Sgd(), Momentum(), Adam(), Grda(), Target()):
        config = Config(method=method)
        state = make_optimizer(config, 1).init(params)
        has_threshold = optax.tree.get(state, "threshold") is not None
        makes_weights = make_weights(config) is not None
        assert has_threshold == makes_weights == method.is_sparse


def test_the_target_is_there_after_half_of_all_steps():
    config = Config(method=Target(0.7), schedule="garipov", epochs=5)
    steps = 5 * 20
    params = jax.random.normal(jax.random.key(0), (1000,))

    @functools.partial(jax.jit, static_argnums=0)
    def last_state(optimizer):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(0.1 * params, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, length=steps)[0][1]

    found = last_state(make_optimizer(config, steps_per_epoch=20))
    rates = jnp.float32(np.repeat(learning_rates(config), 20))
    expected = target_sparsity(lambda n: rates[n], sparsity_ramp(0.7, steps // 2))
    expected = last_state(expected)
    assert optax.tree.get(found, "threshold") == expected.threshold
    assert float(optax.tree.get(expected, "reached")) == pytest.approx(0.7, abs=0.01)


def test_settings_may_be_traced():
    params = jnp.ones(3)

    def threshold(c):
        optimizer = make_optimizer(Config(), 1, c=c)
        return optimizer.update(params, optimizer.init(params), params)[1].threshold

    thresholds = jax.jit(jax.vmap(threshold))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(thresholds[1], 2 * thresholds[0], rtol=1e-6)


@pytest.mark.parametrize("groups", ["units", "units-and-weights"])
def test_groups_make_zeros_of_whole_hidden_units_or_of_both(groups):
    config = Config(method=Grda(c=0.0, groups=groups))
    rng, trainer = np.random.default_rng(0), make_trainer(config, 10, 64)
    params = jax.tree.map(  # of units some of which are smaller than the threshold
        lambda leaf: (
            rng.standard_normal(leaf.shape, np.float32)
            * np.linspace(0.05, 0.5, leaf.shape[-1], dtype=np.float32)
        ),
        jax.eval_shape(trainer.init, 0).params,
    )
    optimizer = make_optimizer(config, 1)

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = optimizer.init(params)._replace(threshold=jnp.float32(0.2))
        updates, state = optimizer.update(zeros, state, params)
        return optax.apply_updates(params, updates), make_weights(config)(state, params)

    updated, expected = step(params)
    first, _, head = (layer["kernel"] == 0 for layer in updated["layers"].values())
    dead = first.all(0)
    assert 0 < dead.mean() < 1
    assert first[:, ~dead].any() == (groups == "units-and-weights")
    assert head.any()
    jax.tree.map(
        lambda w, e: np.testing.assert_allclose(w, e, atol=1e-6), updated, expected
    )


def test_without_groups_every_weight_is_thresholded_by_itself():
    assert make_proximal(Config()) is proximal.soft
