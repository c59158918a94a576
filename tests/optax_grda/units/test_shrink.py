"""Smaller parameters compute the same, and keep no unit without influence."""

import itertools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optax_grda._paths import map_named, named_leaves
from optax_grda.units import find_units, shrink

# Networks whose widths are all taken from the parameters, heads apart.
FLEXIBLE = {
    "nnx transformer": ["attention/*"],
    "equinox block": ["attention/*"],
    "equinox cnn": [],
    "u-net": [],
    "scanned": [],
    "recurrent": [],
    "gru": [],
    "control flow": [],
    "fused heads": [],
    "gated": [],
    "stacked": [],
    "pixel shuffle": [],
}


@pytest.fixture(scope="session", params=FLEXIBLE)
def flexible(request, build):
    """A network, and the leaves whose shapes it fixes."""
    return build(request.param), FLEXIBLE[request.param]


def shapes(params):
    return {name: np.shape(leaf) for name, leaf in named_leaves(params)}


def compute(fn, params, args):
    rng = np.random.default_rng(1)
    values = [
        jnp.asarray(rng.standard_normal(arg.shape), arg.dtype)
        if jnp.issubdtype(arg.dtype, jnp.floating)
        else arg
        for arg in args
    ]
    return jax.tree.leaves(jax.jit(fn)(params, *values))


def assert_same(fn, params, small, args):
    for before, after in zip(
        compute(fn, params, args), compute(fn, small, args), strict=True
    ):
        atol = 1e-5 * np.abs(before).max(initial=0)
        np.testing.assert_allclose(after, before, rtol=0, atol=atol)


def test_one_unit_of_every_class_is_cut_out_of_all_its_members(flexible, silenced):
    (fn, params, args), keep = flexible
    units = find_units(fn, params, *args)
    stays = {
        name: [np.ones(length, bool) for length in shape]
        for name, shape in shapes(params).items()
    }
    for some in units.classes:
        if any(m.leaf.startswith("attention") for m in some.members) and keep:
            continue
        for member in some.members:
            stays[member.leaf][member.axis] &= member.index != 1
    small = shrink(fn, silenced(units, params, 1), *args, keep=keep)
    assert shapes(small) == {
        name: tuple(mask.sum() for mask in masks) for name, masks in stays.items()
    }


