"""The convolutional network of Keras's CIFAR-10 example."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import glorot_uniform
from models._layers import (
    check_images,
    conv,
    flatten,
    linear,
    max_pool_2x2,
    relu,
)


class KerasCNN(nnx.Module):
    """Pairs of 3x3 convolutions, the second without padding, then a hidden layer.

    Each pair ends in a 2x2 maximum and dropout; before the logits stands another
    dropout. Glorot uniform kernels, zero biases. 1,250,858 parameters at 10 classes.

    Args:
      num_classes: how many logits.
      input_shape: height, width and channels of the images.
      widths: channels of the convolutions, one number a pair.
      hidden: width of the hidden layer.
      dropout: rates behind the pairs, and before the logits.
      dtype, param_dtype, rngs: see models.create.

    Raises:
      ValueError: if the images are too small for so many pairs.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        widths: Sequence[int] = (32, 64),
        hidden: int = 512,
        dropout: tuple[float, float] = (0.25, 0.5),
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def keras_conv(fan_in, fan_out, padding):
            init = glorot_uniform(9 * fan_in, 9 * fan_out)
            return conv(
                fan_in, fan_out, 3, padding=padding, kernel_init=init, **options
            )

        def keras_linear(fan_in, fan_out):
            init = glorot_uniform(fan_in, fan_out)
            return linear(fan_in, fan_out, kernel_init=init, **options)

        height, width, channels = input_shape
        for _ in widths:
            height, width = (height - 2) // 2, (width - 2) // 2
        if min(height, width) < 1:
            raise ValueError(
                f"input_shape must be large enough for {len(widths)} pairs of "
                f"convolutions and poolings, got {input_shape}"
            )
        self.input_shape = tuple(input_shape)
        self.pairs = nnx.List()
        for features in widths:
            same = keras_conv(channels, features, padding=1)
            valid = keras_conv(features, features, padding=0)
            self.pairs.append(nnx.List([same, valid]))
            channels = features
        self.hidden = keras_linear(height * width * channels, hidden)
        self.head = keras_linear(hidden, num_classes)
        self.dropout = nnx.Dropout(dropout[0])
        self.hidden_dropout = nnx.Dropout(dropout[1])

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, num_classes), float32; dropout draws from rngs.dropout."""
        check_images(images, *self.input_shape)
        x = images
        for pair in self.pairs:
            for layer in pair:
                x = relu(layer(x))
            x = self.dropout(max_pool_2x2(x), rngs=rngs)
        x = self.hidden_dropout(relu(self.hidden(flatten(x))), rngs=rngs)
        return self.head(x).astype(jnp.float32)
