"""STR: gradients of the written-out objective, and decay of the thresholds alone."""

import numpy as np

from experiments.rivals._layer_thresholds import INITIAL
from experiments.rivals.str_ import str_


def test_weights_and_thresholds_follow_the_gradients_of_the_soft_threshold(
    make_task, trajectory
):
    rng = np.random.default_rng(0)
    v = {"a": 0.03 * rng.normal(size=(5, 4)), "b": 0.03 * rng.normal(size=(2, 3, 4))}
    gradients = {name: rng.normal(size=(3, *x.shape)) for name, x in v.items()}
    task = make_task(steps=3, strength=2.0, momentum=0.0, weight_decay=0.5)
    weights = trajectory(
        str_(task),
        {name: x.astype("f4") for name, x in v.items()},
        {name: x.astype("f4") for name, x in gradients.items()},
    )

    for name, start in v.items():
        w = start
        s = INITIAL
        for n in range(1, 4):
            threshold = 1 / (1 + np.exp(-s))
            slopes = np.where(np.abs(w) > threshold, gradients[name][n - 1], 0)
            s = s - 0.1 * (
                2.0 * s - threshold * (1 - threshold) * np.sum(np.sign(w) * slopes)
            )
            w = w - 0.1 * (slopes + 0.5 * w)
            threshold = 1 / (1 + np.exp(-s))
            expected = np.sign(w) * np.maximum(np.abs(w) - threshold, 0)
            np.testing.assert_allclose(weights[name][n], expected, rtol=1e-4, atol=1e-6)
        assert 0 < (weights[name][-1] == 0).mean() < 1
