"""Errors name the argument, the rule and what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda import grda, label_by_path, label_by_rank, sparsity, sparsity_report
from optax_grda.proximal import group_soft_threshold, soft_threshold


def raises(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("c", [-1, -1e-9, float("nan"), float("inf"), np.float32(-1)])
def test_c_below_zero(c):
    with raises(ValueError, f"c must be >= 0, got {c}"):
        grda(0.1, c=c)


@pytest.mark.parametrize("mu", [0, 0.0, -0.5, 1.001, float("nan"), np.float64(2)])
def test_mu_outside_zero_to_one(mu):
    with raises(ValueError, f"mu must be in (0, 1], got {mu}"):
        grda(0.1, mu=mu)


@pytest.mark.parametrize("learning_rate", [0, 0.0, -0.1, float("nan"), float("inf")])
def test_learning_rate_that_is_not_positive(learning_rate):
    with raises(ValueError, f"learning_rate must be > 0, got {learning_rate}"):
        grda(learning_rate)


@pytest.mark.parametrize("bad", ["0.1", None, True, 1j, [0.1]])
def test_hyperparameters_that_are_not_numbers(bad):
    with raises(TypeError, f"c must be a number or an array, got {bad!r}"):
        grda(0.1, c=bad)
    with raises(TypeError, f"mu must be a number or an array, got {bad!r}"):
        grda(0.1, mu=bad)
    message = f"learning_rate must be a number, an array or a schedule, got {bad!r}"
    with raises(TypeError, message):
        grda(bad)


def test_limits_of_the_rules_are_allowed():
    grda(1e-30, c=0, mu=1)
    grda(lambda count: 0.0 * count, c=0.0, mu=1.0)
    grda(jnp.array(0.1), c=jnp.array(0.0), mu=np.array(0.5))


def test_traced_hyperparameters_are_not_checked():
    def threshold(learning_rate, c, mu):
        optimizer = grda(learning_rate, c, mu)
        params = jnp.ones(())
        return optimizer.update(params, optimizer.init(params), params)[1].threshold

    assert jax.jit(threshold)(0.1, -1.0, 0.5) < 0


@pytest.mark.parametrize("dtype", [jnp.int32, "int8", bool])
def test_accumulator_dtype_that_is_not_inexact(dtype):
    with raises(ValueError, f"accumulator_dtype must be float or complex, got {dtype}"):
        grda(0.1, accumulator_dtype=dtype)


@pytest.mark.parametrize(
    ("accumulator", "params"), [("float32", "complex64"), ("complex64", "float32")]
)
def test_accumulator_dtype_that_does_not_suit_params(accumulator, params):
    optimizer = grda(0.1, accumulator_dtype=accumulator)
    message = (
        "accumulator_dtype must be complex where params are complex and real where "
        f"they are real, got {accumulator} for {params} at layer/kernel"
    )
    with raises(ValueError, message):
        optimizer.init({"layer": {"kernel": jnp.ones(2, params)}})


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_params_of_integer_dtype(dtype):
    params = {"step": jnp.ones(2, dtype), "kernel": jnp.ones(2)}
    message = f"params must have float or complex leaves, got {dtype} at step"
    with raises(TypeError, message):
        grda(0.1).init(params)
    with raises(TypeError, f"got {dtype} at the root"):
        grda(0.1).init(params["step"])


def test_params_missing_in_update():
    params = jnp.ones(2)
    message = "params must be given to update, as in `optimizer.update("
    with raises(ValueError, message):
        grda(0.1).update(params, grda(0.1).init(params))
    with raises(ValueError, message):  # from inside a chain too
        optimizer = optax.chain(optax.identity(), grda(0.1))
        optimizer.update(params, optimizer.init(params))


def test_structure_that_differs_from_the_one_at_init():
    params, other = {"a": jnp.ones(2)}, {"b": jnp.ones(2)}
    optimizer = grda(0.1)
    state = optimizer.init(params)
    for argument, arguments in (
        ("updates", (other, state, params)),
        ("params", (params, state, other)),
    ):
        message = (
            f"{argument} must have the structure of the params given to init: missing "
            "'a', unexpected 'b'"
        )
        with raises(ValueError, message):
            optimizer.update(*arguments)
        with raises(ValueError, message):
            jax.jit(optimizer.update)(*arguments)


def test_shapes_that_differ_from_those_at_init():
    params, other = {"a": jnp.ones((2, 3))}, {"a": jnp.ones((3, 2))}
    optimizer = grda(0.1)
    state = optimizer.init(params)
    for argument, arguments in (
        ("updates", (other, state, params)),
        ("params", (params, state, other)),
    ):
        message = (
            f"{argument} must have the shapes of the params given to init, "
            "(2, 3) at a: got (3, 2)"
        )
        with raises(ValueError, message):
            optimizer.update(*arguments)


@pytest.mark.parametrize("operator", [soft_threshold, group_soft_threshold])
def test_thresholds(operator):
    arguments = (0,) if operator is group_soft_threshold else ()
    for threshold in -1, -0.5, float("nan"):
        with raises(ValueError, f"threshold must be >= 0, got {threshold}"):
            operator(jnp.ones(2), threshold, *arguments)
    for dtype in "int32", "bool":
        with raises(TypeError, f"x must have a float or complex dtype, got {dtype}"):
            operator(jnp.ones(2, dtype), 0.1, *arguments)


def test_axis_out_of_range():
    with raises(ValueError, "axis 2 is out of bounds for array of dimension 2"):
        group_soft_threshold(jnp.ones((2, 3)), 0.1, axis=2)


@pytest.mark.parametrize("params", [{}, [], {"a": np.zeros((0, 3))}])
def test_sparsity_of_nothing(params):
    for function in sparsity, sparsity_report:
        with raises(
            ValueError, "params must hold at least one float or complex entry, got none"
        ):
            function(params)


def test_labels_by_rank():
    for labels in {}, {-1: "a", 2: "b"}:
        with raises(ValueError, f"labels must map ranks >= 0 to labels, got {labels}"):
            label_by_rank(labels)
    message = (
        "labels must cover every rank: norm/scale has rank 0, the smallest key is 1"
    )
    with raises(ValueError, message):
        label_by_rank({1: "a", 2: "b"})({"norm": {"scale": np.zeros(())}})


def test_labels_by_path():
    params = {"dense": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}}
    with raises(
        ValueError, "labels must map at least one pattern to a label, got none"
    ):
        label_by_path({})
    message = "labels must cover every leaf: none of ['*kernel'] matches 'dense/bias'"
    with raises(ValueError, message):
        label_by_path({"*kernel": "sparse"})(params)
    message = (
        "labels must hold patterns that match a leaf: 'conv*' matches none of "
        "['dense/bias', 'dense/kernel']"
    )
    with raises(ValueError, message):
        label_by_path({"conv*": "sparse", "*": "dense"})(params)


def test_label_without_an_optimizer():
    labels = label_by_rank({0: "dense", 2: "sparse"})
    optimizer = optax.partition({"sparse": grda(0.1)}, labels)
    with raises(ValueError, "dense"):
        optimizer.init({"bias": jnp.ones(2)})


@pytest.mark.parametrize("name", ["learning_rate", "c", "mu"])
def test_arrays_with_axes_are_refused(name):
    options = {"learning_rate": 0.1, name: jnp.array([0.1, 0.2])}
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, got shape \(2,\)"):
        grda(**options)
