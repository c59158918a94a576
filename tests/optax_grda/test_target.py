"""target_sparsity: the sparsity that was asked for, wherever grda can be used."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from optax_grda import (
    DualAveragingState,
    grda_params,
    label_by_rank,
    sparsity,
    sparsity_ramp,
    target_sparsity,
)
from optax_grda.proximal import n_of_m

SIZE = 1000
# The sparsity settles within an entry or two of the target; half an entry for rounding.
ENTRIES = 2.5 / SIZE


def random_params(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.standard_normal((SIZE // 20, 18)), dtype),
        "bias": jnp.asarray(rng.standard_normal(SIZE // 10), dtype),
    }


def run(optimizer, params, steps, gradients=jnp.zeros_like):
    """Params, state and the sparsity after each step, under gradients of params."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            jax.tree.map(gradients, params), state, params
        )
        params = optax.apply_updates(params, updates)
        return (params, state), sparsity(params)

    carry = params, optimizer.init(params)
    (params, state), reached = jax.lax.scan(step, carry, None, steps)
    return params, state, reached


def test_steps_follow_the_equations():
    rng = np.random.default_rng(0)
    params = rng.standard_normal(SIZE)
    schedule, gain = sparsity_ramp(0.8, 20), 0.7
    optimizer = target_sparsity(0.1, schedule, gain=gain)
    w = jnp.asarray(params, jnp.float32)
    state = optimizer.init(w)
    v, reached = params, 0.0
    threshold = floor = 1e-4 * np.abs(params).mean()
    for n in range(30):
        gradient = rng.standard_normal(SIZE)
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, w)
        w = optax.apply_updates(w, updates)
        v, before = v - 0.1 * gradient, reached
        if n:
            error = float(schedule(n)) - reached
            threshold = max(threshold * np.exp(gain * error), floor)
        reached = np.mean(np.abs(v) <= threshold)
        # Entries within rounding of the threshold may fall on either side of it, and
        # so shift the threshold by an entry's share.
        assert state.law_state.reached == pytest.approx(before, abs=ENTRIES)
        assert state.threshold == pytest.approx(threshold, rel=0.01)
    assert state.count == 30
    assert reached > 0.7


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.98])
@pytest.mark.parametrize("gain", [0.2, 1.0])
def test_gain_up_to_one_does_not_overshoot(wanted, gain):
    _, _, reached = run(target_sparsity(0.1, wanted, gain=gain), random_params(), 1000)
    assert np.max(reached) <= wanted + ENTRIES
    assert np.min(np.diff(reached)) >= -ENTRIES
    assert abs(reached[-1] - wanted) <= ENTRIES


def test_gain_below_two_settles():
    _, _, reached = run(target_sparsity(0.1, 0.6, gain=1.9), random_params(), 300)
    np.testing.assert_allclose(reached[-20:], 0.6, atol=ENTRIES)


@pytest.mark.parametrize("power", [-60, 1, 60])
def test_scale_of_the_weights_does_not_matter(power):
    optimizer = target_sparsity(0.1, 0.9)
    scaled = jax.tree.map(lambda p: p * 2.0**power, random_params())
    _, _, reached = run(optimizer, scaled, 60)
    _, _, expected = run(optimizer, random_params(), 60)
    # A power of two changes no rounding, except for that of the floor.
    np.testing.assert_allclose(reached, expected, atol=ENTRIES)


def test_target_may_fall_and_wait_at_zero():
    def schedule(count):
        return jnp.where(count < 100, 0.9, jnp.where(count < 600, 0.0, 0.5))

    _, _, reached = run(target_sparsity(0.1, schedule), random_params(), 700)
    assert reached[99] == pytest.approx(0.9, abs=ENTRIES)
    # Close to 0, rho is the sparsity itself, which then falls as 1 / (gain n).
    assert reached[599] <= 1 / (0.5 * 500) + ENTRIES
    assert reached[699] == pytest.approx(0.5, abs=ENTRIES)


