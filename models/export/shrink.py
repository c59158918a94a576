"""Smaller networks from sparse ones: whole units that cannot matter are taken out.

A unit cannot matter for two reasons. It is a constant, because all its incoming weights
are zero or its BatchNorm scale is, and what follows can take the constant into a bias.
Or nothing that reaches the logits reads it, because its outgoing weights are zero.

Constants are found on the way forwards, and what reaches the logits on the way back, as
values and derivatives are: one pass each, and shrinking again would find nothing more.
In a residual network both are asked at every place of the stream; a channel of the
stream goes if no place needs it.
"""

import itertools
import typing

import numpy as np
from flax import nnx

from models.cnn import KerasCNN
from models.export._dtypes import recast, recast_like
from models.export._logits import check_same_logits
from models.export._replay import Channels, Replay
from models.mlp import MLP
from models.resnet import Bottleneck, ConvNorm, ResNet
from models.vgg import VGG, AuthorsVGG, Layer
from models.wide_resnet import Block, WideResNet

Network = MLP | KerasCNN | VGG | AuthorsVGG | WideResNet | ResNet


def shrink(model: nnx.Module) -> nnx.Module:
    """Takes out the units that cannot matter in evaluation mode.

    The constant c of a unit is folded into the biases behind it (in a ResNet, into the
    means of BatchNorm): its weights times c, and the unit goes. A convolution that pads
    its input with zeros sees c in the middle of the map alone, so a constant other than
    0 stays in front of it. BatchNorm makes constants where its scale is 0, and of
    constants. A channel of a residual stream goes from all blocks of a stage or none.

    What the layers compute is known from their classes, so networks that differ from
    what models.create builds in more than widths and weights are refused; and before it
    returns, the logits of random images are compared, in float32.

    Training on is possible, but BatchNorm then sees other statistics than in the full
    network. To keep a network on disk, keep the full sparse one (optax_grda.packing);
    shrinking it again takes a moment.

    Args:
      model: a network of this package, in training or in evaluation mode. It is not
        changed.

    Returns:
      A network of the same class with the same logits in evaluation mode, to rounding,
      whose layers are narrower: of width 0 where nothing is left. Images and logits
      keep their shapes, and a network that is dead keeps the logits' biases.

    Raises:
      TypeError: if the model is none of the networks here, but of a subclass for
        instance, or one of its layers is of another class than there.
      ValueError: if a layer stands in two places or was otherwise changed, only some
        layers are in training mode, or the logits change by more than 1e-5 of the
        largest.

    Example:
      >>> import models
      >>> from flax import nnx
      >>> from models.export.cost import compare
      >>> from models.export.shrink import shrink
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> first, second, head = model.layers
      >>> first.kernel[...] = first.kernel[...].at[:, :80].set(0)  # no input
      >>> head.kernel[...] = head.kernel[...].at[:40].set(0)  # not read
      >>> print(compare(model, shrink(model), image_shape=(8, 8, 1)))
                      before  after
      layers/0 width     128     48
      layers/1 width      64     24
      layers/2 width      10     10
      parameters      17,226  4,546
      multiply-adds   17,024  4,464
    """
    if not isinstance(model, Network) or type(model) not in typing.get_args(Network):
        raise TypeError(f"model must be a network of models.names(), got {type(model)}")
    _check_modes(model)
    wide = recast(model, lambda dtype: np.promote_types(dtype, np.float32))
    small = nnx.clone(wide)
    replay = Replay(small)
    replay.finish(_forward(small, replay))
    check_same_logits(wide, small, _image_shape(model))
    recast_like(small, model)
    return small


def _check_modes(model: nnx.Module) -> None:
    """Raises ValueError if some layers are in training mode, and others are not."""
    evaluates = {
        bool(getattr(module, name))
        for _, module in nnx.iter_modules(model)
        for name in ("deterministic", "use_running_average")
        if hasattr(module, name)
    }
    if len(evaluates) > 1:
        raise ValueError(
            "model must be in training or in evaluation mode, got layers in both: "
            "call model.eval()"
        )


def _image_shape(model: Network) -> tuple[int, ...]:
    """Of images that the network takes; residual ones take any height and width."""
    match model:
        case MLP():
            return (model.layers[0].in_features,)
        case KerasCNN() | VGG():
            return model.image_shape
        case WideResNet():
            return (32, 32, model.stem.in_features)
        case ResNet():
            return (32, 32, model.stem.conv.in_features)


def _forward(model: Network, replay: Replay) -> Channels:
    """The logits. Pooling, flattening and dropout leave what is known as it is."""
    dense, conv, norm = replay.dense, replay.conv, replay.norm
    read, relu, add = replay.read, replay.relu, replay.add

    def conv_norm(layer: ConvNorm, x: Channels | None) -> Channels:
        read(layer, ConvNorm)
        return conv(layer.conv, x, layer.norm)

    read(model, type(model))
    x = None  # the images
    match model:
        case MLP():
            *hidden, head = model.layers
            for layer in hidden:
                x = relu(dense(layer, x))
            return dense(head, x)
        case KerasCNN():
            for layer in itertools.chain(*model.pairs):
                x = relu(conv(layer, x))
            x = relu(dense(model.hidden, x))
        case VGG():
            for block in model.blocks:
                for layer in block:
                    read(layer, Layer)
                if isinstance(model, AuthorsVGG):
                    x = _authors_block(block, x, replay)
                else:
                    for layer in block:
                        x = relu(conv(layer.conv, x, layer.norm))
            for layer in model.hidden:
                x = relu(dense(layer, x))
        case WideResNet():
            x = conv(model.stem, x)
            for block in itertools.chain(*model.stages):
                read(block, Block)
                y = conv(block.conv1, relu(norm(block.norm1, x)), block.norm2)
                y = conv(block.conv2, relu(y))
                if block.shortcut is not None:
                    x = conv(block.shortcut, x)
                x = add(x, y)
            x = relu(norm(model.norm, x))
        case ResNet():
            x = relu(conv_norm(model.stem, x))
            for block in itertools.chain(*model.stages):
                read(block, Bottleneck)
                y = relu(conv_norm(block.layer1, x))
                y = relu(conv_norm(block.layer2, y))
                y = conv_norm(block.layer3, y)
                if block.shortcut is not None:
                    x = conv_norm(block.shortcut, x)
                x = relu(add(x, y))
    return dense(model.head, x)


def _authors_block(block: nnx.List, x: Channels | None, replay: Replay) -> Channels:
    """Its second half runs as well here, but nothing needs what comes out."""
    outputs = []
    for layer in block:
        x = replay.relu(replay.conv(layer.conv, x))
        outputs.append(x)
        x = replay.relu(replay.norm(layer.norm, x))
        outputs.append(x)
    return outputs[len(block) - 1]
