"""Tests of connect: the way from gRDA to SGD, and their plane."""

import json

import jax
import numpy as np
import pytest

import models
from experiments.analyses import connect
from experiments.training.runs import find_pairs


def test_both_ways_lead_from_grda_to_sgd(digits, connected):
    (result,) = connected.rows("pairs")
    assert result["t"] == pytest.approx(np.linspace(0, 1, 11))
    for place, run in ((0, digits[1]), (-1, digits[0])):
        ended = json.loads((run / "summary.json").read_text())
        for path in (result["line"], result["curve"]):
            loss, error = path["train_loss"][place], path["test_error"][place]
            assert loss == pytest.approx(ended["train_loss"], abs=1e-4)
            assert error == pytest.approx(1 - ended["test_accuracy"], abs=1e-4)
    losses = result["line"]["train_loss"]
    height = max(losses) - max(losses[0], losses[-1])
    assert result["line"]["barrier_height"] == pytest.approx(height, abs=1e-6)
    assert result["curve"]["length"] >= result["line"]["length"] > 0


def test_grda_lies_in_the_valley_of_sgd(connected):
    (result,) = connected.rows("pairs")
    assert result["curve"]["barrier_height"] < 0.05
    assert result["curve"]["barrier_height"] <= result["line"]["barrier_height"]


def test_the_plane_goes_through_both_solutions_and_the_bend(connected):
    (result,) = connected.rows("pairs")
    grda, sgd, bend = result["plane"]["corners"]
    assert grda == [0, 0]
    assert sgd == pytest.approx([result["line"]["length"], 0])
    assert bend[1] > 0
    assert np.shape(result["plane"]["train_loss"]) == (2, 2)
    curve, line, *_ = connect.plane_of(result["plane"]).axes[0].lines
    for way in (curve, line):
        np.testing.assert_allclose(way.get_xydata()[[0, -1]], [grda, sgd])


def test_a_plane_with_losses_that_overflow_can_be_drawn():
    values = {"x": [0, 1], "y": [0, 1], "corners": [[0, 0], [1, 0], [0.5, 1]]}
    values |= {"train_loss": [[0.1, 0.2], [float("nan"), float("inf")]]}
    bar = connect.plane_of(values).axes[1]
    labels = [label.get_text() for label in bar.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("0.1", "0.19")


def test_a_plane_without_a_finite_loss_says_so():
    values = {"x": [0, 1], "y": [0, 1], "train_loss": [[float("nan")] * 2] * 2}
    figure = connect.plane_of(values | {"corners": [[0, 0], [1, 0], [0, 1]]})
    assert figure.axes[0].get_title() == "no loss on this plane is finite"


def test_pairs_of_the_papers_networks_stand_beside_the_authors(connected):
    (pair,) = connected.rows("pairs")
    method = {"name": "grda", "c": 0.001, "mu": 0.55, "groups": "none"}
    about = {"model": "wrn28x10", "dataset": "cifar100", "method": method}
    theirs = pair | about | {"preset": "cifar100-wrn28x10-mu0.55"}
    rows = connect.table([theirs, pair])
    headers = ("authors' curve, max", "authors' line, max")
    assert [rows[0][name] for name in headers] == ["0.0005", "0.1612"]
    assert [rows[1][name] for name in headers] == ["", ""]
    other = theirs | {"preset": None}  # of another protocol, or of whole units
    assert not rows[0].keys() <= connect.table([other])[0].keys()
    network = {"model": "vgg16", "dataset": "cifar10"}
    setting = {"method": method | {"c": 0.0005, "mu": 0.501}}
    (row,) = connect.table([theirs | network | setting])  # a plane alone
    assert row["authors' line, max"] == "4.8888"
    assert headers[0] not in row
    curve = connect.loss_along_curves([theirs])
    assert len(curve.axes[0].lines) == 3  # line, curve and theirs
    steered = theirs | {"method": {"name": "target", "sparsity": 0.9, "groups": "none"}}
    assert len(connect.loss_along_curves([steered]).axes[0].lines) == 2


def test_on_the_way_batch_stats_are_averages_over_whole_batches(convolutional):
    task, state = convolutional.grda.task, convolutional.grda.state()
    images, _ = task.train
    estimate = jax.jit(task.trainer.estimate_batch_stats, static_argnums=2)
    size = task.trainer.batch_size
    found = estimate(state.params, images, size)["blocks"][0][0]["norm"]
    spec = models.spec(convolutional.grda.config.model)
    x = (np.asarray(images) / np.float32(255) - spec.mean) / np.float32(spec.std)
    conv = state.params["blocks"][0][0]["conv"]
    outputs = jax.lax.conv_general_dilated(
        *(x.astype(np.float32), conv["kernel"], (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    batches = (np.asarray(outputs) + np.asarray(conv["bias"])).reshape(2, -1, 4)
    np.testing.assert_allclose(found["mean"], batches.mean((0, 1)), atol=1e-5)
    variances = batches.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(found["var"], variances, rtol=1e-4)


def test_a_network_without_batch_norm_has_no_statistics(digits):
    (pair,) = find_pairs(digits)
    task, state = pair.sgd.task, pair.sgd.state()
    assert task.trainer.estimate_batch_stats(state.params, task.train[0], 8) == {}
