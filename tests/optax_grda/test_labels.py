import jax
import numpy as np
import optax

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
