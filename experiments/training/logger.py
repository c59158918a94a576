"""A run directory: the configuration, a line of metrics an epoch, and a summary."""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm


def new_directory(path: Path | None, name: str) -> Path:
    """Makes the directory of a run.

    Args:
      path: where, or None for the first of runs/NAME, runs/NAME-2, runs/NAME-3 ...
        that does not exist yet.
      name: of the run.

    Raises:
      ValueError: if path is a directory that holds something, or a file.
    """
    if path is None:
        runs = (Path("runs", f"{name}-{n}" if n > 1 else name) for n in range(1, 10**6))
        path = next(run for run in runs if not run.exists())
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            "output must be a new or an empty directory, since nothing is overwritten: "
            f"{path} exists. Choose another, or remove it first"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes plain dicts, lists, strings and numbers."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def plain(tree: Any) -> Any:
    """The tree with arrays as numbers and lists, for JSON."""
    return jax.tree.map(
        lambda x: x.tolist() if isinstance(x, jax.Array | np.ndarray) else x, tree
    )


class MetricsFile:
    """metrics.jsonl: one JSON object a line, readable after every line."""

    def __init__(self, directory: Path, tensorboard: bool = False):
        """Appends to DIRECTORY/metrics.jsonl, in process 0 alone.

        Args:
          directory: of the run.
          tensorboard: write the rows' numbers as TensorBoard events as well.
        """
        self.directory = directory
        self.writer = None
        if tensorboard and jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            # Written by a thread of its own, and at exit.
            self.writer = SummaryWriter(str(directory / "tensorboard"), flush_secs=10)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds lines; on return they are in the file."""
        if jax.process_index() != 0:
            return
        rows = list(rows)
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        if self.writer is not None:
            for row in rows:
                for name, value in row.items():
                    self.writer.add_scalar(name, value, row["epoch"])

    def drop_after(self, step: int) -> None:
        """Removes the lines of later steps, which a resumed run will write again."""
        path = self.directory / "metrics.jsonl"
        if jax.process_index() != 0 or not path.exists():
            return
        kept = [row for row in read_metrics(self.directory) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").replace(path)  # all or nothing


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was cut short is left out."""
    rows = []
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def progress_bar(
    total: int, description: str, initial: int = 0, unit: str = "epoch"
) -> tqdm:
    """A bar with the time left, in process 0; silent where there is no terminal."""
    return tqdm(
        total=total,
        desc=description,
        initial=initial,
        unit=unit,
        disable=True if jax.process_index() else None,  # None: ask standard error
    )


def environment() -> dict[str, Any]:
    """Hardware and versions, to stand beside every number that was measured."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in packages}


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """Ends the program in a sentence where input or a device failed, or Ctrl-C came."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; what was written so far is readable", file=sys.stderr)
        sys.exit(130)


def run_command(command: Callable[[Any], Any], options: type, description: str) -> None:
    """Runs a command for a person.

    Args:
      command: takes one argument, an instance of options.
      options: dataclass; its fields are the command's flags.
      description: shown by --help.
    """
    with friendly_errors():
        command(tyro.cli(options, description=description))
