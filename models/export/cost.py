"""What a network costs: parameters, multiply-adds and the widths of its layers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, jaxprs_in_params


class Cost(NamedTuple):
    """What one image costs in evaluation mode."""

    parameters: int  # zeros count as well
    multiply_adds: int  # of convolutions and dense layers, for one image
    widths: dict[str, int]  # outputs of each of these layers, by the layer's path


def cost(model: nnx.Module, image_shape: Sequence[int]) -> Cost:
    """Counts what the network costs. Nothing is computed.

    A multiply-add is one product added to a sum: two floating-point operations. Those
    of convolutions and dense layers are counted, with weights that are zero and with
    the zeros of the padding as well; biases, BatchNorm, activations and pooling are
    not.

    Args:
      model: any module that maps images (batch, *image_shape) to an array. It may come
        from nnx.eval_shape.
      image_shape: lengths of the axes of one image.

    Example:
      >>> import models
      >>> from flax import nnx
      >>> from models.export.cost import cost
      >>> model = nnx.eval_shape(
      ...     lambda: models.create("resnet50", num_classes=1000, rngs=nnx.Rngs(0))
      ... )
      >>> parameters, multiply_adds, widths = cost(model, (224, 224, 3))
      >>> f"{parameters:,} parameters, {multiply_adds / 1e9:.2f} billion multiply-adds"
      '25,557,032 parameters, 4.09 billion multiply-adds'
      >>> widths["stem/conv"], widths["head"]
      (64, 1000)
    """
    graphdef, state = nnx.split(model)

    def evaluate(state, images):
        network = nnx.merge(graphdef, state)
        network.eval()
        return network(images)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return Cost(
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        _multiply_adds(jax.make_jaxpr(evaluate)(state, image).jaxpr),
        {
            "/".join(map(str, path)): module.out_features
            for path, module in nnx.iter_modules(model)
            if isinstance(module, nnx.Conv | nnx.Linear)
        },
    )


def compare(before: nnx.Module, after: nnx.Module, image_shape: Sequence[int]) -> str:
    """A table of the costs of two networks of the same layers; see cost.

    Example: see models.export.shrink.
    """
    costs = [cost(model, image_shape) for model in (before, after)]
    rows = [
        *(
            (f"{path} width", *(c.widths[path] for c in costs))
            for path in costs[0].widths
        ),
        ("parameters", *(c.parameters for c in costs)),
        ("multiply-adds", *(c.multiply_adds for c in costs)),
    ]
    cells = [("", "before", "after"), *((n, f"{b:,}", f"{a:,}") for n, b, a in rows)]
    first, second, third = (
        max(map(len, column)) for column in zip(*cells, strict=True)
    )
    return "\n".join(f"{n:{first}}  {b:>{second}}  {a:>{third}}" for n, b, a in cells)


def _multiply_adds(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = sum(map(_multiply_adds, jaxprs_in_params(equation.params)))
        operands, result = map(_shape, equation.invars), _shape(equation.outvars[0])
        match equation.primitive.name:
            case "conv_general_dilated":  # kernels are (height, width, in, out)
                _, kernel = operands
                total += math.prod(result) * math.prod(kernel[:-1])
            case "dot_general":
                left, _ = operands
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += math.prod(result) * math.prod(left[i] for i in contracted)
            case "scan":
                total += equation.params["length"] * inner
            case _:
                total += inner
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
