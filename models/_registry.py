"""The networks by name: what builds each, and which inputs it was made for."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import he_normal
from models.cnn import KerasCNN
from models.mlp import MLP
from models.recurrent import GRU
from models.resnet import ResNet
from models.transformer import Transformer
from models.vgg import VGG, AuthorsVGG
from models.wide_resnet import WideResNet


class Spec(NamedTuple):
    """A network, and the images or the text that it was made for."""

    network: Callable[..., nnx.Module]  # network(num_classes, *, input_shape, ...)
    input_shape: tuple[int, ...]  # height, width, channels of images; (length,) of text
    mean: tuple[float, ...] = ()  # per channel, of images scaled to [0, 1]; subtracted,
    std: tuple[float, ...] = ()  # and then divided by. () of text

    @property
    def is_text(self) -> bool:
        """Whether inputs are tokens of text."""
        return len(self.input_shape) == 1

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """One input: a normalised image, float32, or the tokens of a text, int32."""
        dtype = jnp.int32 if self.is_text else jnp.float32
        return jax.ShapeDtypeStruct(self.input_shape, dtype)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


def _transformer(width: int, blocks: int, heads: int, length: int) -> Spec:
    network = functools.partial(Transformer, width=width, blocks=blocks, heads=heads)
    return Spec(network, (length,))


# VGG on CIFAR with ImageNet's mean, WideResNet with its own: so the authors did.
_SPECS = {
    "vgg16": Spec(VGG, (32, 32, 3), **IMAGENET),
    "vgg16bn": Spec(functools.partial(VGG, batch_norm=True), (32, 32, 3), **IMAGENET),
    "vgg16bn-authors": Spec(AuthorsVGG, (32, 32, 3), **IMAGENET),
    "wrn28x10": Spec(WideResNet, (32, 32, 3), **CIFAR),
    "resnet50": Spec(ResNet, (224, 224, 3), **IMAGENET),
    "keras-cnn": Spec(KerasCNN, (32, 32, 3), mean=(0.0,) * 3, std=(1.0,) * 3),
    "small-cnn": Spec(
        functools.partial(KerasCNN, widths=(8, 16), hidden=64, dropout=(0.0, 0.0)),
        (32, 32, 3),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    ),
    "mnist-mlp": Spec(
        functools.partial(MLP, features=(512,)),
        (28, 28, 1),
        mean=(0.0,),
        std=(1.0,),
    ),
    "cifar-mlp": Spec(
        functools.partial(
            MLP, features=(512, 256), kernel_init=lambda fan_in, _: he_normal(fan_in)
        ),
        (32, 32, 3),
        **CIFAR,
    ),
    "digits-wrn10x1": Spec(
        functools.partial(WideResNet, depth=10, widen_factor=1),
        (8, 8, 1),
        mean=(0.0,),
        std=(1.0,),
    ),
    "digits-mlp": Spec(
        functools.partial(
            MLP, features=(128, 64), kernel_init=lambda fan_in, _: he_normal(fan_in)
        ),
        (8, 8, 1),
        mean=(0.0,),
        std=(1.0,),
    ),
    "transformer-64x2": _transformer(64, 2, 4, length=128),
    "transformer-128x4": _transformer(128, 4, 4, length=128),
    "transformer-384x6": _transformer(384, 6, 6, length=128),
    "transformer-768x12": _transformer(768, 12, 12, length=1024),
    "gru-64": Spec(functools.partial(GRU, width=64), (128,)),
}


def names() -> tuple[str, ...]:
    """The names that create and spec know."""
    return tuple(_SPECS)


def spec(name: str) -> Spec:
    """The network of that name, and what it was made for.

    Raises:
      ValueError: if there is no network of that name; it lists those there are.
    """
    if name not in _SPECS:
        raise ValueError(f"name must be one of {', '.join(_SPECS)}, got {name!r}")
    return _SPECS[name]


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: jax.typing.DTypeLike = jnp.float32,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    **options,
) -> nnx.Module:
    """Builds a network with fresh weights, in training mode.

    Args:
      name: one of names().
      num_classes: how many logits, at least 1; of networks of text, the vocabulary.
      rngs: its `params` stream draws the initial weights. Nothing random is stored.
      dtype: what convolutions and dense layers compute in. BatchNorm's statistics and
        the logits are float32 whatever it is.
      param_dtype: what the parameters are stored in.
      **options: the network's own: `input_shape` (for images of another size), depth
        and widths, dropout.

    Returns:
      A module `model(inputs, rngs=None)`. It maps normalised images (batch, height,
      width, channels) to logits (batch, num_classes), float32; or the tokens of texts
      (batch, length), integers, to logits of the token that follows each, (batch,
      length, num_classes), float32. `model.train()` and
      `model.eval()` switch dropout and BatchNorm; in training mode, dropout takes its
      keys from the `dropout` stream of `rngs`. Apart from parameters its state holds
      BatchNorm's running statistics alone.

    Raises:
      ValueError: if there is no network of that name, num_classes is below 1, or an
        option is one the network cannot be built with.

    Example:
      >>> import jax.numpy as jnp
      >>> import models
      >>> from flax import nnx
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((32, 8, 8, 1))).shape
      (32, 10)
      >>> graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    """
    network, input_shape, *_ = spec(name)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    options = {"input_shape": input_shape} | options
    return network(
        num_classes, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **options
    )
