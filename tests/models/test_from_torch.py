import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from flax import nnx

from models.from_torch import load_state_dict


def state_dict(shapes, seed=0):
    """Random arrays of these shapes, positive where they are variances."""
    rng = np.random.default_rng(seed)
    return {
        name: np.float32(
            rng.uniform(0.5, 1.5, shape)
            if name.endswith("var")
            else 0.3 * rng.standard_normal(shape)
        )
        for name, shape in shapes.items()
    }


# digits-mlp of the fixtures: 16-8-6-5.
MLP = state_dict(
    {
        "0.weight": (8, 16),
        "0.bias": (8,),
        "2.weight": (6, 8),
        "2.bias": (6,),
        "4.weight": (5, 6),
        "4.bias": (5,),
    }
)


@pytest.fixture
def mlp(tiny):
    return tiny("digits-mlp")


def params_of(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_numbers_of_a_sequential_may_leave_room_for_other_modules(mlp):
    load_state_dict(mlp, MLP)
    np.testing.assert_array_equal(mlp.layers[1].kernel[...], MLP["2.weight"].T)
    np.testing.assert_array_equal(mlp.layers[2].bias[...], MLP["4.bias"])
    expected = params_of(mlp)
    # Behind a Flatten, with a Dropout, and in numerical, not alphabetical, order.
    numbers = {"0": "1", "2": "9", "4": "11"}
    shifted = {numbers[name[0]] + name[1:]: MLP[name] for name in sorted(MLP)}
    load_state_dict(mlp, dict(reversed(shifted.items())))
    for a, b in zip(params_of(mlp), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_parallel_prefixes_and_batch_counts_are_ignored(mlp):
    wrapped = {f"module.{name}": array for name, array in MLP.items()}
    load_state_dict(mlp, wrapped | {"module.1.num_batches_tracked": np.int64(7)})
    np.testing.assert_array_equal(mlp.layers[0].kernel[...], MLP["0.weight"].T)


def test_every_fault_is_named_and_the_model_left_alone(mlp):
    before = params_of(mlp)
    faulty = dict(MLP)
    del faulty["2.bias"]
    faulty["0.weight"] = faulty["0.weight"].T
    faulty["fc.weight"] = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"state_dict must hold .* this MLP") as error:
        load_state_dict(mlp, faulty)
    assert str(error.value).endswith(
        ": fc.weight is left over, 0.weight has shape (16, 8) instead of (8, 16), "
        "2.bias is missing"
    )
    for a, b in zip(params_of(mlp), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_names_than_a_sequentials_are_missing_and_left_over(mlp):
    renamed = {name.replace("4.", "output."): array for name, array in MLP.items()}
    with pytest.raises(
        ValueError, match=r"output\.weight is left over.* 3\.weight is m"
    ):
        load_state_dict(mlp, renamed)


def test_values_take_the_dtypes_of_the_model(tiny):
    model = tiny("digits-mlp", param_dtype=jnp.bfloat16)
    load_state_dict(model, {name: np.float64(array) for name, array in MLP.items()})
    np.testing.assert_array_equal(
        model.layers[0].kernel[...], jnp.asarray(MLP["0.weight"].T, jnp.bfloat16)
    )


def test_an_abstract_model_can_be_loaded(mlp, tiny_inputs):
    abstract = nnx.eval_shape(lambda: nnx.clone(mlp))
    load_state_dict(abstract, MLP)
    load_state_dict(mlp, MLP)
    images = tiny_inputs("digits-mlp")
    np.testing.assert_array_equal(abstract(images), mlp(images))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_files_are_read(mlp, tmp_path, dtype):
    path = tmp_path / "mlp.safetensors"
    tensors = {name: jnp.asarray(array, dtype) for name, array in MLP.items()}
    safetensors.flax.save_file(dict(tensors), path)
    for given in (path, str(path)):
        load_state_dict(mlp, given)
        np.testing.assert_array_equal(
            mlp.layers[0].kernel[...], tensors["0.weight"].T.astype(jnp.float32)
        )


def test_files_that_may_be_pickled_are_refused_unread(mlp, tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors file .*, got .*mlp\.pt"):
        load_state_dict(mlp, tmp_path / "mlp.pt")


def test_an_unknown_network_is_refused():
    with pytest.raises(TypeError, match=r"model must be a network .*Linear"):
        load_state_dict(nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))), {})


