"""Smaller networks from sparse ones: whole units that cannot matter are taken out."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.export._dtypes import recast, recast_like
from optax_grda import units

Model = TypeVar("Model", bound=nnx.Module)


def shrink(model: Model, inputs: Sequence[int] | jax.Array | np.ndarray) -> Model:
    """Takes out the units that cannot matter in evaluation mode.

    Which these are, and what becomes of constants, see optax_grda.units.shrink. It
    computes in float32 for the comparison of logits, whatever the model does.

    Training on is possible, but BatchNorm then sees other statistics than in the full
    network. To keep a network on disk, keep the full sparse one (optax_grda.packing);
    shrinking it again takes a moment.

    Args:
      model: a module that maps images, or tokens of texts, to an array, and whose
        layers take their widths from their parameters, as nnx's convolutions, dense
        layers and BatchNorms do. It is not changed.
      inputs: the lengths of the axes of one image; or the tokens of some texts,
        integers (batch, length), on which logits are compared.

    Returns:
      A network of the same class with the same logits in evaluation mode, to rounding,
      whose layers are narrower: of width 0 where nothing is left. Inputs and logits
      keep their shapes, and a network that is dead keeps the logits' biases. What
      RMSNorm or LayerNorm reads keeps its width, which is part of the mean.

    Raises:
      ValueError: if the model fixes a width that would change, or the logits change by
        more than 1e-5 of the largest.

    Example:
      >>> import models
      >>> from flax import nnx
      >>> from models.export.cost import compare
      >>> from models.export.shrink import shrink
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> first, second, head = model.layers
      >>> first.kernel[...] = first.kernel[...].at[:, :80].set(0)  # no input
      >>> head.kernel[...] = head.kernel[...].at[:40].set(0)  # not read
      >>> small = shrink(model, (8, 8, 1))
      >>> print(compare(model, small, image_shape=(8, 8, 1)))
                      before  after
      layers/0 width     128     48
      layers/1 width      64     24
      layers/2 width      10     10
      parameters      17,226  4,546
      multiply-adds   17,024  4,464
    """
    wide = recast(model, lambda dtype: np.promote_types(dtype, np.float32))
    graphdef, state = nnx.split(wide)

    def evaluate(state: nnx.State, inputs: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)
        network.eval()
        return network(inputs)

    if isinstance(inputs, Sequence):
        example = jax.ShapeDtypeStruct((2, *inputs), jnp.float32)
    else:
        example = jnp.asarray(inputs)
    small = nnx.merge(graphdef, units.shrink(evaluate, state, example))
    for _, module in nnx.iter_modules(small):
        _tell_widths(module)
    recast_like(small, model)
    return small


def _tell_widths(module: nnx.Module) -> None:
    """Sets the attributes of a layer that say how wide it is."""
    match module:
        case nnx.Linear():
            module.in_features, module.out_features = module.kernel.shape
        case nnx.Conv():
            module.kernel_shape = module.kernel.shape
            *_, depth, module.out_features = module.kernel.shape
            module.in_features = depth * module.feature_group_count
        case nnx.BatchNorm():
            module.num_features = module.mean.shape[0]
        case nnx.Embed():
            module.num_embeddings, module.features = module.embedding.shape
