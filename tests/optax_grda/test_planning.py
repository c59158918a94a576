"""predicted_threshold and c_for_sparsity, against grda itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda
from optax_grda.diagnostics import c_for_sparsity, predicted_threshold

SCHEDULES = {
    "constant": 0.1,
    "constant schedule": optax.constant_schedule(0.1),
    "warm-up and decay": optax.join_schedules(
        [optax.linear_schedule(0.0, 0.1, 50), optax.linear_schedule(0.1, 0.0, 250)],
        [50],
    ),
    "steps": lambda count: jnp.where(count < 100, 0.1, 0.01),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_prediction_is_the_threshold_of_grda(name):
    optimizer = grda(SCHEDULES[name], c=0.05, mu=0.6)
    params = jnp.zeros(1)

    def step(state, _):
        return optimizer.update(params, state, params)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(params), None, 300)
    predicted = predicted_threshold(SCHEDULES[name], c=0.05, mu=0.6, steps=300)
    # float32 increments, a few eps each, and the schedules' own float32.
    assert state.threshold == pytest.approx(predicted, rel=1e-5)


def test_no_steps_no_threshold():
    for learning_rate in SCHEDULES.values():
        assert predicted_threshold(learning_rate, 0.05, 0.6, 0) == 0


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_c_zeroes_the_fraction_asked_for_of_a_still_accumulator(sparsity):
    rng = np.random.default_rng(0)
    accumulator = {"kernel": rng.standard_normal((10, 20)), "bias": rng.random(7)}
    c = c_for_sparsity(accumulator, sparsity, 0.1, mu=0.6, steps=300)
    threshold = predicted_threshold(0.1, c, mu=0.6, steps=300)
    moduli = np.concatenate([np.abs(v).ravel() for v in accumulator.values()])
    # The threshold lies on an entry, and may round to either side of it.
    zeros = np.count_nonzero(moduli <= threshold * (1 + 1e-12))
    assert zeros == round(sparsity * moduli.size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c": -1.0}, "c must be >= 0, got -1.0"),
        ({"mu": 0.0}, r"mu must be in \(0, 1\], got 0.0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    settings = {"learning_rate": 0.1, "c": 0.05, "mu": 0.6, "steps": 100} | arguments
    with pytest.raises(ValueError, match=message):
        predicted_threshold(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"steps": 0}, "steps must be an integer > 0, got 0"),
        ({"accumulator": []}, "accumulator must hold at least one entry"),
        ({"mu": 2.0}, r"mu must be in \(0, 1\], got 2.0"),
    ],
)
def test_wrong_wishes_are_named(arguments, message):
    wish = {
        "accumulator": np.ones(3),
        "sparsity": 0.5,
        "learning_rate": 0.1,
        "mu": 0.6,
        "steps": 100,
    }
    with pytest.raises(ValueError, match=message):
        c_for_sparsity(**wish | arguments)


def test_a_learning_rate_that_is_zero_throughout_is_refused():
    warm_up = optax.linear_schedule(0.0, 0.1, 10)
    with pytest.raises(ValueError, match="learning_rate must be > 0 at some of the 1"):
        c_for_sparsity(jnp.ones(3), 0.5, warm_up, 0.6, steps=1)
