"""Tiny networks with every kind of layer, on weights that need no compiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models

VGG = {"input_shape": (8, 8, 3), "blocks": ((4, 4), (8,)), "hidden": 8}
CNN = {"input_shape": (10, 10, 3), "widths": (4,), "hidden": 8}
TRANSFORMER = {"input_shape": (6,), "width": 8, "heads": 2, "blocks": 2}
OPTIONS = {
    "vgg16": VGG,
    "vgg16bn": VGG,
    "vgg16bn-authors": VGG,
    "wrn28x10": {"input_shape": (32, 32, 3), "depth": 10, "widen_factor": 1},
    "resnet50": {"input_shape": (32, 32, 3), "stage_sizes": (1, 2), "width": 4},
    "keras-cnn": CNN,
    "small-cnn": CNN,
    "mnist-mlp": {"input_shape": (4, 4, 1), "features": (8,)},
    "cifar-mlp": {"input_shape": (4, 4, 3), "features": (8, 6)},
    "digits-wrn10x1": {"input_shape": (8, 8, 1)},
    "digits-mlp": {"input_shape": (4, 4, 1), "features": (8, 6)},
    "transformer-64x2": TRANSFORMER,
    "transformer-128x4": TRANSFORMER,
    "transformer-384x6": TRANSFORMER,
    "transformer-768x12": TRANSFORMER,
    "gru-64": {"input_shape": (6,), "width": 8},
}
# The other names are of networks that compute as one of these does.
OF_IMAGES = (
    "vgg16bn",
    "vgg16bn-authors",
    "wrn28x10",
    "resnet50",
    "keras-cnn",
    "digits-mlp",
)
OF_TEXT = ("transformer-64x2", "gru-64")


@pytest.fixture(scope="session", params=models.names())
def name(request):
    return request.param


@pytest.fixture(scope="session", params=[*OF_IMAGES, *OF_TEXT])
def network(request):
    """The name of a network, one for every kind."""
    return request.param


@pytest.fixture(scope="session", params=OF_IMAGES)
def image_network(request):
    """The name of a network of images, one for every kind."""
    return request.param


@pytest.fixture(scope="session")
def quickly():
    """jax.jit for programs that run once: compiled in half the time."""
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return functools.partial(jax.jit, compiler_options=options)


@pytest.fixture(scope="session")
def abstract():
    """abstract(name, seed=0, **options): a network without values, shared by tests."""

    @functools.cache
    def build(name, seed=0, **options):
        return nnx.eval_shape(
            lambda: models.create(name, rngs=nnx.Rngs(seed), **options)
        )

    return build


@pytest.fixture(scope="session")
def tiny_options():
    """tiny_options(name): what makes a network of that name tiny."""
    return lambda name: {"num_classes": 5} | OPTIONS[name]


@pytest.fixture(scope="session")
def tiny(abstract, tiny_options):
    """tiny(name, seed=0, **options): a network of that name with 5 classes."""

    def build(name, seed=0, **options):
        model = nnx.clone(abstract(name, **(tiny_options(name) | options)))
        rng = np.random.default_rng(seed)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            values = rng.standard_normal(variable.shape)
            if variable.ndim > 1:
                values /= np.sqrt(np.prod(variable.shape[:-1]))
            else:
                values = (path[-1] in ("scale", "var")) + 0.1 * values
            variable.set_value(jax.device_put(values.astype(variable.dtype)))
        return model

    return build


@pytest.fixture(scope="session")
def tiny_inputs():
    """tiny_inputs(name): four images, or texts, of the size that tiny(name) takes."""

    def draw(name):
        shape, rng = (4, *OPTIONS[name]["input_shape"]), np.random.default_rng(7)
        if models.spec(name).inputs.dtype == jnp.int32:
            return jnp.int32(rng.integers(0, 5, shape))
        return jnp.float32(rng.standard_normal(shape))

    return draw
