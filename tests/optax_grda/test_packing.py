"""pack and unpack: exact to the bit, never large, and no file is trusted."""

import json
import math
import os
import re
import tracemalloc

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import numpy as safetensors

from optax_grda.packing import PackingError, pack, unpack
from optax_grda.packing.__main__ import main

DTYPES = [
    np.dtype(name)
    for name in (
        *("bool", "int8", "uint16", "int32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
    )
]


def bits(array):
    return np.asarray(array, order="C").reshape(-1, 1).view(np.uint8)


def assert_same(got, expected):
    """Structure, shapes, dtypes and every bit."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for leaf, wanted in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        assert isinstance(leaf, np.ndarray)
        assert leaf.shape == wanted.shape
        assert leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(bits(leaf), bits(wanted))


def sparse(shape, density=0.1, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal(shape)
    return np.where(rng.random(shape) < density, dense, 0).astype(dtype)


@st.composite
def arrays(draw):
    """Random bits, many of them zeros; small, or large enough to be packed."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, min_side=0, max_side=40, max_dims=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = math.prod(shape)
    raw = rng.integers(
        0, 2 if dtype.kind == "b" else 256, (size, dtype.itemsize), np.uint8
    )
    raw[rng.random(size) >= draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))] = 0
    return raw.view(dtype).reshape(shape)


def names(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


KEYS = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]))
TREES = st.recursive(
    arrays(),
    lambda inner: st.dictionaries(
        KEYS.filter(lambda key: key not in ("", "__metadata__")), inner, min_size=1
    ),
    max_leaves=4,
).filter(lambda tree: not any(name.endswith(":mask") for name in names(tree)))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("packing") / "params.safetensors"


@pytest.fixture
def peak_of():
    """peak_of(function, *arguments): the most bytes that it held at once."""

    def measure(function, *arguments):
        tracemalloc.start()
        try:
            function(*arguments)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@given(params=TREES)
def test_nested_dicts_come_back_to_the_bit(path, params):
    pack(params, path)
    assert_same(unpack(path), params)
    assert_same(unpack(path, like=params), params)


@given(leaves=st.lists(arrays(), max_size=4))
def test_file_is_hardly_larger_than_a_dense_one(path, leaves):
    pack(leaves, path)
    known = [
        leaf.dtype.kind in "biuf" or leaf.dtype == ml_dtypes.bfloat16 for leaf in leaves
    ]
    stored = {
        str(n): leaf if keeps else bits(leaf)
        for n, (leaf, keeps) in enumerate(zip(leaves, known, strict=True))
    }
    dense = len(safetensors.save(stored))
    assert path.stat().st_size <= dense + 80 * (1 + known.count(False))


@pytest.mark.parametrize(("density", "ratio"), [(0.1, 7.5), (0.05, 12.0)])
def test_sparse_file_is_as_small_as_promised(path, density, ratio):
    params = {"kernel": sparse((512, 512), density)}
    pack(params, path)
    assert path.stat().st_size * ratio <= params["kernel"].nbytes


def test_negative_zero_and_nan_payloads_are_kept(path):
    leaf = np.zeros(1000, np.float32)
    leaf[3] = -0.0
    leaf[5:7] = np.array([0x7FC00001, 0xFFA00002], np.uint32).view(np.float32)
    pack(leaf, path)
    assert path.stat().st_size < 600
    assert_same(unpack(path), leaf)


def test_file_can_be_read_by_hand(path):
    """As the docstring of the module tells."""
    kernel = sparse((50, 60))
    pack({"layer": {"kernel": kernel}}, path)
    tensors = safetensors.load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    table = json.loads(header["__metadata__"]["leaves"])
    assert table == {"layer/kernel": ["float32", [50, 60]]}
    mask = np.unpackbits(tensors["layer/kernel:mask"], count=kernel.size).view(bool)
    np.testing.assert_array_equal(mask.reshape(kernel.shape), kernel != 0)
    np.testing.assert_array_equal(tensors["layer/kernel"], kernel[kernel != 0])


def test_template_restores_other_pytrees(path):
    mixed = ({"a": jnp.ones(3)}, [jnp.zeros((2, 2), jnp.bfloat16)], 1.5)
    pack(mixed, path)
    assert_same(unpack(path, like=mixed), jax.tree.map(np.asarray, mixed))


