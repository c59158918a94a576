"""Networks as ONNX files, which run without JAX: in ONNX Runtime, in a browser.

jax2onnx has conversions of its own for the layers of NNX, but not for convolutions that
pad by numbers. So it is given the primitives that the layers consist of.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from models.export._dtypes import recast


def to_onnx(
    model: nnx.Module, path: str | os.PathLike[str], image_shape: Sequence[int]
) -> None:
    """Writes a network in evaluation mode as one ONNX file.

    The file has an input "images", normalised images (batch, *image_shape), and an
    output "logits", (batch, num_classes), both float32, for batches of any size.
    Parameters and arithmetic are float32 too, whatever they are in the network.

    Zeros take as much room and time as other weights: shrink the network first
    (models.export.shrink). Layers of width 0 are left out, for ONNX reads a length of 0
    in a new shape as "unchanged". What they feed are sums of no terms, and zeros are
    written for these.

    The first call takes some seconds: jax2onnx loads its conversions (those of Equinox
    only if the program has imported Equinox: they would take a multiple).

    Args:
      model: a network of this package. It is not changed.
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
    network = recast(model, lambda _: jnp.float32)
    network.eval()
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda images: network(images))(images)
    with _no_reports_of_other_operations(), _without_equinox():
        onnx_model = jax2onnx.to_onnx(
            lambda images: _evaluate(traced.jaxpr, *traced.consts, images),
            [images],
            model_name=type(model).__name__,
            input_names=["images"],
            output_names=["logits"],
        )
    Path(path).write_bytes(onnx_model.SerializeToString())


def _evaluate(jaxpr: Jaxpr, *arguments: jax.Array) -> jax.Array:
    """What a jaxpr computes, by operations that jax2onnx and ONNX Runtime have."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    values = dict(zip(variables, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        result: Any = equation.outvars[0]
        if _is_empty(result):
            continue
        if _sums_no_terms(equation):
            values[result] = jnp.zeros(result.aval.shape, result.aval.dtype)
            continue
        operands = map(read, equation.invars)
        if inner := list(jaxprs_in_params(equation.params)):  # relu is a function
            values[result] = _evaluate(inner[0], *operands)
        elif equation.primitive.name == "reduce_window_max":
            values[result] = _max_pool(*operands, window=equation.params)
        else:
            values[result] = equation.primitive.bind(*operands, **equation.params)
    return read(jaxpr.outvars[0])


def _is_empty(variable) -> bool:
    return 0 in variable.aval.shape


def _sums_no_terms(equation: JaxprEqn) -> bool:
    contracts = equation.primitive.name in ("conv_general_dilated", "dot_general")
    return contracts and any(map(_is_empty, equation.invars))


def _max_pool(x: jax.Array, window: dict) -> jax.Array:
    """The same maximum, of windows over height and width alone.

    jax2onnx would let them slide over images and channels too, which is an axis more
    than ONNX Runtime has; it knows pooling by its NNX name, without padding.
    """
    return nnx.max_pool(
        jnp.pad(x, window["padding"], constant_values=-jnp.inf),
        window_shape=window["window_dimensions"][1:-1],
        strides=window["window_strides"][1:-1],
    )


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