@st.composite
def patterns(draw):
    """What puts zeros into an array: slices of its axes, and single entries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([0.3, 0.6, 0.9]))

    def punch(name, leaf):
        values = np.array(leaf)
        for axis in range(values.ndim):
            dead = rng.random(values.shape[axis]) < rng.choice([0, most])
            np.moveaxis(values, axis, 0)[dead] = 0
        values[rng.random(values.shape) < rng.choice([0, most])] = 0
        return jnp.asarray(values)

    return punch


@hypothesis.settings(max_examples=3)
@given(punch=patterns())
def test_outputs_stay_whatever_is_zero(flexible, punch):
    (fn, params, args), keep = flexible
    sparse = map_named(punch, params)
    small = shrink(fn, sparse, *args, keep=keep)
    if shapes(small) != shapes(sparse):
        assert_same(fn, sparse, small, args)


def test_dense_networks_stay_as_they_are(flexible):
    (fn, params, args), keep = flexible
    small = shrink(fn, params, *args, keep=keep)
    for leaf, before in zip(
        jax.tree.leaves(small), jax.tree.leaves(params), strict=True
    ):
        assert leaf is before


@pytest.mark.parametrize("name", FLEXIBLE)
def test_dead_networks_keep_no_unit(name, build):
    (fn, params, args), keep = build(name), FLEXIBLE[name]
    dead = jax.tree.map(jnp.zeros_like, params)
    small = shrink(fn, dead, *args, keep=keep)
    for some in find_units(fn, params, *args).classes:
        for member in some.members:
            if not (keep and member.leaf.startswith("attention")):
                length = shapes(small)[member.leaf][member.axis]
                # JAX knows no convolution of no groups.
                least = (member.index == 0).sum() * (name == "u-net")
                assert length <= least + (member.index < 0).sum()


def mlp(params, x):
    for layer in params["layers"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["head"]


def mlp_params(*widths):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    *hidden, classes = widths
    layers = [
        {"kernel": draw(n, m), "bias": draw(m)} for n, m in itertools.pairwise(hidden)
    ]
    return {"layers": layers, "head": draw(hidden[-1], classes)}


X = jax.ShapeDtypeStruct((2, 4), jnp.float32)


def test_what_only_units_that_go_read_goes_as_well():
    params = mlp_params(4, 8, 6, 2)
    first, second = params["layers"]
    params["head"] = params["head"].at[3:].set(0)
    second["kernel"] = second["kernel"].at[2:5, :3].set(0)
    small = shrink(mlp, params, X)
    assert shapes(small) == {
        "layers/0/kernel": (4, 5),
        "layers/0/bias": (5,),
        "layers/1/kernel": (5, 3),
        "layers/1/bias": (3,),
        "head": (3, 2),
    }
    assert_same(mlp, params, small, [X])
    assert shapes(shrink(mlp, small, X)) == shapes(small)
    np.testing.assert_array_equal(
        first["kernel"][:, [0, 1, 5, 6, 7]], small["layers"][0]["kernel"]
    )


def test_constants_are_added_to_a_bias_behind_and_stay_where_there_is_none():
    params = mlp_params(4, 8, 6, 2)
    first, second = params["layers"]
    first["kernel"] = first["kernel"].at[:, :3].set(0)
    first["bias"] = first["bias"].at[:3].set(jnp.array([1.0, 2.0, -1.0]))
    second["kernel"] = second["kernel"].at[:, :2].set(0)
    second["bias"] = second["bias"].at[:2].set(jnp.array([3.0, -3.0]))
    small = shrink(mlp, params, X)
    assert shapes(small)["layers/0/kernel"] == (4, 5)
    # The head has no bias for the constant 3; ReLU makes -3 zero.
    assert shapes(small)["head"] == (5, 2)
    bias = second["bias"] + second["kernel"][0] + 2 * second["kernel"][1]
    np.testing.assert_allclose(
        small["layers"][1]["bias"], np.delete(bias, 1), rtol=1e-6
    )


@pytest.mark.parametrize(
    "use_twice",
    [
        lambda b, h: h * b[None],  # a bias with another use
        lambda b, h: h + jnp.tile(b, (2, 1)).sum(0)[None],
    ],
)
def test_constants_stay_where_the_bias_has_other_uses(use_twice):
    def fn(params, x):
        h = jax.nn.relu(x @ params["in"] + params["b"][None])
        h = h @ params["out"] + params["c"][None]
        return use_twice(params["c"], h)

    params = {
        "in": jnp.ones((4, 5)).at[:, 0].set(0),
        "b": jnp.ones(5),
        "out": jnp.ones((5, 3)),
        "c": jnp.ones(3),
    }
    assert shapes(shrink(fn, params, X)) == shapes(params)


def test_a_constant_must_be_one_at_every_place():
    def fn(params, x):
        h = x[:, None] @ params["in"] + params["positions"][None]
        return h @ params["out"] + params["bias"][None, None]

    params = {
        "in": jnp.ones((4, 3)).at[:, :2].set(0),
        "positions": jnp.stack([jnp.ones(5), jnp.arange(5.0), jnp.ones(5)], 1),
        "out": jnp.ones((3, 2)),
        "bias": jnp.zeros(2),
    }
    small = shrink(fn, params, X)
    # 1 everywhere goes into the bias; 0 to 4 by position doesn't.
    assert shapes(small)["in"] == (4, 2)
    np.testing.assert_allclose(small["bias"], [1, 1])


def test_a_unit_that_stays_elsewhere_keeps_what_makes_it_a_constant():
    """At one place of the stream a constant could be folded, at the next one not."""

    def fn(params, x):
        h = jax.nn.relu(params["a"] * jnp.ones((2, 1))) @ params["b"]  # constant
        y = jax.nn.relu(h @ params["c"] + params["bias"][None])
        h = h + x @ params["d"]
        return y @ params["e"] + h @ params["f"]

    rng = np.random.default_rng(0)
    sizes = {
        "a": (1, 3),
        "b": (3, 5),
        "c": (5, 6),
        "d": (4, 5),
        "e": (6, 2),
        "f": (5, 2),
    }
    params = {n: jnp.asarray(rng.random(s), jnp.float32) for n, s in sizes.items()}
    params["bias"] = jnp.ones(6)
    small = shrink(fn, params, X)
    assert_same(fn, params, small, [X])
    assert shapes(small)["b"] == (3, 5)


def test_params_that_are_not_used_become_empty_and_others_keep_their_kind():
    params = mlp_params(4, 6, 2) | {
        "unused": jnp.ones((3, 2)),
        "number": jnp.float32(2),
        "steps": jnp.arange(3),
        "key": jax.random.key(0),
    }
    small = shrink(mlp, params, X)
    assert small["unused"].shape == (3, 0)
    assert small["number"] is params["number"]
    assert small["layers"][0]["kernel"] is params["layers"][0]["kernel"]


def test_narrow_dtypes_stay_and_are_compared_by_their_roundings():
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), mlp_params(4, 8, 6, 2)
    )
    first = params["layers"][0]
    first["kernel"] = first["kernel"].at[:, :2].set(0)
    x = jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)
    small = shrink(mlp, params, x)
    assert shapes(small)["layers/0/kernel"] == (4, 6)
    assert {leaf.dtype for leaf in jax.tree.leaves(small)} == {jnp.dtype("bfloat16")}


def dead_column(kernel):
    return kernel.at[:, 1].set(0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda p, x: (x @ p["in"]).reshape(2, 6) @ p["out"],
            r"fails with smaller ones, at \S+test_shrink\.py:\d+: TypeError: .*reshape",
        ),
        (
            lambda p, x: x @ p["in"] @ p["out"] / np.sqrt(p["out"].shape[0]),
            r"something else .*, first at \S+test_shrink\.py:\d+: div with a number",
        ),
        (
            lambda p, x: jnp.concatenate([x @ p["in"]] * 2, 1)[:, 3:9] @ p["out"],
            r"smaller ones, (first )?at \S+test_shrink\.py:\d+",
        ),
    ],
    ids=["shape", "number", "slice"],
)
def test_what_fn_fixes_is_named_with_its_place(fn, message):
    params = {"in": dead_column(jnp.ones((4, 6))), "out": jnp.ones((6, 3))}
    with pytest.raises(ValueError, match=message):
        shrink(fn, params, X)
    assert shrink(fn, params, X, keep=["i*"]) == params


def test_modules_of_linen_fix_their_widths(build, silenced):
    fn, params, args = build("linen cnn")
    sparse = silenced(find_units(fn, params, *args), params, 1)
    with pytest.raises(
        ValueError, match=r"fails with smaller ones, at \S+linen.*shape"
    ):
        shrink(fn, sparse, *args)


def test_patterns_must_match():
    with pytest.raises(
        ValueError, match=r"keep must hold patterns .*'hed' matches none"
    ):
        shrink(mlp, mlp_params(4, 6, 2), X, keep=["hed"])


def test_classes_and_other_integers_are_compared_exactly():
    def fn(params, x):
        logits = mlp(params, x)
        return logits, jnp.argmax(logits, -1)

    params = mlp_params(4, 6, 3)
    params["layers"][0]["kernel"] = dead_column(params["layers"][0]["kernel"])
    params["layers"][0]["bias"] = params["layers"][0]["bias"].at[1].set(0)
    assert shapes(shrink(fn, params, X))["head"] == (5, 3)


@pytest.mark.parametrize(
    ("gates", "suffix", "left"),
    [
        ((0, 1, 2), ("kernel", "bias"), 5),
        # The gates of (1 - z) tanh(r 0) + z h don't matter: it stays 0, from h = 0.
        ((2,), ("kernel", "bias"), 5),
        # The same for all inputs, but not at all places of the text.
        ((0, 1, 2), ("kernel",), 6),
    ],
)
def test_a_recurrent_unit_goes_if_it_stays_zero(gates, suffix, left, build):
    fn, params, args = build("gru")
    columns = 6 * np.array(gates)

    def silence(name, leaf):
        if name.startswith(("inputs", "states")) and name.endswith(suffix):
            return leaf.at[..., columns].set(0)
        return leaf

    sparse = map_named(silence, params)
    small = shrink(fn, sparse, *args)
    assert shapes(small) == {
        "embedding/embedding": (11, 6),
        "inputs/kernel": (6, 3 * left),
        "inputs/bias": (3 * left,),
        "states/kernel": (left, 3 * left),
        "states/bias": (3 * left,),
        "head/kernel": (left, 11),
        "head/bias": (11,),
    }
    assert_same(fn, sparse, small, args)


@pytest.mark.parametrize(("readers", "left"), [((0,), 5), ((0, 3), 6)])
def test_a_recurrent_unit_goes_if_nothing_but_itself_reads_it(readers, left, build):
    fn, params, args = build("gru")

    def silence(name, leaf):
        if name == "states/kernel":
            return leaf.at[0].set(jnp.where(np.isin(np.arange(18) % 6, readers), 1, 0))
        return leaf.at[0].set(0) if name == "head/kernel" else leaf

    sparse = map_named(silence, params)
    small = shrink(fn, sparse, *args)
    assert shapes(small)["states/kernel"] == (left, 3 * left)
    assert_same(fn, sparse, small, args)


def test_depthwise_and_grouped_convolutions(build):
    fn, params, args = build("u-net")
    params = params | {
        "depthwise": params["depthwise"].at[..., 2].set(0),
        "d": params["d"].at[:, :, 4].set(0),
    }
    small = shrink(fn, params, *args)
    assert shapes(small)["depthwise"] == (3, 3, 1, 3)
    assert shapes(small)["c"] == (3, 3, 10, 3)
    assert_same(fn, params, small, args)
    assert re.search("depthwise", str(find_units(fn, params, *args)))


@pytest.mark.parametrize("shift", [1.0, 0.5])
def test_units_are_followed_through_padding_sums_and_updates(shift):
    """Of dead units cos(0) - shift is left, which must be 0 all the way."""

    def fn(params, x):
        hidden = jnp.cos(x @ params["in"]) - shift
        hidden = jnp.pad(hidden[:, None, :], ((0, 0), (1, 2), (0, 0)))
        hidden = jnp.flip(jnp.cumsum(hidden, axis=1), axis=1)
        longer = jnp.zeros((2, 6, hidden.shape[-1]))
        longer = jax.lax.dynamic_update_slice(longer, hidden, (0, 1, 0))
        return jnp.einsum("btu,uo->bto", longer, params["out"])

    rng = np.random.default_rng(0)
    dead = jnp.array([False, True, False, False, True])
    params = {
        "in": jnp.where(dead, 0, jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)),
        "out": jnp.asarray(rng.standard_normal((5, 2)), jnp.float32),
    }
    args = (jax.ShapeDtypeStruct((2, 3), jnp.float32),)
    small = shrink(fn, params, *args)
    left = 3 if shift == 1 else 5
    assert shapes(small) == {"in": (3, left), "out": (left, 2)}
    assert_same(fn, params, small, args)
