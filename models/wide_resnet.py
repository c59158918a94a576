"""Wide residual networks (pre-activation), as the authors trained them on CIFAR."""

import jax
import jax.numpy as jnp
from flax import nnx

from models._layers import BatchNorm, check_images, conv, linear, relu


class WideResNet(nnx.Module):
    """A stem, three stages of residual blocks, BatchNorm, ReLU, mean over the map.

    Everything starts as in PyTorch. WRN-28-10 has 36,489,290 parameters at 10 classes
    and 36,546,980 at 100. The running statistics of the last BatchNorm decay by 0.1 a
    step instead of 0.9, so evaluation leans on the last batches: the authors' choice.

    Args:
      num_classes: how many logits.
      input_shape: only the channels matter, images may have any size.
      depth: number of layers, 6 n + 4 for n blocks a stage.
      widen_factor: the stages are 16, 32 and 64 times as wide.
      dropout: rate between the convolutions of a block; the authors use none.
      dtype, param_dtype, rngs: see models.create.

    Raises:
      ValueError: if depth is not 6 n + 4.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4, n >= 1, got {depth}")
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = conv(input_shape[-1], 16, 3, **options)
        self.stages = nnx.List()
        channels = 16
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            stage = nnx.List()
            for i in range((depth - 4) // 6):
                stage.append(
                    Block(
                        channels,
                        features * widen_factor,
                        stride if i == 0 else 1,
                        dropout,
                        options,
                    )
                )
                channels = features * widen_factor
            self.stages.append(stage)
        self.norm = BatchNorm(channels, decay=0.1, **options)
        self.head = linear(channels, num_classes, **options)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, num_classes), float32; dropout draws from rngs.dropout."""
        check_images(images, "height", "width", self.stem.in_features)
        x = self.stem(images)
        for stage in self.stages:
            for block in stage:
                x = block(x, rngs)
        x = relu(self.norm(x)).mean(axis=(1, 2))
        return self.head(x).astype(jnp.float32)


class Block(nnx.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, plus the input.

    The second convolution has the stride. Where shapes change, the input passes through
    a 1x1 convolution; it branches off before the first BatchNorm.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        dropout: float,
        options: dict,
    ):
        self.norm1 = BatchNorm(in_features, **options)
        self.conv1 = conv(in_features, features, 3, **options)
        self.dropout = nnx.Dropout(dropout)
        self.norm2 = BatchNorm(features, **options)
        self.conv2 = conv(features, features, 3, stride=stride, **options)
        self.shortcut = (
            conv(in_features, features, 1, stride=stride, **options)
            if (in_features, stride) != (features, 1)
            else None
        )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        y = self.conv1(relu(self.norm1(x)))
        y = self.dropout(y, rngs=rngs)
        y = self.conv2(relu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))
