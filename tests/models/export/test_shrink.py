"""Shrunk networks give the same logits, and keep no unit that cannot matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.export._logits import logits
from models.export.cost import cost
from models.export.shrink import shrink


def shrunk(model, images):
    """The smaller network, whose logits shrink itself compares, in float32."""
    return shrink(model, images.shape[1:])


def assert_same_logits(small, model, images, tolerance=1e-5):
    """Where shrink's own comparison isn't relied on."""
    np.testing.assert_allclose(
        logits(small, images), logits(model, images), rtol=tolerance, atol=tolerance
    )


def fill(variable, index, value):
    values = np.array(variable[...])
    values[index] = value
    variable.set_value(jax.device_put(values))


def widths(model):
    """Of all layers but the last."""
    layers = (
        module
        for _, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Conv | nnx.Linear)
    )
    return {layer.out_features for layer in layers if layer is not head(model)}


def head(model):
    return model.layers[-1] if isinstance(model, models.mlp.MLP) else model.head


@st.composite
def patterns(draw):
    """A function that puts zeros into an array: whole rows, columns, single entries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([0.2, 0.5, 0.8]))

    def punch(values):
        values = np.array(values)
        for axis in range(max(0, values.ndim - 2), values.ndim):
            dead = rng.random(values.shape[axis]) < rng.choice([0, most])
            np.moveaxis(values, axis, 0)[dead] = 0
        values[rng.random(values.shape) < rng.choice([0, most])] = 0
        return values

    return punch


@settings(max_examples=2)
@given(punch=patterns())
def test_logits_stay_whatever_is_zero(network, punch, tiny, tiny_inputs):
    options = {"stage_sizes": (2,)} if network == "resnet50" else {}
    model = tiny(network, **options)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        variable.set_value(jax.device_put(punch(variable[...])))
    before = jax.tree.map(np.asarray, nnx.state(model))
    small = shrunk(model, tiny_inputs(network))
    assert_same_logits(small, model, tiny_inputs(network))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    again = shrink(small, tiny_inputs(network).shape[1:])
    assert nnx.graphdef(again) == nnx.graphdef(small)


def test_dense_network_stays_as_it_is(network, tiny, tiny_inputs):
    if network == "vgg16bn-authors":
        pytest.skip("its unused layers are cut, as the next test says")
    model = tiny(network)
    graphdef, state = nnx.split(shrink(model, tiny_inputs(network).shape[1:]))
    assert graphdef == nnx.graphdef(model)
    jax.tree.map(np.testing.assert_array_equal, state, nnx.state(model))


def test_layers_that_the_authors_vgg_leaves_out_become_empty(tiny):
    small = shrink(tiny("vgg16bn-authors"), (8, 8, 3))
    out = [[layer.conv.out_features for layer in block] for block in small.blocks]
    assert out == [[4, 0], [8]]


def test_dead_network_keeps_the_biases_of_the_logits(network, tiny, tiny_inputs):
    model = tiny(network)
    bias = head(model).bias[...]
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        fill(variable, ..., 0)
    head(model).bias.set_value(bias)
    small = shrunk(model, tiny_inputs(network))
    assert widths(small) == {0}


