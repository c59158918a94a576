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


def expected(*terms):
    """The metrics of a sum of scalar * weights, by NumPy."""

    def total(*leaves):
        return sum(c * np.asarray(x) for (c, _), x in zip(terms, leaves, strict=True))

    w = jax.tree.map(total, *(weights for _, weights in terms))
    kernel, bias = w["dense"]["kernel"], w["dense"]["bias"]
    return {"sum": kernel.sum() * w["scale"], "bias": bias}


def assert_metrics(found, metrics):
    # Sums of 128 numbers of order one, in another order.
    np.testing.assert_allclose(found["sum"], metrics["sum"], atol=1e-4)
    np.testing.assert_allclose(found["bias"], metrics["bias"], atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 7, 100])
def test_metrics_along_a_curve_are_those_of_its_points(points, batch_size):
    start, bend, end = points(3)
    curve = Bezier(start, bend, end)
    along = evaluate_along(curve, TS, metrics, batch_size=batch_size)
    assert along["sum"].shape == (61,)
    along = jax.tree.map(np.asarray, along)
    for i in (0, 1, 30, 60):
        t = TS[i]
        terms = ((1 - t) ** 2, start), (2 * t * (1 - t), bend), (t**2, end)
        found = jax.tree.map(lambda m, i=i: m[i], along)
        assert_metrics(found, expected(*terms))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_metrics_on_a_grid_are_those_of_its_points(points, batch_size):
    origin, x_axis, y_axis = points(3)
    plane = Plane(origin, x_axis, y_axis, corners=np.zeros((3, 2), np.float32))
    xs, ys = np.linspace(-1, 3, 5), np.linspace(-2, 1, 3)
    grid = jax.jit(
        lambda plane: evaluate_grid(plane, xs, ys, metrics, batch_size=batch_size)
    )(plane)
    assert grid["sum"].shape == (3, 5)
    grid = jax.tree.map(np.asarray, grid)
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            found = jax.tree.map(lambda m, i=i, j=j: m[i, j], grid)
            assert_metrics(found, expected((1, origin), (x, x_axis), (y, y_axis)))


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


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)]
)
def test_batch_size_is_a_number_of_points(points, batch_size, error):
    message = f"batch_size must be None or an integer >= 1, got {batch_size}"
    with pytest.raises(error, match=message):
        evaluate_along(Bezier(*points(3)), TS, metrics, batch_size=batch_size)
    with pytest.raises(error, match=message):
        evaluate_grid(lambda x, y: x, TS, TS, metrics, batch_size=batch_size)
