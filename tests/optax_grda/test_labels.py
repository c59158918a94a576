import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda, label_by_path, label_by_rank

PARAMS = {
    "conv": {"kernel": np.zeros((3, 3, 2, 4)), "bias": np.zeros(4)},
    "norm": [np.zeros(4), np.zeros(())],
    "head": (np.zeros((4, 2)),),
}


def test_label_by_rank_takes_the_largest_key_within_the_rank():
    label = label_by_rank({0: "scalar", 2: "matrix", 4: "filter"})
    assert label(PARAMS) == {
        "conv": {"kernel": "filter", "bias": "scalar"},
        "norm": ["scalar", "scalar"],
        "head": ("matrix",),
    }


def test_label_by_path_takes_the_first_pattern_that_matches():
    label = label_by_path({"conv/[jk]*": "a", "head/?": "b", "*/bias": "c", "*": "d"})
    assert label(PARAMS) == {
        "conv": {"kernel": "a", "bias": "c"},
        "norm": ["d", "d"],
        "head": ("b",),
    }


def test_label_by_path_minds_case_and_crosses_slashes():
    params = {"a": {"b": {"Kernel": 0.0, "kernel": 0.0}}}
    labels = label_by_path({"a*Kernel": "upper", "*": "lower"})(params)
    assert labels == {"a": {"b": {"Kernel": "upper", "kernel": "lower"}}}


def test_labels_are_taken_when_the_function_is_made():
    labels = {0: "before"}
    label = label_by_rank(labels)
    labels[0] = "after"
    assert label(1.0) == "before"


def test_labels_work_under_jit_and_on_shapes_alone():
    optimizer = optax.partition(
        {"sparse": grda(0.1), "dense": optax.sgd(0.1)},
        label_by_path({"*kernel": "sparse", "head/*": "sparse", "*": "dense"}),
    )
    shapes = jax.eval_shape(optimizer.init, PARAMS)
    accumulator = optax.tree.get(shapes, "accumulator")
    assert {leaf.shape for leaf in jax.tree.leaves(accumulator)} == {
        (3, 3, 2, 4),
        (4, 2),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: jax.Array
    key: jax.Array
    value: jax.Array


def test_fields_named_as_the_boxes_of_flax_are_told_apart():
    params = {"attention": Attention(1.0, 2.0, 3.0)}
    labels = label_by_path({"*/value": "sparse", "*": "dense"})(params)
    assert labels == {"attention": Attention("dense", "dense", "sparse")}


def test_integers_and_random_keys_are_labelled_too():
    state = {
        "count": 3,
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0)),
    }
    expected = {"count": "a", "key": "a", "keys": "b"}
    assert label_by_rank({0: "a", 1: "b"})(state) == expected
    assert label_by_path({"keys": "b", "*": "a"})(state) == expected


@pytest.mark.parametrize(
    "label", [label_by_path({"conv/*": "s", "*": "d"}), label_by_rank({0: "d", 2: "s"})]
)
def test_states_of_partition_are_mapped_by_optax(label):
    """Optax calls label functions on placeholders that have no leaves."""
    optimizer = optax.partition({"s": grda(0.1), "d": optax.adam(0.1)}, label)
    state = jax.eval_shape(optimizer.init, PARAMS)
    mapped = optax.tree.map_params(
        optimizer, lambda leaf: leaf.shape, state, transform_non_params=lambda _: None
    )
    accumulator = optax.tree.get(mapped, "accumulator")
    assert accumulator["conv"]["kernel"] == (3, 3, 2, 4)
    assert optax.tree.get(mapped, "mu")["norm"] == [(4,), ()]
    assert optax.tree.get(mapped, "threshold") is None


@pytest.mark.parametrize("label", [label_by_path({"*": "a"}), label_by_rank({0: "a"})])
def test_leaf_that_is_no_array_is_named(label):
    with pytest.raises(TypeError, match=r"nothing but arrays, got .* at layer/act: "):
        label({"layer": {"act": jnp.tanh, "kernel": np.ones(2)}})