def test_a_target_out_of_reach_can_be_left_again():
    def schedule(count):
        return jnp.where(count < 300, 0.9, 0.2)  # of which 2:4 allows the second alone

    optimizer = target_sparsity(0.1, schedule, proximal=n_of_m(2, 4, axis=0))
    params = {"w": jax.random.normal(jax.random.key(0), (SIZE,))}
    _, state, reached = run(optimizer, params, 1000)
    assert reached[299] == 0.5
    assert reached[-1] == pytest.approx(0.2, abs=0.01)
    assert jnp.isfinite(state.threshold)


def test_params_that_start_at_zero_come_to_the_target():
    rng = np.random.default_rng(1)
    push = jnp.asarray(rng.standard_normal(SIZE), jnp.float32)
    _, _, reached = run(target_sparsity(0.1, 0.9), jnp.zeros(SIZE), 400, lambda w: push)
    # The weights grow as 0.1 n, and so must the threshold: the lag is 1 / (n gain).
    assert reached[-1] == pytest.approx(0.9, abs=1 / 200 + ENTRIES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_state_tells_the_sparsity_of_the_params_that_a_step_was_given(dtype):
    params, state, reached = run(
        target_sparsity(0.1, 0.9), random_params(dtype=dtype), 100, lambda w: 0.1 * w
    )
    assert all(leaf.dtype == dtype for leaf in params.values())
    assert state.threshold.dtype == jnp.float32
    np.testing.assert_allclose(state.law_state.reached, reached[-2], rtol=1e-6)
    np.testing.assert_allclose(
        reached[-1], sparsity(grda_params(state, params, None)), rtol=1e-6
    )


def test_a_weight_that_is_not_a_number_is_seen_in_the_count():
    optimizer = target_sparsity(0.1, 0.9)
    params = jnp.array([1.0, jnp.nan, 0.0])
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert jnp.isnan(state.law_state.reached)


def test_complex_entries_are_counted_once():
    optimizer = target_sparsity(0.1, 0.9)
    params = jnp.array([1.0 + 1.0j, 0.3j, 0.0, -1e-20])
    assert optimizer.init(params).law_state.reached == 0.25


def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:1437]
    images = np.asarray(data.images[order].reshape(-1, 64) / 16, np.float32)
    return jnp.asarray(images), jax.nn.one_hot(data.target[order], 10)


def test_digits_network_ends_within_half_a_point_from_50_to_98_percent():
    """At a constant learning rate and at one that drops."""
    images, labels = digits()
    steps, batch = 440, 32

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = [(64, 128), (128, 64), (64, 10)]
        he = jax.nn.initializers.he_normal()
        return [
            {"kernel": he(key, shape), "bias": jnp.zeros(shape[1])}
            for key, shape in zip(keys, shapes, strict=True)
        ]

    def loss(params, rows):
        x = images[rows]
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
        logits = x @ params[-1]["kernel"] + params[-1]["bias"][None]
        return optax.losses.softmax_cross_entropy(logits, labels[rows]).mean()

    def train(wanted, seed, drop):
        ramp = sparsity_ramp(wanted, steps=steps * 6 // 10)
        optimizer = target_sparsity(
            lambda count: 0.1 * drop ** (count // 150).astype(jnp.float32), ramp
        )
        params = init(jax.random.key(seed))

        def step(carry, n):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), n)
            rows = jax.random.randint(key, (batch,), 0, len(images))
            gradients = jax.grad(loss)(params, rows)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jnp.arange(steps)
        )
        return sparsity(carry[0])

    wanted = jnp.array([0.5, 0.8, 0.9, 0.95, 0.98] * 2)
    drop = jnp.repeat(jnp.array([1.0, 0.1]), 5)
    reached = jax.jit(jax.vmap(train))(wanted, jnp.arange(10) % 5, drop)
    np.testing.assert_allclose(reached, wanted, atol=0.005)


def test_partition_counts_the_leaves_of_the_label():
    optimizer = optax.partition(
        {"sparse": target_sparsity(0.1, 0.9), "dense": optax.sgd(0.1)},
        label_by_rank({0: "dense", 2: "sparse"}),
    )
    params = random_params()
    state = optimizer.init(params)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            jax.tree.map(jnp.zeros_like, params), state, params
        )
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, state), None, 200)
    assert sparsity(params["kernel"]) == pytest.approx(0.9, abs=ENTRIES)
    assert sparsity(params["bias"]) == 0


