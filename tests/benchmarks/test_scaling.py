"""What the devices exchange in a training step, and what is predicted from it."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import scaling, train_step
from benchmarks.measure import size
from experiments.training.devices import data_mesh, fully_sharded
from experiments.training.presets import PRESETS
from experiments.training.trainer import make_trainer
from models import _registry
from models.vgg import VGG

CHANNELS = 5  # of the tiny network's BatchNorm


@pytest.fixture
def tiny(monkeypatch):
    """The name of a tiny network with BatchNorm, and of its preset."""
    network = functools.partial(
        VGG, blocks=((CHANNELS,),), hidden=4, batch_norm=True, input_shape=(32, 32, 3)
    )
    spec = _registry.spec("vgg16bn")._replace(network=network)
    monkeypatch.setitem(_registry._SPECS, "tiny", spec)
    config = train_step.preset("vgg16", model="tiny")
    monkeypatch.setitem(PRESETS, "tiny", config)
    return "tiny"


def test_collectives_are_counted_in_the_text_of_a_program():
    text = """
      %all-reduce.3 = (f32[3,4]{1,0}, bf16[5]{0}) all-reduce(%a, %b), channel_id=1
      ROOT %all-reduce.4 = f32[] all-reduce(%c), to_apply=%add
      %all-gather = pred[2,8]{1,0} all-gather(%d), dimensions={1}
      %get = f32[3,4]{1,0} get-tuple-element(%all-reduce.3), index=0
    """
    assert scaling.collectives(text) == {
        "all-reduce": (2, 3 * 4 * 4 + 5 * 2 + 4),
        "all-gather": (1, 16),
    }


def test_a_step_exchanges_gradient_and_batch_statistics_and_nothing_else(tiny):
    found = scaling.count(tiny, "grda", devices=4)
    assert found["others"] == {}
    rest = found["bytes"] - scaling.gradient_bytes(tiny)
    # Loss and accuracy; each BatchNorm sums x and x^2, and backward two more of which
    # one may be the gradient of its bias.
    assert 4 * (2 + 3 * CHANNELS) <= rest <= 4 * (2 + 4 * CHANNELS)
    assert found == scaling.count(tiny, "sgd", devices=4)


def test_a_state_in_parts_is_gathered_and_nothing_else_with_grda_as_with_sgd(tiny):
    whole = scaling.count(tiny, "grda", devices=4)
    found = scaling.count(tiny, "grda", devices=4, sharded=True)
    trainer = make_trainer(train_step.preset(tiny), 10, 128)
    params = jax.eval_shape(trainer.init, 0).params
    places = fully_sharded(data_mesh(jax.devices()[:4]), params)
    split = [
        leaf
        for leaf, place in zip(
            jax.tree.leaves(params), jax.tree.leaves(places), strict=True
        )
        if not place.is_fully_replicated
    ]
    assert 0 < size(split) < scaling.gradient_bytes(tiny)
    assert found["others"] == {"all-gather": (len(split), size(split))}
    assert found["bytes"] == whole["bytes"]  # the gradient's sum, whole on a CPU
    assert found == scaling.count(tiny, "sgd", devices=4, sharded=True)


def test_one_device_exchanges_nothing():
    assert scaling.count("digits-mlp", "grda", devices=1) == {
        "all-reduces": 0,
        "bytes": 0,
        "others": {},
    }


def test_waiting_is_latency_and_the_ring_at_the_bandwidth_of_its_slowest_link():
    # In a host: 6.8 + 2 * 7 * 0.6 us an all-reduce, 2 * 7/8 of the bytes at 450 GB/s.
    assert scaling.waiting(10, 0, 8) == pytest.approx(10 * 15.2e-6)
    assert scaling.waiting(0, 450 * 10**9, 8) == pytest.approx(1.75)
    # Over 8 hosts: 2 * 3 hops of 5 us more, and 8 adapters of 50 GB/s a host.
    assert scaling.waiting(1, 0, 64) == pytest.approx(45.2e-6)
    assert scaling.waiting(0, 400 * 10**9, 64) == pytest.approx(2 * 63 / 64)


def test_efficiency_is_the_share_of_the_step_in_the_time():
    found = {"all-reduces": 0, "bytes": int(450e9 / 1.75 / 100)}  # 10 ms in a host
    row = scaling.predict("vgg16", 30.0, found)
    assert row["waiting on 8, ms"] == "10.00"
    assert row["efficiency on 8"] == "0.750"
    shares = [float(row[f"efficiency on {n}"]) for n in scaling.ACCELERATORS]
    assert np.all(np.diff(shares) <= 0)


def test_gradient_is_as_large_as_the_parameters():
    assert scaling.gradient_bytes("vgg16") == 4 * 15_245_130
    assert jax.device_count() >= 8  # the tests above simulate as many


def test_without_an_accelerators_step_no_efficiency_is_predicted():
    found = {"all-reduces": 10, "bytes": 1e8, "others": ""}
    unknown, known = (scaling.predict("vgg16", step, found) for step in (None, 20.0))
    efficiencies = [name for name in known if name.startswith("efficiency")]
    assert efficiencies
    assert all(
        unknown[name] == "" and 0 < float(known[name]) < 1 for name in efficiencies
    )
    waits = [name for name in known if name.startswith("waiting")]
    assert [unknown[name] for name in waits] == [known[name] for name in waits]
