"""What the benchmarks of optimizer steps and of training steps measure."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from benchmarks import optimizer_step, roofline, train_step
from experiments.training.config import Grda
from optax_grda import grda


def test_several_optimizer_steps_in_one_call_are_the_same_steps():
    params, gradients = ({"w": np.full(3, x, np.float32)} for x in (1.0, 0.5))
    optimizer = grda(0.1, c=0.1, mu=0.6)
    once = optimizer_step.Stepper(optimizer, params, gradients, steps=4)
    singly = optimizer_step.Stepper(optimizer, params, gradients, steps=1)
    for _ in range(4):
        singly()
    # One program and four round differently: a few units in the last place.
    np.testing.assert_allclose(once()["w"], singly.params["w"], rtol=1e-6)
    assert int(once.state.count) == int(singly.state.count) == 4


def test_training_steps_keep_the_weights_dense_and_near_their_start():
    config = train_step.preset("digits-mlp", method=Grda(), batch_size=8)
    stepper = train_step.Stepper(config, train_step.random_batch(config), steps=20)
    stepper.start()
    start = jax.tree.map(np.asarray, stepper.state.params)
    metrics = stepper()
    assert int(stepper.state.step) == 20
    assert np.isfinite(metrics.loss)
    change = optax.tree.norm(optax.tree.sub(stepper.state.params, start))
    assert float(change) < 1e-2 * float(optax.tree.norm(start))


def test_texts_have_a_label_for_each_byte():
    config = train_step.preset("transformer-64x2", batch_size=8)
    texts, labels = train_step.random_batch(config)
    assert texts.shape == labels.shape == (8, 128)
    assert (texts.dtype, labels.dtype) == (np.uint8, np.int32)
    assert labels.max() > 200


def test_a_network_without_preset_is_refused_by_name():
    with pytest.raises(ValueError, match=r"networks must be among .*, got 'vgg61'"):
        train_step.preset("vgg61")


def test_paper_batch_sizes_are_the_default():
    sizes = {n: train_step.preset(n).batch_size for n in ("vgg16", "resnet50")}
    assert sizes == {"vgg16": 128, "resnet50": 256}


def test_work_is_that_of_the_program_as_written_and_as_compiled():
    matrices = (jax.ShapeDtypeStruct((8, 16), np.float32), np.ones((16, 4), np.float32))
    lowered = jax.jit(lambda a, b: a @ b).lower(*matrices)
    found = roofline.work(lowered, lowered.compile())
    assert found.flops == 2 * 8 * 16 * 4
    assert found.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4)


def test_a_step_takes_as_long_as_its_operations_or_its_bytes():
    peak = roofline.Peak(tflops=2, gigabytes=10)
    assert roofline.Work(flops=4e12, bytes=1e9).bound(peak) == 2
    assert roofline.Work(flops=1e12, bytes=4e10).bound(peak) == 4
    assert roofline.Work(flops=1e12, bytes=4e10).utilisation(4, peak) == 0.125


def test_a_step_is_told_beside_the_peak_of_its_device_where_that_is_known(monkeypatch):
    monkeypatch.setattr(train_step, "OPTIMIZERS", {"SGD": "sgd"})
    options = train_step.Options(batch_size=2, rounds=1)
    (row,) = train_step.measure("digits-mlp", options)
    # A product forward and two for the gradients, but for that of the images.
    products = 2 * 2 * (3 * (64 * 128 + 128 * 64 + 64 * 10) - 64 * 128)
    assert products < 1e9 * float(row["GFLOP"]) < 2 * products
    assert not any("peak" in name or "roofline" in name for name in row)

    told = dataclasses.replace(options, peak=(1e-3, 1e9))
    (row,) = train_step.measure("digits-mlp", told)
    speed, most = float(row["examples/s"]), float(row["roofline, examples/s"])
    share = float(row["of peak FLOP/s, %"]) / 100
    assert share == pytest.approx(speed / most, abs=1e-3)  # bytes count for nothing


@pytest.mark.parametrize("peak", [(0.0, 1.0), (1.0, -1.0)])
def test_a_peak_must_be_positive(peak):
    with pytest.raises(ValueError, match="peak must be two numbers > 0, got"):
        train_step.Options(peak=peak)
