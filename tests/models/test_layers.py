import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models._layers import BatchNorm, conv, flatten, max_pool_2x2


def batch_norm(features=3, **options):
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32} | options
    return BatchNorm(features, rngs=nnx.Rngs(0), **options)


def images(shape=(4, 5, 6, 3), mean=0.0, seed=0):
    """Channels of unequal mean and deviation, in float64."""
    rng = np.random.default_rng(seed)
    channels = np.arange(1.0, shape[-1] + 1)
    return mean + channels + channels * rng.standard_normal(shape)


def test_batch_norm_normalises_with_the_biased_variance_of_the_batch():
    x = images()
    layer = batch_norm()
    layer.scale[...] = jnp.array([1.0, 2.0, -3.0])
    layer.bias[...] = jnp.array([0.5, 0.0, -0.5])
    axes = (0, 1, 2)
    deviation = np.sqrt(x.var(axes) + 1e-5)
    expected = (x - x.mean(axes)) / deviation * [1.0, 2.0, -3.0] + [0.5, 0.0, -0.5]
    np.testing.assert_allclose(layer(jnp.float32(x)), expected, atol=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.1])
def test_batch_norm_averages_unbiased_variances_with_its_decay(decay):
    layer = batch_norm(decay=decay)
    mean, var = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = images(seed=seed)
        layer(jnp.float32(x))
        mean = decay * mean + (1 - decay) * x.mean((0, 1, 2))
        var = decay * var + (1 - decay) * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], var, rtol=1e-5)


def test_batch_norm_in_evaluation_uses_and_keeps_the_running_statistics():
    layer = batch_norm()
    layer.mean[...], layer.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 4.0)
    layer.eval()
    x = images()
    expected = (x - [1.0, 2.0, 3.0]) / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(layer(jnp.float32(x)), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(layer.var[...], [4.0, 4.0, 4.0])


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (120, 3)])
def test_a_fresh_batch_norm_finds_a_deviation_far_below_the_mean(shape):
    # In float32, E[x^2] - E[x]^2 would be wrong by about 1000^2 * 6e-8.
    x = np.float32(images(shape) + 1000 * np.arange(1.0, 4))
    axes = tuple(range(len(shape) - 1))
    exact = np.float64(x)
    mean, deviation = exact.mean(axes), exact.std(axes)
    weights = images(shape, seed=1)

    @jax.jit
    def gradient(x):
        def loss(x):
            layer = batch_norm(decay=0.0)
            return jnp.sum(jnp.float32(weights) * layer(x)), (layer.mean, layer.var)

        return jax.grad(loss, has_aux=True)(x)

    found, (running_mean, running_var) = gradient(x)
    np.testing.assert_allclose(running_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(running_var, exact.var(axes, ddof=1), rtol=1e-4)
    y = (exact - mean) / deviation
    expected = weights - weights.mean(axes) - y * (weights * y).mean(axes)
    np.testing.assert_allclose(np.asarray(found) * deviation, expected, atol=1e-3)


def test_batch_norm_of_a_constant_channel_is_its_bias():
    layer = batch_norm()
    layer.bias[...] = jnp.array([1.0, 2.0, 3.0])
    output = layer(jnp.full((8, 2, 2, 3), 0.3))
    np.testing.assert_allclose(
        output, np.broadcast_to([1.0, 2.0, 3.0], output.shape), atol=1e-4
    )


def test_batch_norm_in_bfloat16_keeps_statistics_in_float32():
    x = jnp.asarray(images(), jnp.bfloat16)
    layer = batch_norm(decay=0.0, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    assert layer.scale.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    # Far below bfloat16's 4e-3.
    np.testing.assert_allclose(layer.mean[...], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], exact.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_refuses_a_single_value_a_channel():
    with pytest.raises(ValueError, match=r"at least 2 values.* got 1 .*\(1, 1, 1, 3\)"):
        batch_norm()(jnp.ones((1, 1, 1, 3)))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_batch_norm_statistics_are_those_of_the_whole_batch_on_a_mesh(kind):
    kind = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    x = jnp.float32(images((16, 2, 2, 3)))

    @jax.jit
    def statistics(x):
        layer = batch_norm()
        output = layer(x)
        return output, layer.mean[...], layer.var[...]

    alone = statistics(x)
    together = statistics(jax.device_put(x, sharding))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        alone,
        together,
    )


@pytest.mark.parametrize("size", [1, 3, 5])
def test_conv_pads_as_many_zeros_on_one_side_as_on_the_other(size):
    layer = conv(1, 1, size, stride=2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.ones_like(layer.kernel[...])
    layer.bias[...] = jnp.zeros(1)
    # Windows are centred on pixels 0, 2 and 4: a ones kernel counts those it covers.
    covered = [sum(0 <= c + d - size // 2 < 6 for d in range(size)) for c in (0, 2, 4)]
    np.testing.assert_allclose(
        layer(jnp.ones((1, 6, 6, 1)))[0, :, :, 0], np.outer(covered, covered)
    )


def test_max_pool_drops_an_odd_last_row_and_column():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(max_pool_2x2(x)[0, :, :, 0], [[6, 8], [16, 18]])


def test_max_pool_agrees_with_the_sliding_window_in_value_and_gradient():
    x = jnp.float32(images((2, 7, 6, 3)))
    weights = jnp.float32(images((2, 3, 3, 3), seed=1))

    def window(x):
        return nnx.max_pool(x, (2, 2), strides=(2, 2))

    def value_and_gradient(pool):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(weights * pool(x))))(x)

    ours, theirs = value_and_gradient(max_pool_2x2), value_and_gradient(window)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_flatten_puts_channels_first():
    x = np.arange(24).reshape(1, 2, 3, 4)
    expected = x.transpose(0, 3, 1, 2).reshape(1, -1)
    np.testing.assert_array_equal(flatten(jnp.asarray(x)), expected)
