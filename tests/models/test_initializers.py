import math

import jax
import numpy as np
import pytest
from flax import nnx

import models
from models import _initializers

# Wide enough for sharp statistics, narrow enough to draw in no time.
NETWORKS = {
    "vgg16bn": {"blocks": ((32,), (48,)), "input_shape": (8, 8, 3), "hidden": 64},
    "wrn28x10": {"depth": 10, "widen_factor": 2},
    "resnet50": {"stage_sizes": (1,), "width": 16},
    "keras-cnn": {"widths": (16,), "input_shape": (12, 12, 3), "hidden": 64},
    "mnist-mlp": {},
    "digits-mlp": {},
}


def uniform(bound):
    return bound / math.sqrt(3), bound


def normal(deviation):
    return deviation, math.inf


def expected(name, layer):
    """Deviation and bound of kernel and bias, as models.md and PyTorch state them."""
    area = math.prod(getattr(layer, "kernel_size", (1,)))
    fan_in, fan_out = area * layer.in_features, area * layer.out_features
    is_conv = isinstance(layer, nnx.Conv)
    torch = uniform(1 / math.sqrt(fan_in))
    match name:
        case "vgg16bn":
            return (normal(math.sqrt(2 / fan_out)), (0, 0)) if is_conv else (torch,) * 2
        case "wrn28x10":
            return torch, torch
        case "resnet50":
            return (normal(math.sqrt(2 / fan_out)), None) if is_conv else (torch,) * 2
        case "keras-cnn" | "mnist-mlp":
            return uniform(math.sqrt(6 / (fan_in + fan_out))), (0, 0)
        case "digits-mlp":
            return normal(math.sqrt(2 / fan_in)), (0, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_start_from_their_distributions(name, monkeypatch):
    # NumPy draws, where JAX would compile a program for every shape.
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        jax.random,
        "uniform",
        lambda key, shape, dtype, low, high: jax.device_put(
            rng.uniform(low, high, shape).astype(dtype)
        ),
    )
    monkeypatch.setattr(
        jax.random,
        "normal",
        lambda key, shape, dtype: jax.device_put(rng.normal(size=shape).astype(dtype)),
    )
    model = models.create(name, num_classes=10, rngs=nnx.Rngs(0), **NETWORKS[name])
    checked = 0
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Conv | nnx.Linear):
            kernel, bias = expected(name, layer)
            check(layer.kernel[...], *kernel)
            if bias is None:
                assert layer.bias is None
            else:
                check(layer.bias[...], *bias)
            checked += 1
        elif isinstance(layer, nnx.BatchNorm):
            assert layer.epsilon == 1e-5
            for variable, value in zip(
                (layer.scale, layer.bias, layer.mean, layer.var),
                (1, 0, 0, 1),
                strict=True,
            ):
                np.testing.assert_array_equal(
                    variable[...], np.full(variable.shape, value)
                )
    assert checked >= 2


def test_initializers_draw_from_their_distributions():
    for init, distribution in (
        (_initializers.uniform(0.5), uniform(0.5)),
        (_initializers.normal(0.5), normal(0.5)),
    ):
        first, second = (init(jax.random.key(seed), (40, 3, 50)) for seed in (0, 1))
        check(first, *distribution)
        assert first.dtype == np.float32
        assert not np.any(first == second)


def check(values, deviation, bound):
    values = np.asarray(values)
    assert np.abs(values).max() <= bound
    # The mean and the deviation of n draws have standard errors of at most
    # deviation / sqrt(n) and 0.71 deviation / sqrt(n): allow five.
    error = 5 * deviation / math.sqrt(values.size)
    assert abs(values.mean()) <= error
    assert abs(values.std() - deviation) <= error
