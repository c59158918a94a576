"""Lengths of axes as terms: what a network's operations say about which are the same.

The axis of an array is a :class:`Dim`: an atom, whose indices are units, a product (two
axes merged by a reshape, the last running fastest), or a sum (axes concatenated). Two
axes that an operation runs over together are unified, as types are in a compiler that
infers them: an atom becomes what the other is, products are matched factor by factor,
sums piece by piece, and where an atom meets several it is refined into them. Where
terms don't match, their atoms are frozen: nothing may be cut out of them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Why atoms are frozen: an equation of a jaxpr, or words.
Reason = Any


class Dim:
    """The length of an axis, and what is known of it.

    Attributes:
      size: the length.
      parts: the terms of which it is the product or sum; empty for an atom.
      is_sum: whether the parts are concatenated.
      frozen: why nothing may be cut out of the atom; None where it may.
    """

    __slots__ = ("_link", "frozen", "is_sum", "parts", "size")

    def __init__(self, size: int, frozen: Reason = None):
        self.size = int(size)
        self.frozen = frozen
        self.parts: tuple[Dim, ...] = ()
        self.is_sum = False
        self._link: Dim | None = None

    @property
    def root(self) -> "Dim":
        """The term that stands for all that were unified with this one."""
        dim = self
        while dim._link is not None:
            dim = dim._link
        if dim is not self:
            self._link = dim
        return dim

    @property
    def factors(self) -> list["Dim"]:
        """What it is the product of, from the slowest to the fastest: no products."""
        root = self.root
        if root.parts and not root.is_sum:
            return [factor for part in root.parts for factor in part.factors]
        return [root]

    @property
    def terms(self) -> list["Dim"]:
        """What it is the sum of, in order: no sums."""
        root = self.root
        if root.is_sum:
            return [term for part in root.parts for term in part.terms]
        return [root]

    @property
    def atoms(self) -> Iterator["Dim"]:
        root = self.root
        if not root.parts:
            yield root
        for part in root.parts:
            yield from part.atoms

    def _become(self, parts: Sequence["Dim"], is_sum: bool) -> None:
        """Refines an atom."""
        self.parts, self.is_sum = tuple(parts), is_sum
        if self.frozen is not None:
            freeze(self, self.frozen)


def product(dims: Sequence[Dim]) -> Dim:
    """The axis into which a reshape merges the axes."""
    long = [dim.root for dim in dims if dim.size != 1]
    if len(long) == 1:
        return long[0]
    return _composite(long, math.prod(dim.size for dim in dims), is_sum=False)


def concatenation(dims: Sequence[Dim]) -> Dim:
    """The axis along which the axes lie one behind the other."""
    some = [dim.root for dim in dims if dim.size != 0]
    if len(some) == 1:
        return some[0]
    return _composite(some, sum(dim.size for dim in dims), is_sum=True)


def _composite(parts: list[Dim], size: int, is_sum: bool) -> Dim:
    reasons = [None if part.parts else part.frozen for part in parts]
    if not parts or size == 0 or None not in reasons:
        return Dim(size, next(iter(reasons), "a length of its own"))
    dim = Dim(size)
    dim.parts, dim.is_sum = tuple(parts), is_sum
    return dim


def freeze(dim: Dim, reason: Reason) -> None:
    """Lets nothing be cut out of the axis; the first reason counts."""
    for atom in dim.atoms:
        if atom.frozen is None:
            atom.frozen = reason


def unify(a: Dim, b: Dim, reason: Reason) -> None:
    """Makes two axes of equal length one: what is cut out of one goes in the other.

    Where they can't be, both are frozen, for the reason given.
    """
    assert a.size == b.size, (a.size, b.size, reason)
    a, b = a.root, b.root
    if a is b or a.size <= 1:  # of which nothing is cut out
        return
    if a.parts and not b.parts:
        a, b = b, a
    if a.parts:
        match = _match_sums if a.is_sum or b.is_sum else _match_products
        if not match(a, b, reason):
            freeze(a, reason)
            freeze(b, reason)
        # Refining may have made one a part of what the other was unified with.
        a, b = a.root, b.root
    elif a.frozen is not None:
        freeze(b, a.frozen)
    if a is not b:
        a._link = b


def _match_products(a: Dim, b: Dim, reason: Reason) -> bool:
    left, right = a.factors, b.factors
    while left and right:
        x, y = left.pop().root, right.pop().root
        if x.size == y.size:
            unify(x, y, reason)
            continue
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        factors = x.factors  # it may have been refined just now
        if len(factors) > 1:
            left += factors
            right.append(y)
        elif x.parts or x.size % y.size:
            return False
        else:
            slow = Dim(x.size // y.size)
            x._become((slow, y), is_sum=False)
            left.append(slow)
    return True


def _match_sums(a: Dim, b: Dim, reason: Reason) -> bool:
    left, right = a.terms[::-1], b.terms[::-1]
    while left and right:
        x, y = left.pop().root, right.pop().root
        if x.size == y.size:
            unify(x, y, reason)
            continue
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        if x.is_sum:  # it was refined just now
            left += x.terms[::-1]
            right.append(y)
            continue
        pieces = _cut(x, y.size)
        if pieces is None:
            return False
        first, rest = pieces
        unify(first, y, reason)
        left.append(rest)
    return True


def _cut(dim: Dim, size: int) -> tuple[Dim, Dim] | None:
    """The first so many indices of an atom or product, and the rest, if it can be."""
    slow, *fast = dim.factors
    block = math.prod(factor.size for factor in fast)
    if slow.parts or size % block:
        return None
    pieces = Dim(size // block), Dim(slow.size - size // block)
    slow._become(pieces, is_sum=True)
    if not fast:
        return pieces
    first, rest = (product((piece, *fast)) for piece in pieces)
    return first, rest


def split(dim: Dim, sizes: Sequence[int], reason: Reason) -> list[Dim]:
    """The axes into which a reshape splits the axis."""
    dims = [Dim(size) for size in sizes]
    unify(dim, product(dims), reason)
    return dims


def pieces(dim: Dim, sizes: Sequence[int], reason: Reason) -> list[Dim]:
    """The axes of consecutive slices."""
    dims = [Dim(size) for size in sizes]
    unify(dim, concatenation(dims), reason)
    return dims


def kept(dim: Dim, needed: dict[Dim, np.ndarray]) -> np.ndarray:
    """Which indices are left, bool (size,), if of each atom those needed are."""
    root = dim.root
    if not root.parts:
        return needed.get(root, np.ones(root.size, bool))
    masks = [kept(part, needed) for part in root.parts]
    if root.is_sum:
        return np.concatenate(masks)
    mask = masks[0]
    for other in masks[1:]:
        mask = np.logical_and.outer(mask, other).reshape(-1)
    return mask


def mark(dim: Dim, mask: np.ndarray, needed: dict[Dim, np.ndarray]) -> bool:
    """Adds to what is needed the units at indices of an axis; whether any is new."""
    root = dim.root
    if not root.parts:
        if root not in needed or not (mask & ~needed[root]).any():
            return False
        needed[root] |= mask
        return True
    sizes = [part.size for part in root.parts]
    if root.is_sum:
        masks = np.split(mask, np.cumsum(sizes)[:-1])
    else:
        box = mask.reshape(sizes)
        axes = range(len(sizes))
        masks = [any_over(box, [a for a in axes if a != axis]) for axis in axes]
    new = [mark(part, m, needed) for part, m in zip(root.parts, masks, strict=True)]
    return any(new)


def any_over(mask: Any, axes: Sequence[int], keepdims: bool = False) -> np.ndarray:
    """Whether any entry along some axes is True."""
    return np.asarray(np.any(mask, axis=tuple(axes), keepdims=keepdims))


def units_along(dim: Dim) -> dict[Dim, np.ndarray]:
    """By atom, the unit at every index of the axis, int (size,); -1 where none is."""
    root = dim.root
    if not root.parts:
        return {root: np.arange(root.size)}
    found: dict[Dim, np.ndarray] = {}
    before, after = 1, root.size
    offset = 0
    for part in root.parts:
        after //= max(part.size, 1)
        for atom, units in units_along(part).items():
            if root.is_sum:
                line = np.full(root.size, -1)
                line[offset : offset + part.size] = units
            else:
                line = np.tile(np.repeat(units, after), before)
            found[atom] = np.maximum(found.get(atom, -1), line)
        before *= part.size
        offset += part.size
    return found
