"""Lengths as terms: unified, refined, or frozen."""

import numpy as np

from optax_grda.units import _dims
from optax_grda.units._dims import Dim, concatenation, product, unify, units_along


def reasons(*dims):
    return [[atom.frozen for atom in dim.atoms] for dim in dims]


def test_an_atom_becomes_what_the_other_is():
    a, b, c = Dim(6), Dim(2), Dim(3)
    unify(a, product([b, c]), "why")
    assert a.factors == [b.root, c.root]
    assert reasons(a) == [[None, None]]
    (first, second) = units_along(a).values()
    np.testing.assert_array_equal(first, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(second, [0, 1, 2, 0, 1, 2])


def test_factors_and_pieces_are_refined_to_match():
    a, b, c = Dim(12), Dim(4), Dim(3)
    unify(product([a, Dim(2)]), product([b, Dim(6)]), "why")
    unify(a, product([b, c]), "why")
    assert [factor.size for factor in a.factors] == [4, 3]
    left, right = concatenation([Dim(5), Dim(3)]), concatenation([Dim(2), Dim(6)])
    unify(left, right, "why")
    assert [term.size for term in left.terms] == [2, 3, 3]
    assert [term.size for term in right.terms] == [2, 3, 3]
    assert not any(any(some) for some in reasons(a, left, right))


def test_whole_blocks_can_be_cut_off_a_product():
    heads, entries = Dim(6), Dim(4)
    first, rest = _dims.pieces(product([heads, entries]), (8, 16), "why")
    assert [factor.size for factor in first.factors] == [2, 4]
    assert [factor.size for factor in rest.factors] == [4, 4]
    assert heads.is_sum
    assert not any(map(any, reasons(heads, entries)))


def test_terms_that_do_not_match_are_frozen():
    for a, b in [
        (product([Dim(4), Dim(3)]), product([Dim(6), Dim(2)])),
        (product([Dim(3), Dim(4)]), concatenation([Dim(6), Dim(6)])),
        (product([concatenation([Dim(2), Dim(1)]), Dim(2)]), product([Dim(2), Dim(3)])),
    ]:
        unify(a, b, "why")
        assert {r for some in reasons(a, b) for r in some} == {"why"}


def test_what_is_unified_with_something_frozen_is_frozen_for_its_reason():
    a, b, c = Dim(6), Dim(2), Dim(3)
    unify(Dim(6, "an argument"), a, "why")
    unify(product([b, c]), a, "why")
    assert reasons(a, b, c) == [["an argument"] * 2, *[["an argument"]] * 2]


def test_what_is_kept_of_terms_and_what_is_marked_in_them():
    b, c = Dim(2), Dim(3)
    dim = concatenation([product([b, c]), b])
    needed = {b: np.array([True, False]), c: np.array([True, True, False])}
    np.testing.assert_array_equal(
        _dims.kept(dim, needed), [True, True, False, False, False, False, True, False]
    )
    assert _dims.mark(dim, np.arange(8) == 5, needed)
    np.testing.assert_array_equal(needed[b], [True, True])
    np.testing.assert_array_equal(needed[c], [True, True, True])
    assert not _dims.mark(dim, np.arange(8) == 5, needed)
