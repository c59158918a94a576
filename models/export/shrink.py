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

from flax import nnx

from models.cnn import KerasCNN
from models.export._replay import Channels, Replay
from models.mlp import MLP
from models.resnet import ConvNorm, ResNet
from models.vgg import VGG, AuthorsVGG, Layer
from models.wide_resnet import WideResNet


def shrink(model: nnx.Module) -> nnx.Module:
    """Takes out the units that cannot matter in evaluation mode.

    The constant c of a unit is folded into the biases behind it (in a ResNet, into the
    means of BatchNorm): its weights times c, and the unit goes. A convolution that pads
    its input with zeros sees c in the middle of the map alone, so a constant other than
    0 stays in front of it. BatchNorm makes constants where its scale is 0, and of
    constants. A channel of a residual stream goes from all blocks of a stage or none.

    Training on is possible, but BatchNorm then sees other statistics than in the full
    network. To keep a network on disk, keep the full sparse one (optax_grda.packing);
    shrinking it again takes a moment.

    Args:
      model: a network of this package. It is not changed.

    Returns:
      A network of the same class with the same logits in evaluation mode, to rounding,
      whose layers are narrower: of width 0 where nothing is left. Images and logits
      keep their shapes, and a network that is dead keeps the logits' biases.

    Raises:
      TypeError: if the model is none of the networks here.

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
    model = nnx.clone(model)
    replay = Replay()
    replay.finish(_forward(model, replay))
    return model


def _forward(model: nnx.Module, replay: Replay) -> Channels:
    """The logits. Pooling, flattening and dropout leave what is known as it is."""
    affine, norm, relu, add = replay.affine, replay.norm, replay.relu, replay.add

    def conv_norm(layer: ConvNorm | Layer, x: Channels) -> Channels:
        return affine(layer.conv, x, layer.norm)

    match model:
        case MLP():
            *hidden, head = model.layers
            x = replay.images(model.layers[0].in_features)
            for layer in hidden:
                x = relu(affine(layer, x))
            return affine(head, x)
        case KerasCNN():
            x = replay.images(model.image_shape[-1])
            for layer in (*itertools.chain(*model.pairs), model.hidden):
                x = relu(affine(layer, x))
        case VGG():
            x = replay.images(model.image_shape[-1])
            for block in model.blocks:
                if isinstance(model, AuthorsVGG):
                    x = _authors_block(block, x, replay)
                else:
                    for layer in block:
                        x = relu(conv_norm(layer, x))
            for layer in model.hidden:
                x = relu(affine(layer, x))
        case WideResNet():
            x = replay.images(model.stem.in_features)
            x = affine(model.stem, x)
            for block in itertools.chain(*model.stages):
                y = affine(block.conv1, relu(norm(block.norm1, x)), block.norm2)
                y = affine(block.conv2, relu(y))
                if block.shortcut is not None:
                    x = affine(block.shortcut, x)
                x = add(x, y)
            x = relu(norm(model.norm, x))
        case ResNet():
            x = replay.images(model.stem.conv.in_features)
            x = relu(conv_norm(model.stem, x))
            for block in itertools.chain(*model.stages):
                y = relu(conv_norm(block.layer1, x))
                y = relu(conv_norm(block.layer2, y))
                y = conv_norm(block.layer3, y)
                if block.shortcut is not None:
                    x = conv_norm(block.shortcut, x)
                x = relu(add(x, y))
        case _:
            raise TypeError(
                f"model must be a network of models.names(), got {type(model)}"
            )
    return affine(model.head, x)


def _authors_block(block: nnx.List, x: Channels, replay: Replay) -> Channels:
    """Its second half runs as well here, but nothing needs what comes out."""
    listed = [module for layer in block for module in (layer.conv, layer.norm)]
    outputs = [x]
    for module in listed:
        step = replay.norm if isinstance(module, nnx.BatchNorm) else replay.affine
        outputs.append(replay.relu(step(module, outputs[-1])))
    return outputs[len(block)]
