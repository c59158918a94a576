"""Tests of card: what is measured of a network, and the files it leaves."""

import json
import math

import jax
import numpy as np
import onnx
import pytest
from onnx import helper

from experiments.analyses import card
from optax_grda.packing import unpack


@pytest.fixture(scope="module")
def measured(convolutional, tmp_path_factory):
    """The rows of a card by network and runtime, and the directory of its files.

    The network has BatchNorm. In place of jax2onnx, which takes long to load, a sum
    over the pixels stands for every network.
    """

    def to_onnx(network, path, image_shape):
        images, logits = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, *shape])
            for name, shape in (("images", image_shape), ("logits", (4,)))
        )
        weights = np.ones((math.prod(image_shape), 4), np.float32)
        nodes = [
            helper.make_node("Flatten", ["images"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
        ]
        constants = [onnx.numpy_helper.from_array(weights, "weights")]
        graph = helper.make_graph(nodes, "sum", [images], [logits], constants)
        opsets = [helper.make_opsetid("", 13)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)

    directory = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "to_onnx", to_onnx)
        rows = card.measure(convolutional, 2, directory)["rows"]
    return {(row["network"], row["runtime"]): row for row in rows}, directory


def test_a_card_measures_the_networks_whose_files_it_writes(measured):
    rows, directory = measured
    names = ("sgd", "grda", "grda-shrunk")
    dense, sparse, shrunk = (rows[name, "JAX"] for name in names)
    assert shrunk["parameters"] < sparse["parameters"] == dense["parameters"]
    assert shrunk["multiply_adds"] < sparse["multiply_adds"]
    assert sparse["nonzeros"] < dense["nonzeros"]
    assert sparse["packed_bytes"] < dense["packed_bytes"]
    for name in names:
        assert rows[name, "JAX"]["largest_difference"] < 1e-4
        packed = directory / f"{name}.safetensors"
        assert rows[name, "JAX"]["packed_bytes"] == packed.stat().st_size


def test_a_card_is_of_the_runs_final_weights(digits, carded):
    for row, run in zip(carded.rows(), digits, strict=False):
        ended = json.loads((run / "summary.json").read_text())
        assert row["test_accuracy"] == pytest.approx(ended["test_accuracy"])
        assert row["nonzeros"] == ended["sparsity_report"]["nonzero"]


def test_a_packed_file_is_the_whole_network(measured, convolutional):
    state = convolutional.grda.state()
    whole = {"params": state.params, "batch_stats": state.batch_stats}
    assert jax.tree.leaves(state.batch_stats)
    packed = unpack(measured[1] / "grda.safetensors", like=whole)
    jax.tree.map(np.testing.assert_array_equal, packed, whole)


def test_onnx_runtime_runs_the_networks_in_which_zeros_are_gone(measured):
    rows, directory = measured
    there = {name for name, runtime in rows if runtime == card.ONNX}
    assert there == {"sgd", "grda-shrunk"}
    for name in there:
        row = rows[name, card.ONNX]
        assert row["file_bytes"] == (directory / f"{name}.onnx").stat().st_size
        assert row["packed_bytes"] is None
        assert row["nonzeros"] == rows[name, "JAX"]["nonzeros"]
        assert row["largest_difference"] > 1e-3  # a sum over the pixels
    assert card.table(list(rows.values()))[4] == {
        "": "packed, kB",
        **{
            header: f"{rows[name, 'JAX']['packed_bytes'] / 1e3:,.1f}"
            for name, header in card.NAMES.items()
        },
        "SGD, ONNX Runtime": "",
        "gRDA, shrunk, ONNX Runtime": "",
    }


def test_a_verdict_divides_what_was_before_by_what_is_after():
    names = ("parameters", "file_bytes", "multiply_adds", "seconds_1", "seconds_32")
    dense = dict.fromkeys(names, 12.0) | {"network": "sgd", "test_accuracy": 0.9}
    sparse = dense | {"network": "grda", "nonzeros": 3, "packed_bytes": 5.0}
    shrunk = sparse | {"parameters": 6.0, "multiply_adds": 0, "seconds_32": 4.0}
    rows = [dense, sparse, shrunk | {"network": "grda-shrunk"}]
    in_jax = [row | {"runtime": "JAX"} for row in rows]
    sentence = card.verdict(in_jax)
    assert "75.0% of the weights are zero" in sentence
    assert "packed file is smaller by a factor of 2.4." in sentence
    assert "fewer by a factor of 2.0, multiply-adds by inf," in sentence
    assert sentence.endswith("is 1.0 and 3.0 times as fast at batch 1 and 32.")
    in_onnx = [row | {"runtime": card.ONNX} for row in (rows[0], rows[2])]
    there = "at batch 1 and 32 (1.0 and 3.0 times in ONNX Runtime)."
    assert card.verdict(in_onnx + in_jax).endswith(there)


def test_a_card_does_without_onnx(carded):
    found = carded.found()
    assert "ONNX" not in card.sentence(found)
    assert not list(carded.directory.glob("*.onnx"))
    (whose,) = {row["grda"] for row in carded.rows()}
    (section,) = card.sections(found)
    assert (
        section.title == "What the zeros are good for: gRDA, c = 0.05, μ = 0.6, seed 0"
    )
    other = [row | {"grda": whose + "-1", "seed": 1} for row in found["rows"]]
    assert len(list(card.sections({"rows": found["rows"] + other}))) == 2
