"""dual_averaging: any law, any proximal map, and decay of the accumulator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import (
    Law,
    dual_averaging,
    grda,
    grda_params,
    proximal,
    target_sparsity,
)
from optax_grda.diagnostics import check_descent, predicted_threshold


def linear_law(slope):
    """L_n = slope n, and how many of the weights before the step were positive."""
    return Law(
        init=lambda accumulator: (jnp.float32(0), {"positive": jnp.int32(-1)}),
        step=lambda threshold, law_state, count, gamma, weights: (
            slope * count.astype(jnp.float32),
            {"positive": jnp.sum(weights > 0)},
        ),
    )


def test_steps_follow_the_equations_with_decay():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal(50), jnp.float32)
    optimizer = dual_averaging(
        optax.linear_schedule(0.2, 0.1, 5),
        linear_law(0.05),
        proximal=proximal.hard,
        weight_decay=0.3,
    )
    state, v = optimizer.init(w), np.asarray(w, np.float64)
    expected = v
    for n in range(5):
        positive = np.sum(expected > 0)
        d = rng.standard_normal(50)
        updates, state = optimizer.update(jnp.asarray(d, jnp.float32), state, w)
        w = optax.apply_updates(w, updates)
        gamma = 0.2 - 0.02 * n
        v = (1 - gamma * 0.3) * v - gamma * d
        expected = np.where(np.abs(v) > 0.05 * (n + 1), v, 0)
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
        assert state.law_state["positive"] == positive
    assert state.count == 5


@pytest.mark.parametrize(
    "make", [grda, lambda rate, **o: target_sparsity(rate, 0.5, **o)]
)
def test_decay_reaches_weights_that_are_zero(make):
    params = jnp.array([1.0, 0.001, -0.002])
    optimizer = make(0.1, weight_decay=0.5)
    state = optimizer.init(params)
    _, after = optimizer.update(jnp.zeros(3), state, params)
    np.testing.assert_allclose(after.accumulator, 0.95 * params, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [-1e-3, float("nan")])
def test_decay_that_grows_is_refused(weight_decay):
    with pytest.raises(ValueError, match="weight_decay must be >= 0, got"):
        grda(0.1, weight_decay=weight_decay)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_moves_the_accumulator_as_that_of_sgd(nesterov):
    """With decay of the gradients, as without a threshold v is the weights."""
    params = jnp.array([1.0, -2.0, 0.5])
    mine = grda(0.1, c=0.0, momentum=0.9, nesterov=nesterov)
    theirs = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    states = [(params, mine.init(params)), (params, theirs.init(params))]
    for n in range(4):
        gradient = jnp.sin(params + n)
        for place, optimizer in enumerate((mine, theirs)):
            weights, state = states[place]
            updates, state = optimizer.update(gradient, state, weights)
            states[place] = optax.apply_updates(weights, updates), state
        np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-6)


def test_momentum_keeps_threshold_and_decay_at_the_pace_of_the_weights():
    """Travel, threshold and decay of gamma and beta are SGD's at gamma / (1 - beta)."""
    direction, steps, decay = jnp.float32(0.3), 400, 0.01

    def train(optimizer):
        def step(state, _):
            return optimizer.update(direction, state, jnp.float32(0))[1], None

        start = optimizer.init(jnp.float32(0))
        return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[0])()

    heavy = train(grda(0.01, c=0.2, mu=0.6, momentum=0.9, weight_decay=decay))
    plain = train(grda(0.1, c=0.2, mu=0.6, weight_decay=decay))
    np.testing.assert_allclose(heavy.threshold, plain.threshold, rtol=1e-6)
    np.testing.assert_allclose(
        heavy.threshold,
        predicted_threshold(0.01, 0.2, 0.6, steps, momentum=0.9),
        rtol=1e-5,
    )
    # The trace of the first 1 / (1 - beta) steps is all that the travel lacks.
    np.testing.assert_allclose(heavy.accumulator, plain.accumulator, rtol=0.03)
    assert abs(heavy.accumulator) > 5 * abs(heavy.threshold - plain.threshold)


def test_momentum_has_a_trace_in_the_dtype_of_the_accumulator():
    params = {"kernel": jnp.ones(3, jnp.bfloat16)}
    optimizer = target_sparsity(0.1, 0.5, momentum=0.5)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
    np.testing.assert_array_equal(state.trace["kernel"], np.float32(1.5))
    assert state.trace["kernel"].dtype == jnp.float32
    assert updates["kernel"].dtype == jnp.bfloat16
    assert grda(0.1).init(params).trace is None


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got"):
        grda(0.1, momentum=momentum)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got"):
        predicted_threshold(0.1, 0.1, 0.6, 10, momentum=momentum)
    with pytest.raises(ValueError, match="momentum must be given with nesterov"):
        grda(0.1, nesterov=True)


MAPS = {
    "none": None,
    "hard": proximal.hard,
    "power": proximal.power(3),
    "groups": proximal.groups(lambda path, shape: ("layer", -1)),
}


