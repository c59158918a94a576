"""What is asked of finished runs, one analysis a file.

An analysis is a module of this package that computes, and says how to show, what it
found: a dict of rows by kind (see _files.read), which are plain as in a JSON file.

- ``KEYS``: the kinds of rows, and the fields that tell two rows of a kind apart.
- ``parts(options)``: the work, a list of functions. Each takes the directory of the
  results, and returns rows by kind.
- ``sentence(found)``: what was found, with its numbers.
- ``sections(found)``: tables, figures and what to see in them (_show.Section).

``runs`` is about the runs themselves: it has no work of its own, and reads what
experiments.train and experiments.compare wrote.

Importing this package is quick: it imports no analysis before one is asked for.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = (
    "runs",
    "arena",
    "card",
    "connect",
    "project",
    "prune",
    "units",
)  # as a report has them


def load(name: str) -> ModuleType:
    """The analysis of a name."""
    return importlib.import_module(f"{__name__}.{name}")


def read(name: str, directories: Sequence[Path]) -> dict[str, Any] | None:
    """Reads what all analyses of a name found in the directories; see _files.read.

    Those that hold none are passed over; None if there are none at all.
    """
    from experiments.analyses import _files

    if name == "runs":
        return load(name).read(directories)
    return _files.read(name, directories)


def run(options: Any) -> Path:
    """Runs an analysis, and shows what it found; returns the directory of the results.

    Args:
      options: of that analysis, from experiments.analyses.options.
    """
    from experiments.analyses import _files

    directory = _files.write(options)
    show(options.name, read(options.name, [directory]), directory)
    return directory


def show(name: str, found: Any, directory: Path) -> None:
    """Prints what an analysis found, and writes its figures to DIRECTORY/figures."""
    from experiments.analyses import _show

    _show.show(load(name), found, directory)
