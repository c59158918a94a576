"""L1: its subgradient in every step, and a threshold at the last."""

import numpy as np

from experiments.rivals.l1 import l1


def test_signs_are_added_to_gradients_and_the_last_weights_are_the_largest(
    make_task, trajectory
):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, 4)).astype("f4")
    w[0, 0] = 0
    gradients = rng.normal(size=(3, 5, 4)).astype("f4")
    gradients[:, 0, 0] = 0
    task = make_task(steps=3, sparsity=0.6, strength=0.2)
    weights = trajectory(l1(task), w, gradients)

    velocity = 0
    for n in range(1, 4):
        velocity = 0.9 * velocity + gradients[n - 1] + 0.2 * np.sign(w)
        w = w - 0.1 * velocity
        kept = np.abs(w) > np.sort(np.abs(w), axis=None)[11] if n == 3 else 1
        np.testing.assert_allclose(weights[n], w * kept, rtol=1e-4, atol=1e-6)
    assert (weights[-1] == 0).sum() == 12
