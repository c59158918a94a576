"""Curves between two solutions: points, lengths, and the training of the bend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_grda.landscape import Bezier, bend_loss, train_bend

# Three products and two sums of numbers of order one.
ROUNDING = 5 * np.finfo(np.float32).eps

jitted_train_bend = jax.jit(train_bend, static_argnums=(0, 1))


def ring_loss(w, batch):
    """A valley along the circle |w| = 1."""
    return jnp.square(jnp.sum(jnp.square(w)) - 1)


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ends_are_met_exactly(points, dtype):
    curve = Bezier(*points(3, dtype))
    for evaluate in (Bezier.__call__, jax.jit(Bezier.__call__)):
        assert_trees_equal(evaluate(curve, 0.0), curve.start)
        assert_trees_equal(evaluate(curve, 1.0), curve.end)


@pytest.mark.parametrize("t", [0, 0.125, 0.5, 0.9, np.float64(0.3), jnp.float32(0.7)])
def test_points_follow_the_equation(points, flat, t):
    curve = Bezier(*points(3))
    w0, w1, w2 = map(flat, (curve.start, curve.bend, curve.end))
    t = float(t)
    expected = (1 - t) ** 2 * w0 + 2 * t * (1 - t) * w1 + t**2 * w2
    np.testing.assert_allclose(flat(curve(t)), expected, atol=4 * ROUNDING)


def test_straight_curve_is_the_line_at_constant_speed(points, flat):
    start, end = points(2)
    line = Bezier.straight(start, end)
    for t in (0.0, 0.25, 0.5, 1.0):
        expected = (1 - t) * flat(start) + t * flat(end)
        np.testing.assert_allclose(flat(line(t)), expected, atol=4 * ROUNDING)


def test_straight_curve_is_as_long_as_its_chord(points, flat):
    line = Bezier.straight(*points(2))
    chord = np.linalg.norm(flat(line.end) - flat(line.start))
    np.testing.assert_allclose(line.chord_length(), chord, rtol=ROUNDING)
    np.testing.assert_allclose(line.arc_length(), chord, rtol=ROUNDING)


def test_arc_length_of_a_parabola_is_the_closed_form():
    # (0, 0), (1, 2), (2, 0) is y = x (2 - x) on [0, 2], whose length is that.
    curve = Bezier(jnp.array([0.0, 0]), jnp.array([1.0, 2]), jnp.array([2.0, 0]))
    expected = np.sqrt(5) + np.arcsinh(2) / 2
    np.testing.assert_allclose(curve.arc_length(), expected, rtol=ROUNDING)


def test_arc_length_of_a_curve_that_turns_back():
    # On a line: x(t) = 4 t (1 - t) + t^2 goes from 0 to 4/3 at t = 2/3, and back to 1.
    curve = Bezier(jnp.array([0.0]), jnp.array([2.0]), jnp.array([1.0]))
    np.testing.assert_allclose(curve.arc_length(), 5 / 3, rtol=4e-4)


def test_bend_between_bfloat16_ends_is_float32_and_learns_small_steps(points):
    start, end = (point["dense"]["kernel"] for point in points(2, jnp.bfloat16))
    line = Bezier.straight(start, end)
    assert line.bend.dtype == jnp.float32
    assert line(0.5).dtype == jnp.bfloat16

    def loss_fn(params, batch):  # of gradient 1 in every entry
        return jnp.sum(params.astype(jnp.float32))

    optimizer = optax.sgd(1e-4)  # a hundredth of what bfloat16 can add to 1
    curve, _, _ = jitted_train_bend(
        loss_fn,
        optimizer,
        line,
        optimizer.init(line.bend),
        jnp.zeros(100),
        jax.random.key(0),
    )
    # 2 t (1 - t) is 1/3 in the mean, and at most 1/2.
    moved = np.asarray(line.bend) - np.asarray(curve.bend)
    assert np.all((moved > 0.002) & (moved < 0.005))


def test_float64_weights_are_computed_in_float64(points, flat):
    with jax.enable_x64(True):
        curve = Bezier(*points(3, np.float64))
        w0, w1, w2 = map(flat, (curve.start, curve.bend, curve.end))
        expected = 0.49 * w0 + 0.42 * w1 + 0.09 * w2
        np.testing.assert_allclose(flat(curve(0.3)), expected, rtol=0, atol=1e-15)
        assert curve.arc_length().dtype == jnp.float64
        line = Bezier.straight(curve.start, curve.end)
        np.testing.assert_allclose(line.arc_length(), line.chord_length(), rtol=1e-14)


def test_training_draws_one_uniform_t_per_batch():
    # w(t) = t on this line, so the losses are the draws.
    line = Bezier.straight(jnp.array(0.0), jnp.array(1.0))
    optimizer = optax.set_to_zero()
    _, _, draws = jitted_train_bend(
        lambda w, batch: w, optimizer, line, (), jnp.zeros(1000), jax.random.key(3)
    )
    assert len(np.unique(draws)) > 990
    # Kolmogorov-Smirnov: 2.0 / sqrt(n) is exceeded with probability 7e-4.
    distance = np.abs(np.sort(draws) - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < 2 / np.sqrt(1000)


def test_training_is_the_loop_over_bend_loss(points):
    def loss_fn(params, batch):
        return jnp.sum(jnp.square(params - batch))

    line = Bezier.straight(*(point["dense"]["kernel"] for point in points(2)))
    optimizer = optax.sgd(0.01, momentum=0.9)
    batches = jnp.linspace(-1, 1, 5)
    keys = jax.random.key(1), jax.random.key(2)

    curve, state, losses = line, optimizer.init(line.bend), []
    # Two epochs: from Python, and in one program.
    for key, train in zip(keys, (train_bend, jitted_train_bend), strict=True):
        curve, state, epoch_losses = train(
            loss_fn, optimizer, curve, state, batches, key
        )
        losses.extend(epoch_losses)

    @jax.jit
    def step(bend, state, key, batch):
        loss, gradients = jax.value_and_grad(bend_loss(loss_fn))(
            bend, line.start, line.end, key, batch
        )
        updates, state = optimizer.update(gradients, state, bend)
        return optax.apply_updates(bend, updates), state, loss

    bend, state, expected = line.bend, optimizer.init(line.bend), []
    for key in keys:
        for batch_key, batch in zip(jax.random.split(key, 5), batches, strict=True):
            bend, state, loss = step(bend, state, batch_key, batch)
            expected.append(loss)

    assert_trees_equal((curve.start, curve.end), (line.start, line.end))
    # Ten steps, each with a few roundings of its own.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(curve.bend, bend, atol=1e-5)


def test_training_finds_the_best_bend_of_a_quadratic_loss():
    # The bend that minimises E 1/2 |w(t) - target|^2: with E t(1-t) = 1/6,
    # E t(1-t)^3 = E t^3(1-t) = 1/20 and E 4 t^2 (1-t)^2 = 2/15 it solves
    # 2/15 bend = target/3 - (start + end)/10.
    start, end, target = jnp.array([1.0, 0]), jnp.array([0.0, -1]), jnp.array([0.5, 1])
    best = 2.5 * target - 0.75 * (start + end)

    def loss_fn(w, batch):
        return jnp.sum(jnp.square(w - target)) / 2

    # At this rate the bend is a mean over all steps, as exact as n draws allow.
    steps, curvature = 20_000, 2 / 15
    optimizer = optax.sgd(lambda count: 1 / (curvature * (count.astype(float) + 10)))
    line = Bezier.straight(start, end)
    curve, _, _ = jitted_train_bend(
        loss_fn,
        optimizer,
        line,
        optimizer.init(line.bend),
        jnp.zeros(steps),
        jax.random.key(0),
    )
    t = np.linspace(0, 1, 10_001)[:, None]
    residuals = Bezier(start, best, end)
    along = np.asarray(jax.vmap(residuals)(jnp.asarray(t[:, 0], jnp.float32)))
    noise = (2 * t * (1 - t) * (along - np.asarray(target))).std(axis=0)
    deviation = np.abs(curve.bend - best) * curvature * np.sqrt(steps) / noise
    assert np.all(deviation < 4)  # standard deviations
    assert np.all(4 * noise / curvature / np.sqrt(steps) < 0.03)  # of 3.25


def test_trained_curve_stays_in_a_curved_valley():
    # From (1, 0) to (0, 1) with the bend in (b, b), s = t (1 - t): |w|^2 - 1 is
    # s (4 (b - 1) + 2 s (2 b - 1)^2), so the loss is a polynomial in b and s.
    line = Bezier.straight(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    t = np.linspace(0, 1, 1001)
    s = t * (1 - t)

    def losses(b):
        return (s * (4 * (b - 1) + 2 * s * (2 * b - 1) ** 2)) ** 2

    candidates = np.linspace(0.5, 1.5, 10_001)
    best = min(candidates, key=lambda b: losses(b).mean())
    assert losses(0.5).max() == 0.25  # the line's barrier
    assert losses(best).max() < 0.002  # the best curve's

    optimizer = optax.sgd(optax.linear_schedule(0.5, 0.0, 2000))
    curve, _, _ = jitted_train_bend(
        ring_loss,
        optimizer,
        line,
        optimizer.init(line.bend),
        jnp.zeros(2000),
        jax.random.key(0),
    )
    # The draws of t leave the bend near its best, in both entries.
    np.testing.assert_allclose(curve.bend, [best, best], atol=0.01)
    along = jax.jit(jax.vmap(lambda t: ring_loss(curve(t), None)))(t)
    assert np.max(along) < 0.002


def test_bend_loss_passes_auxiliary_values_on():
    loss_fn = jax.value_and_grad(
        bend_loss(lambda w, batch: (w * batch, {"w": w})), has_aux=True
    )
    (loss, aux), gradient = loss_fn(0.5, 0.0, 1.0, jax.random.key(0), 3.0)
    t = aux["w"]  # the curve is w(t) = t
    np.testing.assert_allclose(loss, 3 * t, rtol=ROUNDING)
    np.testing.assert_allclose(gradient, 3 * 2 * t * (1 - t), rtol=ROUNDING)


def test_several_bends_train_under_vmap():
    line = Bezier.straight(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    optimizer = optax.sgd(0.1)
    train = functools.partial(
        train_bend, ring_loss, optimizer, line, optimizer.init(line.bend), jnp.zeros(20)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    curves, _, _ = jax.jit(jax.vmap(train))(keys)
    expected, _, _ = train(keys[1])
    np.testing.assert_allclose(curves.bend[1], expected.bend, atol=ROUNDING * 20)
    assert len(np.unique(curves.bend[:, 0])) == 3


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (-0.1, r"t must be in \[0, 1\], got -0.1"),
        (1.5, r"t must be in \[0, 1\], got 1.5"),
        (float("nan"), r"t must be in \[0, 1\], got nan"),
        (jnp.float32(2), r"t must be in \[0, 1\], got 2.0"),
        (jnp.zeros(2), r"t must be a scalar, got shape \(2,\)"),
    ],
)
def test_bad_t_is_refused(points, t, message):
    with pytest.raises(ValueError, match=message):
        Bezier(*points(3))(t)


def test_traced_t_is_not_checked():
    curve = Bezier(jnp.array(0.0), jnp.array(0.5), jnp.array(1.0))
    assert jax.jit(curve)(2.0) == 2.0


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (
            ({"w": 0.0}, {"v": 0.0}, {"w": 0.0}),
            ValueError,
            "bend must have the structure of start: missing 'w', unexpected 'v'",
        ),
        (
            ({"w": jnp.zeros(3)}, {"w": jnp.zeros(3)}, {"w": jnp.zeros(2)}),
            ValueError,
            r"end must have the shapes of start, \(3,\) at w: got \(2,\)",
        ),
        (
            (jnp.zeros(3), jnp.zeros(3, jnp.int32), jnp.zeros(3)),
            TypeError,
            "bend must have real float leaves, got int32 at the root",
        ),
        (
            (jnp.zeros(3, jnp.complex64), jnp.zeros(3), jnp.zeros(3)),
            TypeError,
            "start must have real float leaves, got complex64 at the root",
        ),
        (({}, {}, {}), ValueError, "start must hold at least one array, got {}"),
    ],
)
def test_points_that_do_not_match_are_refused(points, error, message):
    for use in (
        lambda curve: curve(0.5),
        Bezier.arc_length,
        lambda curve: jax.jit(Bezier.__call__)(curve, 0.5),
    ):
        with pytest.raises(error, match=message):
            use(Bezier(*points))


def test_float64_does_not_mix_with_float32():
    with jax.enable_x64(True):
        start, end = jnp.zeros(3, jnp.float32), jnp.zeros(3, jnp.float64)
        message = "end must have the dtypes of start, float32 at the root: got float64"
        with pytest.raises(ValueError, match=message):
            Bezier.straight(start, end)


@pytest.mark.parametrize(
    ("batches", "shapes"),
    [
        ((), r"\[\]"),
        (jnp.array(1.0), r"\[\(\)\]"),
        (np.zeros((0, 2)), r"\[\(0, 2\)\]"),
        ((np.zeros(3), np.zeros(2)), r"\[\(3,\), \(2,\)\]"),
    ],
)
def test_batches_of_unequal_length_are_refused(batches, shapes):
    line = Bezier.straight(jnp.array(0.0), jnp.array(1.0))
    with pytest.raises(ValueError, match=f"batches must .* got shapes {shapes}"):
        train_bend(
            lambda w, batch: w, optax.identity(), line, (), batches, jax.random.key(0)
        )
