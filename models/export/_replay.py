"""A network's layers on what is known of every channel, and what they need of it.

What is known of an activation is one number a channel, float64 of shape (channels,):
its value where that is the same at all pixels of all images, and NaN where it is not,
so that NumPy's arithmetic is that of what is known.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from models._layers import BatchNorm

Module = TypeVar("Module", bound=nnx.Module)
Affine = TypeVar("Affine", nnx.Conv, nnx.Linear)

# Attributes of layers that are taken to be what they are by default.
_DEFAULTS = {
    nnx.Linear: ("dot_general", "promote_dtype"),
    nnx.Conv: (
        "conv_general_dilated",
        "feature_group_count",
        "input_dilation",
        "mask",
        "promote_dtype",
    ),
}


class Channels:
    """The channels of one activation."""

    def __init__(self, known: np.ndarray, *tied: "Channels"):
        self.known = known
        self.needed = np.zeros(known.shape, bool)  # for the logits; marked backwards
        self.tied = [self]  # activations that keep the same channels
        for other in tied:
            if other.tied is not self.tied:
                self.tied += other.tied
                for channels in other.tied:
                    channels.tied = self.tied

    @property
    def kept(self) -> np.ndarray:
        return np.any([channels.needed for channels in self.tied], axis=0)


class Replay:
    """A forward pass, which folds constants into the layers; then the way back.

    It knows by their classes what modules compute. So it refuses, by a TypeError or a
    ValueError that names the module: other classes, attributes that it does not expect,
    one module or parameter in two places, and modules that the pass does not come by.
    """

    def __init__(self, model: nnx.Module):
        for same in nnx.find_duplicates(model):
            places = " and ".join(map(_joined, same))
            raise ValueError(f"model must not use one layer twice, got {places}")
        self.unread = {
            id(module): (_joined(path), module)
            for path, module in nnx.iter_modules(model)
        }
        self.marks: list[Callable[[], None]] = []  # each marks what an operation needs
        self.cuts: list[Callable[[], None]] = []  # each makes a layer smaller

    def read(self, module: nnx.Module, kind: type[Module]) -> tuple[str, Module]:
        """The path of a module, and the module: one of just this class."""
        path, _ = self.unread.pop(id(module), ("the layer", module))
        if type(module) is not kind:
            raise TypeError(f"{path} must be {_name(kind)}, got {_name(type(module))}")
        for name in vars(module):
            if callable(getattr(kind, name, None)):
                raise ValueError(f"{path} must have its class's {name}, got its own")
        for name in _DEFAULTS.get(kind, ()):
            value, default = getattr(module, name), _default(kind, name)
            if value is not default:
                raise ValueError(f"{path}.{name} must be {default}, got {value}")
        return path, module

    def finish(self, logits: Channels) -> None:
        """Leaves the layers what the logits need."""
        for path, module in self.unread.values():
            if type(module) not in (nnx.List, nnx.Dropout):
                raise TypeError(f"{path} must not be there, got {_name(type(module))}")
        logits.needed[:] = True
        for mark in reversed(self.marks):
            mark()
        for cut in self.cuts:
            cut()

    def dense(self, layer: nnx.Linear, x: Channels | None) -> Channels:
        """A dense layer of x, or of the images."""
        return self._affine(nnx.Linear, layer, x, None)

    def conv(
        self, layer: nnx.Conv, x: Channels | None, norm: BatchNorm | None = None
    ) -> Channels:
        """A convolution of x, or of the images, and the BatchNorm behind it."""
        return self._affine(nnx.Conv, layer, x, norm)

    def _affine(
        self,
        kind: type[Affine],
        layer: Affine,
        x: Channels | None,
        norm: BatchNorm | None,
    ) -> Channels:
        path, layer = self.read(layer, kind)
        if x is None:
            x = Channels(np.full(layer.kernel.shape[-2], np.nan))
            x.needed[:] = True
        kernel = _kernel(path, layer, len(x.known))
        features = kernel.shape[-1:]
        if layer.use_bias != (layer.bias is not None):
            raise ValueError(f"{path}.use_bias must be {not layer.use_bias}")
        bias = _variable(path, layer, "bias", features) if layer.use_bias else None

        # At the border of the map, some weights meet the padding's zeros instead.
        padded = getattr(layer, "padding", 0) != 0
        absorbs = not padded and (bias is not None or norm is not None)
        folded = ~np.isnan(x.known) if absorbs else x.known == 0
        shift = x.known[folded] @ kernel[:, folded].sum(axis=0, dtype=np.float64)
        kernel[:, folded] = 0
        if bias is not None:
            _add(bias, shift)
        known = np.zeros(features) if bias is None else _float64(bias)
        y = Channels(np.where((kernel != 0).any(axis=(0, 1)), np.nan, known))

        def mark():
            x.needed |= (kernel[..., y.needed] != 0).any(axis=(0, 2))

        def cut():
            _set_kernel(layer, kernel[:, x.kept][..., y.kept])
            if bias is not None:
                _take(bias, y.kept)

        self.marks.append(mark)
        self.cuts.append(cut)
        if norm is None:
            return y
        return self.norm(norm, y, shift if bias is None else None)

    def norm(
        self, layer: BatchNorm, x: Channels, shift: np.ndarray | None = None
    ) -> Channels:
        """BatchNorm of x + shift."""
        path, layer = self.read(layer, BatchNorm)
        variables = [
            _variable(path, layer, name, x.known.shape)
            for name in ("scale", "bias", "mean", "var")
        ]
        if shift is not None:
            _add(layer.mean, -shift)
        scale, bias, mean, var = map(_float64, variables)
        normalised = (x.known - mean) / np.sqrt(var + layer.epsilon)
        y = Channels(np.where(scale == 0, bias, normalised * scale + bias), x)

        def mark():
            x.needed |= y.needed & (scale != 0)

        def cut():
            for variable in variables:
                _take(variable, y.kept)
            layer.num_features = int(y.kept.sum())

        self.marks.append(mark)
        self.cuts.append(cut)
        return y

    def relu(self, x: Channels) -> Channels:
        y = Channels(np.maximum(x.known, 0), x)
        y.needed = x.needed
        return y

    def add(self, x: Channels, y: Channels) -> Channels:
        if x.known.shape != y.known.shape:
            lengths = f"{len(x.known)} and {len(y.known)}"
            raise ValueError(f"sums must be of as many channels, got {lengths}")
        total = Channels(x.known + y.known, x, y)

        def mark():
            x.needed |= total.needed
            y.needed |= total.needed

        self.marks.append(mark)
        return total


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path)) or "model"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _default(kind: type, name: str) -> Any:
    """Of an argument of the constructor."""
    return inspect.signature(kind.__init__).parameters[name].default


def _variable(
    path: str, layer: nnx.Module, name: str, shape: tuple[int, ...]
) -> nnx.Variable:
    variable: Any = getattr(layer, name)
    found = getattr(variable, "shape", None)
    if found != shape:
        raise ValueError(f"{path}/{name} must have shape {shape}, got {found}")
    return variable


def _kernel(path: str, layer: nnx.Conv | nnx.Linear, channels: int) -> np.ndarray:
    """A copy, as (taps, channels, features): flattened maps have channels first."""
    features = layer.kernel.shape[-1]
    if isinstance(layer, nnx.Conv):
        shape = (*layer.kernel_size, channels, features)
        kernel = np.array(_variable(path, layer, "kernel", shape)[...])
        return kernel.reshape(math.prod(layer.kernel_size), channels, features)
    pixels = max(layer.kernel.shape[0] // max(channels, 1), 1)
    kernel = _variable(path, layer, "kernel", (channels * pixels, features))[...]
    return np.array(kernel).reshape(channels, pixels, features).swapaxes(0, 1)


def _set_kernel(layer: nnx.Conv | nnx.Linear, kernel: np.ndarray) -> None:
    """The inverse of _kernel, for other widths."""
    taps, channels, layer.out_features = kernel.shape
    if isinstance(layer, nnx.Conv):
        layer.in_features = channels
        layer.kernel_shape = (*layer.kernel_size, channels, layer.out_features)
        _set(layer.kernel, kernel.reshape(layer.kernel_shape))
    else:
        layer.in_features = channels * taps
        shape = (layer.in_features, layer.out_features)
        _set(layer.kernel, kernel.swapaxes(0, 1).reshape(shape))


def _float64(variable: nnx.Variable) -> np.ndarray:
    return np.asarray(variable[...], np.float64)


def _add(variable: nnx.Variable, shift: np.ndarray) -> None:
    _set(variable, _float64(variable) + shift)


def _take(variable: nnx.Variable, kept: np.ndarray) -> None:
    _set(variable, np.asarray(variable[...])[kept])


def _set(variable: nnx.Variable, array: np.ndarray) -> None:
    variable.set_value(jax.device_put(array.astype(variable.dtype)))
