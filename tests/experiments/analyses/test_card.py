"""Tests of card: what is measured of a network, and the files it leaves."""

import gzip
import json

import jax
import numpy as np
import pytest

from experiments.analyses import card
from experiments.analyses.options import Card
from experiments.training.errors import UserError
from models.export.cost import nonzero_multiply_adds
from optax_grda.packing import pack, unpack


@pytest.fixture(scope="module")
def measured(convolutional, tmp_path_factory):
    """The sizes and latencies of a network with BatchNorm, and its files; JAX alone."""
    directory = tmp_path_factory.mktemp("card")
    options = Card(convolutional.grda.directory, rounds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "exported", lambda *_: ())
        found = card.measure(options, directory)
    return found, directory


@pytest.fixture
def whole(convolutional):
    """The parameters and statistics of that network."""
    state = convolutional.grda.state()
    return {"params": state.params, "batch_stats": state.batch_stats}


def by_network(rows):
    return {row["network"]: row for row in rows}


def test_a_card_weighs_the_networks_whose_files_it_writes(measured, whole):
    found, directory = measured
    dense, sparse, shrunk = (by_network(found["sizes"])[n] for n in card.NETWORKS)
    assert shrunk["parameters"] < sparse["parameters"] == dense["parameters"]
    assert sparse["nonzeros"] < dense["nonzeros"] == dense["parameters"]
    assert shrunk["multiply_adds"] < sparse["multiply_adds"] == dense["multiply_adds"]
    assert sparse["nonzero_multiply_adds"] < dense["nonzero_multiply_adds"]
    assert dense["nonzero_multiply_adds"] == dense["multiply_adds"]
    for name, row in by_network(found["sizes"]).items():
        packed = directory / f"{name}.safetensors"
        assert row["packed_bytes"] == packed.stat().st_size
        assert row["compressed_bytes"] == len(gzip.compress(packed.read_bytes()))
    packed = unpack(directory / "sparse.safetensors", like=whole)
    jax.tree.map(np.testing.assert_array_equal, packed, whole)


def test_accuracy_is_measured_where_weights_are_those_of_a_run(measured):
    found, _ = measured
    tested = {n: r["test_accuracy"] for n, r in by_network(found["sizes"]).items()}
    assert tested["dense"] is tested["shrunk"] is None
    assert 0 <= tested["sparse"] <= 1


def test_every_network_is_timed_at_every_batch(measured):
    found, _ = measured
    there = {(row["network"], row["batch"]) for row in found["latencies"]}
    assert there == {(n, b) for n in card.NETWORKS for b in card.BATCHES}
    for row in found["latencies"]:
        assert 0 < row["seconds_min"] <= row["seconds_median"]
        assert row["largest_difference"] < 1e-4  # of the shrunk network too


def test_a_card_is_of_the_runs_final_weights(demo_run, carded):
    rows = by_network(carded.found()["sizes"])
    for network, run in (("dense", "momentum-0"), ("sparse", "target-0")):
        ended = json.loads((demo_run / run / "summary.json").read_text())
        assert rows[network]["test_accuracy"] == pytest.approx(ended["test_accuracy"])
        assert rows[network]["nonzeros"] == ended["sparsity_report"]["nonzero"]


def test_a_card_takes_packed_files(
    convolutional, whole, tiny_vgg, tiny_images, tmp_path
):
    path = tmp_path / "network.safetensors"
    pack(whole, path)
    options = Card(path, network=tiny_vgg, dataset=tiny_images)
    found = card.subject(path, options)
    expected = card.subject(convolutional.grda.directory, options)
    np.testing.assert_array_equal(found.images, expected.images)
    some = found.images[:2]
    np.testing.assert_array_equal(found.network(some), expected.network(some))
    assert found.about["label"] == "network.safetensors"


