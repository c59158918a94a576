"""The hidden units of a network: what can be taken out of it as a whole.

A unit is an output of a hidden dense layer or convolution: its column of the kernel,
its bias, and its scale and bias in the BatchNorm behind. Not among them are the
outputs of the last layer, which are classes, and in residual networks the channels of
the stream, which all blocks of a stage share.
"""

import itertools
from collections.abc import Callable

from flax import nnx

from models.cnn import KerasCNN
from models.mlp import MLP
from models.resnet import ResNet
from models.vgg import VGG
from models.wide_resnet import WideResNet


def hidden_units(
    model: nnx.Module,
) -> Callable[[str, tuple[int, ...]], tuple[str, int] | None]:
    """Says of every parameter to which units its entries belong.

    Args:
      model: a network of this package. It may come from nnx.eval_shape.

    Returns:
      A function of the path of a parameter, as in "layers/0/kernel", and its shape. It
      returns the name of a layer, and the axis of the parameter that counts the layer's
      units; None for parameters that are not of hidden units. So it is what
      optax_grda.proximal.groups takes, on the nested dicts of nnx.to_pure_dict.

    Raises:
      TypeError: if the model is none of the networks here.

    Example:
      >>> import models
      >>> from flax import nnx
      >>> from models.units import hidden_units
      >>> groups = hidden_units(
      ...     models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      ... )
      >>> groups("layers/0/kernel", (64, 128)), groups("layers/0/bias", (128,))
      (('layers/0', -1), ('layers/0', -1))
      >>> groups("layers/2/kernel", (64, 10))  # classes
    """
    paths = {id(module): "/".join(map(str, p)) for p, module in nnx.iter_modules(model)}
    layers = {
        paths[id(module)]: paths[id(modules[0])]
        for modules in _layers(model)
        for module in modules
        if module is not None
    }

    def groups(path: str, shape: tuple[int, ...]) -> tuple[str, int] | None:
        del shape  # units are counted along the last axis of every parameter
        layer = layers.get(path.rpartition("/")[0])
        return None if layer is None else (layer, -1)

    return groups


def _layers(model: nnx.Module) -> list[tuple[nnx.Module | None, ...]]:
    """The modules that share units: a layer, and its BatchNorm if there is one."""
    match model:
        case MLP():
            return [(layer,) for layer in model.layers[:-1]]
        case KerasCNN():
            return [
                (layer,) for layer in (*itertools.chain(*model.pairs), model.hidden)
            ]
        case VGG():
            convolutions = itertools.chain(*model.blocks)
            return [
                *((layer.conv, layer.norm) for layer in convolutions),
                *((layer,) for layer in model.hidden),
            ]
        case WideResNet():
            blocks = itertools.chain(*model.stages)
            return [(block.conv1, block.norm2) for block in blocks]
        case ResNet():
            return [
                (layer.conv, layer.norm)
                for block in itertools.chain(*model.stages)
                for layer in (block.layer1, block.layer2)
            ]
        case _:
            raise TypeError(
                f"model must be a network of models.names(), got {type(model)}"
            )
