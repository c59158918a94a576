"""What tiny networks show of the architectures; test_golden.py pins the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models


def fill(variable, value):
    variable.set_value(jnp.full_like(variable[...], value))


def pixels(shape):
    return jnp.float32(np.random.default_rng(0).standard_normal(shape))


def test_a_wide_resnet_strides_in_the_second_convolution_of_a_stage(tiny):
    model = tiny("wrn28x10", depth=16)
    blocks = [[*stage] for stage in model.stages]
    assert [[block.conv1.strides for block in stage] for stage in blocks] == [
        [1, 1]
    ] * 3
    assert [[block.conv2.strides for block in stage] for stage in blocks] == [
        [1, 1],
        [2, 1],
        [2, 1],
    ]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_wide_resnet_block_adds_its_input_before_batch_norm(tiny, stage, quickly):
    block = tiny("wrn28x10").stages[stage][0]
    fill(block.conv2.kernel, 0)
    fill(block.conv2.bias, 0)
    x = pixels((2, 4, 4, 16))
    # The first stage keeps 16 channels at this width, so its shortcut is the identity.
    expected = x if stage == 0 else block.shortcut(x)
    found = quickly(lambda block, x: block(x, None))(block, x)
    np.testing.assert_array_equal(found, expected)
    assert (block.shortcut is None) == (stage == 0)


def test_a_wide_resnet_drops_between_the_convolutions_of_a_block(tiny):
    block = tiny("wrn28x10", dropout=1.0).stages[0][0]
    x = pixels((2, 4, 4, 16))
    # Everything dropped: the second BatchNorm sees zeros and passes its bias on, but
    # for rounding, which it multiplies by up to 1 / sqrt(1e-5).
    constant = jnp.broadcast_to(
        nnx.relu(block.norm2.bias[...]).reshape(1, 1, 1, -1), x.shape
    )
    np.testing.assert_allclose(
        block(x, nnx.Rngs(0)), x + block.conv2(constant), atol=1e-4
    )


def test_only_the_last_batch_norm_of_a_wide_resnet_leans_on_the_last_batch(tiny):
    model = tiny("wrn28x10")
    norms = {
        path: module.momentum
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm)
    }
    assert norms.pop(("norm",)) == 0.1
    assert set(norms.values()) == {0.9}


@pytest.mark.parametrize("depth", [4, 27])
def test_a_wide_resnet_of_impossible_depth_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 4.* got {depth}"):
        models.create("wrn28x10", num_classes=2, depth=depth, rngs=nnx.Rngs(0))


def test_a_resnet_strides_in_the_3x3_convolution_from_the_second_stage_on(tiny):
    for s, stage in enumerate(tiny("resnet50", stage_sizes=(2, 2, 1)).stages):
        for i, block in enumerate(stage):
            strides = [
                layer.conv.strides
                for layer in (block.layer1, block.layer2, block.layer3)
            ]
            stride = 2 if s > 0 and i == 0 else 1
            assert strides == [1, stride, 1]
            assert (block.shortcut is None) == (i > 0)
            if i == 0:
                assert block.shortcut.conv.strides == stride


def test_a_bottleneck_adds_its_shortcut_before_the_last_relu(tiny, quickly):
    model = tiny("resnet50")
    model.eval()
    for block in model.stages[1]:
        fill(block.layer3.norm.scale, 0)
        fill(block.layer3.norm.bias, 0)
        x = pixels((2, 4, 4, block.layer1.conv.in_features))
        shortcut = x if block.shortcut is None else block.shortcut(x)
        found = quickly(lambda block, x: block(x))(block, x)
        np.testing.assert_allclose(found, nnx.relu(shortcut), atol=1e-5)


def test_vgg_drops_before_both_hidden_layers_but_not_before_the_last(tiny, tiny_inputs):
    model = tiny("vgg16", dropout=1.0)
    # All inputs of the hidden layers are dropped: what is left are their biases.
    expected = model.head(nnx.relu(model.hidden[1].bias[...]))
    for logits in model(tiny_inputs("vgg16"), rngs=nnx.Rngs(0)):
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_the_authors_vgg_runs_only_the_first_half_of_a_block(tiny, tiny_inputs):
    images = tiny_inputs("vgg16bn")
    for name, changes in (("vgg16bn", True), ("vgg16bn-authors", False)):
        model = tiny(name)
        model.eval()
        before = model(images)
        fill(model.blocks[0][1].conv.kernel, 0)
        fill(model.blocks[0][1].norm.scale, 0)
        assert bool((model(images) != before).any()) == changes


@pytest.mark.parametrize("name", ["vgg16", "keras-cnn"])
def test_dropout_depends_on_the_key_alone(name, tiny, tiny_inputs, quickly):
    model, images = tiny(name), tiny_inputs(name)

    @quickly
    def logits(model, key):
        return model(images, rngs=nnx.Rngs(dropout=key))

    key, other = jax.random.split(jax.random.key(0))
    first = logits(model, key)
    np.testing.assert_array_equal(first, logits(model, key))
    assert (first != logits(model, other)).any()


@pytest.mark.parametrize("name", ["vgg16", "keras-cnn"])
def test_dropout_without_rngs_is_an_error_in_training_mode_only(
    name, tiny, tiny_inputs
):
    model, images = tiny(name), tiny_inputs(name)
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        model(images)
    model.eval()
    np.testing.assert_array_equal(model(images), model(images, rngs=nnx.Rngs(0)))


def test_the_keras_cnn_drops_a_quarter_after_poolings_and_half_before_the_last_layer(
    tiny, tiny_inputs
):
    model, images = tiny("keras-cnn"), tiny_inputs("keras-cnn")
    assert (model.dropout.rate, model.hidden_dropout.rate) == (0.25, 0.5)
    model.dropout.rate, model.hidden_dropout.rate = 1.0, 0.0
    for logits in model(images):
        expected = model.head(nnx.relu(model.hidden.bias[...]))
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    model.hidden_dropout.rate = 1.0
    for logits in model(images):
        np.testing.assert_array_equal(logits, model.head.bias[...])


@pytest.mark.parametrize("name", ["vgg16", "keras-cnn"])
def test_images_too_small_for_the_poolings_are_refused(name):
    with pytest.raises(ValueError, match=r"input_shape must be .*, got \(4, 32, 3\)"):
        models.create(name, num_classes=2, input_shape=(4, 32, 3), rngs=nnx.Rngs(0))


def test_an_mlp_is_matrix_products_with_relu_between(tiny, tiny_inputs):
    model, images = tiny("digits-mlp"), tiny_inputs("digits-mlp")
    x = np.asarray(images, np.float64).reshape(4, -1)
    for i, layer in enumerate(model.layers):
        x = x @ np.asarray(layer.kernel) + np.asarray(layer.bias)
        if i < 2:
            x = np.maximum(x, 0)
    assert i == 2
    np.testing.assert_allclose(model(images), x, atol=1e-5)
