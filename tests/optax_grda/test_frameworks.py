"""grda in Flax NNX, Flax Linen and Equinox: each trains as a plain pytree does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from flax.training.train_state import TrainState

from optax_grda import grda, label_by_path, label_by_rank, sparsity, sparsity_report

OPTIMIZER = optax.partition(
    {"sparse": grda(0.1, c=0.5, mu=0.6), "dense": optax.sgd(0.1)},
    label_by_rank({0: "dense", 2: "sparse"}),
)
STEPS = 5


def data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((16, 4)), jnp.float32)


def squared_error(outputs, inputs):
    return jnp.mean(jnp.square(outputs - jnp.sin(inputs[:, :2])))


def train_plain(loss, params):
    """What every framework must arrive at: params after STEPS steps."""

    @jax.jit
    def step(params, state):
        updates, state = OPTIMIZER.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = OPTIMIZER.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def assert_same_and_sparse(actual, expected):
    # The same float32 operations in another program: a few roundings of order one.
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6)
    assert 0.1 < sparsity(actual) < 0.9


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def test_flax_nnx_optimizer():
    model, x = NnxMlp(nnx.Rngs(0)), data()
    graphdef, params = nnx.split(model, nnx.Param)
    expected = train_plain(
        lambda params: squared_error(nnx.merge(graphdef, params)(x), x),
        jax.tree.map(jnp.copy, params),
    )

    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: squared_error(model(x), x))(model)
        optimizer.update(model, gradients)

    for _ in range(STEPS):
        step(model, optimizer)

    actual = nnx.state(model, nnx.Param)
    assert_same_and_sparse(actual, expected)
    assert [leaf.path for leaf in sparsity_report(actual).leaves] == [
        "head/bias",
        "head/kernel",
        "hidden/bias",
        "hidden/kernel",
        "layers/0/bias",
        "layers/0/kernel",
    ]


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.relu(linen.Dense(8)(x)))


def test_flax_linen_train_state():
    model, x = LinenMlp(), data()
    params = model.init(jax.random.key(0), x)["params"]

    def loss(params):
        return squared_error(model.apply({"params": params}, x), x)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = TrainState.create(apply_fn=model.apply, params=params, tx=OPTIMIZER)
    for _ in range(STEPS):
        state = step(state)

    assert_same_and_sparse(state.params, train_plain(loss, params))
    assert [leaf.path for leaf in sparsity_report(state.params).leaves] == [
        "Dense_0/bias",
        "Dense_0/kernel",
        "Dense_1/bias",
        "Dense_1/kernel",
    ]


def test_equinox_module():
    model, x = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0)), data()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(model):
        return squared_error(jax.vmap(model)(x), x)

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state

    state = OPTIMIZER.init(params)
    for _ in range(STEPS):
        model, state = step(model, state)

    actual = eqx.filter(model, eqx.is_inexact_array)
    expected = train_plain(lambda p: loss(eqx.combine(p, static)), params)
    assert_same_and_sparse(actual, expected)
    assert [leaf.path for leaf in sparsity_report(actual).leaves] == [
        "layers/0/weight",
        "layers/0/bias",
        "layers/1/weight",
        "layers/1/bias",
    ]


def test_label_by_path_sees_the_paths_of_every_framework():
    label = label_by_path({"*bias": "dense", "*": "sparse"})
    nnx_params = nnx.state(NnxMlp(nnx.Rngs(0)), nnx.Param)
    linen_params = LinenMlp().init(jax.random.key(0), data())
    mlp = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
    for params in nnx_params, linen_params, eqx.filter(mlp, eqx.is_inexact_array):
        labels = jax.tree.leaves(label(params))
        ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(params)]
        assert labels == ["dense" if rank == 1 else "sparse" for rank in ranks]