def test_network_with_empty_layers_runs_in_training_mode(tiny, tiny_inputs, quickly):
    model, images = tiny("vgg16bn", dropout=0.0), tiny_inputs("vgg16bn")
    fill(model.blocks[1][0].norm.scale, ..., 0)
    small = shrink(model, images.shape[1:])
    assert widths(small) == {0}
    expected = logits(model, images)
    small.train()
    found = quickly(lambda model, images: model(images))(small, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_units_without_input_or_use_go_and_those_that_only_they_need(tiny, tiny_inputs):
    model = tiny("digits-mlp")
    first, second, last = model.layers
    fill(first.kernel, np.s_[:, :2], 0)
    fill(first.bias, np.s_[:2], [0.5, -0.5])
    fill(second.kernel, 2, 0)
    fill(second.kernel, np.s_[3, :5], 0)  # read by unit 5 alone, which nothing reads
    fill(last.kernel, 5, 0)
    small = shrunk(model, tiny_inputs("digits-mlp"))
    assert [layer.out_features for layer in small.layers] == [4, 5, 5]
    bias = second.bias[...] + 0.5 * second.kernel[0]
    np.testing.assert_allclose(small.layers[1].bias[...], bias[:5], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "find", "bias", "left"),
    [
        ("vgg16", lambda m: m.blocks[0][0].conv, 1.0, 4),  # a padded one follows
        ("vgg16", lambda m: m.blocks[0][0].conv, -1.0, 3),  # which ReLU makes 0
        ("vgg16", lambda m: m.blocks[1][0].conv, 1.0, 7),  # a dense one follows
        ("keras-cnn", lambda m: m.pairs[0][0], 1.0, 3),  # one without padding follows
        ("keras-cnn", lambda m: m.pairs[0][1], 1.0, 3),
    ],
)
def test_constant_goes_unless_a_padded_convolution_reads_it(
    name, find, bias, left, tiny, tiny_inputs
):
    model = tiny(name)
    fill(find(model).kernel, np.s_[..., 1], 0)
    fill(find(model).bias, 1, bias)
    small = shrunk(model, tiny_inputs(name))
    assert find(small).out_features == left


@pytest.mark.parametrize(("bias", "left"), [(1.0, 4), (0.0, 3), (-1.0, 3)])
@pytest.mark.parametrize("cause", ["scale", "input"])
def test_batch_norm_is_constant_by_scale_or_by_input(
    cause, bias, left, tiny, tiny_inputs
):
    model = tiny("vgg16bn")
    layer = model.blocks[0][0]
    if cause == "scale":
        fill(layer.norm.scale, 1, 0)
    else:
        fill(layer.conv.kernel, np.s_[..., 1], 0)
        fill(layer.norm.mean, 1, layer.conv.bias[1])
    fill(layer.norm.bias, 1, bias)
    small = shrunk(model, tiny_inputs("vgg16bn"))
    assert small.blocks[0][0].conv.out_features == left
    assert small.blocks[0][0].norm.num_features == left


def test_constant_that_stays_needs_no_input(tiny, tiny_inputs):
    model = tiny("vgg16bn")
    second = model.blocks[0][1]
    fill(second.norm.scale, 1, 0)
    fill(second.norm.bias, 1, 1.0)
    fill(second.conv.kernel, np.s_[:, :, 0, [0, 2, 3]], 0)
    small = shrunk(model, tiny_inputs("vgg16bn"))
    assert [layer.conv.out_features for layer in small.blocks[0]] == [3, 4]


def test_constant_before_a_convolution_without_bias_moves_the_mean_of_its_batch_norm(
    tiny, tiny_inputs
):
    model = tiny("resnet50")
    block = model.stages[0][0]
    fill(block.layer2.norm.scale, 1, 0)
    fill(block.layer2.norm.bias, 1, 2.0)
    small = shrunk(model, tiny_inputs("resnet50")).stages[0][0]
    assert [small.layer2.conv.out_features, small.layer3.conv.in_features] == [3, 3]
    mean = block.layer3.norm.mean[...] - 2 * block.layer3.conv.kernel[0, 0, 1]
    np.testing.assert_allclose(small.layer3.norm.mean[...], mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("reader", "stream", "inner"),
    [
        (None, 15, 15),
        (0, 16, 15),  # before the unit writes to the channel
        (1, 16, 16),
    ],
)
def test_channel_of_a_residual_stream_goes_if_no_block_needs_it(
    reader, stream, inner, tiny, tiny_inputs
):
    model = tiny("wrn28x10", depth=16)
    first, second = model.stages[0]
    following = model.stages[1][0]
    for conv in (first.conv1, second.conv1, following.conv1, following.shortcut):
        fill(conv.kernel, np.s_[:, :, 0], 0)
    # A unit that reads channel 0 and writes to it alone.
    fill(first.conv1.kernel, np.s_[:, :, 0, 3], 0.1)
    fill(first.conv2.kernel, np.s_[:, :, 3, 1:], 0)
    if reader is not None:
        fill(model.stages[0][reader].conv1.kernel, np.s_[:, :, 0, 5], 0.1)

    small = shrunk(model, tiny_inputs("wrn28x10"))
    first, second = small.stages[0]
    assert small.stem.out_features == stream
    assert first.norm1.num_features == first.conv2.out_features == stream
    assert second.conv1.in_features == second.conv2.out_features == stream
    assert small.stages[1][0].shortcut.in_features == stream
    assert first.conv1.out_features == inner
    assert second.conv1.out_features == 16


