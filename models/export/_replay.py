"""A network's layers on what is known of every channel, and what they need of it.

What is known of an activation is one number a channel, float64 of shape (channels,):
its value where that is the same at all pixels of all images, and NaN where it is not,
so that NumPy's arithmetic is that of what is known.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx


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
    """A forward pass, which folds constants into the layers; then the way back."""

    def __init__(self):
        self.marks: list[Callable[[], None]] = []  # each marks what an operation needs
        self.cuts: list[Callable[[], None]] = []  # each makes a layer smaller

    def finish(self, logits: Channels) -> None:
        """Leaves the layers what the logits need."""
        logits.needed[:] = True
        for mark in reversed(self.marks):
            mark()
        for cut in self.cuts:
            cut()

    def images(self, channels: int) -> Channels:
        x = Channels(np.full(channels, np.nan))
        x.needed[:] = True
        return x

    def affine(
        self,
        layer: nnx.Conv | nnx.Linear,
        x: Channels,
        norm: nnx.BatchNorm | None = None,
    ) -> Channels:
        """Convolution or dense layer, and the BatchNorm behind it."""
        kernel = _kernel(layer, len(x.known))
        # At the border of the map, some weights meet the padding's zeros instead.
        padded = getattr(layer, "padding", 0) != 0
        folded = x.known == 0 if padded else ~np.isnan(x.known)
        shift = x.known[folded] @ kernel[:, folded].sum(axis=0, dtype=np.float64)
        kernel[:, folded] = 0
        if layer.bias is not None:
            _add(layer.bias, shift)
            bias = _float64(layer.bias)
        else:
            _add(norm.mean, -shift)
            bias = np.zeros_like(shift)
        y = Channels(np.where((kernel != 0).any(axis=(0, 1)), np.nan, bias))

        def mark():
            x.needed |= (kernel[..., y.needed] != 0).any(axis=(0, 2))

        def cut():
            _set_kernel(layer, kernel[:, x.kept][..., y.kept])
            if layer.bias is not None:
                _take(layer.bias, y.kept)

        self.marks.append(mark)
        self.cuts.append(cut)
        return y if norm is None else self.norm(norm, y)

    def norm(self, layer: nnx.BatchNorm, x: Channels) -> Channels:
        variables = (layer.scale, layer.bias, layer.mean, layer.var)
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
        total = Channels(x.known + y.known, x, y)

        def mark():
            x.needed |= total.needed
            y.needed |= total.needed

        self.marks.append(mark)
        return total


def _kernel(layer: nnx.Conv | nnx.Linear, channels: int) -> np.ndarray:
    """A copy, as (taps, channels, features): flattened maps have channels first."""
    kernel = np.array(layer.kernel[...])
    if isinstance(layer, nnx.Conv):
        return kernel.reshape(math.prod(layer.kernel_size), *kernel.shape[-2:])
    pixels = layer.in_features // max(channels, 1)
    return kernel.reshape(channels, pixels, layer.out_features).swapaxes(0, 1)


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
    variable.set_value(jnp.asarray(array, variable.dtype))
