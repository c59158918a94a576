"""Ratios and tables that the benchmarks share."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.training.directory import environment

RESULTS = Path(__file__).parent / "results"


def ratio(seconds: np.ndarray, reference: np.ndarray) -> str:
    """The median of the ratios round by round, with their quartiles."""
    low, median, high = np.percentile(seconds / reference, [25, 50, 75])
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows that have the same keys, which are its header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def size(tree: Any) -> int:
    """Bytes of a pytree of arrays, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Device memory of a compiled program while it runs: arrays in, out and between."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes  # donated arguments are counted as results too
    )


def write_result(name: str, text: str, directory: Path = RESULTS) -> Path:
    """Prints a result and writes it to NAME-DEVICE.md, with hardware and date."""
    facts = environment()
    device = facts["devices"][0].lower().replace(" ", "-")
    described = "; ".join(f"{key} {value}" for key, value in facts.items())
    text = f"{text}\n\nMeasured {datetime.date.today()} on: {described}.\n"
    print(text)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{device}.md"
    path.write_text(text)
    return path
