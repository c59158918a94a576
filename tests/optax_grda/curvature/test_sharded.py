"""Every public function, with params split over a mesh: as on one device."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_grda import curvature

LAYOUT = {"split": P("data", "model"), "columns": P(None, "model"), "replicated": P()}


def model_fn(params, batch):
    return (
        batch @ params["split"]
        + jnp.square(batch) @ params["columns"]
        + params["replicated"][None]
    )


def output_loss(outputs, batch):
    return jnp.mean(jnp.sum(jnp.cosh(outputs), axis=1))


def loss_fn(params, batch):
    return output_loss(model_fn(params, batch), batch)


class Problem(NamedTuple):
    params: dict
    batches: jax.Array

    @property
    def hessian(self):
        return curvature.Hessian(loss_fn, *self)

    @property
    def gauss_newton(self):
        return curvature.GaussNewton(model_fn, output_loss, *self)

    @property
    def doubled(self):
        return jax.jit(lambda w: jax.tree.map(lambda x: 2 * x, w))(self.params)

    @property
    def stacked(self):
        stack = jax.jit(lambda w: jax.tree.map(lambda x: jnp.stack([x, x]), w))
        return stack(self.params)


CALLS = {
    "Hessian": lambda p: p.hessian(p.params),
    "GaussNewton": lambda p: p.gauss_newton(p.params),
    "diagonal": lambda p: p.gauss_newton.diagonal(chunk=3),
    "top_eigenpairs": lambda p: curvature.top_eigenpairs(p.hessian, p.params, 1),
    "directional_scores": lambda p: curvature.directional_scores(
        p.gauss_newton, p.params, 0.1, max_products=5
    ),
    "directional_pruning": lambda p: curvature.directional_pruning(
        p.params, p.doubled, 0.5
    ),
    "strength_for_sparsity": lambda p: curvature.strength_for_sparsity(
        p.params, p.doubled, 0.3
    ),
    "prune_smallest": lambda p: curvature.prune_smallest(p.params, p.doubled, 0.4),
    "projection_fraction": lambda p: curvature.projection_fraction(p.params, p.stacked),
    "agreement": lambda p: curvature.agreement(p.params, p.doubled, p.doubled),
}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        "split": rng.normal(size=(4, 4)),
        "columns": rng.normal(size=(4, 4)),
        "replicated": rng.normal(size=4),
    }
    return Problem(
        jax.device_put(jax.tree.map(np.float32, params)),
        jax.device_put(np.float32(rng.normal(size=(2, 4, 4)) / 4)),
    )


def split(problem, axis_type):
    mesh = jax.make_mesh((2, 2), ("data", "model"), (axis_type,) * 2)
    place = functools.partial(NamedSharding, mesh)
    shardings = Problem(jax.tree.map(place, LAYOUT), place(P(None, "data")))
    return jax.device_put(problem, shardings)


def test_nothing_public_is_left_out():
    public = {
        name
        for name, value in vars(curvature).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    results = {"DirectionalScores", "Eigenpairs", "Agreement"}
    assert public - results == CALLS.keys() - {"diagonal"}


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [(name, AxisType.Explicit) for name in CALLS]
    + [(name, AxisType.Auto) for name in ("Hessian", "top_eigenpairs")],
)
def test_sharded_params_give_the_same_results(problem, name, axis_type):
    sharded = split(problem, axis_type)
    expected, actual = CALLS[name](problem), CALLS[name](sharded)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, actual, expected)
    if axis_type == AxisType.Auto:  # shardings are the compiler's choice
        return
    # What is like params lies like them.
    if name == "directional_scores":
        actual = actual.scores
    if name == "top_eigenpairs":
        actual = jax.tree.map(lambda v: v[0], actual.eigenvectors)
    if isinstance(actual, dict):
        for key, leaf in actual.items():
            sharding = sharded.params[key].sharding
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), key
