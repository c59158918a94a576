"""Whether two networks compute the same, on random images."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

SCALES = (0.1, 1, 100, 10_000)  # of images, relative to normalised ones
TOLERANCE = 1e-5  # relative to an image's largest logit; float32 rounds by 6e-8


def check_same_logits(
    before: nnx.Module, after: nnx.Module, image_shape: Sequence[int]
) -> None:
    """Raises ValueError if logits in evaluation mode change by more than rounding."""
    rng = np.random.default_rng(0)
    images = np.stack([scale * rng.standard_normal(image_shape) for scale in SCALES])
    images = images.astype(np.float32)
    expected, found = (np.asarray(logits(model, images)) for model in (before, after))
    largest = np.abs(expected).max(axis=1, keepdims=True)
    if not np.isclose(found, expected, 0, TOLERANCE * largest, equal_nan=True).all():
        change = np.max(np.abs(found - expected) / largest)
        raise ValueError(
            f"model must compute what its layers are known to, got logits that change "
            f"by {change:.0e} of the largest without the units that cannot matter"
        )


def logits(model: nnx.Module, images: np.ndarray) -> jax.Array:
    """Logits in evaluation mode, as exact as the dtypes of the model allow."""
    with jax.default_matmul_precision("highest"):
        return _logits(*nnx.split(model), images)


# Compiles in half the time, and is as fast for a few images.
@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
    },
)
def _logits(
    graphdef: nnx.GraphDef[nnx.Module], state: nnx.State, images: jax.Array
) -> jax.Array:
    network = nnx.merge(graphdef, state)
    network.eval()
    return network(images)
