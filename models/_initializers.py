"""Initial distributions of kernels and biases.

Two reasons for not taking those of jax.nn.initializers. NNX keeps a layer's
initialisers in its graphdef and compares them by identity: with closures made on the
spot, networks that differ in their weights alone would be compiled twice, so ours are
cached. And drawing a kernel in one dimension gives the same numbers as drawing it in
four, but a CPU compiles it 5 to 10 times as fast.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx


@functools.cache
def uniform(bound: float) -> nnx.Initializer:
    """U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        flat = (math.prod(shape),)
        return jax.random.uniform(key, flat, dtype, -bound, bound).reshape(shape)

    return init


@functools.cache
def normal(deviation: float) -> nnx.Initializer:
    """N(0, deviation^2)."""

    def init(key, shape, dtype=jnp.float32):
        flat = (math.prod(shape),)
        return deviation * jax.random.normal(key, flat, dtype).reshape(shape)

    return init


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default, for kernels and for biases."""
    return uniform(fan_in**-0.5)


def glorot_uniform(fan_in: int, fan_out: int) -> nnx.Initializer:
    """Keras's default for kernels."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def he_normal(fan: int) -> nnx.Initializer:
    """He's, for layers before a ReLU, by fan-in or fan-out."""
    return normal(math.sqrt(2 / fan))
