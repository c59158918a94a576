"""Metrics along curves and on planes, BatchNorm statistics among them; barriers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda.landscape import (
    Bezier,
    Plane,
    barrier_height,
    evaluate_along,
    evaluate_grid,
)

TS = np.linspace(0, 1, 61)


def metrics(params):
    return {
        "sum": jnp.sum(params["dense"]["kernel"]) * params["scale"],
        "bias": params["dense"]["bias"],
    }


@pytest.mark.parametrize("batch_size", [None, 1, 7, 100])
def test_metrics_along_a_curve_are_those_of_its_points(points, batch_size):
    curve = Bezier(*points(3))
    along = evaluate_along(curve, TS, metrics, batch_size=batch_size)
    assert along["sum"].shape == (61,)
    assert along["bias"].shape == (61, 8)
    for i in (0, 1, 30, 60):
        expected = metrics(curve(TS[i]))
        # Sums of 128 numbers of order one, in another order.
        np.testing.assert_allclose(along["sum"][i], expected["sum"], atol=1e-4)
        np.testing.assert_allclose(along["bias"][i], expected["bias"], atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_metrics_on_a_grid_are_those_of_its_points(points, batch_size):
    plane = Plane.through(*points(3))
    xs, ys = plane.grid(5)[0], plane.grid(3)[1]
    grid = jax.jit(
        lambda plane: evaluate_grid(plane, xs, ys, metrics, batch_size=batch_size)
    )(plane)
    assert grid["sum"].shape == (3, 5)
    assert grid["bias"].shape == (3, 5, 8)
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            expected = metrics(plane(x, y))
            np.testing.assert_allclose(grid["sum"][i, j], expected["sum"], atol=1e-4)
            np.testing.assert_allclose(grid["bias"][i, j], expected["bias"], atol=1e-6)


def test_statistics_are_estimated_anew_at_every_point():
    rng = np.random.default_rng(0)
    batches, test_batch = rng.normal(size=(6, 32, 8)), rng.normal(size=(16, 8))
    kernels = rng.normal(size=(3, 8, 4)).astype(np.float32)

    def loss(kernel):  # normalised by the plain average over the training batches
        def statistics(batch):
            x = batch @ kernel
            return jnp.mean(x, axis=0), jnp.var(x, axis=0)

        mean, variance = jax.lax.map(statistics, jnp.asarray(batches, jnp.float32))
        x = jnp.asarray(test_batch, jnp.float32) @ kernel - jnp.mean(mean, 0)[None]
        return jnp.mean(jnp.square(x) / jnp.mean(variance, axis=0)[None])

    def oracle(kernel, statistics_of):
        x = batches @ statistics_of
        mean, variance = x.mean(axis=1).mean(axis=0), x.var(axis=1).mean(axis=0)
        return np.mean((test_batch @ kernel - mean) ** 2 / variance)

    t = TS[:, None, None]
    along = (1 - t) ** 2 * kernels[0] + 2 * t * (1 - t) * kernels[1] + t**2 * kernels[2]
    actual = evaluate_along(Bezier(*kernels), TS, loss)
    # A few dozen float32 operations on numbers of order one.
    np.testing.assert_allclose(actual, [oracle(w, w) for w in along], rtol=1e-5)
    stale = oracle(along[30], statistics_of=along[0])
    assert abs(stale - actual[30]) > 0.1  # the statistics do matter


def test_way_of_a_curve_over_the_plane_through_its_points(points):
    curve = Bezier(*points(3))
    plane = Plane.through(curve.start, curve.end, curve.bend)
    x, y, distance = evaluate_along(curve, TS, plane.project)
    start, end, bend = np.asarray(plane.corners, np.float64)
    t = TS[:, None]
    expected = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    # Sums of 137 products of numbers of order one.
    np.testing.assert_allclose(np.stack([x, y], axis=1), expected, atol=1e-4)
    np.testing.assert_allclose(distance, 0, atol=1e-4)


def test_barrier_is_the_maximum_above_the_larger_end():
    losses = jnp.array([[0.5, 3.0], [2.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(barrier_height(losses), [1.0, 0.0])
    np.testing.assert_array_equal(barrier_height(losses[::-1]), [1.0, 0.0])
    assert jnp.isnan(barrier_height([0.0, float("nan"), 0.0]))


@pytest.mark.parametrize("losses", [1.0, [1.0], []])
def test_barrier_of_less_than_two_points_is_refused(losses):
    with pytest.raises(ValueError, match="losses must hold two points or more, got"):
        barrier_height(losses)


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (0.5, r"ts must have one axis, got shape \(\)"),
        (np.zeros((2, 2)), r"ts must have one axis, got shape \(2, 2\)"),
        (np.array([0.0, 1.5]), r"ts must be in \[0, 1\], got \[0.  1.5\]"),
    ],
)
def test_bad_ts_are_refused(points, ts, message):
    with pytest.raises(ValueError, match=message):
        evaluate_along(Bezier(*points(3)), ts, metrics)


def test_bad_grids_are_refused(points):
    plane = Plane.through(*points(3))
    axis = np.zeros(2)
    with pytest.raises(ValueError, match=r"xs must have one axis, got shape \(\)"):
        evaluate_grid(plane, 0.0, axis, metrics)
    with pytest.raises(ValueError, match=r"ys must have one axis, got shape \(2, 1\)"):
        evaluate_grid(plane, axis, axis[:, None], metrics)


def test_batch_size_below_one_is_refused(points):
    message = "batch_size must be None or at least 1, got 0"
    with pytest.raises(ValueError, match=message):
        evaluate_along(Bezier(*points(3)), TS, metrics, batch_size=0)
    with pytest.raises(ValueError, match=message):
        evaluate_grid(Plane.through(*points(3)), TS, TS, metrics, batch_size=0)
