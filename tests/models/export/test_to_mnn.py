"""MNN gives the logits that ONNX Runtime gives, from kernels that skip zeros."""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from flax import nnx

from models.export.to_mnn import load_mnn, to_mnn
from models.export.to_onnx import to_onnx

pytest.importorskip("MNN", reason="the extra 'mnn' is not installed")


def is_kernel(variable):
    return variable.ndim > 1


def scatter_zeros(model):
    """Zeros in 9 of 10 entries of every kernel: more than the kernels ask for."""
    rng = np.random.default_rng(3)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if is_kernel(variable):
            kept = rng.random(variable.shape) < 0.1
            variable.set_value(variable[...] * kept.astype(np.float32))


def kill_layers(model):
    """Zeros in all of every other kernel."""
    kernels = [
        variable
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if is_kernel(variable)
    ]
    for variable in kernels[::2]:
        variable.set_value(variable[...] * np.float32(0))


def onnx_logits(path):
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("prune", [scatter_zeros, kill_layers])
def test_logits_agree_with_onnx_runtime(prune, network, tiny, tiny_inputs, tmp_path):
    """In batches of several sizes, one after the other: 1e-4 of the largest logit."""
    model, images = tiny(network), np.asarray(tiny_inputs(network))
    prune(model)
    onnx_path, path = tmp_path / "network.onnx", tmp_path / "network.mnn"
    to_onnx(model, onnx_path, images.shape[1:])
    to_mnn(onnx_path, path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, onnx_path.name}
    for threads in 1, 2:
        run = load_mnn(path, threads)
        for batch in images, images[:1], images[:3], images[::-1]:
            expected, found = onnx_logits(onnx_path)(batch), run(batch)
            assert found.dtype == np.float32
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
            )


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """An ONNX file of a sparse network, and the MNN file made of it."""
    model = tiny("vgg16bn", blocks=((64,), (64,)))
    scatter_zeros(model)
    directory = tmp_path_factory.mktemp("mnn")
    to_onnx(model, directory / "network.onnx", (8, 8, 3))
    to_mnn(directory / "network.onnx", directory / "network.mnn")
    return directory / "network.onnx", directory / "network.mnn"


def test_sparse_kernels_are_kept_without_their_zeros(files):
    onnx_path, path = files
    assert path.stat().st_size < onnx_path.stat().st_size / 2


def test_result_stays_when_the_function_is_called_again(files):
    run = load_mnn(files[1])
    first = run(np.ones((1, 8, 8, 3)))
    kept = first.copy()
    run(np.zeros((1, 8, 8, 3)))
    np.testing.assert_array_equal(first, kept)


def test_nothing_is_installed_and_no_network_is_needed(files, tmp_path):
    """In a network namespace of its own, with pip's list before and after."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("this process may not unshare its network namespace")
    code = """
import importlib, sys
from importlib import metadata
import numpy as np
from models.export.to_mnn import load_mnn, to_mnn

def packages():
    importlib.invalidate_caches()
    return sorted((d.metadata["Name"], d.version) for d in metadata.distributions())

before = packages()
to_mnn(*sys.argv[1:])
assert load_mnn(sys.argv[2])(np.ones((2, 8, 8, 3))).shape == (2, 5)
assert packages() == before
"""
    command = [sys.executable, "-c", code, files[0], tmp_path / "network.mnn"]
    subprocess.run(["unshare", "-n", *command], check=True)


def test_file_that_cannot_be_converted_says_why_and_leaves_the_older_one(tmp_path):
    onnx_path, path = tmp_path / "bad.onnx", tmp_path / "network.mnn"
    onnx_path.write_bytes(b"no network")
    path.write_bytes(b"an older one")
    with pytest.raises(ValueError, match=r"(?s)a file that MNN converts: .*read onnx"):
        to_mnn(onnx_path, path)
    assert path.read_bytes() == b"an older one"
    assert sorted(tmp_path.iterdir()) == [onnx_path, path]


def test_missing_files_are_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        to_mnn(tmp_path / "none.onnx", tmp_path / "network.mnn")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        to_mnn(files[0], tmp_path / "nowhere" / "network.mnn")
    with pytest.raises(FileNotFoundError, match=r"none\.mnn"):
        load_mnn(tmp_path / "none.mnn")


def test_what_cannot_be_run_is_refused(files):
    with pytest.raises(ValueError, match=r"path must be of an MNN file, got .*\.onnx"):
        load_mnn(files[0])
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        load_mnn(files[1], threads=0)
    run = load_mnn(os.fspath(files[1]))
    for shape in ((8, 8, 3), (2, 3, 8, 8), (2, 8, 8, 4)):
        with pytest.raises(ValueError, match=r"shape \(batch, 8, 8, 3\), got"):
            run(np.ones(shape))


def test_without_mnn_it_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "MNN", None)
    for call in (lambda: to_mnn(*files), lambda: load_mnn(files[1])):
        with pytest.raises(ImportError, match=r"needs MNN: pip install '\.\[mnn\]'"):
            call()
