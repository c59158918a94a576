"""The curvature benchmark, on few images."""

import jax
import numpy as np

from benchmarks import curvature
from experiments.analyses._curvature import hessian


def test_products_are_compared_with_the_gradient_of_the_same_loss():
    task, state = curvature.trained("digits-mlp", images=1100)  # two batches of 550

    def loss(params):
        return task.trainer.evaluate(params, {}, *task.train).loss

    expected = jax.jit(jax.grad(loss))(state.params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
        curvature.gradient(hessian(task, state)),
        expected,
    )


def test_a_row_has_all_that_the_goal_names():
    row = curvature.measure("digits-mlp", curvature.Options(64, pairs=2, rounds=1))
    assert row["parameters"] == "17,226"
    assert row["products"] > 2
    assert float(row["2 eigenpairs, s"]) > 0
    assert {"Hessian / gradient (quartiles)", "Gauss-Newton / gradient"} < row.keys()
