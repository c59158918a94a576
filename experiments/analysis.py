"""What the analyses of finished runs share: their files, and how to read them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments import logger

Rows = list[dict[str, Any]]
# Options that say where an analysis reads and writes, not what it does.
PLACES = ("runs", "data_dir", "output")


def begin(name: str, options: Any) -> tuple[Path, dict[str, Any]]:
    """Makes the directory of an analysis.

    Args:
      name: of the analysis.
      options: of its command, a dataclass with an `output`.

    Returns:
      The directory, and what stands beside all that is found: options and environment.
    """
    chosen = dataclasses.asdict(options)
    return logger.new_directory(options.output, name), {
        "options": {key: chosen[key] for key in chosen if key not in PLACES},
        "environment": logger.environment(),
    }


def analyse(
    name: str,
    options: Any,
    parts: Iterable[dict[str, Rows]],
    total: int,
    draw: Callable[[Path], Any],
) -> tuple[Path, dict[str, Any]]:
    """Runs an analysis, and writes what it has found after every part of it.

    Args:
      name, options: as for begin.
      parts: rows by kind, a part after another.
      total: how many parts there are.
      draw: draws the figures from the directory of the results.

    Returns:
      The directory, which holds NAME.json and figures/, and what is in the file: the
      rows by kind, beside options and environment.
    """
    directory, found = begin(name, options)
    with logger.progress_bar(total, name, unit="part") as bar:
        for part in parts:
            for kind, rows in part.items():
                found.setdefault(kind, []).extend(map(logger.plain, rows))
            logger.write_json(directory / f"{name}.json", found)
            bar.update()
    draw(directory)
    return directory, found


def read_analyses(directories: Sequence[Path], name: str) -> dict[str, Any] | None:
    """What all analyses of one name found, together; None if there are none.

    Raises:
      ValueError: if they were made with different options.
    """
    paths = [path for d in directories if (path := d / f"{name}.json").exists()]
    found, *others = [json.loads(path.read_text()) for path in paths] or [None]
    for path, other in zip(paths[1:], others, strict=True):
        if other["options"] != found["options"]:
            raise ValueError(
                f"directories must hold analyses with the same options: {paths[0]} has "
                f"{found['options']}, {path} {other['options']}"
            )
        for kind, rows in other.items():
            if isinstance(rows, list):
                found[kind] += rows
    return found


def print_table(title: str, rows: list[dict[str, str]], directory: Path) -> None:
    """Shows cells by header, and where the figures and numbers are."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for header in rows[0]:
        words = " ".join([header, *(row[header] for row in rows)]).split()
        # Lines may break, but not within a word.
        table.add_column(header, justify="right", min_width=max(map(len, words)))
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table)
    console.print(f"Figures and numbers are in {directory}", highlight=False)
