"""Layers that the networks share: PyTorch's, in NNX.

PyTorch differs from Flax in its initial distributions, in padding (as many zeros on one
side as on the other, where "SAME" is uneven at stride 2) and in the running variance of
BatchNorm. Options not named here are those of Flax's layers: dtype, param_dtype, rngs.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models._initializers import normal, torch_uniform


def linear(
    in_features: int,
    out_features: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    **options,
) -> nnx.Linear:
    """Dense layer with bias.

    It starts as PyTorch's, or with the kernels of kernel_init and biases of zero.
    """
    default = torch_uniform(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=kernel_init or default,
        bias_init=nnx.initializers.zeros if kernel_init else default,
        **options,
    )


def conv(
    in_features: int,
    out_features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    kernel_init: nnx.Initializer | None = None,
    **options,
) -> nnx.Conv:
    """Square convolution; starts as linear does.

    `padding` zeros are added on every side: by default size // 2, which keeps the size
    of the map at stride 1.
    """
    default = torch_uniform(in_features * size**2)
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        stride,
        padding=size // 2 if padding is None else padding,
        kernel_init=kernel_init or default,
        bias_init=nnx.initializers.zeros if kernel_init else default,
        **options,
    )


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation of the last axis, as PyTorch defines it.

    Two things differ from nnx.BatchNorm. The running variance averages the unbiased
    variances of the batches (over n - 1; a batch itself is normalised with that over
    n). And it computes in float32 whatever the dtype, where nnx rounds the running
    statistics to it.

    Args:
      features: length of the last axis.
      decay: weight of the old running statistics, 1 minus PyTorch's `momentum`.
      **options: dtype of the result, param_dtype, rngs.
    """

    def __init__(self, features: int, *, decay: float = 0.9, **options):
        super().__init__(features, momentum=decay, epsilon=1e-5, **options)

    # No mask: every value of a batch counts.
    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert self.scale is not None
        assert self.bias is not None
        axes = tuple(range(inputs.ndim - 1))
        x = inputs.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x, axes)

        gain = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(var + self.epsilon)
        bias = self.bias[...].astype(jnp.float32)
        mean, gain, bias = (jnp.expand_dims(v, axes) for v in (mean, gain, bias))
        return ((x - mean) * gain + bias).astype(self.dtype)

    def _batch_statistics(self, x, axes):
        """Mean and variance of the batch; moves the running ones towards them."""
        n = math.prod(x.shape[:-1])
        if n < 2:
            raise ValueError(
                "BatchNorm in training mode needs at least 2 values a channel, got "
                f"{n} from inputs of shape {x.shape}: use larger batches or images"
            )
        # One pass over the data instead of two. E[x^2] - E[x]^2 would cancel where the
        # mean is large beside the deviation, so something near the mean is taken off
        # first: that of the pixels in the middle. (It is not sliced off the batch,
        # which may be sharded.) The results do not depend on it, nor do gradients.
        middle = (length // 2 for length in x.shape[1:-1])
        centre = jax.lax.stop_gradient(x[:, *middle].mean(axis=0))
        x = x - jnp.expand_dims(centre, axes)
        offset = x.mean(axes)
        var = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(offset), 0.0)
        mean = centre + offset

        new = 1 - self.momentum
        self.mean[...] = self.momentum * self.mean[...] + new * mean
        self.var[...] = self.momentum * self.var[...] + new * (n / (n - 1)) * var
        return mean, var


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), computed in at least float32; the dtype stays.

    Under jit, the CPU compilers of JAX 0.11.2 and 0.12 get maxima of bfloat16 wrong
    where they fuse them with the matrix products around: NaN and 1e36. In training, the
    casts cost a GPU nothing: a ReLU whose gradient is wanted is no epilogue of a matrix
    product, but an elementwise kernel, bound by the bfloat16 that it reads and writes.
    """
    return nnx.relu(x.astype(np.promote_types(x.dtype, np.float32))).astype(x.dtype)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows at stride 2; an odd last row or column is left out.

    By reshaping: the gradient of nnx.max_pool's sliding window costs 3 to 15 times as
    much on a CPU. Equal maxima share the gradient; behind a ReLU they are zeros, which
    have none.
    """
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    # One axis at a time, or a mesh of Explicit axes does not know how to shard them.
    x = x.reshape(batch, height, 2, 2 * width, channels)
    return x.reshape(batch, height, 2, width, 2, channels).max(axis=(2, 4))


def flatten(x: jax.Array) -> jax.Array:
    """(batch, ..., channels) to (batch, features), channels first as in PyTorch.

    So that dense kernels mean the same here and there.
    """
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


def check_images(images: jax.Array, *expected: int | str) -> None:
    """Raises ValueError unless images are (batch, *expected); names fit any length."""
    lengths = images.shape[1:]
    if len(lengths) != len(expected) or any(
        isinstance(e, int) and e != length
        for e, length in zip(expected, lengths, strict=True)
    ):
        shape = ", ".join(map(str, ("batch", *expected)))
        raise ValueError(f"images must have shape ({shape}), got {images.shape}")


class Embedding(nnx.Embed):
    """A row a token; products of two rows start of order one.

    nnx.Embed does not know how rows lie that tokens pick on a mesh of Explicit axes.
    """

    def __init__(self, vocabulary: int, features: int, **options):
        init = normal(features**-0.5)
        super().__init__(vocabulary, features, embedding_init=init, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        sharding = jax.typeof(tokens).sharding
        rows = None  # where the batch lies
        if not sharding.mesh.empty:
            rows = sharding.update(spec=jax.P(*sharding.spec, None))
        table = self.embedding[...].astype(self.dtype)
        return table.at[tokens].get(mode="fill", out_sharding=rows)


def check_tokens(tokens: jax.Array) -> None:
    """Raises ValueError unless tokens are integers of shape (batch, length)."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "tokens must be integers of shape (batch, length), got "
            f"{tokens.dtype} {tokens.shape}"
        )
