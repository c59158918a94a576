"""Tests of units: what is left once they are cut out, and the controls."""

import jax
import numpy as np
import pytest
from flax import nnx

import models
from experiments.analyses import units
from experiments.analyses._narrow import drawn_anew, train, without_smallest
from experiments.training import data
from experiments.training.config import Config, Momentum
from experiments.training.optimizer import network_units
from models.export.shrink import shrink

SHAPE = (8, 8, 1)


@pytest.fixture
def found(united):
    return united.rows()


@pytest.fixture(scope="module")
def wide():
    """A residual network, in evaluation mode."""
    network = models.create("digits-wrn10x1", num_classes=10, rngs=nnx.Rngs(0))
    network.eval()
    return network


@pytest.fixture(scope="module")
def pruned(wide):
    return without_smallest(wide, network_units("digits-wrn10x1"), 0.5)


@pytest.fixture(scope="module")
def narrow(pruned):
    return shrink(pruned, SHAPE)


def parameters(network):
    params = nnx.to_pure_dict(nnx.state(network))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_all_ways_and_their_controls_are_there(found):
    ways = [(row["way"], row["from_scratch"], row["asked"]) for row in found]
    assert ways == [
        ("dense", False, 0.0),
        ("pruned", False, 0.5),
        ("units", False, 0.5),
        ("units", True, 0.5),
    ]
    assert all(0 < row["test_accuracy"] <= 1 for row in found)


def test_units_are_cut_out_and_the_controls_are_as_narrow(found):
    dense, pruned, left, scratch = found
    assert dense["parameters"] == 17_226
    assert dense["multiply_adds"] == 17_024
    # 64 and 32 of the hidden units.
    assert pruned["parameters"] == 65 * 64 + 65 * 32 + 33 * 10
    assert left["parameters"] < dense["parameters"]
    assert scratch["parameters"] == left["parameters"]
    assert scratch["multiply_adds"] == left["multiply_adds"]


def test_a_network_that_died_has_no_control(found):
    left = found[2]
    cells = units.table([left, left | {"seed": 1}, found[3]])
    assert cells[0]["from scratch, %"] == ""
    assert units.table(found)[2]["from scratch, %"] != ""


def test_the_sentence_tells_what_is_left(found):
    text = units.sentence({"rows": found})
    assert text.startswith("Of 17,226 parameters at")
    assert "50% of zeros leave" in text
    assert "% where trained from scratch (units)" in text


def test_means_are_over_the_seeds(found):
    row = found[2] | {"onnx_seconds": 0.001}
    again = row | {"seed": 1, "test_accuracy": row["test_accuracy"] + 0.02}
    (cells,) = units.table([row, again | {"onnx_seconds": 0.002}])
    mean = 100 * np.mean([row["test_accuracy"], again["test_accuracy"]])
    assert cells["test, %"] == f"{mean:.1f}"
    assert cells["ONNX Runtime, ms"] == "1.500"
    assert "MNN, ms" not in cells
    assert len(units.figure([row, again]).axes) == 2


def test_each_network_is_timed_on_one_thread(wide, monkeypatch):
    def exported(network, image_shape, path):
        yield units.ONNX, 1, seen.append
        yield units.ONNX, 2, pytest.fail
        yield units.MNN, 1, seen.append

    seen = []
    monkeypatch.setattr(units, "exported", exported)
    found = units.latencies([units.Made(wide, {})] * 2, SHAPE)
    assert [set(times) for times in found] == [{"onnx_seconds", "mnn_seconds"}] * 2
    assert {images.shape for images in seen} == {(1, *SHAPE)}


def test_the_smallest_half_of_each_layer_is_pruned(wide, pruned):
    before, after = map(parameters, (wide, pruned))
    name = "stages/0/0/conv1/kernel"  # of a layer of its own, with norm2
    size = np.sum(before[name] ** 2, (0, 1, 2)) + before["stages/0/0/conv1/bias"] ** 2
    kept = size > np.median(size)
    np.testing.assert_array_equal(after[name], before[name] * kept)
    np.testing.assert_array_equal(after["stages/0/0/norm2/scale"], 1.0 * kept)
    np.testing.assert_array_equal(after["head/kernel"], before["head/kernel"])


def test_pruned_units_can_be_cut_out_whole_streams_too(narrow):
    left = parameters(narrow)
    assert left["stem/kernel"].shape == (3, 3, 1, 8)
    assert left["stages/0/0/conv1/kernel"].shape == (3, 3, 8, 8)
    assert left["head/kernel"].shape == (32, 10)


def test_weights_are_drawn_anew_at_the_scale_of_their_fan_in(wide, narrow):
    fresh, like, full = map(parameters, (drawn_anew(narrow, wide), narrow, wide))
    assert {k: x.shape for k, x in fresh.items()} == {
        k: x.shape for k, x in like.items()
    }
    name = "stages/2/0/conv2/kernel"
    assert fresh[name].shape == (3, 3, 32, 32)
    expected = np.sqrt(2) * np.std(full[name])
    np.testing.assert_allclose(np.std(fresh[name]), expected, rtol=0.05)
    np.testing.assert_array_equal(fresh["norm/scale"], np.ones(32))
    np.testing.assert_array_equal(fresh["norm/var"], np.ones(32))


def test_a_narrow_network_trains_from_its_own_weights(tiny_vgg, tiny_images):
    dataset = data.load(tiny_images)
    network = models.create(tiny_vgg, num_classes=4, rngs=nnx.Rngs(0))
    network.eval()
    start = shrink(without_smallest(network, network_units(tiny_vgg), 0.5), (8, 8, 3))
    config = Config(
        *(tiny_vgg, tiny_images, "none", Momentum()),
        learning_rate=1e-6,
        batch_size=16,
        epochs=1,
    )
    trained, accuracy = train(config, dataset, "tiny", start)
    assert 0 <= accuracy <= 1
    before, after = map(parameters, (start, trained))
    assert before.keys() == after.keys()
    for name in before:
        if not name.endswith(("mean", "var")):
            np.testing.assert_allclose(after[name], before[name], atol=1e-4)