def torch_forward(state_dict, images):
    """Keras's CNN in NumPy with PyTorch's layouts: maps are (batch, channel, h, w)."""
    x = np.asarray(images, np.float64).transpose(0, 3, 1, 2)
    for number, padding in (("0", 1), ("2", 0)):
        x = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        x = np.einsum("nchwij,ocij->nohw", windows, state_dict[f"{number}.weight"])
        x = np.maximum(x + state_dict[f"{number}.bias"][:, None, None], 0)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5)).reshape(n, -1)
    x = np.maximum(x @ state_dict["7.weight"].T + state_dict["7.bias"], 0)
    return x @ state_dict["10.weight"].T + state_dict["10.bias"]


def test_the_keras_cnn_computes_what_the_same_weights_do_in_pytorch(tiny, tiny_inputs):
    # 10x10 images, 4 channels: maps of 10, 8 and 4, hence 64 inputs to the dense layer.
    shapes = {"0": (4, 3, 3, 3), "2": (4, 4, 3, 3), "7": (8, 64), "10": (5, 8)}
    weights = state_dict(
        {f"{number}.weight": shape for number, shape in shapes.items()}
        | {f"{number}.bias": shape[:1] for number, shape in shapes.items()}
    )
    model, images = tiny("keras-cnn"), tiny_inputs("keras-cnn")
    model.eval()
    load_state_dict(model, weights)
    np.testing.assert_allclose(
        model(images), torch_forward(weights, images), rtol=1e-4, atol=1e-5
    )


NORM = ("weight", "bias", "running_mean", "running_var")


def vgg_shapes(convs, norms, linears):
    """Tensor shapes of the fixtures' VGG with BatchNorm, for these layer names."""
    shapes = {}
    kernels = ((4, 3, 3, 3), (4, 4, 3, 3), (8, 4, 3, 3), (8, 32), (8, 8), (5, 8))
    for name, shape in zip(convs + linears, kernels, strict=True):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, features in zip(norms, (4, 4, 8), strict=True):
        shapes |= {f"{name}.{tensor}": (features,) for tensor in NORM}
    return shapes


def test_vgg_takes_the_names_of_torchvision_and_those_of_the_authors(tiny):
    torchvision = vgg_shapes(
        ("features.0", "features.3", "features.7"),
        ("features.1", "features.4", "features.8"),
        ("classifier.0", "classifier.3", "classifier.6"),
    )
    authors = vgg_shapes(
        ("layer_blocks.0.0", "layer_blocks.0.2", "layer_blocks.1.0"),
        ("layer_blocks.0.1", "layer_blocks.0.3", "layer_blocks.1.1"),
        ("classifier.1", "classifier.4", "classifier.6"),
    )
    weights = state_dict(torchvision)
    first, second = tiny("vgg16bn", seed=1), tiny("vgg16bn", seed=2)
    load_state_dict(first, weights)
    load_state_dict(second, dict(zip(authors, weights.values(), strict=True)))
    for a, b in zip(params_of(first), params_of(second), strict=True):
        np.testing.assert_array_equal(a, b)
    conv, norm = first.blocks[1][0].conv, first.blocks[1][0].norm
    np.testing.assert_array_equal(
        conv.kernel[...], weights["features.7.weight"].transpose(2, 3, 1, 0)
    )
    for variable, tensor in zip(
        (norm.scale, norm.bias, norm.mean, norm.var), NORM, strict=True
    ):
        np.testing.assert_array_equal(variable[...], weights[f"features.8.{tensor}"])


def test_weights_of_another_resnet_are_refused_by_name(abstract):
    model = abstract("resnet50", num_classes=1000)
    weights = {
        "fc.weight": np.ones((10, 2048)),
        "layer4.3.conv1.weight": np.ones(3),
    }
    with pytest.raises(ValueError, match="state_dict must hold") as error:
        load_state_dict(model, weights)
    for fault in (
        "fc.weight has shape (10, 2048) instead of (1000, 2048)",
        "layer4.3.conv1.weight is left over",
        "layer1.0.downsample.1.running_var is missing",
        "layer4.2.bn3.bias is missing",
    ):
        assert fault in str(error.value)
