import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models

TORCHVISION = {"image_shape": (224, 224, 3), "hidden": 4096}


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "total"),
    [
        ("vgg16", 10, {}, 15_245_130),
        ("vgg16bn", 10, {}, 15_253_578),
        ("vgg16bn-authors", 10, {}, 15_253_578),
        ("wrn28x10", 10, {}, 36_489_290),
        ("wrn28x10", 100, {}, 36_546_980),
        ("resnet50", 1000, {}, 25_557_032),
        ("keras-cnn", 10, {}, 1_250_858),
        ("small-cnn", 10, {}, 41_874),
        ("mnist-mlp", 10, {}, 407_050),
        ("digits-mlp", 10, {}, 17_226),
        ("vgg16", 1000, TORCHVISION, 138_357_544),
        ("vgg16bn", 1000, TORCHVISION, 138_365_992),
    ],
)
def test_parameter_totals(name, num_classes, options, total):
    model = nnx.eval_shape(
        lambda: models.create(
            name, num_classes=num_classes, rngs=nnx.Rngs(0), **options
        )
    )
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == total


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="got 'vgg11'") as error:
        models.create("vgg11", num_classes=10, rngs=nnx.Rngs(0))
    assert all(name in str(error.value) for name in models.names())


def test_num_classes_below_one_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        models.create("digits-mlp", num_classes=0, rngs=nnx.Rngs(0))


def test_spec_fits_the_network(name):
    spec = models.spec(name)
    assert len(spec.mean) == len(spec.std) == spec.image_shape[-1]
    assert min(spec.std) > 0
    images = jax.ShapeDtypeStruct((2, *spec.image_shape), jnp.float32)

    def logits(images):
        model = models.create(name, num_classes=10, rngs=nnx.Rngs(0))
        model.eval()
        return model(images)

    assert jax.eval_shape(logits, images).shape == (2, 10)


def test_state_is_parameters_and_batch_statistics_alone(name, tiny):
    rest = nnx.split(tiny(name), nnx.Param, ...)[2]
    variables = [variable for _, variable in nnx.to_flat_state(rest)]
    assert all(isinstance(variable, nnx.BatchStat) for variable in variables)
    without_norm = ("vgg16", "keras-cnn", "small-cnn", "mnist-mlp", "digits-mlp")
    assert bool(variables) == (name not in without_norm)


def test_networks_that_differ_in_weights_alone_are_compiled_once(name, tiny):
    first, second = (nnx.graphdef(tiny(name, seed)) for seed in (0, 1))
    assert first == second
    assert hash(first) == hash(second)


def test_seeds_draw_other_weights_and_the_same_seed_the_same():
    def kernels(seed):
        model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(seed))
        return [np.asarray(layer.kernel) for layer in model.layers]

    for a, b, c in zip(kernels(0), kernels(1), kernels(0), strict=True):
        assert not (a == b).any()
        np.testing.assert_array_equal(a, c)


def test_networks_can_be_created_under_vmap_and_jit():
    def params(key):
        model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(key))
        return nnx.state(model)

    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(params))(keys)
    # XLA may contract a multiplication of the draw differently.
    jax.tree.map(
        lambda stack, leaf: np.testing.assert_allclose(stack[1], leaf, rtol=1e-6),
        stacked,
        params(keys[1]),
    )


def test_seeds_under_vmap_agree_with_one_by_one(name, tiny, tiny_images):
    images = tiny_images(name)
    model = tiny(name)
    model.eval()
    graphdef = nnx.graphdef(model)

    def forward(state):
        return nnx.merge(graphdef, state)(images)

    states = [nnx.state(tiny(name, seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together = jax.jit(jax.vmap(forward))(stacked)
    # A grouped convolution sums in another order than a single one.
    np.testing.assert_allclose(
        together[1], jax.jit(forward)(states[1]), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(together[0], together[1])


def operand_dtypes(jaxpr):
    """Of all convolutions and matrix products, in called functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield from (variable.aval.dtype for variable in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from operand_dtypes(inner)


def test_bfloat16_compute_leaves_state_and_logits_in_float32(name, tiny, tiny_images):
    images = tiny_images(name)

    def forward(model):
        model.eval()
        graphdef, state = nnx.split(model)
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
        return jax.jit(lambda s: nnx.merge(graphdef, s)(images)).trace(state), state

    exact, state = forward(tiny(name))
    rounded, _ = forward(tiny(name, dtype=jnp.bfloat16))
    dtypes = list(operand_dtypes(rounded.jaxpr.jaxpr))
    assert dtypes
    assert set(dtypes) == {jnp.dtype("bfloat16")}

    exact, rounded = (f.lower().compile()(state) for f in (exact, rounded))
    assert exact.dtype == rounded.dtype == jnp.float32
    # bfloat16 rounds by up to 2^-9, at each of about ten layers.
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_bfloat16_parameters_have_bfloat16_gradients(tiny, tiny_images):
    images = tiny_images("vgg16bn")
    narrow = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = tiny("vgg16bn", dropout=0.0, **narrow)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(params, rest):
        def loss(params):
            # The statistics change under grad's tracers: they must be copies.
            model = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.mean(jnp.square(model(images))), nnx.state(model, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(params, rest)
    for p, g in zip(*map(jax.tree.leaves, (params, gradients)), strict=True):
        assert p.dtype == g.dtype == jnp.bfloat16
        assert np.isfinite(np.asarray(g, np.float32)).all()
    for old, new in zip(*map(jax.tree.leaves, (rest, statistics)), strict=True):
        assert new.dtype == jnp.float32
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("name", ["vgg16", "wrn28x10", "resnet50", "keras-cnn"])
def test_images_channels_first_are_refused(name, tiny, tiny_images):
    images = tiny_images(name).transpose(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, .*, 3\), "):
        tiny(name)(images)


def test_an_mlp_takes_images_flattened_or_not_but_of_the_right_size(tiny, tiny_images):
    model, images = tiny("mnist-mlp"), tiny_images("mnist-mlp")
    np.testing.assert_array_equal(model(images), model(images.reshape(4, 16)))
    with pytest.raises(ValueError, match=r"shape \(batch, 16\), got \(4, 25\)"):
        model(jnp.ones((4, 5, 5, 1)))
