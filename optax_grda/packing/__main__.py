"""Packs, unpacks and shows files, from the shell."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optax_grda.packing._encoding import encode, host_array, nonzero
from optax_grda.packing._leaves import (
    open_leaves,
    pack_leaves,
    write_npz,
    write_safetensors,
)
from optax_grda.packing._safetensors import Loader

_WRITERS = {".safetensors": write_safetensors, ".npz": write_npz}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name. An error ends the program."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
    except (OSError, TypeError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m optax_grda.packing",
        description="Sparse files: the nonzero values, and one bit for every entry.",
        epilog="Leaves are read and written one at a time. OUTPUT is replaced as a "
        "whole, once it is complete.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run, file: str, output: str = "") -> None:
        text = run.__doc__
        command = commands.add_parser(run.__name__[1:], help=text, description=text)
        command.add_argument("file", metavar="FILE", type=Path, help=file)
        if output:
            command.add_argument(
                "output", metavar="OUTPUT", type=Path, nargs="?", help=output
            )
        command.set_defaults(run=run)

    dense, beside = "dense, .safetensors or .npz", "if not given, beside FILE:"
    add(_pack, dense, f"packed; {beside} NAME.packed.safetensors")
    add(_unpack, "packed", f"{dense}; {beside} NAME.dense.safetensors")
    add(_show, "packed or dense, .safetensors or .npz")
    return parser


def _pack(file: Path, output: Path | None) -> None:
    """Write a packed file of a dense one."""
    output = output or file.with_suffix(".packed.safetensors")
    with open_leaves(file, packed=False) as leaves:
        pack_leaves(leaves, output)
    _print_sizes(file, output)


def _unpack(file: Path, output: Path | None) -> None:
    """Write a dense file of a packed one, equal to the bit."""
    name = file.name.removesuffix(".safetensors").removesuffix(".packed")
    output = output or file.with_name(f"{name}.dense.safetensors")
    if output.suffix not in _WRITERS:
        raise ValueError(f"OUTPUT must end in .safetensors or .npz, got {output}")
    with open_leaves(file) as leaves:
        _WRITERS[output.suffix](leaves, output)
    _print_sizes(file, output)


def _show(file: Path) -> None:
    """Print the leaves: zeros, and the bytes that they take dense and packed."""
    with open_leaves(file, packed=None) as leaves:
        print(_table(leaves))


def _print_sizes(*paths: Path) -> None:
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


def _table(leaves: Mapping[str, Loader]) -> str:
    """A line for each leaf, and one for all."""
    rows, sums = (
        [("leaf", "shape", "dtype", "zeros", "dense", "packed")],
        np.zeros(4, int),
    )
    for name, load in leaves.items():
        array = host_array(name, load())
        zeros = array.size - np.count_nonzero(nonzero(array))
        packed = sum(part.nbytes for part in encode(name, array).values())
        counts = np.array([zeros, array.size, array.nbytes, packed])
        shape = " x ".join(map(str, array.shape)) or "scalar"
        rows.append((name or "the root", shape, array.dtype.name, *_cells(*counts)))
        sums += counts
    rows.append(("total", "", "", *_cells(*sums)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _cells(zeros: int, size: int, dense: int, packed: int) -> tuple[str, str, str]:
    return f"{zeros / max(size, 1):.2%}", f"{dense:,}", f"{packed:,}"


if __name__ == "__main__":
    main()
