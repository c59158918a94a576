"""A run directory: the configuration, a line of metrics an epoch, and a summary."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.training.errors import UserError


def new_directory(path: Path | None, name: str) -> Path:
    """Makes the directory of a run.

    Args:
      path: where, or None for the first of runs/NAME, runs/NAME-2, runs/NAME-3 ...
        that does not exist yet.
      name: of the run.

    Raises:
      UserError: if path is a directory that holds something, or a file.
    """
    if path is None:
        runs = (Path("runs", f"{name}-{n}" if n > 1 else name) for n in range(1, 10**6))
        path = next(run for run in runs if not run.exists())
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(
            "output must be a new or an empty directory, since nothing is overwritten: "
            f"{path} exists. Choose another, or remove it first"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Keeps other programs from writing to a run directory at the same time.

    The system takes the lock away when the program ends, however it ends.

    Raises:
      UserError: if another program holds it.
    """
    with (directory / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another program is writing to {directory}") from None
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes dicts, lists, numbers and arrays; the file is whole, or as before."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(plain(value), indent=2) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: if the file is cut short, empty, or of something else.
      FileNotFoundError: if there is none.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:  # also what is no UTF-8
        raise UserError(f"{path} is damaged: it must be a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it must hold a JSON object, got {value!r}")
    return value


def plain(tree: Any) -> Any:
    """The tree with arrays as numbers and lists, for JSON."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return tree.tolist() if hasattr(tree, "tolist") else tree


class MetricsFile:
    """metrics.jsonl: one JSON object a line, readable after every line."""

    def __init__(self, directory: Path, tensorboard: bool = False):
        """Appends to DIRECTORY/metrics.jsonl.

        Args:
          directory: of the run.
          tensorboard: write the rows' numbers as TensorBoard events as well.
        """
        self.directory = directory
        self.writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # Written by a thread of its own, and at exit.
            self.writer = SummaryWriter(str(directory / "tensorboard"), flush_secs=10)

    def append(self, row: dict[str, Any]) -> None:
        """Adds a line; on return it is in the file."""
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, row["epoch"])

    def drop_after(self, step: int) -> None:
        """Removes the lines of later steps, which a resumed run will write again."""
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return
        kept = [row for row in _complete_lines(path) if row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(path)  # all or nothing


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was cut short is left out.

    Raises:
      UserError: if it is damaged otherwise, or there is no whole row.
      FileNotFoundError: if there is no such file.
    """
    path = directory / "metrics.jsonl"
    rows = _complete_lines(path)
    if not rows:
        raise UserError(f"{path} must hold a line of metrics an epoch, and has none")
    return rows


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    rows, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break  # it was being written
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} is damaged: line {number} is no JSON object")
        rows.append(row)
    return rows


def progress_bar(
    total: int,
    description: str,
    initial: int = 0,
    unit: str = "epoch",
    shown: bool = True,
) -> tqdm:
    """A bar with the time left; silent where there is no terminal."""
    # tqdm shows nothing on terminals that do not tell their size, as in containers.
    columns, lines = shutil.get_terminal_size()
    return tqdm(
        total=total,
        desc=description,
        initial=initial,
        unit=unit,
        ncols=columns,
        nrows=lines,
        disable=None if shown else True,  # None: ask standard error
    )


def environment() -> dict[str, Any]:
    """Hardware and versions, to stand beside every number that was measured."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in packages}
