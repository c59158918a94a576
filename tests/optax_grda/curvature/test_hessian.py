import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda.curvature import GaussNewton, Hessian


def hessian_of(network):
    return Hessian(network.loss_fn, network.params, network.batches)


def gauss_newton_of(network):
    return GaussNewton(
        network.model_fn, network.cross_entropy, network.params, network.batches
    )


@pytest.fixture
def assert_close(flat):
    def check(tree, expected, rtol):
        error = np.linalg.norm(flat(tree) - expected)
        assert error < rtol * np.linalg.norm(expected)

    return check


@pytest.mark.parametrize(
    ("operator_of", "fixture", "dtype", "rtol"),
    [
        (hessian_of, "dense_hessian", "float64", 1e-12),
        (gauss_newton_of, "dense_gauss_newton", "float64", 1e-12),
        # Rounding of sums over hundreds of terms.
        (hessian_of, "dense_hessian", "float32", 1e-5),
    ],
)
def test_products_are_those_of_the_dense_matrix(
    network, random_like, flat, assert_close, request, operator_of, fixture, dtype, rtol
):
    matrix = request.getfixturevalue(fixture)
    with jax.enable_x64(dtype == "float64"):
        network = network.astype(dtype)
        vector = random_like(network.params)
        product = operator_of(network)(vector)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(product)} == {dtype}
        assert_close(product, matrix @ flat(vector), rtol)


def test_diagonal_is_that_of_the_dense_gauss_newton_matrix(
    network, dense_gauss_newton, assert_close
):
    with jax.enable_x64(True):
        diagonal = gauss_newton_of(network.astype(jnp.float64)).diagonal()
        assert {leaf.dtype.name for leaf in jax.tree.leaves(diagonal)} == {"float64"}
        assert_close(diagonal, np.diag(dense_gauss_newton), 1e-12)


@pytest.fixture
def linear():
    """A linear model of three outputs under a loss that is not quadratic."""

    def model_fn(params, batch):
        return batch @ params

    def loss_fn(outputs, batch):
        return jnp.mean(jnp.cosh(outputs))

    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)
    params = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    gauss_newton = GaussNewton(model_fn, loss_fn, params, images)
    hessian = Hessian(lambda p, b: loss_fn(model_fn(p, b), b), params, images)
    diagonal = np.einsum("bni,bno->io", np.square(images), np.cosh(images @ params)) / (
        2 * 8 * 3
    )
    return gauss_newton, hessian, diagonal


def test_gauss_newton_is_the_hessian_where_the_model_is_linear(linear, assert_close):
    gauss_newton, hessian, _ = linear
    vector = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    assert_close(gauss_newton(vector), np.ravel(hessian(vector)), 1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_chunks_of_examples_do_not_matter(linear, chunk):
    gauss_newton, _, diagonal = linear
    found = gauss_newton.diagonal(chunk=chunk)
    np.testing.assert_allclose(found, diagonal, rtol=1e-5)
    if chunk == 3:
        under_jit = jax.jit(lambda matrix: matrix.diagonal(chunk=chunk))(gauss_newton)
        np.testing.assert_allclose(under_jit, diagonal, rtol=1e-5)


@pytest.mark.parametrize(
    ("chunk", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)]
)
def test_chunk_is_a_number_of_examples(linear, chunk, error):
    with pytest.raises(error, match=f"chunk must be an integer >= 1, got {chunk}"):
        linear[0].diagonal(chunk=chunk)


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
    axes = np.eye(2, dtype=np.float32)
    assert [gauss_newton(v).tolist() for v in axes] == [[1, 1], [1, 1]]
    assert [hessian(v).tolist() for v in axes] == [[1, -3], [-3, 1]]
    np.testing.assert_array_equal(gauss_newton.diagonal(), [1, 1])


def test_product_costs_at_most_three_gradients(network):
    """In floating-point operations as XLA counts them: times would be flaky."""
    one_batch = jax.tree.map(lambda x: x[None], network.whole)
    network = network._replace(batches=one_batch)

    def mean_gradient(params, batches):
        return jax.grad(network.loss_fn)(params, jax.tree.map(lambda x: x[0], batches))

    def flops(function, *args):
        return jax.jit(function).lower(*args).cost_analysis()["flops"]

    gradient = flops(mean_gradient, network.params, network.batches)
    for operator in (hessian_of(network), gauss_newton_of(network)):
        product = flops(lambda A, v: A(v), operator, network.params)
        assert gradient < product < 3 * gradient


def test_operators_are_arguments_under_jit_and_compile_once(linear, assert_close):
    _, hessian, _ = linear
    traces = []

    def loss_fn(params, batch):
        traces.append(None)
        return hessian.loss_fn(params, batch)

    @jax.jit
    def apply(operator, vector):
        return operator(vector)

    vector = np.ones((5, 3), np.float32)
    for scale in (1, 2, 3):
        operator = Hessian(loss_fn, vector / scale, hessian.batches)
        assert_close(apply(operator, vector), np.ravel(operator(vector)), 1e-5)
        if scale == 1:
            traces.clear()
    assert not traces


def test_called_from_python_it_loops_there(linear, monkeypatch):
    """Loops inside programs slow convolutions down on a CPU."""
    monkeypatch.setattr(jax.lax, "scan", None)
    monkeypatch.setattr(jax.lax, "while_loop", None)
    gauss_newton, _, _ = linear
    gauss_newton(gauss_newton.params)
    gauss_newton.diagonal(chunk=3)


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


def test_examples_must_be_stacked(linear):
    gauss_newton, _, _ = linear
    batches = (gauss_newton.batches, jnp.ones((2, 7)))
    with pytest.raises(ValueError, match=r"leading axis .* shapes \[\(8, 5\), \(7,\)"):
        GaussNewton(
            gauss_newton.model_fn, gauss_newton.loss_fn, gauss_newton.params, batches
        ).diagonal()
