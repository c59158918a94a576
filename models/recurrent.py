"""A recurrent network: text in, the logits of each next token out."""

import jax
import jax.numpy as jnp
from flax import nnx

from models._layers import Embedding, check_tokens, linear


class GRU(nnx.Module):
    r"""A gated recurrent unit between an embedding and a dense layer.

    .. math::

      \begin{align*}
        r_t &= \sigma(W_r x_t + b_r + U_r h_{t-1} + c_r), &
        z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1} + c_z), \\
        n_t &= \tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + c_n)), &
        h_t &= (1 - z_t) n_t + z_t h_{t-1}
      \end{align*}

    from h = 0, in float32. This is PyTorch's; Cho et al., 2014 (arXiv 1406.1078), have
    r_t within the product. At width 64 it has 57,984 parameters with a vocabulary of
    bytes.

    Args:
      num_classes: the vocabulary, tokens 0 to num_classes - 1.
      input_shape: (length,) of the texts it was made for. It takes any length.
      width: of the embedding and of the state.
      dtype, param_dtype, rngs: see models.create.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        input_shape: tuple[int],
        width: int,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del input_shape
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embedding = Embedding(num_classes, width, **options)
        self.inputs = linear(width, 3 * width, **options)  # W: those of r, z and n
        self.states = linear(width, 3 * width, **options)  # U
        self.head = linear(width, num_classes, **options)

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Logits (batch, length, num_classes), float32, of the token after each.

        Without dropout, rngs are not used.
        """
        check_tokens(tokens)
        # What does not wait for the state is one product for all tokens.
        inputs = self.inputs(self.embedding(tokens)).astype(jnp.float32)

        def step(state, x):
            h = self.states(state).astype(jnp.float32)
            (r_x, z_x, n_x), (r_h, z_h, n_h) = (jnp.split(a, 3, -1) for a in (x, h))
            z = nnx.sigmoid(z_x + z_h)
            n = jnp.tanh(n_x + nnx.sigmoid(r_x + r_h) * n_h)
            state = (1 - z) * n + z * state
            return state, state

        first = jnp.zeros_like(inputs[:, 0, : inputs.shape[-1] // 3])
        _, states = jax.lax.scan(step, first, jnp.moveaxis(inputs, 1, 0))
        return self.head(jnp.moveaxis(states, 0, 1)).astype(jnp.float32)
