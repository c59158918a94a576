"""One name for a leaf, whatever holds it, and differences told by names."""

import collections
import dataclasses
import re
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.core import meta

from optax_grda._paths import (
    dtype_of,
    map_named,
    named_leaves,
    structure_difference,
    weights_of,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: jax.Array
    key: jax.Array
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scale:
    value: jax.Array


@jax.tree_util.register_pytree_node_class
class Keyless:
    """A node whose children have places and no keys."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def names(tree):
    return [name for name, _ in named_leaves(tree)]


class Noisy(nnx.Module):
    """Weights, statistics, a count and a key, and an attribute named as a box's is."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.value = nnx.Param({"value": jnp.ones(2)})


@pytest.fixture(scope="module")
def noisy():
    return nnx.eval_shape(Noisy)


NOISY = [
    "drop/rngs/count",
    "drop/rngs/key",
    "layers/0/bias",
    "layers/0/kernel",
    "norm/bias",
    "norm/mean",
    "norm/scale",
    "norm/var",
    "value/value",
]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (1.0, [""]),
        ({"b": 1.0, "a": [2.0, (3.0,)]}, ["a/0", "a/1/0", "b"]),
        ({7: 1.0, 10: {"x/y": 2.0}}, ["7", "10/x/y"]),
        (collections.namedtuple("Pair", "one two")(1.0, 2.0), ["one", "two"]),
        (Keyless(1.0, Keyless(2.0)), ["0", "1/0"]),
        (Attention(1.0, 2.0, 3.0), ["query", "key", "value"]),
        ({"scale": Scale(1.0)}, ["scale/value"]),
        (Scale(1.0), ["value"]),
        (nnx.Param(1.0), [""]),
        ({"value": nnx.Param(Scale(1.0))}, ["value/value"]),
        (
            {"a": meta.Partitioned(linen.LogicallyPartitioned(1.0, ()), ()), "b": 2.0},
            ["a", "b"],
        ),
        ({"a": None, "b": (), "c": nnx.Param(None)}, []),
    ],
)
def test_names(tree, expected):
    assert names(tree) == expected
    leaves = [leaf for _, leaf in named_leaves(tree)]
    assert leaves == jax.tree.leaves(tree)


def test_nnx_module_state_and_pure_dict_agree(noisy):
    state = nnx.state(noisy)
    assert names(noisy) == names(state) == names(nnx.to_pure_dict(state)) == NOISY


def test_weights_are_the_float_and_complex_leaves(noisy):
    assert [name for name, _ in weights_of(nnx.state(noisy))] == NOISY[2:]
    dtypes = ["float32", "complex64", "bfloat16", "float8_e4m3fn", "int8", "bool"]
    tree = [jax.ShapeDtypeStruct((2,), dtype) for dtype in dtypes]
    assert [name for name, _ in weights_of(tree)] == ["0", "1", "2", "3"]
    assert [leaf for _, leaf in weights_of([1, 2.0, True, 3j])] == [2.0, 3j]


def test_dtypes_of_arrays_keys_and_numbers():
    assert dtype_of(np.zeros(2, "f2")) == np.float16
    assert jnp.issubdtype(dtype_of(jax.random.key(0)), jax.dtypes.prng_key)
    assert dtype_of(1.0) == np.float32


def test_two_leaves_of_one_name():
    message = re.escape(
        "updates must not hold two leaves named 'a/b': got one at ['a']['b'] and one "
        "at ['a/b']"
    )
    with pytest.raises(ValueError, match=message):
        named_leaves({"a/b": 1.0, "a": {"b": 2.0}}, "updates")


@pytest.mark.parametrize("leaf", ["text", object(), jnp.float32, np.float32, jnp.sum])
def test_leaf_that_is_no_array(leaf):
    message = f"params must hold nothing but arrays, got {type(leaf).__name__} at a/0"
    with pytest.raises(TypeError, match=re.escape(message)):
        named_leaves({"a": [leaf]})
    with pytest.raises(TypeError, match="at the root: leave it out"):
        weights_of(leaf)


def test_error_says_how_to_filter_an_equinox_module():
    class Layer(eqx.Module):
        weight: np.ndarray
        activation: Callable

    model = Layer(np.ones(2), jax.nn.relu)
    with pytest.raises(TypeError, match=r"at activation: .* eqx\.filter\(model, eqx\."):
        weights_of(model)
    assert names(eqx.filter(model, eqx.is_inexact_array)) == ["weight"]


def test_map_named_keeps_the_structure(noisy):
    state = nnx.state(noisy)
    lengths = map_named(lambda name, leaf: (len(name), leaf.ndim), state)
    assert nnx.to_pure_dict(lengths)["layers"][0] == {
        "bias": (13, 1),
        "kernel": (15, 2),
    }


LINEAR = {"kernel": 1.0, "bias": 2.0}


@pytest.mark.parametrize(
    ("expected", "tree", "difference"),
    [
        (LINEAR, {"kernel": 3.0, "bias": 4.0}, ""),
        (LINEAR, {"kernel": 1.0}, "missing 'bias'"),
        ({"a": LINEAR}, {"a": LINEAR, "b": 1.0}, "unexpected 'b'"),
        (
            {"a": LINEAR},
            LINEAR,
            "missing 'a/bias', 'a/kernel', unexpected 'bias', 'ker",
        ),
        ([0.0] * 7, [], "missing '0', '1', '2', '3', '4' and 2 more"),
        (1.0, LINEAR, "missing '', unexpected 'bias', 'kernel'"),
        ((1.0, [2.0]), (1.0, (2.0,)), "tuple in place of list at 1"),
        ({"a": [1.0]}, {"a": {0: 1.0}}, "dict in place of list at a"),
        ({"a": nnx.Param(1.0)}, {"a": 1.0}, "leaf in place of Param at a"),
        ({"a": ()}, {}, "other static fields of dict at the root"),
        (
            [nnx.Param(1.0), nnx.Param(1.0)],
            [nnx.Param(1.0), nnx.Param(1.0, note="x")],
            "other static fields of Param at 1",
        ),
    ],
)
def test_difference_of_structures(expected, tree, difference):
    assert structure_difference(expected, tree).startswith(difference)
    assert bool(structure_difference(expected, tree)) == bool(difference)


def test_difference_of_leaves_that_are_no_arrays():
    assert structure_difference({"a": "label"}, {"a": jnp.sum}) == ""
    assert structure_difference({"a": "label"}, {}) == "missing 'a'"