def test_constants_of_a_residual_stream_add_up(tiny, tiny_inputs):
    model = tiny("wrn28x10")
    block, following = model.stages[0][0], model.stages[1][0]
    for conv in (model.stem, block.conv2):
        fill(conv.kernel, np.s_[..., 0], 0)
        fill(conv.bias, 0, 1.5)
    for norm in (block.norm1, following.norm1):
        fill(norm.bias, 0, -100.0)  # so that ReLU makes it 0
    small = shrunk(model, tiny_inputs("wrn28x10"))
    assert small.stem.out_features == small.stages[0][0].conv2.out_features == 15
    shortcut = following.shortcut
    bias = shortcut.bias[...] + 3 * shortcut.kernel[0, 0, 0]
    small_bias = small.stages[1][0].shortcut.bias[...]
    np.testing.assert_allclose(small_bias, bias, rtol=1e-6)


def test_parameters_keep_their_dtype(tiny, tiny_inputs):
    model = tiny("digits-mlp", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    fill(model.layers[0].kernel, np.s_[:, 2], 0)
    fill(model.layers[0].bias, 2, 1.0)
    small = shrunk(model, tiny_inputs("digits-mlp"))
    # Biases round to bfloat16, by up to 2^-9, and so do sums.
    assert_same_logits(small, model, tiny_inputs("digits-mlp"), tolerance=2e-2)
    assert small.layers[0].out_features == 7
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(small))}
    assert dtypes == {jnp.dtype("bfloat16")}


def test_a_recurrent_network_loses_units_of_its_state_and_of_its_embedding(
    tiny, tiny_inputs
):
    model, tokens = tiny("gru-64"), tiny_inputs("gru-64")
    gates = np.arange(24) % 8
    for layer in (model.inputs, model.states):  # units 0 and 1 of the state stay 0
        fill(layer.kernel, np.s_[:, gates < 2], 0)
        fill(layer.bias, gates < 2, 0)
    fill(model.states.kernel, np.s_[2, gates > 2], 0)  # read by itself alone
    fill(model.head.kernel, 2, 0)
    fill(model.embedding.embedding, np.s_[:, 3], 0)
    small = shrink(model, tokens)
    assert_same_logits(small, model, tokens)
    assert (small.embedding.features, small.inputs.in_features) == (7, 7)
    assert (small.states.in_features, small.states.out_features) == (5, 15)
    assert nnx.graphdef(shrink(small, tokens)) == nnx.graphdef(small)


def test_a_transformer_loses_hidden_units_heads_and_entries_of_values(
    tiny, tiny_inputs
):
    model, tokens = tiny("transformer-64x2"), tiny_inputs("transformer-64x2")
    first, second = model.blocks
    fill(first.gate.kernel, np.s_[:, :5], 0)
    fill(first.value.kernel, np.s_[:, :4], 0)  # the first of two heads
    fill(second.output.kernel, np.s_[1::4], 0)  # entry 1 of each head's values
    small = shrink(model, np.asarray(tokens))
    assert_same_logits(small, model, tokens)
    first, second = small.blocks
    assert first.up.out_features == first.down.in_features == 64 - 5
    widths = [(b.query, b.value, b.output) for b in (first, second)]
    assert [(q.out_features, v.out_features, o.in_features) for q, v, o in widths] == [
        (4, 4, 4),
        (8, 6, 6),
    ]
    assert small.embedding.features == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": "CIRCULAR"},
        {"padding": 2, "kernel_dilation": 2},
        {"padding": ((2, 0), (1, 1)), "precision": "highest"},
        {"strides": (2, 1)},
    ],
    ids=str,
)
def test_layers_may_be_changed_in_what_shrink_knows(changes, tiny, tiny_inputs):
    model = tiny("vgg16bn")
    first, second = model.blocks[0]
    for name, value in changes.items():
        setattr(second.conv, name, value)
    if "strides" in changes:  # the last map has 2 pixels of 4
        model.hidden[0].kernel.set_value(model.hidden[0].kernel[:16])
    for norm, bias in ((first.norm, 1.0), (second.norm, -1.0)):
        norm.epsilon = 0.1
        fill(norm.scale, np.s_[:2], 0)
        fill(norm.bias, np.s_[:2], bias)
    model.eval()
    small = shrunk(model, tiny_inputs("vgg16bn"))
    pads_with_zeros = changes.get("padding") != "CIRCULAR"
    assert small.blocks[0][0].conv.out_features == (4 if pads_with_zeros else 2)
    assert small.blocks[0][1].conv.out_features == 2


