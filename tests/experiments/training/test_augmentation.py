"""Tests of experiments.augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import augmentation
from experiments.training.augmentation import normalise

# Compiled, as in a training step.
augment = jax.jit(augmentation.augment, static_argnums=2)
random_crop = jax.jit(augmentation.random_crop, static_argnums=2)
random_flip = jax.jit(augmentation.random_flip)

PADDING = 4  # the default


def distinct_images(n, height=6, width=5):
    """Images none of whose pixels is 0 or equal to another: a crop tells its place."""
    pixels = np.arange(1, height * width + 1, dtype=np.uint8)
    return np.tile(pixels.reshape(1, height, width, 1), (n, 1, 1, 1))


def find_crop(crop, image):
    """(row, column) of the window of the zero-padded image that the crop is."""
    border = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))
    padded = np.pad(image, border)
    windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)
    matches = (windows.squeeze(2) == crop).all(axis=(-3, -2, -1))
    (place,) = np.argwhere(matches)
    return tuple(place.tolist())


def find_crop_and_flip(crop, image):
    """Row and column of the window, and whether it was mirrored after it was cut."""
    try:
        return *find_crop(crop, image), False
    except ValueError:
        return *find_crop(crop[:, ::-1], image), True


def test_every_crop_is_a_window_of_the_image_with_a_border_of_zeros():
    images = distinct_images(500)
    crops = np.asarray(random_crop(jax.random.key(0), images))
    assert crops.shape == images.shape
    assert crops.dtype == images.dtype
    places = set(map(find_crop, crops, images))
    rows, columns = (set(side) for side in zip(*places, strict=True))
    # A given one of the 9 offsets is missing in 500 with probability (8/9)^500 = 3e-26.
    assert rows == columns == set(range(2 * PADDING + 1))


def test_offsets_of_crops_are_uniform_and_independent():
    images = distinct_images(8100)
    crops = np.asarray(random_crop(jax.random.key(1), images))
    unique, counts = np.unique(crops.reshape(8100, -1), axis=0, return_counts=True)
    assert len(unique) == 81
    # Chi-square with 80 degrees of freedom: mean 80, standard deviation 12.6.
    assert np.sum((counts - 100) ** 2 / 100) < 80 + 5 * 12.6


def test_crop_without_padding_changes_nothing():
    images = distinct_images(3)
    np.testing.assert_array_equal(random_crop(jax.random.key(0), images, 0), images)


def test_flip_mirrors_half_of_the_images_left_to_right():
    images = distinct_images(4096)
    flipped = np.asarray(random_flip(jax.random.key(0), images))
    assert flipped.dtype == images.dtype
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~mirrored)
    assert abs(int(mirrored.sum()) - 2048) < 5 * 32  # five standard deviations


def test_orders_differ_in_the_side_to_which_a_mirrored_window_moves():
    images, key = distinct_images(64), jax.random.key(2)
    ways = {}
    for order in ("crop-flip", "flip-crop"):
        out = np.asarray(augment(key, images, order))
        ways[order] = list(map(find_crop_and_flip, out, images))
    # Mirroring first and cutting at column x is cutting at 2 padding - x and mirroring.
    expected = [
        (row, 2 * PADDING - column if mirrored else column, mirrored)
        for row, column, mirrored in ways["crop-flip"]
    ]
    assert ways["flip-crop"] == expected
    assert {mirrored for _, _, mirrored in expected} == {True, False}


def test_no_augmentation_changes_nothing():
    images = distinct_images(3)
    np.testing.assert_array_equal(augment(jax.random.key(0), images, "none"), images)


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"order must be .*, got 'flip'"):
        augment(jax.random.key(0), distinct_images(1), "flip")


def test_augmentation_follows_the_key():
    images = distinct_images(32)
    first, again, other = (
        augment(jax.random.key(seed), images, "crop-flip") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_devices_augment_their_images_without_talking():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images, key = distinct_images(64), jax.random.key(0)
    sharded = jax.device_put(images, sharding)

    @jax.jit
    def prepare(key, images):
        return normalise(augment(key, images, "flip-crop"), (0.5,), (0.25,))

    compiled = prepare.lower(key, sharded).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled
    together = prepare(key, sharded)
    assert together.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_array_equal(together, prepare(key, images))


def test_normalise_scales_bytes_then_standardises_each_channel():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 4, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.astype(np.float64) / 255 - mean) / std
    out = normalise(jnp.asarray(images), mean, std)
    assert out.dtype == jnp.float32
    # Three roundings of numbers up to 2.7, the first two magnified by 1/std = 4.5.
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


def test_normalise_takes_float_images_as_they_are():
    images = jnp.linspace(0, 1, 24, dtype=jnp.float32).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(normalise(images, (0.0,), (1.0,)), images)


def test_normalise_refuses_other_dtypes():
    with pytest.raises(TypeError, match="got int32"):
        normalise(jnp.zeros((1, 2, 2, 1), jnp.int32), (0.0,), (1.0,))
