"""Tests of project and of the curvature of a run's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analyses import _curvature as curvature
from experiments.analyses import project
from optax_grda.curvature import top_eigenpairs


def test_shares_follow_from_the_saved_eigenvalues_and_epochs(projected):
    rows = projected.rows()
    assert [row["epoch"] for row in rows] == [30, 60]
    for row in rows:
        assert row["eigenvalues"] == sorted(row["eigenvalues"], reverse=True)
        assert len(row["eigenvalues"]) == 3
        assert 0 < row["difference_fraction"] < 1
        assert row["random_fraction"] == 3 / 17226
        assert row["grda_l2_over_l1"] > row["sgd_l2_over_l1"] > 17226**-0.5


def test_grda_left_sgd_in_flat_directions(projected):
    for row in projected.rows():
        assert row["difference_fraction"] < 10 * row["random_fraction"]


def test_rows_of_the_papers_networks_stand_beside_the_authors(projected):
    method = {"name": "grda", "c": 0.001, "mu": 0.55, "groups": "none"}
    about = {"model": "wrn28x10", "method": method, "preset": "a preset"}
    rows = [row | about | {"dataset": "cifar10"} for row in projected.rows()]
    assert len(project.projection(rows).axes[0].lines) == 2  # of 3 vectors
    ten = [row | {"eigenvalues": list(range(10))} for row in rows]
    _, shares, _ = project.projection(ten).axes[0].lines
    assert shares.get_ydata()[-1] == 1.04974e-06
    norms = project.norms([row | {"dataset": "cifar100"} for row in rows])
    # SGD and gRDA, ours and theirs; and the least there can be.
    lengths = [len(line.get_xdata()) for line in norms.axes[0].lines]
    assert lengths == [2, 2, 201, 201, 2]


def test_batches_of_curvature_leave_few_images_out():
    sizes = {(50_000, 128): 125, (1437, 32): 27, (32, 16): 16, (5, 16): 5, (1, 1): 1}
    for (images, most), size in sizes.items():
        assert curvature.batch_size(images, most) == size


def test_curvature_is_that_of_the_loss_of_evaluation(convolutional):
    task, state = convolutional.sgd.task, convolutional.sgd.state()
    hessian = curvature.hessian(task, state)

    vector = jax.tree.map(jnp.ones_like, state.params)

    def loss(t):
        params = jax.tree.map(lambda w, v: w + t * v, state.params, vector)
        return task.trainer.evaluate(params, state.batch_stats, *task.train).loss

    def slope(t):
        return jax.jvp(loss, (t,), (jnp.float32(1),))[1]

    _, expected = jax.jit(lambda t: jax.jvp(slope, (t,), (t + 1,)))(jnp.float32(0))
    found = optax.tree.vdot(vector, hessian(vector))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    top = top_eigenpairs(hessian, state.params, 2, tolerance=1e-5)
    assert max(top.residual_norms) <= 1e-5 * max(top.eigenvalues)
