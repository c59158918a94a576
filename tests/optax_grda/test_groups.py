"""proximal.groups: units that span leaves, against loops in NumPy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optax_grda import grda, grda_params, proximal, sparsity, target_sparsity
from optax_grda.proximal import group_soft_threshold, soft_threshold


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def oracle(tree, groups, threshold, share):
    """One unit after the other, in float64, on a flat dict."""
    result = {
        name: soft(leaf, threshold if groups[name] is None else share * threshold)
        for name, leaf in tree.items()
    }
    for layer in {group[0] for group in groups.values() if group}:
        members = [
            np.moveaxis(result[name], group[1], 0)
            for name, group in groups.items()
            if group and group[0] == layer
        ]
        for unit in range(len(members[0])):
            entries = np.concatenate([member[unit].ravel() for member in members])
            rms = np.sqrt(np.mean(entries**2)) if entries.any() else 0.0
            bound = (1 - share) * threshold
            factor = 1 - bound / rms if rms > bound else 0.0
            for member in members:
                member[unit] *= factor
    return result


@st.composite
def layers(draw):
    """A flat dict of arrays, and to which units of which layer its leaves belong."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tree, groups = {}, {}
    for layer, units in (("A", 3), ("B", 2)):
        # Few shapes, so that there is little to compile.
        members = st.sampled_from([((), 0), ((2,), 0), ((2,), -1), ((2, 2), 1)])
        for n, (others, axis) in enumerate(draw(st.lists(members, max_size=3))):
            place = axis % (len(others) + 1)
            shape = (*others[:place], units, *others[place:])
            tree[f"{layer}{n}"] = rng.standard_normal(shape)
            groups[f"{layer}{n}"] = (layer, axis)
    hypothesis.assume(tree)
    if draw(st.booleans()):
        tree["free"], groups["free"] = rng.standard_normal((2, 3)), None
    return tree, groups


@hypothesis.settings(max_examples=12)
@given(layers(), st.floats(0, 2), st.sampled_from([0.0, 0.3, 1.0]))
def test_agrees_with_loops_over_units(layers, threshold, share):
    tree, groups = layers
    by_unit = proximal.groups(lambda path, shape: groups[path], elementwise=share)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    weights = jax.jit(by_unit)(params, jnp.float32(threshold))
    tree = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    expected = oracle(tree, groups, float(np.float32(threshold)), share)
    assert weights.keys() == expected.keys()
    for name, leaf in weights.items():
        assert leaf.dtype == jnp.float32
        # The factor 1 - bound / rms cancels: its error is a few eps, absolute, times
        # entries of up to 5.
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=5e-6)


def test_one_leaf_is_thresholded_as_by_group_soft_threshold():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    by_unit = proximal.groups(lambda path, shape: ("conv", -1))
    np.testing.assert_allclose(
        by_unit(kernel, 1.0),
        group_soft_threshold(kernel, 1.0, axis=(0, 1, 2)),
        rtol=1e-5,
    )


def test_elementwise_alone_is_the_soft_threshold():
    kernel = jax.random.normal(jax.random.key(0), (4, 8))
    by_unit = proximal.groups(lambda path, shape: ("layer", 0), elementwise=1.0)
    np.testing.assert_array_equal(by_unit(kernel, 0.5), soft_threshold(kernel, 0.5))