def test_nnx_state_and_pure_dicts_fit_each_other(path):
    state = nnx.State({"layers": {0: {"kernel": nnx.Param(sparse((20, 30)))}}})
    dicts = nnx.to_pure_dict(state)
    for written in state, dicts:
        pack(written, path)
        assert_same(unpack(path), {"layers": {"0": dicts["layers"][0]}})
        for like in state, jax.eval_shape(lambda: state), dicts:
            restored = unpack(path, like=like)
            assert jax.tree.structure(restored) == jax.tree.structure(like)
            assert_same(jax.tree.leaves(restored), jax.tree.leaves(state))


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(20, 30, rngs=rngs)])
        self.norm = nnx.BatchNorm(30, rngs=rngs)


def test_whole_networks_of_a_state_and_of_dicts_are_the_same_file(path, tmp_path):
    model = nnx.eval_shape(lambda: Normalised(nnx.Rngs(0)))
    like = nnx.state(model)
    state = jax.tree.map(lambda leaf: sparse(leaf.shape), like)
    pack(state, path)
    pack(nnx.to_pure_dict(state), tmp_path / "dicts")
    assert path.read_bytes() == (tmp_path / "dicts").read_bytes()
    assert set(safetensors.load_file(path)) > {"norm/scale", "norm/mean", "norm/var"}
    nnx.update(model, unpack(path, like=like))
    assert_same(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(state))


def test_arrays_that_are_split_over_devices(path):
    mesh = jax.make_mesh((4, 2), ("a", "b"), devices=jax.devices("cpu"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b", "a"))
    params = {"kernel": sparse((40, 48)), "half": sparse((4, 4), dtype=jnp.bfloat16)}
    with jax.set_mesh(mesh):
        pack(jax.device_put(params, sharding), path)
    assert_same(unpack(path), params)


def test_memory_is_that_of_the_largest_leaf(path, peak_of):
    """Of leaves that are split over devices, of which NumPy's own copies would stay."""
    mesh = jax.make_mesh((8,), ("a",), devices=jax.devices("cpu"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    leaf = sparse((512, 512))
    params = [jax.device_put(leaf, rows) for _ in range(24)]
    assert peak_of(pack, params, path) < 4 * leaf.nbytes


def test_other_layouts_and_byte_orders_give_the_same_values(path):
    kernel = sparse((40, 50))
    for array in (kernel.T, np.asfortranarray(kernel), kernel.astype(">f4")):
        pack(array, path)
        np.testing.assert_array_equal(unpack(path), array)
        assert unpack(path).dtype == np.float32


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.ones(3)}, "the leaves of the file: missing 'b'$"),
        (dict.fromkeys("abc", np.ones(3)), "the leaves of the file: unexpected 'c'$"),
        ({"a": np.ones(4), "b": np.ones(3)}, r"\(3,\)\) at a: got .*\(4,\)"),
        ({"a": np.ones(3, "f4"), "b": np.ones(3)}, "float64.* at a: got .*float32"),
    ],
)
def test_template_that_differs_is_named(path, like, message):
    pack({"a": np.ones(3), "b": np.ones(3)}, path)
    with pytest.raises(ValueError, match=message):
        unpack(path, like=like)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"a": np.array(["x"])}, TypeError, "float or complex dtypes, got <U1 at a"),
        ({"a": object()}, TypeError, "nothing but arrays, got object at a"),
        (
            {"a": jax.random.key(0)},
            TypeError,
            "got key<fry> at a: .*random.key_data",
        ),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "two leaves named"),
        ({"a": np.ones(1), "a:mask": np.ones(1)}, ValueError, "a leaf 'a:mask'"),
        ({"a": np.ones(1), "__metadata__": 1.0}, ValueError, "a leaf '__metadata__'"),
        ({"\ud800": np.ones(1)}, ValueError, "can't encode"),
    ],
)
def test_params_that_cannot_be_packed_are_named(tmp_path, params, error, message):
    with pytest.raises(error, match=message):
        pack(params, tmp_path / "file")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")])
def test_leaf_within_a_leaf_needs_a_template(path, names):
    params = {name: np.ones(2) for name in names}
    pack(params, path)
    with pytest.raises(ValueError, match="like must be given"):
        unpack(path)
    assert_same(unpack(path, like=params), params)


def test_interrupted_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "params.safetensors"
    pack(np.arange(3), path)

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        pack(np.arange(5), path)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(unpack(path), np.arange(3))


