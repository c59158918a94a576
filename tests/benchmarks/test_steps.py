"""What the benchmarks of optimizer steps and of training steps measure."""

import jax
import numpy as np
import optax
import pytest

from benchmarks import optimizer_step, train_step
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


def test_a_network_without_preset_is_refused_by_name():
    with pytest.raises(ValueError, match=r"networks must be among .*, got 'vgg61'"):
        train_step.preset("vgg61")


def test_paper_batch_sizes_are_the_default():
    sizes = {n: train_step.preset(n).batch_size for n in ("vgg16", "resnet50")}
    assert sizes == {"vgg16": 128, "resnet50": 256}