def test_stacked_layers_have_units_of_their_own():
    """As for layers that a scan runs over: each layer as if it stood alone."""
    rng = np.random.default_rng(0)
    stacked = {
        "kernel": jnp.asarray(rng.standard_normal((2, 5, 3)), jnp.float32),
        "gate": jnp.asarray(rng.standard_normal((3, 4, 2)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal((2, 3)), jnp.float32),
    }
    axes = {"kernel": (0, -1), "gate": (2, 0), "bias": (0, 1)}
    together = jax.jit(proximal.groups(lambda path, shape: ("layer", axes[path])))(
        stacked, 0.9
    )
    alone = jax.jit(
        proximal.groups(lambda path, shape: ("layer", 0 if path == "gate" else -1))
    )
    for number in range(2):
        expected = alone(
            {
                "kernel": stacked["kernel"][number],
                "gate": stacked["gate"][:, :, number],
                "bias": stacked["bias"][number],
            },
            0.9,
        )
        np.testing.assert_allclose(together["kernel"][number], expected["kernel"])
        np.testing.assert_allclose(together["gate"][:, :, number], expected["gate"])
        np.testing.assert_allclose(together["bias"][number], expected["bias"])
    assert 0 < np.mean(together["bias"] == 0) < 1


def channels(path, shape):
    """Output channels of a convolution, with all of its BatchNorm."""
    return None if path.startswith("head") else ("block", -1)


def network():
    keys = jax.random.split(jax.random.key(0), 2)
    weak = jnp.array([1.0, 0.01, 1.0, 0.01])
    return {
        "conv": {
            "kernel": jax.random.normal(keys[0], (3, 3, 2, 4)) * weak[None, None, None],
            "bias": 0.3 * weak,
        },
        "norm": {"scale": weak, "bias": -0.3 * weak},
        "head": {"kernel": jax.random.normal(keys[1], (4, 3))},
    }


def test_channel_dies_with_its_bias_and_batch_norm():
    weights = proximal.groups(channels)(network(), 0.1)
    dead = np.array([False, True, False, True])
    for leaf in jax.tree.leaves([weights["conv"], weights["norm"]]):
        zero = np.asarray(leaf).reshape(-1, 4) == 0
        np.testing.assert_array_equal(zero, np.broadcast_to(dead, zero.shape))
        assert not np.signbit(np.asarray(leaf)[..., dead]).any()


def test_nan_stays_to_be_seen():
    params = network()
    params["conv"]["bias"] = params["conv"]["bias"].at[1].set(jnp.nan)
    weights = proximal.groups(channels)(params, 0.1)
    assert np.isnan(weights["conv"]["bias"][1])


def train(optimizer, params, steps):
    @jax.jit
    def step(params, state):
        gradients = jax.tree.map(lambda p: 0.1 * p, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_grda_removes_units_and_its_state_gives_the_weights_back():
    by_unit = proximal.groups(channels, elementwise=0.5)
    params, state = train(grda(0.1, 0.1, 0.6, proximal=by_unit), network(), 20)
    assert not params["norm"]["scale"][1]
    assert params["norm"]["scale"][0]
    rebuilt = grda_params(state, params, by_unit)
    for leaf, expected in zip(
        jax.tree.leaves(rebuilt), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=1e-6)
        np.testing.assert_array_equal(leaf == 0, expected == 0)


def test_without_threshold_it_is_sgd():
    by_unit = proximal.groups(channels, elementwise=0.5)
    params, _ = train(grda(0.1, 0.0, proximal=by_unit), network(), 5)
    expected, _ = train(optax.sgd(0.1), network(), 5)
    for leaf, other in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-5)


def test_target_sparsity_is_reached_by_whole_units():
    kernel = jax.random.normal(jax.random.key(1), (20, 100))
    columns = proximal.groups(lambda path, shape: ("layer", -1))
    optimizer = target_sparsity(0.1, 0.8, gain=0.1, proximal=columns)
    weights, state = train(optimizer, kernel, 400)
    dead = np.all(np.asarray(weights) == 0, axis=0)
    assert dead.mean() == sparsity(weights)
    assert state.law_state.reached == pytest.approx(0.8, abs=0.02)  # two units


def test_proximal_can_be_static_under_inject_hyperparams():
    injected = optax.inject_hyperparams(grda, static_args="proximal")
    optimizer = injected(0.1, c=0.1, mu=0.6, proximal=proximal.groups(channels))
    params, _ = train(optimizer, network(), 3)
    assert not params["norm"]["scale"][1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda path, shape: None, "groups must name a layer for at least one leaf"),
        (lambda path, shape: ("all", 0), "the same number of units .* in 'all'"),
        (
            lambda path, shape: (path, 4),
            r"an axis of conv/bias, of shape \(4,\): got 4",
        ),
        (
            lambda path, shape: (path, (0, -1)),
            r"an axis of conv/bias, of shape \(4,\): got \(0, -1\)",
        ),
    ],
)
def test_wrong_groups_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        proximal.groups(groups)(network(), 0.1)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_wrong_shares_are_named(share):
    with pytest.raises(ValueError, match=r"elementwise must be in \[0, 1\], got"):
        proximal.groups(channels, elementwise=share)