def test_missing_file_and_directory_are_told_from_damage(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        unpack(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        unpack(tmp_path)
    with pytest.raises(PackingError, match="is damaged, or no packed file"):
        unpack(os.devnull)
    with pytest.raises(FileNotFoundError):
        pack(np.ones(1), tmp_path / "none" / "file")


PACKED = {"kernel": sparse((40, 50)), "half": sparse(300, dtype=ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def content(path):
    """A whole file."""
    pack(PACKED, path)
    return path.read_bytes()


@given(data=st.data())
def test_truncated_file_is_a_packing_error(path, content, data):
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(PackingError, match="is damaged, or no packed file"):
        unpack(path)


@hypothesis.settings(max_examples=300)
@given(data=st.data())
def test_damaged_header_is_a_packing_error_or_harmless(path, content, data):
    content = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        unpack(path)
    except PackingError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, None),
        ({"a": np.ones(2, "f4")}, None),
        ({}, {"format": "pt"}),
        ({}, {"format": "optax_grda.packing/1"}),
        ({}, {"leaves": "["}),
        ({}, {"leaves": "[1]"}),
        ({}, {"leaves": '{"a":["float32",[2]]}'}),
        ({"a": np.ones(2, "f4")}, {"leaves": '{"a":["float32",[3]]}'}),
        ({"a": np.ones(2, "f4")}, {"leaves": '{"a":["object",[1]]}'}),
        ({"a": np.ones(2, "f4")}, {"leaves": '{"a":["f\\u00fcnf",[2]]}'}),
        ({"a": np.ones(2, "f4")}, {"leaves": '{"a":["<U1",[2]]}'}),
        ({}, {"leaves": "[" * 100_000}),
        (
            {"a": np.ones(2, "f4"), "a:mask": np.uint8([7])},
            {"leaves": '{"a":["float32",[8]]}'},
        ),
        (
            {"a": np.ones(2, "f4"), "a:mask": np.uint8([3])},
            {"leaves": '{"a":["float32",[9]]}'},
        ),
        (
            {"a": np.ones(2, "f4"), "a:mask": np.uint8([3])},
            {"leaves": '{"a":["float32",[-8, -1]]}'},
        ),
    ],
)
def test_file_whose_parts_do_not_fit_is_a_packing_error(path, tensors, metadata):
    if metadata and "leaves" in metadata:
        metadata = {"format": "optax_grda.packing/1", **metadata}
    safetensors.save_file(tensors, path, metadata)
    with pytest.raises(PackingError, match="is damaged, or no packed file"):
        unpack(path)


# From the shell.


DENSE = {
    "layers/0/kernel": sparse((200, 30)),
    "layers/0/bias": np.ones(30, np.float32),
    "count": np.array(7, np.int32),
    "empty": np.zeros((0, 3), np.float64),
}
NAMES = {"safetensors": safetensors.save_file, "npz": lambda a, p: np.savez(p, **a)}


def load(path):
    return dict(np.load(path)) if path.suffix == ".npz" else safetensors.load_file(path)


@pytest.mark.parametrize("output", ["out.safetensors", "out.npz"])
@pytest.mark.parametrize("kind", NAMES)
def test_dense_files_are_packed_and_come_back(kind, output, tmp_path, capsys):
    dense, back = tmp_path / f"model.{kind}", tmp_path / output
    NAMES[kind](DENSE, dense)
    main(["pack", str(dense)])
    packed = tmp_path / "model.packed.safetensors"
    assert_same(unpack(packed, like=DENSE), DENSE)
    sizes = (dense.stat().st_size, packed.stat().st_size)
    assert sizes[1] < sizes[0] / 2
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: {size:,} bytes"
        for file, size in zip((dense, packed), sizes, strict=True)
    ]
    main(["unpack", str(packed), str(back)])
    assert_same(load(back), load(dense))
    main(["unpack", str(packed)])
    assert_same(load(tmp_path / "model.dense.safetensors"), DENSE)


