"""Networks in bfloat16, under jit: compilers fuse what they compute there."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models._layers import relu
from models.export._logits import logits

# Where it was at least so wide, and so many the images, JAX 0.11.2 and 0.12 made NaN
# from maxima of bfloat16 on a CPU.
WIDE = {"input_shape": (4, 4, 3), "blocks": ((8,), (128,)), "hidden": 128}
BATCH = 32
FLOAT32, BFLOAT16 = {jnp.dtype("float32")}, {jnp.dtype("bfloat16")}


def normal(shape, dtype=jnp.float32, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def test_relu_between_matrix_products():
    x, w = normal((BATCH, 128), jnp.bfloat16), normal((128, 128), jnp.bfloat16, 1)

    def f(x, w):
        return relu(relu(x @ w) @ w).max(axis=-1)

    outside, inside = f(x, w), jax.jit(f)(x, w)
    assert outside.dtype == jnp.bfloat16
    np.testing.assert_allclose(*map(np.float64, (inside, outside)), rtol=0.02)


def test_relu_keeps_nan_and_its_gradient_at_zero_is_zero():
    x = jnp.array([-1, 0, 2, jnp.nan], jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(relu(x)), [0, 0, 2, np.nan])
    gradient = jax.grad(lambda x: relu(x).sum())(x[:3])
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(gradient), [0, 0, 1])


def operand_dtypes(jaxpr):
    """Of all convolutions and matrix products, in called functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield from (variable.aval.dtype for variable in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from operand_dtypes(inner)


def under_jit(jit, model, images):
    model.eval()
    traced = jit(lambda model, images: model(images)).trace(model, images)
    assert {*operand_dtypes(traced.jaxpr.jaxpr)} == BFLOAT16
    return traced.lower().compile()(model, images)


def test_logits_under_jit_are_near_those_of_float32(
    network, tiny, tiny_inputs, quickly
):
    images = tiny_inputs(network)
    exact = logits(tiny(network), images)
    model = tiny(network, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == FLOAT32
    found = under_jit(quickly, model, images)
    assert {exact.dtype, found.dtype} == FLOAT32
    # bfloat16 rounds by up to 2^-9, at each of about ten layers.
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_logits_under_jit_are_near_those_outside(tiny, quickly):
    model = tiny("vgg16", dtype=jnp.bfloat16, **WIDE)
    images = normal((BATCH, *WIDE["input_shape"]))
    found, expected = under_jit(quickly, model, images), model(images)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_gradients_under_jit_are_near_those_of_float32(tiny, quickly):
    images = normal((BATCH, *WIDE["input_shape"]))
    options = WIDE | {"dropout": 0.0}

    @quickly
    def gradient(model):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            # The statistics change under grad's tracers: they must be copies.
            model = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.square(model(images)).mean(), nnx.state(model, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    exact, _ = gradient(tiny("vgg16bn", **options))
    options |= {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = tiny("vgg16bn", **options)
    found, statistics = gradient(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == BFLOAT16
    before = nnx.state(model, nnx.BatchStat)
    for old, new in zip(*map(jax.tree.leaves, (before, statistics)), strict=True):
        assert new.dtype == jnp.float32
        assert not np.array_equal(old, new)
    exact, found = (
        np.concatenate([np.float32(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (exact, found)
    )
    assert np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)
