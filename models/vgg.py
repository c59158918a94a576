"""VGG with three dense layers, as the authors trained it on CIFAR-10."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import he_normal
from models._layers import (
    BatchNorm,
    check_images,
    conv,
    flatten,
    linear,
    max_pool_2x2,
    relu,
)

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nnx.Module):
    """Blocks of 3x3 convolutions, each followed by a 2x2 maximum; then dense layers.

    Dropout stands before the first and the second dense layer, none before the last.
    Convolutions start from N(0, 2 / (9 out_channels)) with zero biases, dense layers as
    PyTorch's do. VGG16 has 15,245,130 parameters at 10 classes, with BatchNorm
    15,253,578. With input_shape (224, 224, 3) and hidden 4096 it is torchvision's, but
    for the places of dropout.

    Args:
      num_classes: how many logits.
      input_shape: height, width and channels of the images.
      blocks: channels of the convolutions, block by block.
      hidden: width of the two hidden dense layers.
      batch_norm: whether BatchNorm follows every convolution.
      dropout: rate.
      dtype, param_dtype, rngs: see models.create.

    Raises:
      ValueError: if the images are too small for so many blocks.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        blocks: Sequence[Sequence[int]] = VGG16,
        hidden: int = 512,
        batch_norm: bool = False,
        dropout: float = 0.5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        height, width, channels = input_shape
        last_height, last_width = height >> len(blocks), width >> len(blocks)
        if min(last_height, last_width) < 1:
            raise ValueError(
                f"input_shape must be at least {2 ** len(blocks)} pixels high and wide "
                f"for {len(blocks)} blocks, got {input_shape}"
            )
        self.input_shape = tuple(input_shape)
        self.blocks = nnx.List()
        for block in blocks:
            layers = nnx.List()
            for features in block:
                layers.append(Layer(channels, features, batch_norm, options))
                channels = features
            self.blocks.append(layers)
        self.hidden = nnx.List(
            [
                linear(last_height * last_width * channels, hidden, **options),
                linear(hidden, hidden, **options),
            ]
        )
        self.head = linear(hidden, num_classes, **options)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, num_classes), float32; dropout draws from rngs.dropout."""
        check_images(images, *self.input_shape)
        x = images
        for block in self.blocks:
            x = max_pool_2x2(self._convolve(block, x))
        x = flatten(x)
        for layer in self.hidden:
            x = relu(layer(self.dropout(x, rngs=rngs)))
        return self.head(x).astype(jnp.float32)

    def _convolve(self, block: nnx.List, x: jax.Array) -> jax.Array:
        for layer in block:
            x = layer(x)
        return x


class AuthorsVGG(VGG):
    """VGG with BatchNorm as the authors' program runs it: half of the layers.

    Their forward pass pairs the convolutions and BatchNorms of a block with its ReLUs,
    of which there is one a convolution, and ends with the shorter list: from
    convolution, BatchNorm, convolution, BatchNorm it runs the first two, each with a
    ReLU. The others have parameters and no influence. No result of the paper uses it;
    it is here for their checkpoints. The arguments are those of VGG.
    """

    def __init__(self, num_classes: int, **options):
        super().__init__(num_classes, batch_norm=True, **options)

    def _convolve(self, block: nnx.List, x: jax.Array) -> jax.Array:
        listed = [module for layer in block for module in (layer.conv, layer.norm)]
        for module in listed[: len(block)]:
            x = relu(module(x))
        return x


class Layer(nnx.Module):
    """Convolution with bias, BatchNorm where asked for, ReLU."""

    def __init__(
        self, in_features: int, features: int, batch_norm: bool, options: dict
    ):
        self.conv = conv(
            in_features,
            features,
            3,
            kernel_init=he_normal(9 * features),
            **options,
        )
        self.norm = BatchNorm(features, **options) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return relu(x)
