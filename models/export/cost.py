"""What a network costs: parameters, multiply-adds and the widths of its layers."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Jaxpr, Var, jaxprs_in_params


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
    return Cost(
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        sum(_by_leaf(model, image_shape).values()),
        {
            "/".join(map(str, path)): module.out_features
            for path, module in nnx.iter_modules(model)
            if isinstance(module, nnx.Conv | nnx.Linear)
        },
    )


def nonzero_multiply_adds(model: nnx.Module, image_shape: Sequence[int]) -> int:
    """Counts the multiply-adds of one image whose weight is not zero.

    Of those that :func:`cost` counts, what a runtime would do that skips every zero of
    a kernel.

    Args:
      model, image_shape: as for cost, with arrays.

    Example:
      >>> import models
      >>> from flax import nnx
      >>> from models.export.cost import nonzero_multiply_adds
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> kernel = model.layers[0].kernel
      >>> kernel[...] = kernel[...].at[:, 1:].set(0)  # 64 of 8,192 are left
      >>> nonzero_multiply_adds(model, image_shape=(8, 8, 1))
      8896
    """
    leaves = jax.tree.leaves(nnx.state(model))
    return round(
        sum(
            count * (1 if leaf is None else np.mean(np.asarray(leaves[leaf]) != 0))
            for leaf, count in _by_leaf(model, image_shape).items()
        )
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


def _by_leaf(model: nnx.Module, image_shape: Sequence[int]) -> Counter[int | None]:
    """Multiply-adds of one image by the number of the leaf that is their kernel.

    Under None those of products in which no leaf of the model is a factor.
    """
    graphdef, state = nnx.split(model)

    def evaluate(state, images):
        network = nnx.merge(graphdef, state)
        network.eval()
        return network(images)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(evaluate)(state, image).jaxpr
    found: Counter[int | None] = Counter()
    *kernels, _ = jaxpr.invars
    _count(jaxpr, {kernel: n for n, kernel in enumerate(kernels)}, 1, found)
    return found


def _count(
    jaxpr: Jaxpr, kernels: dict[Any, int], times: int, found: Counter[int | None]
) -> None:
    """Adds what a jaxpr multiplies, each as often as it runs.

    Args:
      jaxpr: where some variables are leaves of the model, or casts of them.
      kernels: the leaf of each such variable.
      times: how often the jaxpr runs.
      found: multiply-adds by leaf.
    """
    for equation in jaxpr.eqns:
        operands, result = equation.invars, _shape(equation.outvars[0])
        name = equation.primitive.name
        known = [kernels.get(v) if isinstance(v, Var) else None for v in operands]
        if name == "conv_general_dilated":  # kernels are (height, width, in, out)
            count = math.prod(result) * math.prod(_shape(operands[1])[:-1])
            found[known[1]] += times * count
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = _shape(operands[0])
            count = math.prod(result) * math.prod(left[i] for i in contracted)
            leaf = known[1] if known[0] is None else known[0]
            found[leaf] += times * count
        elif name == "convert_element_type" and known[0] is not None:
            kernels[equation.outvars[0]] = known[0]
        for inner in jaxprs_in_params(equation.params):
            passed = zip(inner.invars, known, strict=False)
            same = len(inner.invars) == len(operands)
            leaves = {v: leaf for v, leaf in passed if leaf is not None} if same else {}
            _count(inner, leaves, times * equation.params.get("length", 1), found)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
