"""A decoder-only transformer: text in, the logits of each next token out."""

import jax
import jax.numpy as jnp
from flax import nnx

from models._initializers import normal
from models._layers import Embedding, check_tokens

ROTARY_BASE = (
    10_000.0  # the slowest pair of channels turns once in so many tokens, x 2 pi
)


class Transformer(nnx.Module):
    r"""Blocks of causal attention and a gated hidden layer, each behind its own norm.

    .. math::

      x_0 = E_t, \qquad
      x' = x + \mathrm{attention}(\mathrm{norm}(x)), \qquad
      x'' = x' + \mathrm{gated}(\mathrm{norm}(x')), \qquad
      \mathrm{logits} = \mathrm{norm}(x_n) E^T

    with RMSNorm, rotary positions, SwiGLU and no biases, as in LLaMA (Touvron et al.,
    2023, arXiv 2302.13971). At width 64 and 2 blocks it has 123,200 parameters with a
    vocabulary of bytes; at 768 and 12, GPT-2 small's size, 123,551,232 with a
    vocabulary of 50,257.

    Args:
      num_classes: the vocabulary, tokens 0 to num_classes - 1.
      input_shape: (length,) of the texts it was made for. It takes any length.
      width: of the stream that the blocks add to.
      blocks: how many.
      heads: of attention, each of width / heads channels, an even number.
      tied: whether the logits use the embedding's matrix, or one of their own.
      dtype, param_dtype, rngs: see models.create.

    Raises:
      ValueError: if width / heads is not an even whole number.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int],
        width: int,
        blocks: int,
        heads: int,
        tied: bool = True,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del input_shape
        if width % (2 * heads):
            raise ValueError(
                f"width must be an even multiple of heads, {heads}: got {width}"
            )
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embedding = Embedding(num_classes, width, **options)
        self.blocks = nnx.List(
            # Sums of 2 * blocks terms start as large as one.
            Block(width, heads, (2 * blocks) ** -0.5, options)
            for _ in range(blocks)
        )
        self.norm = _norm(width, **options)
        self.head = None if tied else _matrix(width, num_classes, **options)

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, length, num_classes), float32, of the token after each.

        Without dropout, rngs are not used.
        """
        check_tokens(tokens)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.embedding.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)


class Block(nnx.Module):
    """Adds attention, then a gated hidden layer, to a stream (batch, length, width)."""

    def __init__(self, width: int, heads: int, scale: float, options: dict):
        hidden = -(-8 * width // 3 // 64) * 64  # 8/3 of the width, in whole 64
        self.attention_norm = _norm(width, **options)
        self.query = _matrix(width, width, **options)
        self.key = _matrix(width, width, **options)
        self.value = _matrix(width, width, **options)
        self.output = _matrix(width, width, scale, **options)
        self.hidden_norm = _norm(width, **options)
        self.gate = _matrix(width, hidden, **options)
        self.up = _matrix(width, hidden, **options)
        self.down = _matrix(hidden, width, scale, **options)
        self.channels = width // heads  # of a head's queries and keys

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.output(self.attention(self.attention_norm(x)))
        x_normed = self.hidden_norm(x)
        return x + self.down(nnx.silu(self.gate(x_normed)) * self.up(x_normed))

    def attention(self, x: jax.Array) -> jax.Array:
        """What each token takes from itself and from those before it, head by head."""
        batch, length, _ = x.shape
        # As many heads, and values of each, as there are weights for.
        query, key = (
            rotary(f(x).reshape(batch, length, -1, self.channels))
            for f in (self.query, self.key)
        )
        value = self.value(x).reshape(batch, length, query.shape[2], -1)
        return causal(query, key, value).reshape(batch, length, -1)


def causal(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Means of the values up to each position, weighted by softmax of q k / sqrt(c).

    Arguments and result have the shape (batch, length, heads, channels), values perhaps
    other channels; the softmax is float32. (jax.nn.dot_product_attention refuses
    bfloat16 where dtypes are strict.)
    """
    scale = query.shape[-1] ** -0.5
    query, key, value = (jnp.moveaxis(x, 2, 1) for x in (query, key, value))
    scores = jnp.matmul(
        scale * query, jnp.moveaxis(key, 2, 3), preferred_element_type=jnp.float32
    )
    # A sum, not a choice: half the time on a CPU, where it fuses with the softmax.
    later = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), 0.0, -1e9)
    weights = jax.nn.softmax(scores + later[None, None], axis=-1)
    return jnp.moveaxis(jnp.matmul(weights.astype(value.dtype), value), 1, 2)


def rotary(x: jax.Array) -> jax.Array:
    r"""Turns pairs of channels by angles that grow with the position.

    Channels j and j + h/2 of a head of h channels are a point of the plane; at position
    t it turns by :math:`t \cdot 10000^{-2j/h}`. So products of two heads depend on the
    distance of their positions alone. Source: Su et al., "RoFormer: Enhanced
    Transformer with Rotary Position Embedding", 2021 (arXiv 2104.09864).

    Args:
      x: (batch, length, heads, channels), with an even number of channels.

    Returns:
      Array of the shape and dtype of x; computed in float32.
    """
    length, half = x.shape[1], x.shape[3] // 2
    speed = ROTARY_BASE ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.outer(jnp.arange(length, dtype=jnp.float32), speed)
    cos, sin = (f(angle)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def _norm(width: int, dtype: jax.typing.DTypeLike, **options) -> nnx.RMSNorm:
    """Computes in float32; the layer behind it has the dtype of the network."""
    del dtype
    return nnx.RMSNorm(width, dtype=jnp.float32, **options)


def _matrix(fan_in: int, fan_out: int, scale: float = 1.0, **options) -> nnx.Linear:
    """Dense layer without bias, whose outputs start as large as its inputs, scaled."""
    init = normal(scale * fan_in**-0.5)
    return nnx.Linear(fan_in, fan_out, use_bias=False, kernel_init=init, **options)