def test_injected_target_changes_between_steps():
    injected = optax.inject_hyperparams(target_sparsity, hyperparam_dtype=jnp.float32)
    optimizer = injected(0.1, sparsity=0.5)
    params = random_params()
    state = optimizer.init(params)
    step = jax.jit(lambda s, p: optimizer.update(jax.tree.map(jnp.zeros_like, p), s, p))
    for wanted in (0.5, 0.9):
        state.hyperparams["sparsity"] = jnp.float32(wanted)
        for _ in range(200):
            updates, state = step(state, params)
            params = optax.apply_updates(params, updates)
        assert sparsity(params) == pytest.approx(wanted, abs=ENTRIES)


def test_vmap_over_targets_trains_each():
    wanted = jnp.array([0.3, 0.6, 0.9])
    reached = jax.jit(
        jax.vmap(lambda s: run(target_sparsity(0.1, s), random_params(), 200)[2][-1])
    )(wanted)
    np.testing.assert_allclose(reached, wanted, atol=ENTRIES)


def test_mesh_counts_zeros_over_all_devices():
    params = {"kernel": random_params()["kernel"][:48]}
    optimizer = target_sparsity(0.1, 0.9)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    sharded = jax.device_put(params, rows)
    train = jax.jit(lambda p: run(optimizer, p, 100, lambda w: 0.1 * w)[::2])
    (expected, one), (got, eight) = train(params), train(sharded)
    np.testing.assert_array_equal(one, eight)
    np.testing.assert_allclose(got["kernel"], expected["kernel"], rtol=1e-6)


def test_state_can_be_donated_and_nothing_recompiles(caplog):
    optimizer = target_sparsity(0.1, sparsity_ramp(0.9, 10))
    params = random_params()
    state = optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params, state = step(params, state)
    with jax.log_compiles():
        for _ in range(3):
            params, state = step(params, state)
    assert isinstance(state, DualAveragingState)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_ramp_is_cubic_then_level():
    ramp = sparsity_ramp(0.9, steps=100)
    counts = np.array([0, 10, 50, 100, 1000])
    expected = 0.9 * (1 - np.maximum(1 - counts / 100, 0) ** 3)
    np.testing.assert_allclose([float(ramp(n)) for n in counts], expected, atol=1e-6)


def test_floor_is_finite_where_the_sum_of_moduli_overflows_the_accumulator():
    params = jnp.ones(100_000, jnp.float16)  # whose largest number is 65,504
    optimizer = target_sparsity(0.1, 0.5, accumulator_dtype=jnp.float16)
    assert optimizer.init(params).law_state.floor == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"gain": 0.0}, r"gain must be in \(0, 2\), got 0.0"),
        ({"gain": 2.0}, r"gain must be in \(0, 2\), got 2.0"),
        ({"learning_rate": 0.0}, r"learning_rate must be > 0, got 0.0"),
        ({"accumulator_dtype": jnp.int32}, "accumulator_dtype must be float"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        target_sparsity(**{"learning_rate": 0.1, "sparsity": 0.9} | arguments)


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="sparsity must be a number, an array or a sch"):
        target_sparsity(0.1, "most")
    with pytest.raises(TypeError, match="gain must be a number or an array"):
        target_sparsity(0.1, 0.9, gain="high")
    with pytest.raises(TypeError, match=r"steps must be an integer > 0, got 0\.5"):
        sparsity_ramp(0.9, steps=0.5)


def test_label_without_leaves_has_nothing_to_make_zero():
    optimizer = target_sparsity(0.1, 0.9)
    updates, state = optimizer.update({}, optimizer.init({}), {})
    assert updates == {}
    assert state.law_state.reached == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 100), r"final must be in \[0, 1\), got 1.5"),
        ((0.9, 0), "steps must be an integer > 0, got 0"),
    ],
)
def test_wrong_ramps_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsity_ramp(*arguments)
