"""ResNet with bottlenecks, as in torchvision: ResNet-50 on ImageNet."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import he_normal
from models._layers import BatchNorm, check_images, conv, linear, relu


class ResNet(nnx.Module):
    """A 7x7 stem, four stages of bottlenecks, mean over the map ("v1.5").

    Convolutions have no bias and start from N(0, 2 / fan_out), the dense layer as in
    PyTorch. No BatchNorm scale starts at zero: it would start inside gRDA's threshold.
    ResNet-50 has 25,557,032 parameters at 1000 classes.

    Args:
      num_classes: how many logits.
      input_shape: only the channels matter, images may have any size.
      stage_sizes: number of bottlenecks in each stage.
      width: channels of the stem and of the first stage's 3x3 convolutions; they double
        from stage to stage.
      dtype, param_dtype, rngs: see models.create.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int, int, int] = (224, 224, 3),
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = ConvNorm(input_shape[-1], width, 7, 2, options)
        self.stages = nnx.List()
        channels = width
        for s, size in enumerate(stage_sizes):
            stage = nnx.List()
            for i in range(size):
                stride = 2 if s > 0 and i == 0 else 1
                stage.append(Bottleneck(channels, width * 2**s, stride, options))
                channels = Bottleneck.expansion * width * 2**s
            self.stages.append(stage)
        self.head = linear(channels, num_classes, **options)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, num_classes), float32; without dropout, rngs are not used."""
        check_images(images, "height", "width", self.stem.conv.in_features)
        x = relu(self.stem(images))
        pads: Any = ((1, 1), (1, 1))  # nnx says str
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, plus the input, then ReLU.

    Where shapes change, the input passes through a 1x1 convolution and BatchNorm.
    """

    expansion = 4

    def __init__(self, in_features: int, features: int, stride: int, options: dict):
        out_features = self.expansion * features
        self.layer1 = ConvNorm(in_features, features, 1, 1, options)
        self.layer2 = ConvNorm(features, features, 3, stride, options)
        self.layer3 = ConvNorm(features, out_features, 1, 1, options)
        self.shortcut = (
            ConvNorm(in_features, out_features, 1, stride, options)
            if (in_features, stride) != (out_features, 1)
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = relu(self.layer1(x))
        y = relu(self.layer2(y))
        y = self.layer3(y)
        return relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm."""

    def __init__(
        self, in_features: int, features: int, size: int, stride: int, options: dict
    ):
        self.conv = conv(
            in_features,
            features,
            size,
            stride=stride,
            use_bias=False,
            kernel_init=he_normal(size**2 * features),
            **options,
        )
        self.norm = BatchNorm(features, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))
