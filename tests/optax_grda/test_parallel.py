"""One result, however it is computed: vmap, pmap, shard_map and jit over a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_grda import (
    freeze_zeros,
    grda,
    label_by_path,
    proximal,
    sparsity,
    target_sparsity,
)

STEPS = 5


@pytest.fixture(scope="module")
def problem():
    """Params, and a batch that eight devices can split."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((8, 16)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(16), jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)
    return params, (x, jnp.sin(jnp.concatenate([x, -x], axis=1)))


def loss(params, batch):
    x, y = batch
    outputs = x @ params["kernel"] + params["bias"][None]
    return jnp.mean(jnp.square(outputs - y))


gradient = jax.grad(loss)


def step(params, state, batch, c=1.5, mu=0.6, gradient=gradient):
    updates, state = grda(0.1, c, mu).update(gradient(params, batch), state, params)
    return optax.apply_updates(params, updates), state


def train(step, params, state, batch):
    for _ in range(STEPS):
        params, state = step(params, state, batch)
    return params, state


@pytest.fixture(scope="module")
def expected(problem):
    """What a single device arrives at."""
    params, batch = problem
    params, state = train(jax.jit(step), params, grda(0.1).init(params), batch)
    assert 0.1 < sparsity(params) < 0.9
    return params, state


@pytest.fixture(scope="module")
def mesh():
    devices = jax.devices("cpu")
    assert len(devices) == 8
    return jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def assert_same(actual, expected):
    # Means over the batch are summed in another order: a few roundings of order one.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    jax.tree.map(close, actual, expected)


def test_vmap_trains_a_grid_of_c_and_mu_in_one_program(problem, caplog):
    params, batch = problem
    grid = [(c, mu) for c in (0.0, 1.5) for mu in (0.51, 0.6)]
    c, mu = jnp.array(grid).T

    @jax.jit
    def train_grid(c, mu):
        def train_one(c, mu):
            return jax.lax.fori_loop(
                0,
                STEPS,
                lambda _, carry: step(*carry, batch, c, mu),
                (params, grda(0.1).init(params)),
            )

        return jax.vmap(train_one)(c, mu)

    with jax.log_compiles():
        together = jax.device_get(train_grid(c, mu))
        assert caplog.text.count("Finished XLA compilation of jit(train_grid)") == 1

    for i, (c, mu) in enumerate(grid):
        one_step = jax.jit(functools.partial(step, c=c, mu=mu))
        alone = train(one_step, params, grda(0.1).init(params), batch)
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


def test_pmap_gives_the_single_device_result(problem, expected):
    params, batch = problem

    def mean_gradient(params, batch):
        return jax.lax.pmean(gradient(params, batch), "data")

    replicate = functools.partial(
        jax.tree.map, lambda leaf: jnp.broadcast_to(leaf[None], (8, *leaf.shape))
    )
    split = jax.tree.map(lambda leaf: leaf.reshape(8, -1, leaf.shape[-1]), batch)
    parallel_step = jax.pmap(
        functools.partial(step, gradient=mean_gradient),
        "data",
        devices=jax.devices("cpu"),
    )
    state = grda(0.1).init(params)
    results = jax.device_get(
        train(parallel_step, replicate(params), replicate(state), split)
    )
    for device in range(8):
        assert_same(jax.tree.map(lambda leaf, d=device: leaf[d], results), expected)


def test_shard_map_gives_the_single_device_result(problem, expected, mesh):
    params, batch = problem

    def mean_loss(params, batch):  # params are the same everywhere: so is its gradient
        return jax.lax.pmean(loss(params, batch), "data")

    parallel_step = jax.shard_map(
        functools.partial(step, gradient=jax.grad(mean_loss)),
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=(P(), P()),
    )
    state = grda(0.1).init(params)
    assert_same(train(jax.jit(parallel_step), params, state, batch), expected)


@pytest.mark.parametrize(
    "specs",
    [
        {"kernel": P(), "bias": P()},
        {"kernel": P(None, "data"), "bias": P("data")},
    ],
    ids=["replicated", "sharded"],
)
def test_jit_over_a_mesh_gives_the_single_device_result(problem, expected, mesh, specs):
    params, batch = problem
    params = {
        name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
        for name, leaf in params.items()
    }
    batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
    state = jax.jit(grda(0.1).init)(params)
    params, state = train(jax.jit(step), params, state, batch)
    assert_same((params, state), expected)
    for name, spec in specs.items():  # the accumulator lies where the params lie
        for leaf in params[name], state.accumulator[name]:
            sharding = NamedSharding(mesh, spec)
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize(
    "specs",
    [
        {"kernel": P("data"), "bias": P()},
        {"kernel": P(None, "data"), "bias": P("data")},
    ],
    ids=["rows", "units"],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        grda(0.1, 1.5, 0.6, momentum=0.5, nesterov=True, weight_decay=0.1),
        target_sparsity(0.1, 0.5, proximal=proximal.power(3)),
        grda(0.1, 1.5, proximal=proximal.groups(lambda *_: ("units", -1))),
        target_sparsity(
            *(0.1, 0.5),
            proximal=proximal.groups(lambda *_: ("units", -1), elementwise=0.5),
        ),
    ],
    ids=["grda", "power", "groups", "groups-and-weights"],
)
def test_explicit_axes_give_the_single_device_result(problem, specs, optimizer):
    """The axes of jax.make_mesh, where layouts are part of types."""
    params, _ = problem
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices("cpu"))
    sharded = {
        name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
        for name, leaf in params.items()
    }

    @jax.jit
    def two_steps(params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    actual, state = two_steps(sharded)
    assert_same((actual, state), two_steps(params))
    for name, leaf in sharded.items():
        for like in actual[name], state.accumulator[name]:
            assert like.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def members(c):
    """Optimizers of which every device has one of its own, by c."""
    yield grda(0.1, c)
    yield grda(c)
    yield target_sparsity(0.1, 0.5, momentum=c / 4)
    yield freeze_zeros(optax.sgd(0.1))


@pytest.mark.parametrize("number", range(4))
def test_state_keeps_its_type_in_a_scan_inside_shard_map(mesh, number):
    def train(params, c):
        (c,) = c
        optimizer = list(members(c))[number]

        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, optimizer.init(params)), length=3)[0][0]

    params, c = jnp.ones((8, 4)), jnp.linspace(0.1, 0.8, 8)
    together = jax.jit(
        jax.shard_map(
            train, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")
        )
    )(params, c)
    alone = jax.jit(train)(params[7:], c[7:])
    np.testing.assert_allclose(together[7:], alone, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        grda(0.1),
        target_sparsity(0.1, 0.5),
        optax.partition(
            {"sparse": target_sparsity(0.1, 0.5), "dense": optax.sgd(0.1)},
            label_by_path({"kernel": "sparse", "*": "dense"}),
        ),
    ],
    ids=["grda", "target", "partition"],
)
def test_optax_maps_over_the_params_in_a_state(problem, optimizer):
    state = optimizer.init(problem[0])
    marked = optax.tree.map_params(
        optimizer, lambda leaf: "params", state, transform_non_params=lambda leaf: "-"
    )
    assert {"params", "-"} == set(jax.tree.leaves(marked))
