"""A network of 1,210 parameters, trained on digits, and its curvature in full.

Training and both matrices are NumPy's, in float64, with derivatives by hand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

IMAGES, BATCHES = 192, 4
PIXELS, HIDDEN, CLASSES = 64, 16, 10


class Network(NamedTuple):
    params: dict
    batches: tuple  # images (4, 48, 64) and labels (4, 48)

    def astype(self, dtype):
        def cast(x):
            floats = jnp.issubdtype(x.dtype, jnp.floating)
            return jnp.asarray(np.asarray(x).astype(dtype)) if floats else x

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


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads of BLAS are slow where tests share the cores."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def flat():
    """A pytree as one vector, on the host."""

    def flatten(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    return flatten


@pytest.fixture(scope="session")
def unflat():
    """A vector as a pytree like another, of its dtypes, on the host."""

    def unflatten(vector, like):
        leaves, structure = jax.tree.flatten(like)
        parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return structure.unflatten(
            part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        )

    return unflatten


@pytest.fixture(scope="session")
def random_like(unflat):
    """Pytrees of normal entries, the same in every dtype."""

    def make(tree, seed=0):
        size = sum(leaf.size for leaf in jax.tree.leaves(tree))
        entries = np.random.default_rng(seed).normal(size=size)
        return jax.tree.map(jnp.asarray, unflat(entries, tree))

    return make


@pytest.fixture(scope="session")
def digits():
    """Images (192, 64) in [0, 1], and labels as rows of the identity."""
    images, labels = load_digits(return_X_y=True)
    return images[:IMAGES] / 16, np.eye(CLASSES)[labels[:IMAGES]]


def forward(weights, images):
    """Hidden units, and the probabilities of the classes."""
    kernel, bias, out_kernel, out_bias = weights
    hidden = np.maximum(images @ kernel + bias, 0)
    logits = hidden @ out_kernel + out_bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, p / p.sum(axis=1, keepdims=True)


@pytest.fixture(scope="session")
def trained(digits):
    """Kernel and bias of hidden layer and logits, after 500 epochs of SGD."""
    images, targets = digits
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(size=(PIXELS, HIDDEN)) * (2 / PIXELS) ** 0.5,
        np.zeros(HIDDEN),
        rng.normal(size=(HIDDEN, CLASSES)) * (2 / HIDDEN) ** 0.5,
        np.zeros(CLASSES),
    ]
    size = IMAGES // BATCHES
    for step in range(500 * BATCHES):
        batch = slice(step % BATCHES * size, (step % BATCHES + 1) * size)
        hidden, p = forward(weights, images[batch])
        slope = (p - targets[batch]) / size
        back = slope @ weights[2].T * (hidden > 0)
        gradients = images[batch].T @ back, back.sum(0), hidden.T @ slope, slope.sum(0)
        for w, g in zip(weights, gradients, strict=True):
            w -= 0.2 * g
    return [w.astype(np.float32) for w in weights]


@pytest.fixture(scope="session")
def network(digits, trained):
    images, targets = digits
    batches = (
        jnp.asarray(images.reshape(BATCHES, -1, PIXELS), jnp.float32),
        jnp.asarray(targets.argmax(axis=1).reshape(BATCHES, -1), jnp.int32),
    )
    kernel, bias, out_kernel, out_bias = map(jnp.asarray, trained)
    params = {
        "hidden": {"kernel": kernel, "bias": bias},
        "logits": {"kernel": out_kernel, "bias": out_bias},
    }
    return Network(params, batches)


@pytest.fixture(scope="session")
def dense(digits, trained):
    """The Hessian and the Gauss-Newton matrix, entries in the order of ``flat``."""
    images, targets = digits
    weights = [w.astype(np.float64) for w in trained]
    hidden, p = forward(weights, images)
    on = (hidden > 0).astype(np.float64)
    # What a logit c gains per unit of each parameter: (images, c, parameter).
    through = on[:, None, :] * weights[2].T
    each = np.eye(CLASSES)
    jacobian = np.concatenate(
        [
            through,  # hidden/bias
            np.einsum("ni,ncj->ncij", images, through).reshape(IMAGES, CLASSES, -1),
            np.broadcast_to(each, (IMAGES, CLASSES, CLASSES)),  # logits/bias
            np.einsum("nj,cd->ncjd", hidden, each).reshape(IMAGES, CLASSES, -1),
        ],
        axis=2,
    )
    curved = p[:, :, None] * (
        jacobian - np.einsum("nc,ncd->nd", p, jacobian)[:, None, :]
    )
    size = jacobian.shape[2]
    gauss_newton = jacobian.reshape(-1, size).T @ curved.reshape(-1, size) / IMAGES
    # The model bends where a parameter before unit j meets one behind it.
    bend = np.einsum("ni,nj,nc->ijc", images, on, p - targets) / IMAGES
    bend_bias = np.einsum("nj,nc->jc", on, p - targets) / IMAGES
    hessian = gauss_newton.copy()
    start, behind = HIDDEN, size - HIDDEN * CLASSES
    for j in range(HIDDEN):
        columns = behind + j * CLASSES + np.arange(CLASSES)
        rows = start + np.arange(PIXELS) * HIDDEN + j
        for at, values in (([j], bend_bias[j][None]), (rows, bend[:, j])):
            hessian[np.ix_(at, columns)] += values
            hessian[np.ix_(columns, at)] += values.T
    return hessian, gauss_newton


@pytest.fixture(scope="session")
def dense_hessian(dense):
    return dense[0]


@pytest.fixture(scope="session")
def dense_gauss_newton(dense):
    return dense[1]
