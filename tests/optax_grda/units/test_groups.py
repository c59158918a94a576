"""proximal.groups of found units: against loops, and over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optax_grda import grda, proximal
from optax_grda._paths import map_named, named_leaves
from optax_grda.units import find_units, shrink


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def oracle(units, tree, threshold, share):
    """Unit after unit, in float64."""
    groups = units.groups()
    result = {
        name: soft(np.float64(leaf), threshold * (share if name in groups else 1))
        for name, leaf in named_leaves(tree)
    }
    single = {
        name: soft(np.float64(leaf), threshold) for name, leaf in named_leaves(tree)
    }
    members = {}
    for name, group in groups.items():
        moved = np.moveaxis(result[name], group.axis, 0)
        moved[group.index < 0] = np.moveaxis(single[name], group.axis, 0)[
            group.index < 0
        ]
        for unit in range(group.units):
            part = moved[group.index == unit]
            members.setdefault((group.layer, unit), []).append(
                (moved, group.index == unit)
            )
            assert part.size
    for some in members.values():
        entries = np.concatenate([moved[where].ravel() for moved, where in some])
        rms = np.sqrt(np.mean(entries**2))
        bound = (1 - share) * threshold
        for moved, where in some:
            moved[where] *= 1 - bound / rms if rms > bound else 0
    return result


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("name", ["nnx transformer", "fused heads", "gated", "scanned"])
def test_agrees_with_loops_over_units(name, share, build):
    fn, params, args = build(name)
    units = find_units(fn, params, *args)
    by_unit = proximal.groups(units, elementwise=share)
    weights = jax.jit(by_unit)(params, jnp.float32(0.9))
    expected = oracle(units, params, np.float64(np.float32(0.9)), share)
    for path, leaf in named_leaves(weights):
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=5e-6)


def concatenated(params, x):
    """Half of an axis are units; the other half is an output."""
    h = x @ params["in"]
    return jax.nn.relu(h[:, :4]) @ params["out"], h[:, 4:]


CONCATENATED = {"in": (3, 7), "out": (4, 2)}


def test_entries_that_are_in_no_unit_are_thresholded_one_by_one():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in CONCATENATED.items()
    }
    units = find_units(concatenated, params, jnp.ones((1, 3)))
    np.testing.assert_array_equal(units.groups()["in"].index, [0, 1, 2, 3, -1, -1, -1])
    weights = proximal.groups(units, elementwise=0.25)(params, 0.8)
    expected = oracle(units, params, 0.8, 0.25)
    for name in params:
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        weights["in"][:, 4:], soft(np.asarray(params["in"])[:, 4:], 0.8), atol=1e-6
    )


@pytest.mark.parametrize("name", ["gated", "fused heads"])
def test_a_mesh_of_explicit_axes_changes_nothing(name, build):
    fn, params, args = build(name)
    by_unit = proximal.groups(find_units(fn, params, *args), elementwise=0.3)
    mesh = jax.make_mesh((2,), ("model",))

    def shard(path, leaf):
        axis = next((a for a, n in enumerate(leaf.shape) if n % 2 == 0), None)
        parts = ["model" if a == axis else None for a in range(leaf.ndim)]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*parts)))

    with jax.set_mesh(mesh):
        sharded = jax.jit(by_unit)(map_named(shard, params), jnp.float32(0.9))
    expected = jax.jit(by_unit)(params, jnp.float32(0.9))
    for (path, leaf), (_, other) in zip(
        named_leaves(sharded), named_leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6, err_msg=path)


def test_units_that_die_under_grda_can_be_cut(build):
    fn, params, args = build("recurrent")
    by_unit = proximal.groups(find_units(fn, params, *args))
    optimizer = grda(0.1, c=1.0, mu=0.6, proximal=by_unit)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(params, state, params)
    weights = jax.tree.map(jnp.add, params, updates)
    dead = np.all(np.asarray(weights["rec"]) == 0, axis=0)
    np.testing.assert_array_equal(np.asarray(weights["bias"]) == 0, dead)


def test_all_gates_of_a_recurrent_unit_become_zero_together_and_are_cut(build):
    fn, params, args = build("gru")
    units = find_units(fn, params, *args)
    weights = jax.jit(proximal.groups(units))(params, jnp.float32(0.95))
    leaves = dict(named_leaves(weights))
    zero = [
        np.all(np.asarray(leaves[name]) == 0, axis).reshape(3, 6)
        for name, axis in (
            *(("inputs/kernel", 0), ("states/kernel", 0)),
            *(("inputs/bias", ()), ("states/bias", ())),
        )
    ]
    dead = zero[0][0]
    assert 0 < dead.sum() < 6
    np.testing.assert_array_equal(zero, np.broadcast_to(dead, (4, 3, 6)))
    small = dict(named_leaves(shrink(fn, weights, *args)))
    assert small["states/kernel"].shape == (6 - dead.sum(), 18 - 3 * dead.sum())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"other": jnp.ones((3, 7))},
            "network whose weights are .*, got none for other",
        ),
        (
            {"in": jnp.ones((3, 6))},
            r"got 7 places along axis 1 of in, .* shape \(3, 6\)",
        ),
        ({"out": jnp.ones((4, 2))}, "groups must name a layer for at least one leaf"),
    ],
)
def test_units_of_another_network_are_refused(tree, message):
    params = {name: jnp.ones(shape) for name, shape in CONCATENATED.items()}
    by_unit = proximal.groups(find_units(concatenated, params, jnp.ones((1, 3))))
    with pytest.raises(ValueError, match=message):
        by_unit(tree, 0.1)
