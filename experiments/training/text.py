"""Text as training data: the bytes of files, cut into windows.

The network sees a window and is asked for the byte that follows each of its bytes. A
seeded tenth of the files is held out for testing, so that no test window stands in a
file that was trained on.
"""

import math
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.training.errors import UserError

STDLIB = "python-stdlib"  # the sources of the running Python's own standard library
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test"}  # in it

LENGTH = 128  # bytes of a window
TRAIN_BYTES = 2**21  # at most: of the first files in a seeded order
TEST_BYTES = 2**18
HELD_OUT = 0.1  # of the files


def read_text(name: str) -> dict[str, np.ndarray]:
    """Reads files into windows for training and for testing.

    Args:
      name: STDLIB: the ``.py`` files of the standard library of the Python that runs
        this, without its tests; their bytes depend on its version, which summary.json
        records. Or the path of a folder: all files in it, but hidden ones.

    Returns:
      ``train_inputs`` and ``test_inputs`` (n, LENGTH), uint8, and ``train_labels`` and
      ``test_labels`` (n, LENGTH), int32: the next bytes.

    Raises:
      UserError: if there are fewer than two files, or the files of a part hold no whole
        window.
    """
    if name == STDLIB:
        folder = Path(sysconfig.get_path("stdlib"))
        files = sorted(_files(folder, ".py", NOT_STDLIB))
    else:
        folder = Path(name)
        files = sorted(_files(folder, "", set()))
    if len(files) < 2:
        raise UserError(
            f"{name} must hold two files, to train and to test on: got {len(files)} in "
            f"{folder.absolute()}"
        )
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    held_out = math.ceil(HELD_OUT * len(files))
    parts = {
        "test": _bytes(files[:held_out], TEST_BYTES),
        "train": _bytes(files[held_out:], TRAIN_BYTES),
    }
    arrays = {}
    for part, text in parts.items():
        windows = (len(text) - 1) // LENGTH
        if windows < 1:
            raise UserError(
                f"{name}: the files to {part} on must hold more than {LENGTH} bytes, "
                f"got {len(text)}"
            )
        used = windows * LENGTH
        arrays[f"{part}_inputs"] = text[:used].reshape(windows, LENGTH)
        after = text[1 : used + 1].reshape(windows, LENGTH)
        arrays[f"{part}_labels"] = after.astype(np.int32)
    return arrays


def _files(folder: Path, ending: str, skipped: set[str]) -> Iterator[Path]:
    """Files with that ending, none hidden, none in folders with a name to skip."""
    for directory, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in skipped and f[0] != "."]
        for name in names:
            if name.endswith(ending) and name[0] != ".":
                yield Path(directory, name)


def _bytes(files: Iterable[Path], most: int) -> np.ndarray:
    """The bytes of the first files, up to so many."""
    text = bytearray()
    for path in files:
        if len(text) >= most:
            break
        text += path.read_bytes()
    return np.frombuffer(bytes(text[:most]), np.uint8)
