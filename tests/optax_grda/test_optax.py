"""grda inside the wrappers and chains of Optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda, label_by_path, label_by_rank

C, MU = 0.3, 0.6


def random_tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.standard_normal((6, 4)), dtype),
        "bias": jnp.asarray(rng.standard_normal(4), dtype),
    }


def train(optimizer, gradients):
    """Params and state after one jitted step a gradient."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = random_tree(0)
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params, state


GRADIENTS = [random_tree(seed) for seed in range(1, 7)]


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_trees_close(actual, expected):
    # The same float32 operations in another program: a few roundings of order one.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(close, actual, expected)


def test_chain_with_clipping_by_global_norm():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), grda(0.1, C, MU))
    actual, _ = train(optimizer, GRADIENTS)

    def clip(gradient):
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
        assert norm > 1
        return {name: g / norm for name, g in gradient.items()}

    expected, _ = train(grda(0.1, C, MU), map(clip, GRADIENTS))
    assert_trees_close(actual, expected)


@pytest.mark.usefixtures("standard_promotion")
def test_warm_up_from_zero_has_no_nan():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6)
    params, state = train(grda(schedule, C, MU), GRADIENTS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert state.threshold > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_injected_hyperparams_change_between_steps(dtype, caplog):
    settings = [(0.1, 0.3, 0.6), (0.05, 0.4, 0.51), (0.2, 0.1, 0.7)]
    params = random_tree(0, dtype)
    gradient = random_tree(1, dtype)

    injected = optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)
    optimizer = injected(1.0, c=0.0, mu=1.0)
    state, actual = optimizer.init(params), params
    update = jax.jit(optimizer.update)
    with jax.log_compiles():
        for learning_rate, c, mu in settings:
            caplog.clear()
            state.hyperparams.update(
                learning_rate=jnp.float32(learning_rate),
                c=jnp.float32(c),
                mu=jnp.float32(mu),
            )
            updates, state = update(gradient, state, actual)
            actual = optax.apply_updates(actual, updates)
    assert caplog.text == ""  # the last change compiled nothing

    plain, expected = grda(1.0).init(params), params
    for learning_rate, c, mu in settings:
        updates, plain = grda(learning_rate, c, mu).update(gradient, plain, expected)
        expected = optax.apply_updates(expected, updates)

    assert {value.dtype.name for value in state.hyperparams.values()} == {"float32"}
    np.testing.assert_allclose(state.inner_state.threshold, plain.threshold, rtol=1e-6)
    eps = float(jnp.finfo(dtype).eps)
    for name in params:
        np.testing.assert_allclose(
            actual[name].astype("float32"),
            expected[name].astype("float32"),
            rtol=eps,
            atol=1e-6,
        )


def test_injected_schedule_and_plain_schedule_agree():
    schedule = optax.linear_schedule(0.0, 0.1, 4)
    actual, _ = train(optax.inject_hyperparams(grda)(schedule, c=C, mu=MU), GRADIENTS)
    expected, _ = train(grda(schedule, C, MU), GRADIENTS)
    assert_trees_close(actual, expected)


@pytest.mark.parametrize(
    "labels",
    [
        label_by_rank({0: "dense", 2: "sparse"}),
        label_by_path({"*kernel": "sparse", "*": "dense"}),
    ],
    ids=["rank", "path"],
)
def test_partition_gives_kernels_grda_and_the_rest_sgd(labels):
    optimizer = optax.partition(
        {"sparse": grda(0.1, C, MU), "dense": optax.sgd(0.1)}, labels
    )
    params, _ = train(optimizer, GRADIENTS)
    sparse, _ = train(grda(0.1, C, MU), GRADIENTS)
    dense, _ = train(optax.sgd(0.1), GRADIENTS)
    assert_trees_close(params, {"kernel": sparse["kernel"], "bias": dense["bias"]})
    assert np.any(params["kernel"] == 0)
    assert np.all(params["bias"] != 0)


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_averages_gradients_and_steps_every_kth():
    optimizer = optax.MultiSteps(grda(0.1, C, MU), every_k_schedule=3)
    params, state = train(optimizer, GRADIENTS)

    def mean(*trees):
        return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)

    gradients = mean(*GRADIENTS[:3]), mean(*GRADIENTS[3:])
    expected, expected_state = train(grda(0.1, C, MU), gradients)
    assert_trees_close(params, expected)
    assert state.inner_opt_state.count == expected_state.count == 2
    unmoved, _ = train(optimizer, GRADIENTS[:2])
    assert_trees_equal(unmoved, random_tree(0))


def test_apply_if_finite_skips_steps_with_nan_or_infinity():
    optimizer = optax.apply_if_finite(grda(0.1, C, MU), max_consecutive_errors=3)
    poisoned = [
        jax.tree.map(lambda g, bad=bad: g.at[0].set(bad), GRADIENTS[0])
        for bad in (jnp.nan, jnp.inf)
    ]
    params, state = train(optimizer, GRADIENTS[:2] + poisoned + GRADIENTS[2:])
    expected, expected_state = train(grda(0.1, C, MU), GRADIENTS)
    assert state.total_notfinite == 2
    assert_trees_close(params, expected)
    assert_trees_close(state.inner_state, expected_state)


@pytest.mark.usefixtures("standard_promotion")
def test_adam_direction_can_be_fed_in():
    params, _ = train(optax.chain(optax.scale_by_adam(), grda(0.1, C, MU)), GRADIENTS)
    adam = optax.scale_by_adam()
    state, directions = adam.init(random_tree(0)), []
    for gradient in GRADIENTS:
        direction, state = adam.update(gradient, state)
        directions.append(direction)
    expected, _ = train(grda(0.1, C, MU), directions)
    assert_trees_close(params, expected)
