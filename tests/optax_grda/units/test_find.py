"""Which axes run over the same units, and what is frozen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from optax_grda.units import find_units


def classes_of(network):
    """Of each class, its size, and its members: outputs, and what sums over them."""
    fn, params, args = network
    return [
        (
            some.size,
            {(m.leaf, m.axis) for m in some.members if m.produces},
            {(m.leaf, m.axis) for m in some.members if not m.produces},
        )
        for some in find_units(fn, params, *args).classes
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "u-net",
            [
                (4, {("a", 3)}, {("b", 2), ("c", 2)}),
                (6, {("b", 3)}, {("c", 2)}),
                (5, {("c", 3), ("bias", 0), ("depthwise", 3)}, {("d", 2)}),
            ],
        ),
        (
            "scanned",
            [
                (6, {("in", 1), ("layers/down", 2)}, {("layers/up", 1), ("out", 0)}),
                (8, {("layers/up", 2), ("layers/bias", 1)}, {("layers/down", 1)}),
            ],
        ),
        (
            "recurrent",
            [
                (
                    6,
                    {("in", 1), ("rec", 1), ("bias", 0)},
                    {("rec", 0), ("out", 0), ("each", 0)},
                )
            ],
        ),
        (
            "gru",
            [
                (6, {("embedding/embedding", 1)}, {("inputs/kernel", 0)}),
                (
                    6,
                    {
                        *(("inputs/kernel", 1), ("inputs/bias", 0)),
                        *(("states/kernel", 1), ("states/bias", 0)),
                    },
                    {("states/kernel", 0), ("head/kernel", 0)},
                ),
            ],
        ),
        (
            "decoder",
            [
                (
                    64,
                    {("blocks/0/gate/kernel", 1), ("blocks/0/up/kernel", 1)},
                    {("blocks/0/down/kernel", 0)},
                ),
                (
                    2,
                    {(f"blocks/0/{n}/kernel", 1) for n in ("query", "key", "value")},
                    {("blocks/0/output/kernel", 0)},
                ),
                (4, {("blocks/0/value/kernel", 1)}, {("blocks/0/output/kernel", 0)}),
            ],
        ),
        (
            "control flow",
            [
                (6, {("in", 1)}, {("a", 0), ("b", 0)}),
                (
                    5,
                    {("a", 1), ("b", 1), ("c", 1), ("scale", 0)},
                    {("c", 0), ("out", 0)},
                ),
            ],
        ),
        ("fused heads", [(3, {("qkv", 1)}, {("out", 0)})]),
        (
            "gated",
            [
                (
                    6,
                    {("in", 1), ("token", 0), ("positions", 1), ("gates", 1)},
                    {("gates", 0), ("out", 0)},
                )
            ],
        ),
        (
            "equinox cnn",
            [
                (
                    4,
                    {("convs/0/weight", 0), ("convs/0/bias", 0)},
                    {("convs/1/weight", 1)},
                ),
                (5, {("convs/1/weight", 0), ("convs/1/bias", 0)}, {("head/weight", 1)}),
            ],
        ),
        (
            "linen cnn",
            [
                (
                    6,
                    {
                        ("params/Conv_0/kernel", 3),
                        ("params/Conv_0/bias", 0),
                        ("params/BatchNorm_0/scale", 0),
                        ("params/BatchNorm_0/bias", 0),
                        ("batch_stats/BatchNorm_0/mean", 0),
                        ("batch_stats/BatchNorm_0/var", 0),
                    },
                    {("params/Dense_0/kernel", 0)},
                ),
                (
                    7,
                    {("params/Dense_0/kernel", 1), ("params/Dense_0/bias", 0)},
                    {("params/Dense_1/kernel", 0)},
                ),
            ],
        ),
    ],
)
def test_classes(name, expected, build):
    found = classes_of(build(name))
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_heads_are_units_and_so_are_the_entries_of_their_values(build):
    kernels = {f"attention/{name}/kernel" for name in ("query", "key", "value")}
    heads = next(
        (size, outputs, inputs)
        for size, outputs, inputs in classes_of(build("nnx transformer"))
        if size == 3
    )
    biases = {leaf.replace("kernel", "bias") for leaf in kernels}
    outputs = {(leaf, 1) for leaf in kernels} | {(leaf, 0) for leaf in biases}
    assert heads == (3, outputs, {("attention/out/kernel", 0)})

    fn, params, args = build("equinox block")
    by_size = {some.size: some for some in find_units(fn, params, *args).classes}
    value = {size: by_size[size].members[-2] for size in (2, 4)}
    assert {m.leaf for m in value.values()} == {"attention/value_proj/weight"}
    assert [value[2].offset, value[2].stride] == [0, 4]
    np.testing.assert_array_equal(value[2].index, np.repeat([0, 1], 4))
    np.testing.assert_array_equal(value[4].index, np.tile(np.arange(4), 2))


def test_concatenation_and_flattening_are_offsets_and_strides(build):
    fn, params, args = build("u-net")
    first, second, _ = find_units(fn, params, *args).classes
    (_, _, skip), (_, up) = first.members, second.members
    assert (skip.leaf, skip.offset, skip.stride) == ("c", 0, 1)
    assert (up.leaf, up.offset, up.stride) == ("c", 4, 1)
    np.testing.assert_array_equal(skip.index, [0, 1, 2, 3, *[-1] * 6])
    fn, params, args = build("equinox cnn")
    head = find_units(fn, params, *args).classes[1].members[-1]
    assert (head.leaf, head.offset, head.stride) == ("head/weight", 0, 4)


def test_a_recurrent_unit_has_a_column_of_every_gate(build):
    fn, params, args = build("gru")
    _, states = find_units(fn, params, *args).classes
    for member in states.members:
        gates = 3 if member.produces else 1  # rows are summed over once
        np.testing.assert_array_equal(member.index, np.tile(np.arange(6), gates))


@pytest.fixture
def tiny_models():
    options = {
        "vgg16bn": {"input_shape": (8, 8, 3), "blocks": ((4, 4), (8,)), "hidden": 8},
        "vgg16bn-authors": {
            "input_shape": (8, 8, 3),
            "blocks": ((4, 4), (8,)),
            "hidden": 8,
        },
        "wrn28x10": {"input_shape": (8, 8, 3), "depth": 10, "widen_factor": 1},
        "resnet50": {"input_shape": (32, 32, 3), "stage_sizes": (2,), "width": 4},
        "keras-cnn": {"input_shape": (10, 10, 3), "widths": (4,), "hidden": 8},
        "digits-mlp": {"input_shape": (4, 4, 1), "features": (8, 6)},
    }

    def build(name):
        model = nnx.eval_shape(
            lambda: models.create(
                name, num_classes=5, rngs=nnx.Rngs(0), **options[name]
            )
        )
        model.eval()
        graphdef, state = nnx.split(model)
        images = jax.ShapeDtypeStruct((2, *options[name]["input_shape"]), jnp.float32)
        return lambda s, x: nnx.merge(graphdef, s)(x), state, (images,)

    return build


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-mlp", [{"layers/0"}, {"layers/1"}]),
        ("keras-cnn", [{"pairs/0/0"}, {"pairs/0/1"}, {"hidden"}]),
        (
            "vgg16bn",
            [
                {"blocks/0/0"},
                {"blocks/0/1"},
                {"blocks/1/0"},
                {"hidden/0"},
                {"hidden/1"},
            ],
        ),
        # Of which the authors' program leaves half out.
        (
            "vgg16bn-authors",
            [{"blocks/0/0"}, {"blocks/1/0"}, {"hidden/0"}, {"hidden/1"}],
        ),
        (
            "wrn28x10",
            [
                *({f"stages/{n}/0/conv1", f"stages/{n}/0/norm2"} for n in range(3)),
                {"stem", *(f"stages/{n}/0/norm1" for n in (0, 1)), "stages/0/0/conv2"},
                {"stages/1/0/conv2", "stages/1/0/shortcut", "stages/2/0/norm1"},
                {"stages/2/0/conv2", "stages/2/0/shortcut", "norm"},
            ],
        ),
        (
            "resnet50",
            [
                {"stem"},
                *({f"stages/0/{n}/layer{i}"} for n in (0, 1) for i in (1, 2)),
                {"stages/0/0/layer3", "stages/0/0/shortcut", "stages/0/1/layer3"},
            ],
        ),
    ],
)
def test_layers_of_models_and_their_streams(name, expected, tiny_models):
    fn, params, args = tiny_models(name)
    found = []
    for some in find_units(fn, params, *args).classes:
        outputs = {m.leaf.rpartition("/")[0] for m in some.members if m.produces}
        found.append({re.sub("/(conv|norm)$", "", module) for module in outputs})
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_what_froze_what_is_told_with_its_place(build):
    fn, params, args = build("nnx transformer")
    reasons = {(f.leaf, f.axis): f.reason for f in find_units(fn, params, *args).frozen}
    assert re.fullmatch(
        r"reduce_sum at \S+normalization\.py:\d+", reasons["embed/embedding", 1]
    )
    assert reasons["embed/embedding", 0].startswith("gather")
    assert reasons["positions", 0] == "an argument"
    assert re.fullmatch(
        r"dot_general at \S+attention\.py:\d+", reasons["attention/query/kernel", 2]
    )

    def half_used(params, x):
        return jnp.sort(x @ params["in"]) @ params["out"] + params["unused"].shape[0]

    params = {"in": jnp.ones((4, 6)), "out": jnp.ones((6, 2)), "unused": jnp.ones(3)}
    units = find_units(half_used, params, jnp.ones((1, 4)))
    assert not units.classes
    reasons = {(f.leaf, f.axis): f.reason for f in units.frozen}
    assert reasons["in", 1].startswith("sort")
    assert reasons["out", 1] == "an output"
    assert reasons["unused", 0] == "nothing: fn doesn't use it"


@pytest.mark.parametrize(
    "across",
    [
        lambda h: h - jnp.mean(h, -1, keepdims=True),
        jax.nn.softmax,
        lambda h: h[:, ::-1],
        lambda h: h[:, ::2].repeat(2, 1),
        lambda h: h * jnp.asarray(np.arange(6.0, dtype=np.float32))[None],
        lambda h: h.reshape(-1, 4, 3).reshape(-1, 6, 2)[..., 0],
        lambda h: jax.lax.reshape(h, h.shape[::-1], dimensions=(1, 0)).T,
        lambda h: jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME"),
        lambda h: jax.lax.dynamic_slice(h, (0, 1), (2, 5)) @ jnp.ones((5, 6)),
        lambda h: jnp.fft.rfft(h).real @ jnp.ones((4, 6)),
        lambda h: jax.pure_callback(
            lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h
        ),
    ],
)
def test_what_mixes_units_freezes_them(across):
    def fn(params, x):
        return across(x @ params["in"]) @ params["out"]

    params = {"in": jnp.ones((4, 6)), "out": jnp.ones((6, 3))}
    assert not find_units(fn, params, jnp.ones((2, 4))).classes


def test_a_part_of_the_parameters_has_the_units_that_lie_in_it(build):
    fn, params, args = build("linen cnn")
    units = find_units(fn, params, *args)
    part = units.under("params")
    assert set(part.groups()) == {
        leaf.removeprefix("params/") for leaf in units.groups() if "params/" in leaf
    }
    assert {f.leaf for f in part.frozen} == {
        "Conv_0/kernel",
        "Dense_1/bias",
        "Dense_1/kernel",
    }
    with pytest.raises(
        ValueError, match=r"prefix must be .*, got 'Param' for batch_st"
    ):
        units.under("Param")
