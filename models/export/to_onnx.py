"""Networks as ONNX files, which run without JAX: in ONNX Runtime, in a browser.

jax2onnx has conversions of its own for the layers of NNX, but not for convolutions that
pad by numbers. So it is given the primitives that the layers consist of. Those of Linen
and Equinox consist of the same.
"""

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from models.export._dtypes import recast


def to_onnx(
    model: nnx.Module | Callable[[jax.Array], jax.Array],
    path: str | os.PathLike[str],
    image_shape: Sequence[int],
) -> None:
    """Writes a network in evaluation mode as one ONNX file.

    The file has an input "images", normalised images (batch, *image_shape), and an
    output "logits", (batch, num_classes), both float32, for batches of any size.
    Parameters and arithmetic of a module are float32 too, whatever they are there.

    Zeros take as much room and time as other weights: shrink the network first
    (models.export.shrink). Layers of width 0 are left out, for ONNX reads a length of 0
    in a new shape as "unchanged". What they feed are sums of no terms, and zeros are
    written for these.

    The first call takes some seconds: jax2onnx loads its conversions (those of Equinox
    only if the program has imported Equinox: they would take a multiple).

    Args:
      model: an NNX module, which is not changed, or a function of images, such as
        ``lambda images: module.apply(variables, images)`` of a Linen module and
        ``jax.vmap(model)`` of an Equinox model, both in evaluation mode.
      path: of the file. One that exists is overwritten.
      image_shape: lengths of the axes of one image: height, width, channels.

    Raises:
      ValueError: if image_shape has a length below 1, or the network takes no images
        of that shape.
      ImportError: if jax2onnx is not installed.

    Example:
      >>> import os, tempfile
      >>> import models
      >>> import numpy as np
      >>> import onnxruntime
      >>> from flax import nnx
      >>> from models.export.to_onnx import to_onnx
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> path = os.path.join(tempfile.mkdtemp(), "digits-mlp.onnx")
      >>> to_onnx(model, path, image_shape=(8, 8, 1))
      >>> session = onnxruntime.InferenceSession(path)
      >>> images = np.ones((3, 8, 8, 1), np.float32)
      >>> (logits,) = session.run(["logits"], {"images": images})
      >>> np.allclose(logits, model(images), rtol=1e-5, atol=1e-5)
      True
    """
    if any(length < 1 for length in image_shape):
        raise ValueError(
            f"image_shape must have lengths of at least 1, got {tuple(image_shape)}"
        )
    jax2onnx = _jax2onnx()
    network = model
    if isinstance(model, nnx.Module):
        network = recast(model, lambda _: jnp.float32)
        network.eval()
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda images: network(images))(images)
    with _no_reports_of_other_operations(), _without_equinox():
        onnx_model = jax2onnx.to_onnx(
            lambda images: _evaluate(traced.jaxpr, *traced.consts, images)[0],
            [images],
            model_name=type(model).__name__,
            input_names=["images"],
            output_names=["logits"],
        )
    Path(path).write_bytes(onnx_model.SerializeToString())


def _evaluate(jaxpr: Jaxpr, *arguments: jax.Array) -> list[jax.Array]:
    """What a jaxpr computes, by operations that jax2onnx and ONNX Runtime have."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    values = dict(zip(variables, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        if all(map(_is_empty, equation.outvars)):
            continue
        result: Any = equation.outvars[0]
        if _sums_no_terms(equation):
            values[result] = jnp.zeros(result.aval.shape, result.aval.dtype)
            continue
        operands = map(read, equation.invars)
        if called := _called(equation):  # relu is a function
            results = _evaluate(*called, *operands)
        elif _pools(equation):
            results = [_pool(equation, *operands)]
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            if not equation.primitive.multiple_results:
                results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _is_empty(variable) -> bool:
    return 0 in variable.aval.shape


def _sums_no_terms(equation: JaxprEqn) -> bool:
    contracts = equation.primitive.name in ("conv_general_dilated", "dot_general")
    return contracts and any(map(_is_empty, equation.invars))


def _called(equation: JaxprEqn) -> tuple[Jaxpr, *tuple[jax.Array, ...]] | None:
    """The function and its constants, where the equation does no more than call one."""
    match equation.primitive.name:
        case "jit" | "pjit":
            called = equation.params["jaxpr"]
        case "custom_jvp_call" | "custom_vjp_call":
            called = equation.params["call_jaxpr"]
        case "checkpoint" | "remat2":
            called = equation.params["jaxpr"]
        case _:
            return None
    # Before JAX 0.12, a jaxpr with constants is of a type of its own.
    return getattr(called, "jaxpr", called), *getattr(called, "consts", ())


def _pools(equation: JaxprEqn) -> bool:
    """Whether windows without holes slide, but not over images and channels."""
    window, name = equation.params, equation.primitive.name
    return name in ("reduce_window_max", "reduce_window_sum") and (
        set(window["base_dilation"] + window["window_dilation"]) == {1}
        and len(_still(window)) > 1
    )


def _still(window: dict) -> list[int]:
    """The axes over which the windows do not slide."""
    lengths = zip(window["window_dimensions"], window["window_strides"], strict=True)
    return [axis for axis, both in enumerate(lengths) if both == (1, 1)]


def _pool(equation: JaxprEqn, x: jax.Array) -> jax.Array:
    """The same maxima or sums, of images that are padded before, channels last.

    jax2onnx would let windows slide over images and channels too, which is an axis more
    than ONNX Runtime has. It knows pooling by NNX's functions, which it exchanges.
    """
    window, still = equation.params, _still(equation.params)
    inner = [axis for axis in range(x.ndim) if axis not in still]
    order = [*still[:-1], *inner, still[-1]]
    takes_max = equation.primitive.name == "reduce_window_max"
    nothing = -jnp.inf if takes_max else 0
    x = jnp.pad(x, window["padding"], constant_values=nothing).transpose(order)
    outside = x.shape[: len(still) - 1]
    x = x.reshape(-1, *x.shape[len(outside) :])
    shape = tuple(window["window_dimensions"][axis] for axis in inner)
    strides = tuple(window["window_strides"][axis] for axis in inner)
    if takes_max:
        x = nnx.max_pool(x, window_shape=shape, strides=strides)
    else:
        x = nnx.avg_pool(x, window_shape=shape, strides=strides) * math.prod(shape)
    x = x.reshape(*outside, *x.shape[1:])
    return x.transpose([order.index(axis) for axis in range(x.ndim)])


@contextlib.contextmanager
def _no_reports_of_other_operations() -> Iterator[None]:
    """Withholds what jax2onnx logs and warns of when it loads all its conversions.

    Those that do not fit the installed JAX are none of ours: a primitive without a
    conversion is an error, and not withheld. The other log is of the shapes of values
    inside the network, which a file need not tell.
    """
    names = ("jax2onnx.plugins.plugin_system", "onnx_ir.serde")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jax.core.DropVar", DeprecationWarning)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _without_equinox() -> Iterator[None]:
    """Lets Equinox seem not to be installed, unless the program uses it.

    When jax2onnx loads its conversions of Equinox's layers, these build and compile
    some dozens of such layers, which takes longer than everything else.
    """
    modules: dict[str, Any] = sys.modules
    if "equinox" in modules:
        yield
        return
    modules["equinox"] = None
    try:
        yield
    finally:
        del modules["equinox"]


def _jax2onnx():
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError(
            "to_onnx needs jax2onnx: pip install '.[onnx]' in the checkout"
        ) from error
    return jax2onnx
