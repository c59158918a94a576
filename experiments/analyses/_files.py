"""What the analyses of finished runs share: their files, and how to read them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.training import directory as directories

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
    return directories.new_directory(options.output, name), {
        "options": {key: chosen[key] for key in chosen if key not in PLACES},
        "environment": directories.environment(),
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
    with directories.progress_bar(total, name, unit="part") as bar:
        for part in parts:
            for kind, rows in part.items():
                found.setdefault(kind, []).extend(map(directories.plain, rows))
            directories.write_json(directory / f"{name}.json", found)
            bar.update()
    draw(directory)
    return directory, found


def read_analyses(directories: Sequence[Path], name: str) -> dict[str, Any] | None:
    """What all analyses of one name found, together; None if there are none.

    Returns:
      Rows by kind, "options", and "environments", those of each.

    Raises:
      ValueError: if they were made with different options, or of the same runs.
    """
    found: dict[str, Any] = {"environments": []}
    known: dict[tuple, Path] = {}
    for path in (directory / f"{name}.json" for directory in directories):
        if not path.exists():
            continue
        other = json.loads(path.read_text())
        found["environments"].append(other.pop("environment"))
        options = other.pop("options")
        if found.setdefault("options", options) != options:
            raise ValueError(
                f"directories must hold analyses with the same options: {path} has "
                f"{options}, others {found['options']}"
            )
        for kind, rows in other.items():
            for row in rows:
                first = known.setdefault((kind, *_identity(row)), path)
                if first != path:
                    raise ValueError(
                        "directories must hold analyses of different runs: "
                        f"{first} and {path} have rows of the same"
                    )
            found.setdefault(kind, []).extend(rows)
    return found if known else None


def _identity(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a row is of: its names and counts, not what was measured."""
    return sorted((k, v) for k, v in row.items() if isinstance(v, str | int))


def by_setting(rows: Rows) -> dict[str, Rows]:
    """The rows of each method and its settings, by their label."""
    settings: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (row.get("mu", 0), row.get("c", 0))):
        settings.setdefault(row["label"], []).append(row)
    return settings


def by_level(rows: Rows) -> dict[float | str, dict[str, Rows]]:
    """Rows of pruning by what sparsity was asked for, and by method.

    Without methods that only some of the runs got there with: a mean over those would
    flatter the method.
    """
    levels: dict[float | str, dict[str, Rows]] = {}
    for row in rows:
        methods = levels.setdefault(row["asked"], {})
        methods.setdefault(row["method"], []).append(row)
    for methods in levels.values():
        runs = max(map(len, methods.values()))
        for name in [name for name in methods if len(methods[name]) < runs]:
            del methods[name]
    return levels


def by_groups(rows: Rows) -> dict[tuple[str, float], Rows]:
    """The rows of experiments.units by what was thresholded, and c."""
    settings: dict[tuple[str, float], Rows] = {}
    for row in rows:
        settings.setdefault((row["groups"], row["c"]), []).append(row)
    return settings


def filled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a table with all headers of any of them, in the order they come."""
    headers = dict.fromkeys(header for row in rows for header in row)
    return [{header: row.get(header, "") for header in headers} for row in rows]


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
