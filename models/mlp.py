"""Multilayer perceptrons: Keras's on MNIST, and a small one on handwritten digits."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import glorot_uniform
from models._layers import check_images, flatten, linear, relu


class MLP(nnx.Module):
    """Dense layers with ReLU between them; biases start at zero.

    With the options of "mnist-mlp" it is Keras's example (784-512-10, 407,050
    parameters, Glorot), with those of "digits-mlp" the network of the digits runs
    (64-128-64-10, 17,226 parameters, He), with those of "cifar-mlp" one of the arena
    (3072-512-256-10, 1,707,274 parameters, He).

    Args:
      num_classes: how many logits.
      input_shape: lengths of one input's axes; they are flattened.
      features: widths of the hidden layers.
      kernel_init: initialiser of a kernel, given its fan-in and fan-out.
      dtype, param_dtype, rngs: see models.create.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: Sequence[int],
        features: Sequence[int],
        kernel_init: Callable[[int, int], nnx.Initializer] = glorot_uniform,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = (math.prod(input_shape), *features, num_classes)
        self.layers = nnx.List(
            linear(
                fan_in,
                fan_out,
                kernel_init=kernel_init(fan_in, fan_out),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for fan_in, fan_out in itertools.pairwise(widths)
        )

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, num_classes), float32; without dropout, rngs are not used."""
        *hidden, head = self.layers
        x = flatten(images)
        check_images(x, self.layers[0].in_features)
        for layer in hidden:
            x = relu(layer(x))
        return head(x).astype(jnp.float32)
