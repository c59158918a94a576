"""The plane through three solutions: frame, coordinates, grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda.landscape import Bezier, Plane

# The rounding of numbers up to 4, and of sums over 137 products of them.
ATOL = 1e-5


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=ATOL),
        actual,
        expected,
    )


def test_corners_are_the_three_points(points):
    three = points(3)
    plane = Plane.through(*three)
    for (x, y), point in zip(plane.corners, three, strict=True):
        assert_close(plane(x, y), point)
        assert_close(tuple(plane.project(point)), (x, y, 0.0))
    assert np.all(plane.corners[0] == 0)
    assert plane.corners[1, 1] == 0
    assert plane.corners[1, 0] > 0
    assert plane.corners[2, 1] > 0


def test_axes_are_orthonormal(points, flat):
    plane = Plane.through(*points(3))
    axes = np.stack([flat(plane.x_axis), flat(plane.y_axis)])
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-6)


def test_axes_of_a_flat_triangle_are_orthogonal(points, flat):
    first, second, third = points(3)
    line = Bezier.straight(first, second)
    # A thousandth of the way out: one pass of Gram-Schmidt would leave 1e-4.
    barely_off = jax.tree.map(lambda a, b: a + 1e-3 * b, line(0.5), third)
    plane = Plane.through(first, second, barely_off)
    assert abs(flat(plane.x_axis) @ flat(plane.y_axis)) < 1e-6


def test_distances_in_the_plane_are_distances_between_weights(points, flat):
    plane = Plane.through(*points(3))
    a, b = (0.5, -2.0), (3.0, 1.25)
    distance = np.linalg.norm(flat(plane(*a)) - flat(plane(*b)))
    np.testing.assert_allclose(distance, np.hypot(2.5, 3.25), rtol=1e-6)


def test_projection_is_least_squares(points, flat):
    *three, other = points(4)
    plane = Plane.through(*three)
    first, second, third, other_flat = map(flat, (*three, other))
    basis = np.stack([second - first, third - first], axis=1)
    coefficients, residual, _, _ = np.linalg.lstsq(basis, other_flat - first)
    nearest = first + basis @ coefficients

    for project in (plane.project, jax.jit(plane.project)):
        x, y, distance = project(other)
        np.testing.assert_allclose(flat(plane(x, y)), nearest, atol=ATOL)
        np.testing.assert_allclose(distance, np.sqrt(residual[0]), rtol=1e-6)


def test_grid_reaches_beyond_the_corners_by_the_margin():
    plane = Plane.through(
        jnp.array([0.0, 0, 5]), jnp.array([4.0, 0, 5]), jnp.array([-1.0, 2, 5])
    )
    xs, ys = plane.grid()
    assert xs.shape == ys.shape == (29,)
    np.testing.assert_allclose(xs, np.linspace(-2, 5, 29), atol=1e-6)
    np.testing.assert_allclose(ys, np.linspace(-0.4, 2.4, 29), atol=1e-6)
    xs, _ = plane.grid(points=3, margin=0)
    np.testing.assert_allclose(xs, [-1, 1.5, 4], atol=1e-6)


def test_frame_of_bfloat16_weights_is_float32(points):
    three = points(3, jnp.bfloat16)
    plane = Plane.through(*three)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(plane.x_axis))
    for corner, point in zip(plane.corners, three, strict=True):
        # Rounded from float32, most entries come out to the bit.
        assert_close(tuple(plane.project(point)), (*corner, 0.0))
        actual = plane(*corner)
        assert all(w.dtype == jnp.bfloat16 for w in jax.tree.leaves(actual))
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(
                a.astype(jnp.float32), e.astype(jnp.float32), rtol=2**-8, atol=ATOL
            ),
            actual,
            point,
        )


def test_float64_weights_are_projected_in_float64(points):
    with jax.enable_x64(True):
        three = points(3, np.float64)
        plane = Plane.through(*three)
        for corner, point in zip(plane.corners, three, strict=True):
            np.testing.assert_allclose(
                plane.project(point), (*corner, 0.0), rtol=0, atol=1e-14
            )


def test_planes_under_vmap_are_planes_one_by_one(points):
    *three, other = points(4)
    scales = jnp.array([0.5, 1.0, 2.0])

    @jax.jit
    def project(scale):
        scaled = jax.tree.map(lambda x: scale * x, three)
        return Plane.through(*scaled).project(other)

    together = jax.vmap(project)(scales)
    for i, scale in enumerate(scales):
        assert_close([value[i] for value in together], list(project(scale)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 1.0])
def test_collinear_points_are_refused(points, dtype, where):
    first, second = points(2, dtype)
    third = Bezier.straight(first, second)(where)  # off the line by its rounding
    with pytest.raises(ValueError, match=r"must not lie on a line: second is .* third"):
        Plane.through(first, second, third)


def test_equal_points_are_refused(points):
    first, second = points(2)
    with pytest.raises(ValueError, match="must not lie on a line: second is 0 from"):
        Plane.through(first, first, second)


def test_traced_collinear_points_give_nan(points):
    first, second = points(2)
    plane = jax.jit(Plane.through)(first, first, second)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(plane.x_axis))


def test_points_that_do_not_match_are_refused(points):
    first, second, third = points(3)
    with pytest.raises(ValueError, match="second must have the structure of first"):
        Plane.through(first, second["dense"], third)
    transposed = jax.tree.map(jnp.transpose, third)
    message = r"third must have the shapes of first, \(16, 8\) at dense/kernel: got"
    with pytest.raises(ValueError, match=message):
        Plane.through(first, second, transposed)
    plane = Plane.through(first, second, third)
    with pytest.raises(ValueError, match="params must have the shapes of origin"):
        plane.project(transposed)
    counts = jax.tree.map(lambda x: x.astype(jnp.int32), first)
    with pytest.raises(
        TypeError, match="params must have real float leaves, got int32"
    ):
        plane.project(counts)


def test_bad_coordinates_and_grids_are_refused(points):
    plane = Plane.through(*points(3))
    with pytest.raises(ValueError, match=r"x must be a scalar, got shape \(2,\)"):
        plane(jnp.zeros(2), 0.0)
    with pytest.raises(ValueError, match=r"y must be a scalar, got shape \(1,\)"):
        plane(0.0, jnp.zeros(1))
    with pytest.raises(ValueError, match="points must be an integer >= 2, got 1"):
        plane.grid(points=1)
    with pytest.raises(TypeError, match="points must be an integer >= 2, got True"):
        plane.grid(points=True)
    with pytest.raises(ValueError, match=r"margin must be >= 0, got -0\.1"):
        plane.grid(margin=-0.1)
