"""Lanczos' method with full orthogonalisation and thick restarts, on the host."""

import math
from collections.abc import Callable

import numpy as np

# The odds that a random start hides an eigenvalue from Krylov.excludes.
ODDS = 1e-4


class Krylov:
    """An orthonormal basis, and a symmetric operator's projection on its span.

    Each product adds a vector. At ``capacity`` the span is cut down to that of the Ritz
    vectors with the largest Ritz values.

    Args:
      start: normal random numbers, shape (size,).
      found: orthonormal rows that the basis stays orthogonal to, shape (any, size):
        the operator is deflated by them.
      capacity: the largest number of vectors in the basis.

    References:
      Wu and Simon, `Thick-restart Lanczos method for large symmetric eigenvalue
      problems <https://doi.org/10.1137/S0895479898334605>`_, SIAM Journal on Matrix
      Analysis and Applications, 2000.
    """

    ritz_values: np.ndarray  # ascending. shape=(size,)

    def __init__(self, start: np.ndarray, found: np.ndarray, capacity: int):
        self._found = found
        self._dimension = len(start) - len(found)
        self._basis = np.empty((capacity, len(start)), start.dtype)
        # Below the diagonal what symmetry lets expect.
        self._projection = np.zeros((capacity, capacity))
        self.size = 0
        rest, norm, _ = _orthogonalised(start, found)
        self._next = rest / norm
        # The next vector is a polynomial of the operator times the start: its roots,
        # beside the present Ritz values, and the logarithm of what it is divided by.
        self._roots = np.empty(0)
        self._log_scale = 0.0

    @property
    def full(self) -> bool:
        """Whether the basis has no room for another vector."""
        return self.size == len(self._basis)

    @property
    def residual_norms(self) -> np.ndarray:
        """Of the Ritz pairs, as far as products are exact. Shape (size,)."""
        return self._beta * np.abs(self._rotation[-1])

    @property
    def exhausted(self) -> bool:
        """Whether further products would not add to the span."""
        return self._beta == 0

    def extend(self, product: Callable[[np.ndarray], np.ndarray]) -> float:
        """Takes one product into the span.

        Returns:
          By how much the new entries of the projection break its symmetry.
        """
        n = self.size
        self._basis[n] = self._next
        rest, beta, column = _orthogonalised(
            product(self._next), self._found, self._basis[: n + 1]
        )
        asymmetry = np.abs(column[:n] - self._projection[n, :n]).max(initial=0)
        self._projection[n, n] = column[n]
        self.size = n + 1
        self._beta = beta if self.size < self._dimension else 0.0
        if not self.full:
            self._projection[n + 1, n] = self._beta
        if self._beta:
            self._next = rest / self._next.dtype.type(beta)
            self._log_scale += math.log(beta)
        # It reads the lower triangle only.
        self.ritz_values, self._rotation = np.linalg.eigh(
            self._projection[: self.size, : self.size]
        )
        return asymmetry

    def ritz_vectors(self, chosen: np.ndarray | slice) -> np.ndarray:
        """Orthonormal rows: the vectors of the chosen Ritz values, a mask or slice."""
        rotation = self._rotation[:, chosen].astype(self._basis.dtype)
        return rotation.T @ self._basis[: self.size]

    def restart(self, keep: int) -> None:
        """Cuts the span down to the vectors of the largest Ritz values."""
        kept = slice(self.size - keep, None)
        self._basis[:keep] = self.ritz_vectors(kept)
        self._roots = np.append(self._roots, self.ritz_values[:-keep])
        self._projection[:] = 0
        np.fill_diagonal(self._projection[:keep, :keep], self.ritz_values[kept])
        self._projection[keep, :keep] = self._beta * self._rotation[-1, kept]
        self.size = keep

    def excludes(self, value: float) -> bool:
        r"""Whether no eigenvalue of the deflated operator is as large as value.

        The next vector is p(H) times the start, both of length 1, so that an
        eigenvector x of eigenvalue l has |p(l)| |x . start| = |x . next| <= 1. For a
        random start in d dimensions, |x . start| is below o (pi / 2d)^(1/2) with odds o
        or less. Where p is larger than the inverse of that, and it grows beyond its
        roots, there is no eigenvalue but with these odds.

        References:
          Hochstenbach, `Probabilistic upper bounds for the matrix two-norm
          <https://doi.org/10.1007/s10915-013-9716-x>`_, Journal of Scientific
          Computing, 2013.
        """
        largest = self.ritz_values[-1]
        if self.exhausted:
            return value >= largest
        if value <= largest:
            return False
        distances = value - np.append(self._roots, self.ritz_values)
        least = ODDS * math.sqrt(math.pi / 2 / self._dimension)
        return np.log(distances).sum() - self._log_scale >= -math.log(least)


def _orthogonalised(
    vector: np.ndarray, *bases: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """The part of a vector orthogonal to all bases, its norm, and what the last took.

    Passes are repeated until one takes little. Where each takes much, all that is left
    is rounding: the norm is then 0.
    """
    along = taken = np.zeros(len(bases[-1]))
    norm = float(np.linalg.norm(vector))
    for _ in range(4):
        for basis in bases:
            along = basis @ vector
            vector = vector - along @ basis
        taken = taken + along
        before, norm = norm, float(np.linalg.norm(vector))
        if norm > 0.7 * before:
            return vector, norm, taken
    return vector, 0.0, taken
