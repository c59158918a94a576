import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.export._logits import logits
from optax_grda.packing import pack, unpack

TORCHVISION = {"input_shape": (224, 224, 3), "hidden": 4096}


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
        ("cifar-mlp", 10, {}, 1_707_274),
        ("digits-mlp", 10, {}, 17_226),
        ("transformer-64x2", 256, {}, 123_200),
        ("transformer-128x4", 256, {}, 885_888),
        ("transformer-384x6", 256, {}, 10_720_128),
        ("transformer-768x12", 50_257, {}, 123_551_232),
        ("transformer-64x2", 256, {"tied": False}, 123_200 + 64 * 256),
        ("gru-64", 256, {}, 57_984),
        ("vgg16", 1000, TORCHVISION, 138_357_544),
        ("vgg16bn", 1000, TORCHVISION, 138_365_992),
    ],
)
def test_parameter_totals(name, num_classes, options, total, abstract):
    model = abstract(name, num_classes=num_classes, **options)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == total


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="got 'vgg11'") as error:
        models.create("vgg11", num_classes=10, rngs=nnx.Rngs(0))
    assert all(name in str(error.value) for name in models.names())


def test_num_classes_below_one_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        models.create("digits-mlp", num_classes=0, rngs=nnx.Rngs(0))


def test_spec_fits_the_network(name, abstract):
    spec = models.spec(name)
    assert spec.is_text == name.startswith(("transformer", "gru"))
    if not spec.is_text:
        assert len(spec.mean) == len(spec.std) == spec.input_shape[-1]
        assert min(spec.std) > 0
    num_classes = 1000 if name == "resnet50" else 10
    model = nnx.clone(abstract(name, num_classes=num_classes))
    model.eval()
    batch = jax.ShapeDtypeStruct((2, *spec.inputs.shape), spec.inputs.dtype)
    found = jax.eval_shape(lambda m, x: m(x), model, batch)
    tokens = spec.input_shape if spec.is_text else ()
    assert (found.shape, found.dtype) == ((2, *tokens, num_classes), jnp.float32)


def test_state_is_parameters_and_batch_statistics_alone(name, tiny):
    rest = nnx.split(tiny(name), nnx.Param, ...)[2]
    variables = [variable for _, variable in nnx.to_flat_state(rest)]
    assert all(isinstance(variable, nnx.BatchStat) for variable in variables)
    with_norm = name.startswith(("vgg16bn", "wrn", "resnet", "digits-wrn"))
    assert bool(variables) == with_norm


def test_networks_that_differ_in_weights_alone_are_compiled_once(
    network, abstract, tiny_options
):
    first, second = (
        nnx.graphdef(abstract(network, seed=seed, **tiny_options(network)))
        for seed in (0, 1)
    )
    assert first == second
    assert hash(first) == hash(second)


def test_seeds_draw_other_weights_and_the_same_seed_the_same():
    def kernels(seed):
        model = models.create(
            "digits-mlp", num_classes=64, features=(64,), rngs=nnx.Rngs(seed)
        )
        return [np.asarray(layer.kernel) for layer in model.layers]

    for a, b, c in zip(kernels(0), kernels(1), kernels(0), strict=True):
        assert not (a == b).any()
        np.testing.assert_array_equal(a, c)


def test_networks_can_be_created_under_vmap_and_jit():
    def params(key):
        rngs = nnx.Rngs(key)
        return nnx.state(
            models.create("digits-mlp", num_classes=10, features=(), rngs=rngs)
        )

    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(params))(keys)
    # XLA may contract a multiplication of the draw differently.
    jax.tree.map(
        lambda stack, leaf: np.testing.assert_allclose(stack[1], leaf, rtol=1e-6),
        stacked,
        params(keys[1]),
    )


@pytest.mark.parametrize(
    "name",
    [
        *("vgg16bn", "wrn28x10", "resnet50", "keras-cnn", "digits-mlp"),
        *("transformer-64x2", "gru-64"),
    ],
)
def test_seeds_under_vmap_agree_with_one_by_one(name, tiny, tiny_inputs, quickly):
    def forward(model, images):
        model.eval()
        return model(images)

    images = tiny_inputs(name)
    first, second = (tiny(name, seed) for seed in range(2))
    states = [nnx.state(model) for model in (first, second)]
    stacked = nnx.merge(
        nnx.graphdef(first), jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    )
    together = quickly(jax.vmap(forward, (0, None)))(stacked, images)
    # A grouped convolution sums in another order than a single one.
    np.testing.assert_allclose(
        together[1], logits(second, images), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(together[0], together[1])


def test_parameters_and_statistics_go_through_a_packed_file(tiny, tmp_path):
    model, other = tiny("vgg16bn"), tiny("vgg16bn", seed=1)
    pack(nnx.to_pure_dict(nnx.state(model)), tmp_path / "model.safetensors")
    like = nnx.to_pure_dict(nnx.state(other))
    nnx.update(other, unpack(tmp_path / "model.safetensors", like))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(model))
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(other))} == {
        nnx.Param,
        nnx.BatchStat,
    }


@pytest.mark.parametrize("name", ["vgg16", "wrn28x10", "resnet50", "keras-cnn"])
def test_images_channels_first_are_refused(name, tiny, tiny_inputs):
    images = tiny_inputs(name).transpose(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, .*, 3\), "):
        tiny(name)(images)


def test_an_mlp_takes_images_flattened_or_not_but_of_the_right_size(tiny, tiny_inputs):
    model, images = tiny("mnist-mlp"), tiny_inputs("mnist-mlp")
    np.testing.assert_array_equal(model(images), model(images.reshape(4, 16)))
    with pytest.raises(ValueError, match=r"shape \(batch, 16\), got \(4, 25\)"):
        model(jnp.ones((4, 5, 5, 1)))


def test_batches_may_be_sharded_over_explicit_axes(network, tiny, tiny_inputs):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    model, images = tiny(network), tiny_inputs(network)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, images):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return model(images, rngs=nnx.Rngs(0)).mean(), nnx.state(model, nnx.BatchStat)

    def abstract(leaf, spec):
        sharding = jax.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        arguments = jax.tree.map(lambda leaf: abstract(leaf, jax.P()), (params, rest))
        gradients, statistics = jax.eval_shape(
            jax.grad(loss, has_aux=True), *arguments, abstract(images, jax.P("data"))
        )
    for leaf in jax.tree.leaves((gradients, statistics)):
        assert leaf.sharding.is_fully_replicated