def test_dtypes_that_a_kind_of_file_lacks_are_named(tmp_path, capsys):
    packed = str(tmp_path / "model.packed.safetensors")
    for leaf, suffix, message in (
        (
            np.ones(3, ml_dtypes.bfloat16),
            "npz",
            "must be a .safetensors .* bfloat16 at a",
        ),
        (np.ones(3, np.complex64), "safetensors", "must be an .npz .* complex64 at a"),
        (np.ones(3), "pt", r"must end in .safetensors or .npz, got .*\.pt"),
    ):
        pack({"a": leaf}, packed)
        assert fails(
            ["unpack", packed, str(tmp_path / f"out.{suffix}")], capsys, message
        )
    assert [file.name for file in tmp_path.iterdir()] == ["model.packed.safetensors"]


def fails(arguments, capsys, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code == 1 and re.search(message, capsys.readouterr().err)


def test_bfloat16_passes_through_safetensors(tmp_path):
    leaves = {"a": sparse(3000, dtype=ml_dtypes.bfloat16)}
    safetensors.save_file(leaves, tmp_path / "a.safetensors")
    main(["pack", str(tmp_path / "a.safetensors")])
    main(["unpack", str(tmp_path / "a.packed.safetensors")])
    assert_same(load(tmp_path / "a.dense.safetensors"), leaves)


@pytest.mark.parametrize("kind", ["packed", "dense", "npz"])
def test_show_has_a_line_for_every_leaf_of_any_file(kind, path, tmp_path, capsys):
    """14 of 1,024 entries are no zeros: they take 56 bytes, the bits 128."""
    kernel = np.zeros((32, 32), np.float32)
    kernel[3, :14] = 1
    params = {"kernel": kernel, "scale": np.array(2, np.float32)}
    if kind == "packed":
        pack(params, path)
    else:
        path = tmp_path / f"file.{kind}"
        NAMES["npz" if kind == "npz" else "safetensors"](params, path)
    main(["show", str(path)])
    assert capsys.readouterr().out.splitlines() == [
        "leaf    shape    dtype     zeros  dense  packed",
        "kernel  32 x 32  float32  98.63%  4,096     184",
        "scale   scalar   float32   0.00%      4       4",
        "total                     98.54%  4,100     188",
    ]


def test_files_are_read_and_written_leaf_by_leaf(tmp_path, peak_of, capsys):
    leaf = sparse((512, 512))
    dense = tmp_path / "model.safetensors"
    safetensors.save_file({str(n): leaf for n in range(24)}, dense)
    packed = str(tmp_path / "model.packed.safetensors")
    for arguments in (
        ["pack", str(dense)],
        ["unpack", packed],
        ["unpack", packed, str(tmp_path / "model.npz")],
        ["pack", str(tmp_path / "model.npz")],
        ["show", packed],
    ):
        assert peak_of(main, arguments) < 4 * leaf.nbytes, arguments


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("pack", b"no file of arrays", "model.safetensors is damaged, or no dense "),
        ("pack", b"PK\3\4 no archive", "model.safetensors is damaged, or no dense "),
        ("unpack", b"", "model.safetensors is damaged, or no packed file: "),
        ("show", b"", "model.safetensors is damaged, or no such file: "),
        ("show", None, "No such file or directory: .*model.safetensors"),
    ],
)
def test_what_is_no_file_of_arrays_is_named(
    command, content, message, tmp_path, capsys
):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert fails(
        [command, str(path)], capsys, f"python -m optax_grda.packing: .*{message}"
    )
    assert len(list(tmp_path.iterdir())) == (content is not None)


def test_a_file_is_packed_once_and_a_dense_one_cannot_be_unpacked(tmp_path, capsys):
    safetensors.save_file(DENSE, tmp_path / "dense")
    pack(DENSE, tmp_path / "packed")
    assert fails(["pack", str(tmp_path / "packed")], capsys, ": it is packed$")
    assert fails(["unpack", str(tmp_path / "dense")], capsys, ": it is not packed$")


def test_damage_met_half_way_leaves_the_older_output(tmp_path, capsys):
    packed, output = tmp_path / "packed", tmp_path / "out.npz"
    pack({"a": sparse(3000), "b": sparse(3000)}, packed)
    tensors = safetensors.load_file(packed)
    with open(packed, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors["b:mask"] = tensors["b:mask"][:-1]
    safetensors.save_file(tensors, packed, header["__metadata__"])
    output.write_bytes(b"an older one")
    assert fails(["unpack", str(packed), str(output)], capsys, "the mask of b does not")
    assert output.read_bytes() == b"an older one"
    assert sorted(tmp_path.iterdir()) == [output, packed]
