"""Augmentation and normalisation of images on the device.

Pure functions of arrays, for use inside a jitted step. They split by images: under a
mesh that shards the batch, no device talks to another.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def augment(key: jax.Array, images: jax.Array, order: str) -> jax.Array:
    """Crops and flips every image at random, in the order of the paper's networks.

    Meant for raw pixels, before :func:`normalise`: the border of a crop is black, as
    in the authors' pipelines.

    Args:
      key: typed PRNG key.
      images: (n, height, width, channels), of any dtype.
      order: ``"crop-flip"`` (WideResNet), ``"flip-crop"`` (VGG16) or ``"none"``.

    Returns:
      Array of the shape and dtype of images.

    Raises:
      ValueError: if order is none of the three.
    """
    crop_key, flip_key = jax.random.split(key)
    match order:
        case "none":
            return images
        case "crop-flip":
            return random_flip(flip_key, random_crop(crop_key, images))
        case "flip-crop":
            return random_crop(crop_key, random_flip(flip_key, images))
    raise ValueError(f"order must be 'none', 'crop-flip' or 'flip-crop', got {order!r}")


def random_crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads every image with zeros and cuts a window of its own size out of it.

    Args:
      key: typed PRNG key.
      images: (n, height, width, channels), of any dtype.
      padding: pixels on each side. The window's two offsets are drawn for each image,
        uniformly from 0 to ``2 * padding``.

    Returns:
      Array of the shape and dtype of images.
    """
    n, *window = images.shape
    offsets = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def cut(image, offset):
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), window)

    # Under a mesh, indexing with arrays of rows and columns would gather the batch.
    return jax.vmap(cut)(jnp.pad(images, border), offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2.

    Args:
      key: typed PRNG key.
      images: (n, height, width, channels), of any dtype.

    Returns:
      Array of the shape and dtype of images.
    """
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def normalise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Scales pixels to [0, 1], then subtracts the mean and divides by std by channel.

    Args:
      images: (n, height, width, channels); uint8, or float32 in [0, 1] already.
      mean: one number a channel, in units of pixels in [0, 1].
      std: one number a channel, likewise.

    Returns:
      Array of the shape of images, float32.

    Raises:
      TypeError: if images are neither uint8 nor float32.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    elif images.dtype != jnp.float32:
        raise TypeError(f"images must be uint8 or float32, got {images.dtype}")
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images - mean) / std
