"""The units of a network, as found, and which groups they are for an optimizer."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Member:
    """The axis of a leaf along which units lie.

    Attributes:
      leaf: the leaf's path, as :func:`optax_grda.sparsity_report` prints it.
      axis: the axis, from 0.
      index: the unit at every place of the axis, int (length,); -1 where none is.
      produces: whether the units are outputs there, as of a kernel's columns, a bias,
        an embedding; else they are only summed over, as by a kernel's rows.
    """

    leaf: str
    axis: int
    index: np.ndarray
    produces: bool

    @property
    def offset(self) -> int:
        """The first place of unit 0."""
        return int(np.argmax(self.index == 0))

    @property
    def stride(self) -> int:
        """How far the first place of unit 1 is from that of unit 0."""
        return int(np.argmax(self.index == 1)) - self.offset

    def __str__(self) -> str:
        plain = np.array_equal(self.index, np.arange(len(self.index)))
        where = "" if plain else f" (offset {self.offset}, stride {self.stride})"
        return f"{self.leaf} [{self.axis}]{where}"


@dataclasses.dataclass(frozen=True)
class UnitClass:
    """Units that are cut out one by one, each from all members.

    Attributes:
      size: how many units.
      members: where they lie.
    """

    size: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """That of the first leaf that produces them, for tables."""
        producers = [member for member in self.members if member.produces]
        return (producers or self.members)[0].leaf


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An axis of a leaf of which nothing can be cut out, and why."""

    leaf: str
    axis: int
    size: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Where the units that a leaf produces lie, for the optimizer.

    Attributes:
      axis: the axis of the leaf.
      index: the number of the unit at every place, int (length,), -1 where none is; a
        unit has one number in all leaves of a layer.
      layer: which leaves share units.
      units: how many the layer has.
    """

    axis: int
    index: np.ndarray
    layer: str
    units: int


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of a network, found by :func:`find_units`. It prints as a table.

    ``optax_grda.proximal.groups`` takes it as it is.
    """

    classes: tuple[UnitClass, ...]  # the classes of units
    frozen: tuple[Frozen, ...]  # the other axes, those of length 1 left out
    shapes: dict[str, tuple[int, ...]]  # of all leaves, by their paths

    def groups(self) -> dict[str, Group]:
        """By leaf, the units that its entries produce: those of one axis a leaf.

        The entries of kernels' outputs, with biases, norms and embeddings, are in a
        unit's group; what sums over it is not. Where the axes of a leaf are of several
        classes (heads, and the entries of each), the class that produces more entries
        has the leaf, and the others have no group.
        """
        return _groups(self)

    def under(self, prefix: str) -> "Units":
        """The units as far as they lie in a part of params, under the names there.

        For an optimizer that is given a part only: ``units.under("params")`` for a
        module of Linen, whose variables are ``{"params": ..., "batch_stats": ...}``.
        """
        start = prefix + "/"

        def below(some: Any) -> list[Any]:
            return [
                dataclasses.replace(each, leaf=each.leaf.removeprefix(start))
                for each in some
                if each.leaf.startswith(start)
            ]

        classes = (UnitClass(c.size, tuple(below(c.members))) for c in self.classes)
        shapes = {
            name.removeprefix(start): shape
            for name, shape in self.shapes.items()
            if name.startswith(start)
        }
        if not shapes:
            raise ValueError(
                f"prefix must be the first keys of leaves' paths, got {prefix!r} for "
                f"{', '.join(self.shapes)}"
            )
        return Units(
            tuple(some for some in classes if some.members),
            tuple(below(self.frozen)),
            shapes,
        )

    def __str__(self) -> str:
        rows = [("units", "outputs", "summed over by")]
        for some in self.classes:
            outputs, inputs = (
                [str(m) for m in some.members if m.produces == produces]
                for produces in (True, False)
            )
            for row in range(max(len(outputs), len(inputs))):
                cells = [(c[row : row + 1] or [""])[0] for c in (outputs, inputs)]
                rows.append((str(some.size) if row == 0 else "", cells[0], cells[1]))
        lines = _table(rows)
        if self.frozen:
            rows = [
                (f"{f.leaf} [{f.axis}]", str(f.size), f.reason) for f in self.frozen
            ]
            lines += ["", *_table([("frozen", "", "by"), *rows])]
        return "\n".join(lines)

    __repr__ = __str__


def _groups(units: Units) -> dict[str, Group]:
    producers = [[m for m in some.members if m.produces] for some in units.classes]

    def entries(number: int) -> int:
        return sum(
            math.prod(units.shapes[member.leaf]) * int((member.index >= 0).sum())
            // len(member.index)
            for member in producers[number]
        )  # fmt: skip

    # By leaf: the axis, and the classes along it with their indices.
    taken: dict[str, tuple[int, list[tuple[int, np.ndarray]]]] = {}

    def is_free(member: Member) -> bool:
        axis, lines = taken.get(member.leaf, (member.axis, []))
        return axis == member.axis and not any(
            ((index >= 0) & (member.index >= 0)).any() for _, index in lines
        )

    for number in sorted(range(len(producers)), key=entries, reverse=True):
        some = producers[number]
        several = len({member.leaf for member in some}) < len(some)
        if some and not several and all(map(is_free, some)):
            for member in some:
                lines = taken.setdefault(member.leaf, (member.axis, []))[1]
                lines.append((number, member.index))
    return _numbered(units, taken)


def _numbered(
    units: Units, taken: dict[str, tuple[int, list[tuple[int, np.ndarray]]]]
) -> dict[str, Group]:
    """Puts classes that share leaves into one layer, and numbers its units."""
    layer_of: dict[int, int] = {}  # the first class of the layer
    for _, lines in taken.values():
        numbers = [number for number, _ in lines]
        known = {layer_of.get(number, number) for number in numbers}
        first = min(known)
        for number, layer in [*layer_of.items(), *((n, n) for n in numbers)]:
            if layer in known:
                layer_of[number] = first
    starts, totals = {}, {}
    for number in sorted(layer_of):
        layer = layer_of[number]
        starts[number] = totals.get(layer, 0)
        totals[layer] = starts[number] + units.classes[number].size
    groups = {}
    for leaf, (axis, lines) in taken.items():
        index = np.full(len(lines[0][1]), -1)
        for number, line in lines:
            index = np.where(line >= 0, line + starts[number], index)
        layer = layer_of[lines[0][0]]
        groups[leaf] = Group(axis, index, units.classes[layer].name, totals[layer])
    return groups


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