def test_files_that_are_of_no_known_network_are_refused(
    whole, tiny_vgg, tiny_images, tmp_path
):
    path = tmp_path / "network.safetensors"
    pack(whole, path)
    with pytest.raises(UserError, match="network and dataset must be given where run"):
        card.subject(path, Card(path))
    options = Card(path, network="digits-mlp", dataset="digits")
    with pytest.raises(UserError, match="run must be a file of digits-mlp"):
        card.subject(path, options)
    pack(whole["params"], path)
    options = Card(path, network=tiny_vgg, dataset=tiny_images)
    with pytest.raises(UserError, match="must hold BatchNorm's statistics"):
        card.subject(path, options)


def test_other_runtimes_give_the_same_logits(digits, tmp_path):
    pytest.importorskip("MNN")
    subject = card.subject(digits[1], Card(digits[1]))
    shape = subject.images.shape[1:]
    logits = card.in_jax(subject.network)(subject.images[:3])
    found = list(card.exported(subject.network, shape, tmp_path / "network"))
    assert [(runtime, threads) for runtime, threads, _ in found] == [
        *((card.ONNX, 1), (card.MNN, 1)),
        *((card.ONNX, 2), (card.MNN, 2)),
    ]
    for _, _, predict in found:
        np.testing.assert_allclose(
            predict(subject.images[:3]), logits, rtol=1e-4, atol=1e-4
        )


def test_multiply_adds_of_zeros_are_not_counted(convolutional):
    run = convolutional.grda
    state = run.state()
    empty = jax.tree.map(np.zeros_like, state.params)
    network = run.task.trainer.network(empty, state.batch_stats)
    assert nonzero_multiply_adds(network, (8, 8, 3)) == 0


def sizes(**changes):
    """Rows of three networks, of which the sparse one has a quarter of its weights."""
    row = dict.fromkeys(
        ("parameters", "nonzeros", "file_bytes", "multiply_adds"), 12.0
    ) | {"packed_bytes": 5.0, "compressed_bytes": 4.0, "test_accuracy": 0.9}
    rows = [row | {"network": name} for name in card.NETWORKS]
    rows[1] |= {"nonzeros": 3, "test_accuracy": 0.8}
    rows[2] |= {"parameters": 6.0, "multiply_adds": 0}
    return rows


def test_a_verdict_divides_what_was_before_by_what_is_after():
    text = card.verdict(sizes(), [])
    assert text.startswith("75.0% of the weights are zero, at 80.0% test accuracy")
    assert "(dense 90.0%)" in text
    assert "smaller by a factor of 2.4, compressed by 3.0;" in text
    assert text.endswith("fewer by a factor of 2.0, multiply-adds by inf.")


def test_a_verdict_compares_the_best_times_on_one_thread():
    times = [
        {
            "network": network,
            "runtime": runtime,
            "threads": threads,
            "batch": batch,
            "seconds_median": seconds,
        }
        for batch in card.BATCHES
        for network, runtime, threads, seconds in (
            *(("dense", card.ONNX, 1, 6.0), ("dense", card.MNN, 1, 8.0)),
            *(("sparse", card.ONNX, 1, 6.0), ("sparse", card.MNN, 1, 3.0)),
            *(("shrunk", card.MNN, 1, 4.0), ("sparse", card.MNN, 2, 0.1)),
        )
    ]
    text = card.verdict(sizes(), times)
    assert text.endswith("by a factor of 2.0 at batch 1 and 2.0 at batch 32.")


def test_a_card_does_without_onnx(carded):
    found = carded.found()
    assert "On one thread" not in card.sentence(found)
    assert not list(carded.directory.glob("*.onnx"))
    weights, times = card.sections(found)
    label = "target 90 %, clipped at 1, β = 0.9, p = 3, decay 0.0005, seed 0"
    assert weights.title == f"What the zeros are good for: {label}"
    for row in times.table:
        assert row["runtime, threads"].startswith("JAX, ")
        assert list(row)[2:] == [*card.NETWORKS, "differ by"]
