import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_grda.curvature import GaussNewton, Hessian

# In float32, rounding of sums over hundreds of terms; a wrong factor shows at once.
PRECISIONS = [("float32", 1e-5), ("float64", 1e-12)]


def hessian_of(network):
    return Hessian(network.loss_fn, network.params, network.batches)


def gauss_newton_of(network):
    return GaussNewton(
        network.model_fn, network.cross_entropy, network.params, network.batches
    )


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_close(tree, expected, rtol):
    error = np.linalg.norm(flat(tree) - expected)
    assert error < rtol * np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize(
    ("operator_of", "dense"),
    [(hessian_of, "dense_hessian"), (gauss_newton_of, "dense_gauss_newton")],
)
def test_products_are_those_of_the_dense_matrix(
    network, random_like, request, operator_of, dense, dtype, rtol
):
    matrix = request.getfixturevalue(dense)
    with jax.enable_x64(dtype == "float64"):
        network = network.astype(dtype)
        vector = random_like(network.params)
        product = operator_of(network)(vector)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(product)} == {dtype}
        assert_close(product, matrix @ flat(vector), rtol)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_diagonal_is_that_of_the_dense_gauss_newton_matrix(
    network, dense_gauss_newton, dtype, rtol
):
    with jax.enable_x64(dtype == "float64"):
        diagonal = gauss_newton_of(network.astype(dtype)).diagonal()
        assert_close(diagonal, np.diag(dense_gauss_newton), rtol)


def test_gauss_newton_is_the_hessian_where_the_model_is_linear():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)

    def model_fn(params, batch):
        return batch @ params

    def loss_fn(outputs, batch):
        return jnp.mean(jnp.cosh(outputs))

    params, vector = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    gauss_newton = GaussNewton(model_fn, loss_fn, params, images)
    hessian = Hessian(lambda p, b: loss_fn(model_fn(p, b), b), params, images)
    assert_close(gauss_newton(vector), flat(hessian(vector)), 1e-6)


def test_gauss_newton_leaves_out_the_curvature_of_the_model():
    def model_fn(params, batch):
        return params[0] * params[1] * batch

    def loss_fn(outputs, batch):
        return jnp.mean(jnp.square(outputs - 5 * batch)) / 2

    params, batches = jnp.ones(2), jnp.ones((1, 1))
    gauss_newton = GaussNewton(model_fn, loss_fn, params, batches)
    hessian = Hessian(lambda p, b: loss_fn(model_fn(p, b), b), params, batches)
    # By hand: the gradient of a b is (1, 1), its curvature [[0, 1], [1, 0]], and the
    # slope of the loss -4. G is positive semidefinite, H is not.
    np.testing.assert_array_equal(jax.vmap(gauss_newton)(jnp.eye(2)), [[1, 1], [1, 1]])
    np.testing.assert_array_equal(jax.vmap(hessian)(jnp.eye(2)), [[1, -3], [-3, 1]])
    np.testing.assert_array_equal(gauss_newton.diagonal(), [1, 1])


@pytest.mark.parametrize("operator_of", [hessian_of, gauss_newton_of])
def test_stacking_does_not_matter(network, random_like, operator_of):
    one_batch = jax.tree.map(lambda x: x[None], network.whole)
    vector = random_like(network.params)
    expected = operator_of(network._replace(batches=one_batch))(vector)
    assert_close(operator_of(network)(vector), flat(expected), 1e-5)


def test_product_costs_at_most_three_gradients(network):
    """In floating-point operations as XLA counts them: times would be flaky."""

    def mean_gradient(params, batches):
        def mean_loss(params):
            losses = jax.lax.map(lambda b: network.loss_fn(params, b), batches)
            return jnp.mean(losses)

        return jax.grad(mean_loss)(params)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    gradient = flops(mean_gradient, network.params, network.batches)
    for operator in (hessian_of(network), gauss_newton_of(network)):
        product = flops(lambda A, v: A(v), operator, network.params)
        assert gradient < product < 3 * gradient


def test_operators_are_arguments_under_jit_and_compile_once(network, random_like):
    traces = []

    def loss_fn(params, batch):
        traces.append(None)
        return network.loss_fn(params, batch)

    @jax.jit
    def apply(operator, vector):
        return operator(vector)

    vector = random_like(network.params)
    for seed in range(3):
        params = random_like(network.params, seed)
        product = apply(Hessian(loss_fn, params, network.batches), vector)
        expected = hessian_of(network._replace(params=params))(vector)
        assert_close(product, flat(expected), 1e-5)
        if seed == 0:
            traces.clear()
    assert not traces


@pytest.mark.parametrize("operator_of", [hessian_of, gauss_newton_of])
def test_product_is_sharded_as_the_params_are(network, random_like, operator_of):
    mesh = jax.make_mesh((2, 4), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    columns = {"kernel": P(None, "model"), "bias": P("model")}
    rows = {"kernel": P("model", None), "bias": P()}
    shardings = jax.tree.map(
        functools.partial(NamedSharding, mesh), {"hidden": columns, "logits": rows}
    )
    vector = random_like(network.params)
    expected = operator_of(network)(vector)
    split = network._replace(
        params=jax.device_put(network.params, shardings),
        batches=jax.device_put(network.batches, NamedSharding(mesh, P(None, "data"))),
    )
    product = operator_of(split)(jax.device_put(vector, shardings))
    assert_close(product, flat(expected), 1e-5)
    for leaf, sharding in zip(
        jax.tree.leaves(product), jax.tree.leaves(shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize(
    "batches",
    [(jnp.ones((2, 3)), jnp.ones(3)), jnp.ones(()), jnp.ones((0, 3)), ()],
    ids=["unequal", "scalar", "empty", "none"],
)
def test_batches_must_be_stacked(batches):
    hessian = Hessian(lambda w, x: jnp.sum(w), jnp.ones(3), batches)
    with pytest.raises(
        ValueError, match="batches must have leaves with a leading axis"
    ):
        hessian(jnp.ones(3))
