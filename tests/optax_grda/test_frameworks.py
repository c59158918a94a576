"""Flax NNX, Flax Linen and Equinox: each trains as a plain pytree does.

The same network, from the same weights, in each. What was trained is reported, labelled
and packed under the names that its framework gives.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

from optax_grda import grda, label_by_path, label_by_rank, sparsity, sparsity_report
from optax_grda.packing import pack, unpack

OPTIMIZER = optax.partition(
    {"sparse": grda(0.1, c=0.5, mu=0.6), "dense": optax.sgd(0.1)},
    label_by_rank({0: "dense", 2: "sparse"}),
)
STEPS = 5
SHAPES = [(8,), (4, 8), (2,), (8, 2)]  # bias and kernel of two layers


@pytest.fixture(scope="module")
def start():
    """Biases and kernels, layer by layer."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32) for shape in SHAPES]


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).standard_normal((16, 4)), jnp.float32)


@pytest.fixture(scope="module")
def expected(start, x):
    """What every framework must arrive at."""

    def loss(params):
        bias, kernel, head_bias, head_kernel = params
        hidden = jax.nn.relu(x @ kernel + bias[None])
        return squared_error(hidden @ head_kernel + head_bias[None], x)

    @jax.jit
    def step(params, state):
        updates, state = OPTIMIZER.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, OPTIMIZER.init(start)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert 0.1 < sparsity(params) < 0.9
    return params


def squared_error(outputs, x):
    return jnp.mean(jnp.square(outputs - jnp.sin(x[:, :2])))


def with_leaves(tree, leaves):
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check(params, expected, names, path):
    """Trained params, their names, and their file."""
    # The same float32 operations in another program: a few roundings of order one.
    for leaf, wanted in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-6)
    assert [leaf.path for leaf in sparsity_report(params).leaves] == names
    labels = label_by_path({"*bias": "dense", "*": "sparse"})(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert jax.tree.leaves(labels) == [
        "dense" if name.endswith("bias") else "sparse" for name in names
    ]
    pack(params, path)
    restored = unpack(path, like=params)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs)])
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def test_flax_nnx(start, x, expected, tmp_path):
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: NnxMlp(nnx.Rngs(0))))
    # By name, the head comes before the layers.
    model = nnx.merge(graphdef, with_leaves(shapes, start[2:] + start[:2]))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: squared_error(model(x), x))(model)
        optimizer.update(model, gradients)

    for _ in range(STEPS):
        step(model, optimizer)

    check(
        nnx.state(model, nnx.Param),
        expected[2:] + expected[:2],
        ["head/bias", "head/kernel", "layers/0/bias", "layers/0/kernel"],
        tmp_path / "params",
    )


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        boxed = linen.with_partitioning(linen.initializers.zeros, (None, "model"))
        x = linen.relu(linen.Dense(8, kernel_init=boxed)(x))
        return linen.Dense(2)(x)


def test_flax_linen(start, x, expected, tmp_path):
    model = LinenMlp()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    state = TrainState.create(
        apply_fn=model.apply, params=with_leaves(shapes, start), tx=OPTIMIZER
    )

    @jax.jit
    def step(state):
        def loss(params):
            return squared_error(state.apply_fn({"params": params}, x), x)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(STEPS):
        state = step(state)

    assert isinstance(state.params["Dense_0"]["kernel"], linen.Partitioned)
    names = ["Dense_0/bias", "Dense_0/kernel", "Dense_1/bias", "Dense_1/kernel"]
    check(state.params, expected, names, tmp_path / "params")


def test_equinox(start, x, expected, tmp_path):
    def transposed(leaves):  # Equinox has weights of (outputs, inputs), before biases
        return [leaf.T for pair in (leaves[1::-1], leaves[:1:-1]) for leaf in pair]

    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 4, 2, 8, depth=1, key=jax.random.key(0))
    shapes, static = eqx.partition(
        shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    model = eqx.combine(with_leaves(shapes, transposed(start)), static)

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(lambda model: squared_error(jax.vmap(model)(x), x))(
            model
        )
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state

    state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        model, state = step(model, state)

    check(
        eqx.filter(model, eqx.is_inexact_array),
        transposed(expected),
        ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"],
        tmp_path / "params",
    )
    for function in sparsity, sparsity_report, label_by_path({"*": "sparse"}):
        with pytest.raises(TypeError, match=r"at activation: .* eqx\.filter\(model, "):
            function(model)