@pytest.mark.parametrize("name", MAPS)
def test_weights_come_back_from_a_state_with_its_map(name):
    kernel = np.random.default_rng(0).normal(size=(8, 4)) * [1, 1, 0.1, 1]
    params = {"kernel": jnp.asarray(kernel, jnp.float32)}
    optimizer = optax.chain(optax.trace(0.9), grda(0.1, 5.0, 0.6, proximal=MAPS[name]))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    weights = optax.apply_updates(params, updates)
    again = grda_params(state, params, MAPS[name])
    assert 0 < np.mean(weights["kernel"] == 0) < 1
    np.testing.assert_array_equal(again["kernel"] == 0, weights["kernel"] == 0)
    np.testing.assert_allclose(again["kernel"], weights["kernel"], atol=1e-6)


def test_map_of_a_state_cannot_be_left_out():
    params = jnp.ones(2)
    with pytest.raises(TypeError, match="proximal"):
        grda_params(grda(0.1).init(params), params)


def test_threshold_and_sparsity_reached_are_found_by_name():
    injected = optax.inject_hyperparams(target_sparsity)(0.1, 0.5)
    for dial in target_sparsity(0.1, 0.5), injected:
        optimizer = optax.chain(optax.clip(1.0), dial)
        state = optimizer.init(jnp.ones(4))
        assert optax.tree.get(state, "threshold") == 0
        assert optax.tree.get(state, "reached") == 0


@pytest.mark.usefixtures("standard_promotion")
def test_rate_that_follows_the_loss_slows_the_threshold_where_it_is_injected():
    """As the docstring of grda has it; chained before it, the threshold would go on."""
    params = jnp.ones(3)
    optimizer = optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)(
        0.1, c=0.1, mu=0.6
    )
    plateau = optax.contrib.reduce_on_plateau(factor=0.01, patience=1)
    state, watch = optimizer.init(params), plateau.init(params)
    thresholds = [0.0]
    for _ in range(6):
        _, watch = plateau.update(params, watch, value=1.0)
        state.hyperparams["learning_rate"] = 0.1 * watch.scale
        _, state = optimizer.update(jnp.zeros(3), state, params)
        thresholds.append(float(optax.tree.get(state, "threshold")))
    steps = np.diff(thresholds)
    assert steps[-1] < 0.01 * steps[0]


@pytest.mark.usefixtures("standard_promotion")
def test_chains_that_climb_are_told():
    params = {"kernel": jnp.ones((2, 2)), "bias": -jnp.ones(2)}
    for before in optax.scale_by_adam(), optax.trace(0.9), optax.clip(1.0):
        check_descent(optax.chain(before, grda(0.1, weight_decay=0.1)), params)
    for before in optax.sgd(0.1), optax.adamw(1e-3, weight_decay=0.1), optax.scale(-1):
        with pytest.raises(ValueError, match="must give gRDA a direction"):
            check_descent(optax.chain(before, target_sparsity(0.1, 0.9)), params)
    with pytest.raises(ValueError, match="optimizer must hold grda"):
        check_descent(optax.sgd(0.1), params)


@pytest.mark.usefixtures("standard_promotion")
def test_chains_that_climb_are_told_in_a_warmup_and_between_steps():
    params = {"kernel": jnp.ones((2, 2)), "bias": -jnp.ones(2)}
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.05, 15, 300)
    right = optax.chain(optax.scale_by_adam(), grda(rate))
    wrong = optax.chain(optax.adam(rate), grda(0.1))
    check_descent(right, params)
    check_descent(optax.MultiSteps(right, 4).gradient_transformation(), params)
    for optimizer in wrong, optax.MultiSteps(wrong, 4).gradient_transformation():
        with pytest.raises(ValueError, match="must give gRDA a direction"):
            check_descent(optimizer, params)
    lost_in_rounding = optax.chain(optax.scale(1e-9), grda(0.1))
    with pytest.raises(ValueError, match="must move the accumulator within 32 steps"):
        check_descent(lost_in_rounding, params)


@pytest.mark.usefixtures("standard_promotion")
def test_chains_that_need_more_than_gradients_are_checked_with_it():
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = optax.chain(optax.contrib.reduce_on_plateau(), grda(0.1))
    check_descent(optimizer, params, value=jnp.float32(1.0))


def test_a_law_without_a_threshold_is_told():
    def law(threshold):
        return Law(lambda v: (threshold, ()), lambda L, s, *_: (L, s))

    params = {"kernel": jnp.ones((2, 2))}
    state = dual_averaging(0.1, law(0.5)).init(params)
    assert state.threshold == 0.5
    assert state.threshold.dtype == jnp.float32
    for threshold, error in (-1.0, ValueError), (None, TypeError):
        with pytest.raises(error, match="init's threshold must be"):
            dual_averaging(0.1, law(threshold)).init(params)


def test_update_keeps_no_temporary_of_the_size_of_a_parameter_with_groups():
    optimizer = grda(0.1, proximal=MAPS["groups"])
    params = {"kernel": jnp.ones((1000, 100)), "more": jnp.ones((1000, 100))}

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step).lower(params, optimizer.init(params)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 0.1 * params["kernel"].nbytes
