"""The files of analyses: written part by part, and read back together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.analyses import load
from experiments.training.directory import (
    environment,
    new_directory,
    plain,
    progress_bar,
    read_json,
    write_json,
)
from experiments.training.errors import UserError

Rows = list[dict[str, Any]]
# Rows by kind, and of all analyses: "networks", pairs of model and data set;
# "configurations", by what they are of; "environments", where it was measured.
Found = dict[str, Any]

RUNS = (
    "sgd",
    "grda",
    "run",
)  # fields of rows that name a run, by the path of its directory


def write(options: Any) -> Path:
    """Runs the parts of an analysis, and writes what it has found after every one.

    Args:
      options: of the analysis, from experiments.analyses.options.

    Returns:
      A new directory. It holds NAME.json: the rows by kind, options and environment.
    """
    name = options.name
    parts = load(name).parts(options)  # raises before anything is written
    directory = new_directory(options.output, name)
    found: Found = {"options": options.asked(), "environment": environment()}
    with progress_bar(len(parts), name, unit="part") as bar:
        for part in parts:
            for kind, rows in part(directory).items():
                found.setdefault(kind, []).extend(map(plain, rows))
            write_json(directory / f"{name}.json", found)
            bar.update()
    return directory


def read(name: str, directories: Sequence[Path]) -> Found | None:
    """Reads what all analyses of one name found, together; None if there are none.

    Rows name runs by resolved paths, so that one run is one, however its directory was
    spelled.

    Raises:
      UserError: if a file is damaged, or they were made with different options, or of
        the same runs.
    """
    keys: dict[str, tuple[str, ...]] = load(name).KEYS
    found: Found = {"networks": set(), "environments": []} | {kind: [] for kind in keys}
    known: dict[tuple, Path] = {}  # which file a row came from
    for directory in {path.resolve(): path for path in directories}.values():
        path = directory / f"{name}.json"
        if not path.exists():
            continue
        other = read_json(path)
        if not other.keys() >= {"options", "environment", *keys}:
            raise UserError(
                f"{path} must hold options, environment and {', '.join(keys)}"
            )
        found["environments"].append(other["environment"])
        mine = {f"experiments.{name}": other["options"]}
        if found.setdefault("configurations", mine) != mine:
            raise UserError(
                f"directories must hold analyses with the same options: {path} has "
                f"{mine}, others {found['configurations']}"
            )
        for kind, key in keys.items():
            rows = [_resolved(row) for row in other[kind]]
            for row in rows:
                if not row.keys() >= set(key):
                    raise UserError(
                        f"{path} must have {', '.join(key)} in all {kind}: run "
                        f"experiments.{name} again"
                    )
                identity = (kind, *(row[field] for field in key))
                if (first := known.setdefault(identity, path)) != path:
                    raise UserError(
                        "directories must hold analyses of different runs: "
                        f"{first} and {path} have rows of the same"
                    )
            found[kind] += rows
            found["networks"] |= {
                (row.get("model"), row.get("dataset")) for row in rows
            }
    return found if known else None


def by_setting(rows: Rows) -> dict[str, Rows]:
    """The rows of each method and its settings, by their label."""
    settings: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (*row["method"].values(),)):
        settings.setdefault(row["label"], []).append(row)
    return settings


def of_last_epoch(rows: Rows) -> Rows:
    """The rows of the last epoch among them."""
    last = max(row["epoch"] for row in rows)
    return [row for row in rows if row["epoch"] == last]


def _resolved(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: str(Path(row[name]).resolve()) for name in RUNS if name in row}
