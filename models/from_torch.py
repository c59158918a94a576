"""Weights from PyTorch: a state_dict, into any of the networks here.

Nothing is unpickled. A `.pt` file becomes a `.safetensors` file, where PyTorch is
installed, by `safetensors.torch.save_file(torch.load(path, weights_only=True), new)`.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.flax
from flax import nnx

from models.cnn import KerasCNN
from models.mlp import MLP
from models.resnet import ResNet
from models.vgg import VGG
from models.wide_resnet import WideResNet

StateDict = Mapping[str, jax.typing.ArrayLike]

# Axes of PyTorch's tensors in the order of ours: (out, in, h, w) to (h, w, in, out).
_CONV, _LINEAR, _VECTOR = (2, 3, 1, 0), (1, 0), (0,)
# PyTorch's names of what a BatchNorm holds, and ours.
_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}


def load_state_dict(
    model: nnx.Module, state_dict: StateDict | str | os.PathLike
) -> None:
    """Overwrites the parameters and running statistics of a model.

    Names are those of torchvision (ResNet, VGG) or of the authors (VGG, WideResNet).
    Keras's CNN and the MLPs take the names of a torch.nn.Sequential, "0.weight" and so
    on, whatever stands between the layers that have weights. A leading "module." (of
    DataParallel) and `num_batches_tracked` are ignored.

    Args:
      model: a network of this package, of the same depth and widths. It may come from
        nnx.eval_shape, which draws no weights that would be overwritten.
      state_dict: arrays by name in PyTorch's layout, or the path of a .safetensors
        file. Values are cast to the dtypes of the model.

    Raises:
      TypeError: if the model is none of the networks here.
      ValueError: if tensors are missing, left over or of another shape, all of which it
        names, or if the file's name does not end in .safetensors. The model is
        unchanged then.

    Example:
      >>> import models
      >>> import numpy as np
      >>> from flax import nnx
      >>> from models.from_torch import load_state_dict
      >>> model = models.create(
      ...     "digits-mlp", num_classes=10, features=(), rngs=nnx.Rngs(0)
      ... )
      >>> load_state_dict(
      ...     model, {"1.weight": np.ones((10, 64)), "1.bias": np.zeros(10)}
      ... )
      >>> model(np.ones((1, 8, 8, 1)))[0, 0]
      Array(64., dtype=float32)
    """
    if not isinstance(state_dict, Mapping):
        state_dict = _read(Path(state_dict))
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    variables = {
        f"{layer_name}.{name}": (variable, axes)
        for layer_name, layer in _layers(model, tensors)
        for name, variable, axes in _variables(layer)
    }

    faults = [f"{name} is left over" for name in tensors if name not in variables]
    for name, (variable, axes) in variables.items():
        expected = tuple(variable.shape[axes.index(i)] for i in range(len(axes)))
        if name not in tensors:
            faults.append(f"{name} is missing")
        elif (shape := tuple(np.shape(tensors[name]))) != expected:
            faults.append(f"{name} has shape {shape} instead of {expected}")
    if faults:
        raise ValueError(
            f"state_dict must hold the tensors of this {type(model).__name__}: "
            + ", ".join(faults)
        )

    for name, (variable, axes) in variables.items():
        array = np.asarray(tensors[name]).transpose(axes)
        variable.set_value(jax.device_put(array.astype(variable.dtype)))


def _read(path: Path) -> StateDict:
    if path.suffix != ".safetensors":
        raise ValueError(
            "state_dict must be a mapping or the path of a .safetensors file (others "
            f"are pickled, and unpickling runs what the file says), got {path}"
        )
    return safetensors.flax.load_file(path)


def _variables(layer: Any) -> Iterator[tuple[str, nnx.Variable, tuple[int, ...]]]:
    """PyTorch's name of each tensor of a layer, ours, and the order of axes."""
    if isinstance(layer, nnx.BatchNorm):
        for name, ours in _NORM.items():
            yield name, getattr(layer, ours), _VECTOR
    else:
        yield "weight", layer.kernel, _CONV if isinstance(layer, nnx.Conv) else _LINEAR
        if layer.bias is not None:
            yield "bias", layer.bias, _VECTOR


Layers = Iterable[tuple[str, nnx.Module]]


def _layers(model: nnx.Module, names: Iterable[str]) -> Layers:
    """PyTorch's name of each layer, and the layer."""
    match model:
        case VGG():
            return _vgg(model, names)
        case WideResNet():
            return _wide_resnet(model)
        case ResNet():
            return _resnet(model)
        case KerasCNN():
            convs = itertools.chain(*model.pairs)
            return _sequential("", [*convs, model.hidden, model.head], names)
        case MLP():
            return _sequential("", model.layers, names)
        case _:
            raise TypeError(
                f"model must be a network of models.names(), got {type(model)}"
            )


def _sequential(
    prefix: str, layers: Iterable[nnx.Module], names: Iterable[str]
) -> Layers:
    """Layers in a torch.nn.Sequential: numbered in order, modules without weights too.

    The numbers that occur in names are taken. Where they are too few, further ones
    stand for layers that are missing.
    """
    numbers = {
        int(number)
        for number, *_ in (
            name.removeprefix(prefix).split(".")
            for name in names
            if name.startswith(prefix)
        )
        if number.isdecimal()
    }
    further = itertools.count(max(numbers, default=-1) + 1)
    numbers = itertools.chain(sorted(numbers), further)
    for number, layer in zip(numbers, layers, strict=False):
        yield f"{prefix}{number}", layer


def _vgg(model: VGG, names: Iterable[str]) -> Layers:
    blocks = [
        [
            module
            for layer in block
            for module in (layer.conv, layer.norm)
            if module is not None
        ]
        for block in model.blocks
    ]
    if any(name.startswith("features.") for name in names):  # torchvision
        yield from _sequential("features.", itertools.chain(*blocks), names)
    else:  # the authors
        for b, block in enumerate(blocks):
            yield from _sequential(f"layer_blocks.{b}.", block, names)
    yield from _sequential("classifier.", [*model.hidden, model.head], names)


def _wide_resnet(model: WideResNet) -> Layers:
    yield "conv1", model.stem
    for s, stage in enumerate(model.stages, start=1):
        for b, block in enumerate(stage):
            name = f"layer{s}.{b}"
            yield f"{name}.bn1", block.norm1
            yield f"{name}.conv1", block.conv1
            yield f"{name}.bn2", block.norm2
            yield f"{name}.conv2", block.conv2
            if block.shortcut is not None:
                yield f"{name}.shortcut.0", block.shortcut
    yield "bn1", model.norm
    yield "linear", model.head


def _resnet(model: ResNet) -> Layers:
    yield "conv1", model.stem.conv
    yield "bn1", model.stem.norm
    for s, stage in enumerate(model.stages, start=1):
        for b, block in enumerate(stage):
            name = f"layer{s}.{b}"
            for i, layer in enumerate((block.layer1, block.layer2, block.layer3), 1):
                yield f"{name}.conv{i}", layer.conv
                yield f"{name}.bn{i}", layer.norm
            if block.shortcut is not None:
                yield f"{name}.downsample.0", block.shortcut.conv
                yield f"{name}.downsample.1", block.shortcut.norm
    yield "fc", model.head
