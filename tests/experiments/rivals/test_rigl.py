import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals._evolving import drop_and_grow
from experiments.rivals.rigl import rigl


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, [1, 1, 1, 1, 0, 0, 0, 0]),
        (0.25, [1, 1, 1, 0, 0, 1, 0, 0]),  # -1 goes, the largest score comes
        (0.5, [1, 1, 0, 1, 0, 1, 0, 0]),  # 2 and -1 go, of which -1 grows back
    ],
)
def test_small_weights_are_dropped_and_large_scores_grow(fraction, expected):
    mask = drop_and_grow(
        jnp.array([[4.0, -3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]]),
        jnp.array([[True] * 4, [False] * 4]),
        jnp.array([[0.0, 0.0, 1.0, 5.0], [3.0, 6.0, 4.0, 2.0]]),
        fraction,
        0.5,
    )
    assert np.array_equal(mask.ravel(), np.array(expected, bool))


def test_growth_follows_gradients_and_falls_as_a_cosine(make_task, trajectory):
    """100 steps: the mask changes at 4, 8, ..., 72; of 100 weights 40 are held."""
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=(10, 10)), rng.normal(size=(100, 10, 10))
    gradients[::4, :9] = 0  # inputs may be 0 in a batch: weights grow there as well
    found = trajectory(
        rigl(make_task(100, 0.6, momentum=0.0)),
        {"a": jnp.float32(weights)},
        {"a": jnp.float32(gradients)},
    )["a"]

    held, ks = found[1] != 0, []
    for n in range(1, 100):
        before, after = found[n], found[n + 1]
        mask = held
        if n % 4 == 0 and n < 75:
            k = round(40 * 0.3 / 2 * (1 + np.cos(np.pi * n / 75)))
            size = np.where(held, np.abs(before), 0).ravel()
            stays = size > np.sort(size)[60 + k - 1]
            score = np.where(stays, np.inf, np.abs(gradients[n]).ravel())
            mask = np.zeros(100, bool)
            mask[np.argsort(score, stable=True)[60:]] = True
            mask = mask.reshape(10, 10)
            ks.append(k)
        # What grows starts at 0, and at once takes the step of its gradient.
        expected = np.where(mask, before - 0.1 * gradients[n], 0)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
        assert np.sum(mask) == 40
        held = mask
    assert (len(ks), ks[0], ks[-1]) == (18, 12, 0)
