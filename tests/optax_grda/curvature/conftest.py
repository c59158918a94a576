"""A network of 2,410 parameters, trained on digits, and its curvature in full."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

IMAGES, BATCHES = 192, 4  # a batch divides among eight devices


class Network(NamedTuple):
    params: dict
    batches: tuple  # images (4, 48, 64) and labels (4, 48)

    def astype(self, dtype):
        def cast(x):
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return Network(*jax.tree.map(cast, tuple(self)))

    @property
    def whole(self):
        """All images in one batch."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.batches)

    @staticmethod
    def model_fn(params, batch):
        hidden = batch[0] @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]
        return (
            jax.nn.relu(hidden) @ params["logits"]["kernel"]
            + params["logits"]["bias"][None]
        )

    @staticmethod
    def cross_entropy(logits, batch):
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], 1)
        return -jnp.mean(picked)

    @staticmethod
    def loss_fn(params, batch):
        return Network.cross_entropy(Network.model_fn(params, batch), batch)


@pytest.fixture
def random_like():
    """Pytrees of normal entries, the same in every dtype."""

    def make(tree, seed=0):
        flat, unravel = ravel_pytree(tree)
        entries = np.random.default_rng(seed).normal(size=flat.size)
        return unravel(jnp.asarray(entries, flat.dtype))

    return make


@pytest.fixture(scope="session")
def network():
    images, labels = load_digits(return_X_y=True)
    batches = (
        jnp.asarray(images[:IMAGES].reshape(BATCHES, -1, 64) / 16, jnp.float32),
        jnp.asarray(labels[:IMAGES].reshape(BATCHES, -1), jnp.int32),
    )
    keys = jax.random.split(jax.random.key(0))
    params = {
        name: {
            "kernel": jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for name, key, shape in zip(
            ("hidden", "logits"), keys, ((64, 32), (32, 10)), strict=True
        )
    }

    def step(params, n):
        batch = jax.tree.map(lambda x: x[n % BATCHES], batches)
        gradient = jax.grad(Network.loss_fn)(params, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient), None

    params, _ = jax.jit(lambda p: jax.lax.scan(step, p, jnp.arange(2000)))(params)
    return Network(params, batches)


@pytest.fixture(scope="session")
def dense_hessian(network):
    """In float64, reverse over reverse (the library takes forward over reverse)."""
    with jax.enable_x64(True):
        network = network.astype(jnp.float64)
        flat, unravel = ravel_pytree(network.params)

        def row(unit):
            def slope(w):
                loss, pullback = jax.vjp(
                    lambda w: Network.loss_fn(unravel(w), network.whole), w
                )
                return jnp.vdot(pullback(jnp.ones_like(loss))[0], unit)

            return jax.grad(slope)(flat)

        rows = jax.jit(lambda x: jax.lax.map(row, x, batch_size=64))
        return np.asarray(rows(jnp.eye(flat.size)))


@pytest.fixture(scope="session")
def dense_gauss_newton(network):
    """In float64, from the Jacobian of the logits."""
    with jax.enable_x64(True):
        network = network.astype(jnp.float64)
        flat, unravel = ravel_pytree(network.params)

        def logits(w):
            return Network.model_fn(unravel(w), network.whole)

        p = np.asarray(jax.nn.softmax(logits(flat)))
        jacobian = np.asarray(jax.jit(jax.jacrev(logits))(flat))
    curved = p[:, :, None] * (
        jacobian - np.einsum("nc,ncd->nd", p, jacobian)[:, None, :]
    )
    return jacobian.reshape(-1, flat.size).T @ curved.reshape(-1, flat.size) / IMAGES
