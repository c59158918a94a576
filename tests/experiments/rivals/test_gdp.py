"""GDP: gates g^2 / (g^2 + eps) by unit, and their smoothed L0 norm."""

import numpy as np

from experiments.rivals.gdp import EPS, LAST, gdp


def test_weights_and_gates_follow_the_gradients_of_the_written_out_objective(
    make_task, trajectory
):
    rng = np.random.default_rng(0)
    theta = {"a": rng.normal(size=(2, 3, 4)), "b": rng.normal(size=(4, 5))}
    gradients = {name: rng.normal(size=(3, *x.shape)) for name, x in theta.items()}
    # The loss wants the last unit to grow, and no more.
    for name, x in theta.items():
        gradients[name][..., -1] = -20 * x[..., -1]
    task = make_task(steps=3, strength=200.0, momentum=0.0)
    weights = trajectory(
        gdp(task),
        {name: x.astype("f4") for name, x in theta.items()},
        {name: x.astype("f4") for name, x in gradients.items()},
    )

    for name, x in theta.items():
        x = x.reshape(-1, x.shape[-1])
        g = np.ones(x.shape[-1])
        for n in range(3):
            slope = gradients[name][n].reshape(x.shape)
            eps = EPS * (LAST / EPS) ** (n / 3)
            phi, dphi = g**2 / (g**2 + eps), 2 * g * eps / (g**2 + eps) ** 2
            dg = (slope * x).sum(0) * dphi + 200.0 * len(x) / 44 * dphi
            x, g = x - 0.1 * slope * phi, np.maximum(g - 0.1 * dg, 0)
            eps = EPS * (LAST / EPS) ** ((n + 1) / 3)
            phi = g**2 / (g**2 + eps)
            if n == 2:
                phi[phi < 0.5] = 0
            made = weights[name][n + 1].reshape(x.shape)
            np.testing.assert_allclose(made, x * phi, rtol=1e-3, atol=1e-6)
    assert 0 < (weights["a"][-1] == 0).mean() < 1
