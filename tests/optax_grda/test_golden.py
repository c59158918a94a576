"""Recorded trajectories of the authors' PyTorch class (float32), step by step."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from optax_grda import grda

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def tree(golden, kind):
    """The arrays "kind:NAME" of a golden file, by NAME."""
    return {
        key.removeprefix(f"{kind}:"): jnp.asarray(value)
        for key, value in golden.items()
        if key.startswith(f"{kind}:")
    }


def follow(golden, gradient, inputs, observe):
    """Trains from the golden start: what there was to observe at every step."""
    learning_rates = jnp.asarray(golden["lr"], jnp.float32)
    optimizer = grda(
        lambda count: learning_rates[count],
        c=float(golden["c"]),
        mu=float(golden["mu"]),
    )

    def step(carry, x):
        params, state = carry
        loss, updates = gradient(params, x)
        updates, state = optimizer.update(updates, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), observe(loss, params, state)

    params = tree(golden, "init")
    start = (params, optimizer.init(params))
    return jax.device_get(jax.lax.scan(step, start, inputs)[1])


def count_by_step(trajectory):
    """How many entries are true at each step, over all leaves."""
    return sum(
        np.count_nonzero(leaf.reshape(len(leaf), -1), axis=1)
        for leaf in jax.tree.leaves(trajectory)
    )


@pytest.fixture(
    scope="module",
    params=["sequence_constant_lr", "sequence_step_lr", "sequence_c0_is_sgd"],
)
def sequence(request):
    golden = load(request.param)
    params, state = follow(
        golden,
        gradient=lambda params, recorded: (None, recorded),
        inputs=tree(golden, "grad"),
        observe=lambda loss, params, state: (params, state),
    )
    return golden, params, state


def test_params_follow_the_recorded_ones(sequence):
    golden, params, _ = sequence
    expected = tree(golden, "param")
    assert expected.keys() == params.keys()
    for name in expected:
        actual = params[name][golden["snapshot_steps"] - 1]
        np.testing.assert_allclose(actual, expected[name], rtol=0, atol=2e-6)


def test_thresholds_follow_the_recorded_ones(sequence):
    golden, _, state = sequence
    np.testing.assert_allclose(state.threshold, golden["threshold"], rtol=2e-6)


def test_nonzero_counts_are_the_recorded_ones(sequence):
    golden, params, state = sequence

    def on_the_threshold(v):  # but for rounding: either side is right
        threshold = state.threshold.reshape((-1,) + (1,) * (v.ndim - 1))
        return np.abs(np.abs(v) - threshold) < 1e-6

    undecided = count_by_step(jax.tree.map(on_the_threshold, state.accumulator))
    difference = np.abs(count_by_step(params) - golden["nonzero"])
    assert np.all(difference <= undecided)
    assert np.mean(undecided == 0) > 0.9  # else the line above would say little


@pytest.fixture(scope="module", params=["constant", "garipov"])
def digits(request):
    """A recorded run of a ReLU network on scikit-learn's digits, and ours."""
    golden = load(f"digits_mlp_{request.param}_lr")
    images, labels = load_digits(return_X_y=True)
    order, n_train = golden["data_permutation"], int(golden["n_train"])
    images = jnp.asarray(images[order] / 16, jnp.float32)
    labels = jnp.asarray(labels[order], jnp.int32)

    def logits(params, x):
        for layer in range(3):
            kernel = params[f"layer{layer}/kernel"]
            x = jnp.dot(x if layer == 0 else jax.nn.relu(x), kernel)
            x = x + params[f"layer{layer}/bias"][None]
        return x

    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images[batch]), labels[batch]
        ).mean()

    def observe(loss, params, state):
        predictions = jnp.argmax(logits(params, images[n_train:]), axis=-1)
        return {
            "loss": loss,
            "nonzero": sum(jnp.count_nonzero(p) for p in jax.tree.leaves(params)),
            "threshold": state.threshold,
            "test_accuracy": jnp.mean(predictions == labels[n_train:]),
        }

    batches = jnp.asarray(golden["batch_index"], jnp.int32)
    return golden, follow(golden, jax.value_and_grad(loss), batches, observe)


def test_first_100_steps_on_digits_are_the_recorded_ones(digits):
    golden, observed = digits
    # Logits of order 1 sum at most 128 products: 128 * 6e-8 = 8e-6 at worst, and 100
    # steps down a smooth loss do not amplify that. It was 5e-7 when this was written.
    np.testing.assert_allclose(
        observed["loss"][:100], golden["loss"][:100], rtol=0, atol=8e-6
    )
    # 17,226 entries, most within 0.3 of the threshold: one in 8e-6 of it, now and then.
    difference = observed["nonzero"][:100] - golden["nonzero"][:100]
    assert np.abs(difference).max() <= 2


def test_digits_end_where_the_recorded_run_ends(digits):
    golden, observed = digits
    # The kinks of the ReLU make late steps chaotic: averages are compared. One of the
    # 360 test images is 0.3 %; a tenth of a point of the sparsity is 17 weights.
    np.testing.assert_allclose(
        observed["nonzero"][-1], golden["nonzero"][-1], rtol=0, atol=50
    )
    epochs = len(golden["test_accuracy"])
    epoch_steps = len(golden["loss"]) // epochs
    test_accuracy = observed["test_accuracy"][epoch_steps - 1 :: epoch_steps]
    np.testing.assert_allclose(
        np.mean(test_accuracy[-10:]), golden["test_accuracy"][-10:].mean(), atol=0.01
    )
    np.testing.assert_allclose(
        np.mean(observed["loss"][-epoch_steps:]),
        golden["loss"][-epoch_steps:].mean(),
        rtol=0.05,
    )
    np.testing.assert_allclose(
        observed["threshold"][-1], golden["threshold"], rtol=2e-6
    )
