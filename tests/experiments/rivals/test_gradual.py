import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals.gradual import (
    gradual_global,
    gradual_uniform,
    gradual_units,
    largest_units,
)

STEPS = 200  # masks at 0, 2, ..., 150


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    shapes = {"a": (10, 6), "b": (3, 4, 5)}
    params = {k: jnp.float32(rng.normal(size=s)) for k, s in shapes.items()}
    gradients = {
        k: jnp.float32(rng.normal(size=(STEPS, *s))) for k, s in shapes.items()
    }
    return params, gradients


def wanted(n):
    """s_t of the last mask."""
    time = min(n // 2 * 2, 150) / 150
    return 0.9 * (1 - (1 - time) ** 3)


@pytest.mark.parametrize(
    ("method", "groups"), [(gradual_global, ["ab"]), (gradual_uniform, ["a", "b"])]
)
def test_the_smallest_are_pruned_along_the_ramp(
    make_task, trajectory, given, method, groups
):
    found = trajectory(method(make_task(STEPS, 0.9)), *given)
    for names in groups:  # of kernels that are ranked together
        weights = np.hstack([found[k].reshape(STEPS + 1, -1) for k in names])
        for n in range(STEPS):
            zeros = weights[n + 1] == 0
            assert np.sum(zeros) == np.round(np.float32(wanted(n)) * zeros.size)
            if np.any(zeros) and not np.all(zeros):
                size = np.abs(weights[n])
                assert np.max(size[zeros]) < np.min(size[~zeros])


def test_units_are_zero_as_a_whole(make_task, trajectory, given):
    found = trajectory(gradual_units(make_task(STEPS, 0.5)), *given)
    zeros = [
        np.all(found[k][-1] == 0, axis=tuple(range(found[k].ndim - 2))) for k in found
    ]
    # 6 units of 10 weights, 5 of 12: sums of these next to 60 of 120.
    entries = sum(np.sum(found[k][-1] == 0) for k in found)
    assert entries == 10 * np.sum(zeros[0]) + 12 * np.sum(zeros[1])
    assert abs(entries - 60) <= 6


units = jax.jit(largest_units)  # compiled once


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        (0.0, ([1, 1, 1], [1, 1])),
        (0.14, ([1, 1, 0], [1, 1])),  # 1.4 of 10 weights: 2 are nearer than 0
        (0.25, ([1, 1, 0], [1, 1])),  # 2.5: rather 2 than 4
        (0.39, ([1, 0, 0], [1, 1])),
        (0.55, ([1, 0, 0], [1, 0])),  # 5.5: rather 6 than 4
        (0.99, ([1, 0, 0], [1, 0])),  # the best of each kernel stays
    ],
)
def test_largest_units_by_root_mean_square(sparsity, kept):
    # Units of 2 weights of rms 5, 2, 1; of 2 weights of rms 4 and 3.
    kernels = {
        "a": jnp.array([[5.0, 2.0, 1.4], [5.0, -2.0, 0.2]]),
        "b": jnp.array([[-3.0, 4.0], [3.0, 4.0]])[:, ::-1],
    }
    masks = units(kernels, sparsity)
    for mask, expected in zip((masks["a"], masks["b"]), kept, strict=True):
        assert np.array_equal(mask, np.array([expected, expected], bool))
