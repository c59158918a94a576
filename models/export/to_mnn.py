"""ONNX files as MNN files: a runtime whose kernels skip scattered zeros.

The convolutions and dense layers of which more than 60 % are zeros get MNN's sparse
kernels. For kernels whose zeros come in blocks of output channels it asks for fewer.

MNN's wheel also installs a command, mnnconvert. It is not used: when it is run, it
installs another package with pip and posts usage logs. The extension module does the
conversion alone; it opens no connection.

MNN computes some networks wrong (with LayerNorm, for one), and says nothing: what it
makes is compared with ONNX Runtime before it is handed over.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Run in a process of its own: the converter prints, and ends the process over some
# files.
_CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv))"
_OPTIONS = ("--bizCode", "optax_grda", "--detectSparseSpeedUp")  # the first it demands


def to_mnn(onnx_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes an ONNX file as an MNN file with sparse kernels.

    Weights stay float32; those of sparse kernels are kept without their zeros.

    Args:
      onnx_path: of a file that :func:`~models.export.to_onnx.to_onnx` wrote, or another
        one of a network with one input and one output.
      path: of the MNN file. One that exists is replaced, once the new one is complete.

    Raises:
      FileNotFoundError: if there is no file at onnx_path.
      ValueError: if MNN cannot convert it (the message is MNN's), or computes anything
        else than ONNX Runtime for random images, by more than 1e-3 of the largest
        logit. A file that was at path is still there then.
      ImportError: if MNN or ONNX Runtime is not installed.

    Example:
      >>> import os, tempfile
      >>> import models
      >>> import numpy as np
      >>> from flax import nnx
      >>> from models.export.to_mnn import load_mnn, to_mnn
      >>> from models.export.to_onnx import to_onnx
      >>> model = models.create("digits-mlp", num_classes=10, rngs=nnx.Rngs(0))
      >>> path = os.path.join(tempfile.mkdtemp(), "digits-mlp")
      >>> to_onnx(model, path + ".onnx", image_shape=(8, 8, 1))
      >>> to_mnn(path + ".onnx", path + ".mnn")
      >>> run = load_mnn(path + ".mnn")
      >>> images = np.ones((3, 8, 8, 1), np.float32)
      >>> np.allclose(run(images), model(images), 1e-4, 1e-4)
      True
    """
    _installed("MNN")
    with open(onnx_path, "rb"):  # what cannot be opened is told from what is damaged
        pass
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as directory:
        made = Path(directory, "network.mnn")
        files = ["--modelFile", os.fspath(onnx_path), "--MNNModel", os.fspath(made)]
        done = subprocess.run(
            [sys.executable, "-c", _CONVERT, "-f", "ONNX", *files, *_OPTIONS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode or not made.exists():
            said = done.stdout.decode(errors="replace").strip()
            raise ValueError(f"onnx_path must be of a file that MNN converts: {said}")
        _check_same_logits(onnx_path, made)
        os.replace(made, path)


def _check_same_logits(onnx_path: str | os.PathLike[str], path: Path) -> None:
    session = _installed("onnxruntime").InferenceSession(onnx_path)
    (given,) = session.get_inputs()
    shape = [n if isinstance(n, int) else 2 for n in given.shape]
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    (expected,) = session.run(None, {given.name: images})
    found = load_mnn(path)(images)
    scale = np.abs(expected).max(initial=np.finfo(np.float32).tiny)
    difference = np.abs(found - expected).max(initial=0) / scale
    if not difference < 1e-3:
        raise ValueError(
            "onnx_path must be of a network that MNN computes right, got logits that "
            f"are off by {difference:.1g} of the largest"
        )


def load_mnn(
    path: str | os.PathLike[str], threads: int = 1
) -> Callable[[np.ndarray], np.ndarray]:
    """Loads an MNN file as a function of images, (batch, *image_shape), float32.

    The function returns the logits, (batch, num_classes), float32. The first call of
    another batch size than the one before takes longer: it plans the memory anew. It
    may not be called from two threads at once.

    Args:
      path: of a file that :func:`to_mnn` wrote.
      threads: that compute, at least 1.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if threads is below 1 or MNN cannot read the file; from the function,
        if the images are of another shape.
      ImportError: if MNN is not installed.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    mnn = _installed("MNN")
    with open(path, "rb"):
        pass
    try:
        interpreter = mnn.Interpreter(os.fspath(path))
    except Exception as error:  # it raises no other
        raise ValueError(f"path must be of an MNN file, got {path}") from error
    session = interpreter.createSession({"numThread": threads})
    given = interpreter.getSessionInput(session)
    image_shape = tuple(given.getShape())[1:]
    batch = None

    def host_tensor(array: np.ndarray):
        order = mnn.Tensor_DimensionType_Caffe  # the axes as they are in the ONNX file
        return mnn.Tensor(array.shape, mnn.Halide_Type_Float, array, order)

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal batch
        images = np.ascontiguousarray(images, np.float32)
        if images.shape[1:] != image_shape:
            wanted = ", ".join(map(str, ("batch", *image_shape)))
            raise ValueError(f"images must have shape ({wanted}), got {images.shape}")
        if len(images) != batch:
            interpreter.resizeTensor(given, images.shape)
            interpreter.resizeSession(session)
            batch = len(images)
        given.copyFrom(host_tensor(images))
        if code := interpreter.runSession(session):
            raise RuntimeError(f"MNN fails with code {code} on a batch of {batch}")
        result = interpreter.getSessionOutput(session)
        logits = host_tensor(np.empty(result.getShape(), np.float32))
        result.copyToHostTensor(logits)
        return np.array(logits.getNumpyData())

    return run


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to_mnn needs {name}: pip install '.[mnn]' in the checkout"
        ) from error
