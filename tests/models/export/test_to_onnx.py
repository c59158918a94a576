"""ONNX Runtime gives the logits that JAX gives."""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

import models
from models.export._logits import logits
from models.export.cost import cost
from models.export.shrink import shrink
from models.export.to_onnx import _without_equinox, to_onnx


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.onnx"


def session_of(path):
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def assert_logits_agree(model, images, path):
    """In batches of 1, 3 and all images: 1e-5 of the largest logit, by rounding."""
    to_onnx(model, path, images.shape[1:])
    session = session_of(path)
    expected = np.asarray(logits(model, images))
    for n in (1, 3, len(images)):
        (found,) = session.run(["logits"], {"images": np.asarray(images[:n])})
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, expected[:n], rtol=0, atol=1e-5 * np.abs(expected).max()
        )


def head(model):
    return model.layers[-1] if isinstance(model, models.mlp.MLP) else model.head


def set_to_zero(variable, index=...):
    values = np.array(variable[...])
    values[index] = 0
    variable.set_value(jax.device_put(values))


def test_logits_of_dense_networks_agree(network, tiny, tiny_inputs, path):
    assert_logits_agree(tiny(network), tiny_inputs(network), path)


def test_logits_of_shrunken_networks_agree(network, tiny, tiny_inputs, path):
    model = tiny(network)
    kernel = head(model).kernel[...]
    # The last units of every layer but the last, in kernels, biases and BatchNorms.
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        set_to_zero(variable, np.s_[..., variable.shape[-1] * 3 // 4 :])
    head(model).kernel.set_value(kernel)
    images = tiny_inputs(network)
    small = shrink(model, images.shape[1:])
    before, after = (cost(m, images.shape[1:]).parameters for m in (model, small))
    assert after < before
    assert_logits_agree(small, images, path)


def test_dead_networks_have_the_logits_of_the_last_biases(
    network, tiny, tiny_inputs, path
):
    model = tiny(network)
    bias = head(model).bias[...]
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        set_to_zero(variable)
    head(model).bias.set_value(bias)
    images = tiny_inputs(network)
    small = shrink(model, images.shape[1:])
    assert set(cost(small, images.shape[1:]).widths.values()) == {0, 5}
    assert_logits_agree(small, images, path)


@pytest.mark.parametrize(
    ("name", "find"),
    [
        ("wrn28x10", lambda m: (m.stages[0][0].conv1, m.stages[0][0].norm2)),
        ("wrn28x10", lambda m: (m.stages[1][0].conv2,)),
        ("resnet50", lambda m: (m.stages[1][0].layer2.norm,)),
        ("resnet50", lambda m: (m.stages[0][0].layer1.norm,)),
    ],
)
def test_a_dead_branch_leaves_the_rest_of_the_network(
    name, find, tiny, tiny_inputs, path
):
    model = tiny(name)
    for layer in find(model):
        for _, variable in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
            set_to_zero(variable)
    images = tiny_inputs(name)
    small = shrink(model, images.shape[1:])
    assert 0 in cost(small, images.shape[1:]).widths.values()
    assert np.ptp(logits(small, images), axis=0).min() > 0
    assert_logits_agree(small, images, path)


def test_the_file_is_one_and_says_what_goes_in_and_comes_out(tiny, path):
    path.write_bytes(b"an older one")
    to_onnx(tiny("keras-cnn"), str(path), image_shape=[10, 10, 3])
    assert list(path.parent.iterdir()) == [path]
    session = session_of(path)
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(float)")
    assert images.shape == ["batch", 10, 10, 3]
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", 5]


def test_bfloat16_networks_stay_as_they_are_and_are_computed_in_float32(
    tiny, tiny_inputs, path
):
    model = tiny("vgg16bn", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    images = tiny_inputs("vgg16bn")
    graphdef, state = nnx.split(model)
    to_onnx(model, path, images.shape[1:])
    assert nnx.graphdef(model) == graphdef
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), state)
    assert model.blocks[0][0].conv.kernel.dtype == jnp.bfloat16
    assert not model.dropout.deterministic

    exact = tiny("vgg16bn")
    for (_, wide), (_, narrow) in zip(
        *(nnx.to_flat_state(nnx.state(m)) for m in (exact, model)), strict=True
    ):
        wide.set_value(jax.device_put(np.float32(narrow[...])))
    expected = np.asarray(logits(exact, images))
    (found,) = session_of(path).run(None, {"images": np.asarray(images)})
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_an_export_logs_nothing_and_leaves_the_loggers_as_they_are(tiny, path, caplog):
    loggers = [
        logging.getLogger(name)
        for name in ("jax2onnx.plugins.plugin_system", "onnx_ir.serde")
    ]
    levels = [logger.level for logger in loggers]
    to_onnx(tiny("digits-mlp"), path, (4, 4, 1))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert levels == [logger.level for logger in loggers]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 0, 3), r"image_shape must have lengths of at least 1, got \(8, 0, 3\)"),
        ((3, 8, 8), r"images must have shape \(batch, height, width, 3\), got"),
    ],
)
def test_images_that_the_network_does_not_take_are_refused(shape, message, tiny, path):
    with pytest.raises(ValueError, match=message):
        to_onnx(tiny("wrn28x10"), path, shape)
    assert not path.exists()


def test_without_jax2onnx_it_says_what_to_install(tiny, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"needs jax2onnx: pip install '\.\[onnx\]'"):
        to_onnx(tiny("digits-mlp"), path, (4, 4, 1))


def test_equinox_seems_not_to_be_there_unless_it_is_in_use(monkeypatch):
    monkeypatch.delitem(sys.modules, "equinox", raising=False)
    with _without_equinox(), pytest.raises(ImportError):
        import equinox  # noqa: F401
    assert "equinox" not in sys.modules
    monkeypatch.setitem(sys.modules, "equinox", sys)
    with _without_equinox():
        assert sys.modules["equinox"] is sys
    assert sys.modules["equinox"] is sys