def test_constant_stays_before_a_layer_without_biases(tiny, tiny_inputs):
    model = tiny("keras-cnn")
    layer = model.pairs[0][1]
    layer.use_bias, layer.bias = False, None
    fill(model.pairs[0][0].kernel, np.s_[..., :2], 0)
    fill(model.pairs[0][0].bias, np.s_[:2], [1.0, -1.0])
    small = shrunk(model, tiny_inputs("keras-cnn"))
    assert small.pairs[0][0].out_features == 3


class Sigmoids(models.mlp.MLP):
    def __call__(self, images, *, rngs=None):
        *hidden, head = self.layers
        for layer in hidden:
            images = jax.nn.sigmoid(layer(images))
        return head(images)


def new(layer, *sizes):
    """A layer that is quickly built."""
    return layer(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))


class Doubled(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: put(m.layers, 0, new(Doubled, 16, 8)),
        lambda m: put(m.layers, 0, new(nnx.Conv, 16, 8, 1)),
        lambda m: put(m.layers, 1, new(nnx.Linear, 8, 8)),
        lambda m: setattr(m.layers[1], "bias", m.layers[0].bias),
    ],
    ids=["a subclass", "another layer", "an unused width", "a bias twice"],
)
def test_what_layers_compute_is_read_off_them(change, tiny, tiny_inputs):
    model = tiny("digits-mlp", features=(8, 8))
    change(model)
    fill(model.layers[0].kernel, np.s_[..., :3], 0)
    fill(model.layers[0].bias, np.s_[:3], 1.0)
    small = shrunk(model, tiny_inputs("digits-mlp"))
    assert small.layers[0].kernel.shape[-1] <= 8


def put(container, index, module):
    container[index] = module


def test_a_layer_used_twice_keeps_what_either_use_needs(tiny, tiny_inputs):
    model = tiny("digits-mlp", features=(8, 8, 8))
    put(model.layers, 2, model.layers[1])
    twice = model.layers[1]
    fill(twice.kernel, np.s_[:2], 0)
    fill(twice.kernel, np.s_[:, :2], 0)
    fill(twice.bias, np.s_[:2], 0)
    for kernel, axis in ((model.layers[0].kernel, 1), (model.layers[3].kernel, 0)):
        fill(kernel, (slice(None),) * axis + (slice(0, 2),), 0)
    fill(model.layers[0].bias, np.s_[:2], 0)
    small = shrunk(model, tiny_inputs("digits-mlp"))
    assert small.layers[1].kernel.shape == (6, 6)
    assert small.layers[2] is small.layers[1]


def test_cost_counts_products_of_convolutions_and_dense_layers(tiny):
    parameters, multiply_adds, widths = cost(tiny("keras-cnn"), (10, 10, 3))
    assert parameters == (27 * 4 + 4) + (36 * 4 + 4) + (64 * 8 + 8) + (8 * 5 + 5)
    convolutions = 10 * 10 * 4 * 27 + 8 * 8 * 4 * 36
    assert multiply_adds == convolutions + 64 * 8 + 8 * 5
    assert widths == {"pairs/0/0": 4, "pairs/0/1": 4, "hidden": 8, "head": 5}
