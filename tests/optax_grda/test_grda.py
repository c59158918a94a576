"""What grda promises of its weights, its state and its buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import DualAveragingState, grda

NARROW = ["float32", "bfloat16", "float16"]


def random_tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (7, 5), "bias": (5,), "scale": ()}
    return {
        name: jnp.asarray(rng.standard_normal(shape), dtype)
        for name, shape in shapes.items()
    }


def make_step(optimizer):
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_weights_within_the_threshold_are_exactly_zero(dtype, jit):
    optimizer = grda(0.1, c=0.5, mu=0.6)
    step = jax.jit(make_step(optimizer)) if jit else make_step(optimizer)
    params = random_tree(0, dtype)
    state = optimizer.init(params)
    for n in range(10):
        params, state = step(params, state, random_tree(n + 1, dtype))
        for name, leaf in params.items():
            assert leaf.dtype == dtype
            within = np.abs(state.accumulator[name]) <= state.threshold
            np.testing.assert_array_equal(np.asarray(leaf) == 0, within)
    assert 0 < sum(np.count_nonzero(leaf) for leaf in params.values()) < 41


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_of_weights_does_not_accumulate(dtype):
    optimizer = grda(0.1, c=0.0)
    step = jax.jit(make_step(optimizer))
    params = random_tree(0, dtype)
    state = optimizer.init(params)
    for n in range(200):
        params, state = step(params, state, random_tree(n % 7, dtype))
    for name, leaf in params.items():
        # As after one step: half an eps for v, for v - params and for their sum.
        v = np.asarray(state.accumulator[name])
        np.testing.assert_allclose(
            leaf.astype("float32"),
            v,
            rtol=0,
            atol=2 * float(jnp.finfo(dtype).eps) * np.abs(v).max(),
        )


def test_small_steps_are_not_lost_in_bfloat16():
    optimizer = grda(1e-3, c=0.0)
    step = jax.jit(make_step(optimizer))
    params = jnp.ones(3, jnp.bfloat16)
    state = optimizer.init(params)
    for _ in range(100):  # 1 - 0.001 is 1 in bfloat16
        params, state = step(params, state, jnp.ones(3, jnp.bfloat16))
    np.testing.assert_allclose(params.astype("float32"), 0.9, rtol=2**-8)


def test_nothing_recompiles_after_step_2(caplog):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        grda(optax.linear_schedule(0.0, 0.1, 10), c=0.1, mu=0.6),
    )
    step = jax.jit(make_step(optimizer))
    params = random_tree(0)
    state = optimizer.init(params)
    gradients = [random_tree(n + 1) for n in range(5)]
    with jax.log_compiles():
        for n in range(5):
            params, state = step(params, state, gradients[n])
            if n == 1:
                assert "Compiling" in caplog.text
                caplog.clear()
    assert caplog.text == ""


def test_state_keeps_its_types_through_init_and_update():
    optimizer = grda(0.1)
    for init in optimizer.init, jax.jit(optimizer.init):
        params = random_tree(0, jnp.bfloat16)
        state = init(params)
        assert isinstance(state, DualAveragingState)
        assert state.count.dtype == jnp.int32
        assert (
            state.threshold.dtype == state.law_state.compensation.dtype == jnp.float32
        )
        assert {v.dtype for v in jax.tree.leaves(state.accumulator)} == {
            jnp.dtype("float32")
        }
        _, after = optimizer.update(params, state, params)

        def kinds(tree):
            return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

        assert kinds(after) == kinds(state)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_c_zero_is_sgd(jit):
    """To the bit in the accumulator; where in params too is said in the docstring."""
    optimizer, sgd = grda(0.1, c=0.0), optax.sgd(0.1)
    step, sgd_step = make_step(optimizer), make_step(sgd)
    if jit:
        step, sgd_step = jax.jit(step), jax.jit(sgd_step)
    params = sgd_params = random_tree(0)
    state, sgd_state = optimizer.init(params), sgd.init(params)
    jumps = 0
    for n in range(50):
        before, gradients = params, random_tree(n + 1)
        params, state = step(params, state, gradients)
        sgd_params, sgd_state = sgd_step(sgd_params, sgd_state, gradients)
        assert state.threshold == 0
        for name in params:
            v, p = np.asarray(state.accumulator[name]), np.asarray(params[name])
            np.testing.assert_array_equal(v, sgd_params[name])
            old = np.asarray(before[name])
            near = (old / v >= 0.5) & (old / v <= 2)
            np.testing.assert_array_equal(p[near], v[near])
            # Half an eps of |v - old|, at most twice the larger, and half one of |v|.
            larger = np.maximum(np.abs(v), np.abs(old))
            assert np.all(np.abs(p - v) <= 1.5 * np.finfo(np.float32).eps * larger)
            jumps += np.count_nonzero(~near)
    assert jumps > 50  # both cases were met


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_accumulator_never_shares_a_buffer_with_params(jit):
    optimizer = grda(0.1)
    init = jax.jit(optimizer.init) if jit else optimizer.init
    params = random_tree(0)
    leaves = jax.tree.leaves((params, init(params)))
    buffers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(buffers) == len(leaves)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_params_and_state_can_be_donated(jit):
    optimizer = grda(0.1, c=0.1)
    init = jax.jit(optimizer.init) if jit else optimizer.init
    step = jax.jit(make_step(optimizer), donate_argnums=(0, 1))
    kept = jax.jit(make_step(optimizer))
    params, expected = random_tree(0), random_tree(0)
    state, expected_state = init(params), init(expected)
    for n in range(3):
        old = params, state
        params, state = step(params, state, random_tree(n + 1))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        expected, expected_state = kept(expected, expected_state, random_tree(n + 1))
    jax.tree.map(
        np.testing.assert_array_equal, (params, state), (expected, expected_state)
    )


def test_no_temporary_is_as_large_as_a_parameter():
    optimizer = grda(0.1, c=0.1)
    params = {"kernel": jnp.ones((1000, 1000)), "bias": jnp.ones(1000)}
    step = jax.jit(make_step(optimizer), donate_argnums=(0, 1))
    compiled = step.lower(params, optimizer.init(params), params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < params["bias"].nbytes


def test_float64_is_kept_throughout():
    with jax.enable_x64(True):
        optimizer = grda(0.1, c=0.1)
        params = {"wide": jnp.ones(2, "float64"), "single": jnp.ones(2, "float32")}
        state = optimizer.init(params)
        params, state = make_step(optimizer)(params, state, params)
        assert state.threshold.dtype == jnp.float64
        assert state.accumulator["wide"].dtype == params["wide"].dtype == jnp.float64
        assert state.accumulator["single"].dtype == jnp.float32
        expected = 1 - 0.1 - 0.1 * 0.1**1.01  # v_1 - c gamma^(mu + 1/2)
        np.testing.assert_allclose(params["wide"], expected, rtol=1e-15)
        np.testing.assert_allclose(params["single"], expected, rtol=1e-6)


def test_float32_params_stay_float32_where_x64_is_enabled():
    with jax.enable_x64(True):
        optimizer = grda(0.1, c=0.1)
        params = jnp.ones(2, "float32")
        state = optimizer.init(params)
        params, state = make_step(optimizer)(params, state, params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((params, state))} == {
            "float32",
            "int32",
        }


def test_complex_weights_shrink_in_modulus_and_keep_their_phase():
    optimizer = grda(0.1, c=1.0, mu=0.6)
    params = jnp.array([3 + 4j, 0.01 - 0.02j, 0])
    state = optimizer.init(params)
    params, state = make_step(optimizer)(params, state, jnp.zeros(3, "complex64"))
    assert params.dtype == state.accumulator.dtype == jnp.complex64
    assert state.threshold.dtype == jnp.float32
    threshold = 0.1**1.1
    np.testing.assert_allclose(params[0], (3 + 4j) * (1 - threshold / 5), rtol=1e-6)
    assert params[1:].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_accumulator_dtype_is_the_one_asked_for(dtype):
    with jax.enable_x64(dtype == "float64"):
        optimizer = grda(0.1, accumulator_dtype=dtype)
        params = random_tree(0)
        _, state = make_step(optimizer)(params, optimizer.init(params), params)
        assert {v.dtype for v in jax.tree.leaves(state.accumulator)} == {
            jnp.dtype(dtype)
        }
        wide = "float64" if dtype == "float64" else "float32"
        assert state.threshold.dtype == wide


def test_gradients_may_be_narrower_or_wider_than_params():
    optimizer = grda(0.5, c=0.0)
    for params, gradient in ("float32", "bfloat16"), ("bfloat16", "float32"):
        params = jnp.ones(2, params)
        updates, _ = optimizer.update(
            jnp.ones(2, gradient), optimizer.init(params), params
        )
        assert updates.dtype == params.dtype
        assert updates.tolist() == [-0.5, -0.5]


def test_nan_gradient_stays_in_the_accumulator():
    optimizer = grda(0.1)
    params = jnp.ones(2)
    state = optimizer.init(params)
    for gradients in jnp.array([jnp.nan, 1.0]), jnp.ones(2), jnp.ones(2):
        params, state = make_step(optimizer)(params, state, gradients)
    assert np.isnan(params).tolist() == [True, False]
    assert np.isfinite(state.threshold)


def test_extra_arguments_are_ignored():
    optimizer = grda(0.1)
    params = jnp.ones(2)
    state = optimizer.init(params)
    plain = optimizer.update(params, state, params)
    extra = optimizer.update(params, state, params, value=1.0, unknown="anything")
    jax.tree.map(np.testing.assert_array_equal, plain, extra)


def test_the_threshold_has_derivatives_in_c_and_mu():
    def threshold(c, mu):
        optimizer, w = grda(0.1, c, mu), jnp.ones(2)
        state = optimizer.init(w)
        for _ in range(3):
            _, state = optimizer.update(w, state, w)
        return state.threshold

    # L = c gamma^(1/2) (n gamma)^mu
    c, mu, n = 0.5, 0.6, 3 * 0.1
    by_c, by_mu = jax.grad(threshold, argnums=(0, 1))(c, mu)
    np.testing.assert_allclose(by_c, 0.1**0.5 * n**mu, rtol=1e-6)
    np.testing.assert_allclose(by_mu, c * 0.1**0.5 * n**mu * np.log(n), rtol=1e-5)
