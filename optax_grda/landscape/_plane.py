"""The plane through three solutions: coordinates in it, and losses on it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optax_grda._checks import check_integer, check_number
from optax_grda._points import check_points
from optax_grda._trees import combine, dot, norm, subtract, widen
from optax_grda.landscape._checks import check_scalar

PyTree = Any


class PlanePoint(NamedTuple):
    """Where weights lie as seen from a :class:`Plane`."""

    x: jax.Array  # coordinate of the nearest point of the plane. shape=()
    y: jax.Array  # the other coordinate. shape=()
    distance: jax.Array  # from the plane, >= 0. shape=()


# Compared by identity, so that `plane` and its methods are functions JAX can hash.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """The plane through three pytrees of weights, itself a pytree. See :meth:`through`.

    ``plane(x, y)`` are the weights at a point of it, ``plane.project(params)`` the
    coordinates of any weights. The axes are orthonormal, so distances in the plane are
    distances between weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.landscape import Plane, evaluate_grid
      >>> plane = Plane.through(
      ...     jnp.array([1.0, 1, 1]), jnp.array([4.0, 1, 1]), jnp.array([2.0, 3, 1])
      ... )
      >>> print(plane.corners)
      [[0. 0.]
       [3. 0.]
       [1. 2.]]
      >>> print(plane(3.0, 2.0))
      [4. 3. 1.]
      >>> print(*plane.project(jnp.array([4.0, 3.0, 6.0])))
      3.0 2.0 5.0

      The losses, ready for ``plt.contourf(xs, ys, losses)``:

      >>> xs, ys = plane.grid()
      >>> losses = evaluate_grid(plane, xs, ys, lambda w: jnp.sum(w**2))
      >>> print(losses.shape)
      (29, 29)

      The way of a curve over the plane is ``evaluate_along(curve, ts, plane.project)``.
    """

    origin: PyTree  # the first point. its own shapes and dtypes
    x_axis: PyTree  # unit vector. shapes of origin, at least float32
    y_axis: PyTree  # unit vector orthogonal to x_axis. shapes and dtypes of x_axis
    corners: jax.Array  # coordinates of the three points. shape=(3, 2)

    @classmethod
    def through(cls, first: PyTree, second: PyTree, third: PyTree) -> "Plane":
        """The plane through three points, with the origin in the first.

        The x axis points to the second, the y axis to the side of the third.

        Args:
          first: pytree of real float arrays.
          second: pytree of the same structure and shapes.
          third: pytree of the same structure and shapes.

        Returns:
          A :class:`Plane`.

        Raises:
          ValueError: if the points lie on a line, as far as their dtypes can tell
            (traced points are not checked, and give NaN); if their structures, shapes
            or dtypes differ, where those narrower than float32 count as float32.
          TypeError: if a leaf is not of a real float dtype.
        """
        check_points(first=first, second=second, third=third)
        to_second, to_third = subtract(second, first), subtract(third, first)
        width = norm(to_second)
        x_axis = combine(to_second, (1 / width, to_second))
        rest = to_third
        # Once leaves rounding of to_third behind, which a flat triangle would magnify.
        for _ in range(2):
            rest = combine(rest, (1.0, rest), (-dot(x_axis, rest), x_axis))
        height = norm(rest)
        _check_not_collinear(width, height, first, second, third)
        y_axis = combine(rest, (1 / height, rest))
        zero = jnp.zeros_like(width)
        corners = [zero, zero, width, zero, dot(x_axis, to_third), height]
        return cls(first, x_axis, y_axis, jnp.stack(corners).reshape(3, 2))

    def __call__(self, x: jax.typing.ArrayLike, y: jax.typing.ArrayLike) -> PyTree:
        """The weights at the point with coordinates x and y.

        Args:
          x: a scalar.
          y: a scalar.

        Returns:
          Pytree of the structure and dtypes of ``origin``.

        Raises:
          ValueError: if x or y is not a scalar.
        """
        check_scalar("x", x)
        check_scalar("y", y)
        return combine(
            self.origin, (1.0, self.origin), (x, self.x_axis), (y, self.y_axis)
        )

    def project(self, params: PyTree) -> PlanePoint:
        """The nearest point of the plane, and how far it is.

        Args:
          params: pytree of the structure and shapes of the plane's points.

        Returns:
          A :class:`PlanePoint` of float32 scalars (float64 if a leaf is).

        Raises:
          ValueError: if structure, shapes or dtypes are not those of the plane.
          TypeError: if a leaf is not of a real float dtype.
        """
        check_points(origin=self.origin, params=params)
        offset = subtract(params, self.origin)
        x, y = dot(self.x_axis, offset), dot(self.y_axis, offset)
        rest = combine(offset, (1.0, offset), (-x, self.x_axis), (-y, self.y_axis))
        return PlanePoint(x, y, norm(rest))

    def grid(
        self, points: int = 29, margin: float = 0.2
    ) -> tuple[jax.Array, jax.Array]:
        """Coordinates of a grid around the three points.

        Args:
          points: number of points along each axis, at least 2.
          margin: how far the grid reaches beyond the three points on every side, as a
            fraction of their extent, >= 0.

        Returns:
          xs and ys, each of shape (points,).

        Raises:
          ValueError: if points or margin break their rule.
          TypeError: if points is not an integer, or margin not a number.
        """
        check_integer("points", points, "an integer >= 2", lambda n: n >= 2)
        check_number("margin", margin, ">= 0", lambda x: x >= 0)
        low, high = jnp.min(self.corners, axis=0), jnp.max(self.corners, axis=0)
        reach = margin * (high - low)
        xs, ys = jnp.linspace(low - reach, high + reach, points, axis=1)
        return xs, ys


def _check_not_collinear(width, height, *points: PyTree) -> None:
    if isinstance(height, Tracer):
        return
    eps = max(jnp.finfo(jnp.result_type(x)).eps for x in jax.tree.leaves(points))
    rounding = eps * max(float(norm(widen(point))) for point in points)
    if not (width > rounding and height > rounding):
        raise ValueError(
            "first, second and third must not lie on a line: second is "
            f"{width:.3g} from first, and third {height:.3g} from the line through "
            f"both, where their rounding is {rounding:.3g}"
        )
