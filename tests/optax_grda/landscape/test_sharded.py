"""Every public function, with weights split over a mesh: as on one device."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_grda import landscape

SGD = optax.sgd(0.1)
LAYOUT = {"split": P("data", "model"), "columns": P(None, "model"), "replicated": P()}


def loss_fn(params, batch=None):
    return optax.tree.sum(jax.tree.map(lambda w: jnp.sum(jnp.square(w)), params))


@jax.jit
def calls(points):
    """Results by the names of functions, and what is like the weights in "like"."""
    first, second, third = points
    key = jax.random.key(0)
    line = landscape.Bezier.straight(first, second)
    plane = landscape.Plane.through(first, second, third)
    curve, _, losses = landscape.train_bend(
        loss_fn, SGD, line, SGD.init(line.bend), jnp.zeros(2), key
    )
    xs, ys = plane.grid(2)
    like = {"Bezier": curve(0.3), "train_bend": curve.bend, "Plane": plane(1.0, 2.0)}
    return {
        "like": like | {"y_axis": plane.y_axis},
        "losses": losses,
        "lengths": (curve.arc_length(), curve.chord_length()),
        "bend_loss": landscape.bend_loss(loss_fn)(third, first, second, key, None),
        "PlanePoint": plane.project(curve.bend),
        "evaluate_along": landscape.evaluate_along(line, jnp.array([0.3, 1]), loss_fn),
        "evaluate_grid": landscape.evaluate_grid(plane, xs, ys, loss_fn),
        "barrier_height": landscape.barrier_height(losses),
        "l2_over_l1": landscape.l2_over_l1(first),
    }


@pytest.fixture(scope="module")
def three_points():
    rng = np.random.default_rng(0)
    shapes = {"split": (4, 6), "columns": (4, 2), "replicated": ()}
    return [
        {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def expected(three_points):
    return calls(three_points)


def test_nothing_public_is_left_out(expected):
    public = {
        name
        for name, value in vars(landscape).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public <= expected.keys() | expected["like"].keys()


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def shardings(request):
    mesh = jax.make_mesh((2, 2), ("data", "model"), (request.param,) * 2)
    return jax.tree.map(functools.partial(NamedSharding, mesh), LAYOUT)


def assert_close(actual, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, actual, expected)


def assert_sharded(tree, shardings):
    for key, sharding in shardings.items():
        assert tree[key].sharding.is_equivalent_to(sharding, tree[key].ndim), key


@pytest.mark.parametrize("shardings", [AxisType.Explicit], indirect=True)
def test_sharded_weights_give_the_same_results(three_points, expected, shardings):
    actual = calls(jax.device_put(three_points, [shardings] * 3))
    assert_close(actual, expected)
    for tree in actual["like"].values():
        assert_sharded(tree, shardings)


def test_training_from_python_gives_the_same_results(three_points, expected, shardings):
    first, second, _ = jax.device_put(three_points, [shardings] * 3)
    line = landscape.Bezier.straight(first, second)
    curve, _, _ = landscape.train_bend(
        loss_fn, SGD, line, SGD.init(line.bend), np.zeros(2), jax.random.key(0)
    )
    assert_close(curve.bend, expected["like"]["train_bend"])
    assert_sharded(curve.bend, shardings)
