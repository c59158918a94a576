"""Networks of text against their equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.transformer import rotary

NAMES = ("transformer-64x2", "gru-64")
# Float32 rounds by 6e-8; a hundred operations follow each other, on values below ten.
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


def wide(model):
    """The parameters by path, float64."""
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(np.float64, state)


def transformer(p, tokens, heads):
    """One text through the equations of Transformer."""

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

    def turned(x):  # pairs of channels as complex numbers
        length, half = len(x), x.shape[-1] // 2
        angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def attention(x, b):
        q, k, v = (x @ b[name]["kernel"] for name in ("query", "key", "value"))
        mixed = []
        for columns in np.split(np.arange(x.shape[-1]), heads):
            scores = turned(q[:, columns]) @ turned(k[:, columns]).T
            weights = np.exp(scores / np.sqrt(len(columns)))
            weights = np.tril(weights)
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, columns])
        return np.concatenate(mixed, -1) @ b["output"]["kernel"]

    x = p["embedding"]["embedding"][tokens]
    for b in p["blocks"].values():
        x = x + attention(norm(x, b["attention_norm"]["scale"]), b)
        y = norm(x, b["hidden_norm"]["scale"])
        gate = y @ b["gate"]["kernel"]
        gated = gate / (1 + np.exp(-gate)) * (y @ b["up"]["kernel"])
        x = x + gated @ b["down"]["kernel"]
    return norm(x, p["norm"]["scale"])


def gru(p, tokens):
    """One text through the equations of GRU."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    h, states = np.zeros(p["states"]["kernel"].shape[0]), []
    for token in tokens:
        x = p["embedding"]["embedding"][token]
        from_x = x @ p["inputs"]["kernel"] + p["inputs"]["bias"]
        from_h = h @ p["states"]["kernel"] + p["states"]["bias"]
        (r, z, n), (r_h, z_h, n_h) = np.split(from_x, 3), np.split(from_h, 3)
        z = sigmoid(z + z_h)
        h = (1 - z) * np.tanh(n + sigmoid(r + r_h) * n_h) + z * h
        states.append(h)
    return np.array(states) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_computes_its_equations(tied, tiny, tiny_inputs):
    model, tokens = tiny("transformer-64x2", tied=tied), tiny_inputs("transformer-64x2")
    p = wide(model)
    head = p["embedding"]["embedding"].T if tied else p["head"]["kernel"]
    expected = [transformer(p, text, heads=2) @ head for text in np.asarray(tokens)]
    np.testing.assert_allclose(model(tokens), expected, **TOLERANCE)


def test_a_gru_computes_its_equations(tiny, tiny_inputs):
    model, tokens = tiny("gru-64"), tiny_inputs("gru-64")
    p = wide(model)
    expected = [gru(p, text) for text in np.asarray(tokens)]
    np.testing.assert_allclose(model(tokens), expected, **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_logits_do_not_depend_on_later_tokens(name, tiny, tiny_inputs):
    model, tokens = tiny(name), tiny_inputs(name)
    before = model(tokens)
    after = model(tokens.at[:, 3].set((tokens[:, 3] + 1) % 5))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any((0, 2)).all()


@pytest.mark.parametrize("name", NAMES)
def test_texts_may_be_longer_than_those_of_training(name, tiny):
    tokens = jnp.zeros((2, 9), jnp.int32)
    assert tiny(name)(tokens).shape == (2, 9, 5)


def test_products_of_turned_channels_depend_on_the_distance_alone():
    x = np.float32(np.random.default_rng(0).standard_normal(8))
    turned = rotary(jnp.broadcast_to(x, (1, 6, 1, 8)))[0, :, 0]
    products = np.asarray(turned @ turned.T)
    for distance in range(6):
        diagonal = np.diag(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(products[0, 0], x @ x, rtol=1e-5)
    assert abs(products[0, 1] - products[0, 0]) > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "tokens", [np.zeros((2, 6), np.float32), np.zeros((2, 6, 1), np.int32)]
)
def test_what_is_not_text_is_refused(name, tokens, tiny):
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \(batch, "):
        tiny(name)(jnp.asarray(tokens))


def test_a_width_that_heads_do_not_share_evenly_is_refused():
    with pytest.raises(ValueError, match="even multiple of heads, 3: got 64"):
        models.create("transformer-64x2", num_classes=2, heads=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", NAMES)
def test_losses_start_near_those_of_a_guess(name):
    model = models.create(name, num_classes=256, rngs=nnx.Rngs(0))
    tokens = jnp.int32(np.random.default_rng(0).integers(0, 256, (4, 32)))
    logits = np.asarray(model(tokens))
    losses = jax.nn.logsumexp(logits, axis=-1)[..., None] - logits
    assert abs(losses.mean() - np.log(256)) < 1
