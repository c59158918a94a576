"""Networks of every kind, tiny: pure functions, their parameters and inputs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import models
from optax_grda._paths import map_named

FLOAT = jnp.float32


def normal(*shape):
    rng = np.random.default_rng(shape)
    return jnp.asarray(rng.standard_normal(shape), FLOAT)


def inputs(*shape):
    return jax.ShapeDtypeStruct(shape, FLOAT)


def leniently(fn):
    """For other libraries' networks, which mix ranks and dtypes."""

    @functools.wraps(fn)
    def lenient(*args):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args)

    return lenient


def conv(x, kernel, padding="SAME", groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def filled(shapes):
    """Weights without the compiling that random initialisers need."""
    return jax.tree.map(
        lambda leaf: (
            normal(*leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        shapes,
    )


def of_nnx(make, *args):
    model = nnx.eval_shape(make)
    model.eval()
    graphdef, state = nnx.split(model, nnx.Param)
    fn = leniently(lambda s, *x: nnx.merge(graphdef, s)(*x))
    return fn, filled(state), args


def of_equinox(make, *args):
    model = eqx.filter_eval_shape(make, jax.ShapeDtypeStruct((2,), jnp.uint32))
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    shapes, static = eqx.partition(model, is_array)
    arrays = filled(shapes)
    batched = jax.vmap(lambda arrays, x: eqx.combine(arrays, static)(x), (None, 0))
    return leniently(batched), arrays, args


class Transformer(nnx.Module):
    """Pre-norm, with tied embeddings and learned positions."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 12, rngs=rngs)
        self.positions = nnx.Param(normal(5, 12))
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(12, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(12, 16, rngs=rngs)
        self.down = nnx.Linear(16, 12, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[...][None]
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.embed.attend(x)


def nnx_transformer():
    return of_nnx(lambda: Transformer(nnx.Rngs(0)), tokens())


def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))


def of_text(name, **options):
    return of_nnx(
        lambda: models.create(name, num_classes=11, rngs=nnx.Rngs(0), **options),
        tokens(),
    )


class EquinoxBlock(eqx.Module):
    """Heads out of a width, and an MLP; no norms."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[0])
        self.mlp = eqx.nn.MLP(8, 8, 10, 2, key=keys[1])
        self.head = eqx.nn.Linear(8, 3, key=keys[2])

    def __call__(self, x):
        x = jax.vmap(self.mlp)(x + self.attention(x, x, x))
        return jax.vmap(self.head)(x)


class EquinoxCNN(eqx.Module):
    """Channels first, flattened."""

    convs: list
    head: eqx.nn.Linear

    def __init__(self, key):
        self.convs = [
            eqx.nn.Conv2d(2, 4, 3, key=key),
            eqx.nn.Conv2d(4, 5, 3, key=key),
        ]
        self.head = eqx.nn.Linear(5 * 4, 3, key=key)

    def __call__(self, x):
        for layer in self.convs:
            x = jax.nn.relu(layer(x))
        return self.head(x.reshape(-1))


class LinenCNN(linen.Module):
    """BatchNorm, mean pooling, channels flattened last."""

    widths: tuple = (6, 7)

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(self.widths[0], (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = linen.relu(linen.Dense(self.widths[1])(x))
        return linen.Dense(3)(x)


def linen_cnn():
    module = LinenCNN()
    shapes = jax.eval_shape(
        leniently(lambda: module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 2))))
    )
    variables = jax.tree.map(jnp.abs, filled(shapes))
    return leniently(module.apply), variables, (inputs(2, 6, 6, 2),)


def u_net(params, x):
    a = jax.nn.relu(conv(x, params["a"]))
    b = jax.lax.reduce_window(
        a, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    b = jax.nn.relu(conv(b, params["b"]))
    b = jnp.repeat(jnp.repeat(b, 2, 1), 2, 2)
    c = conv(jnp.concatenate([a, b], -1), params["c"])
    c = jax.nn.relu(c + params["bias"][None, None, None])
    c = conv(c, params["depthwise"], groups=c.shape[-1])
    return conv(jax.nn.relu(c), params["d"])


U_NET = {
    "a": (3, 3, 2, 4),
    "b": (3, 3, 4, 6),
    "c": (3, 3, 10, 5),
    "bias": (5,),
    "depthwise": (3, 3, 1, 5),
    "d": (1, 1, 5, 2),
}


def scanned(params, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"] + w["bias"][None]) @ w["down"], None

    h, _ = jax.lax.scan(layer, x @ params["in"], params["layers"])
    return h @ params["out"]


SCANNED = {
    "in": (3, 6),
    "layers": {"up": (4, 6, 8), "bias": (4, 8), "down": (4, 8, 6)},
    "out": (6, 2),
}


def recurrent(params, x):
    def step(h, x):
        h = jnp.tanh(x @ params["in"] + h @ params["rec"] + params["bias"][None])
        return h, h

    start = jnp.zeros((x.shape[1], params["rec"].shape[0]))
    last, every = jax.lax.scan(step, start, x)
    return last @ params["out"], every @ params["each"]


RECURRENT = {
    "in": (3, 6),
    "rec": (6, 6),
    "bias": (6,),
    "out": (6, 2),
    "each": (6, 2),
}


def control_flow(params, x):
    h = jnp.tanh(x @ params["in"])
    h = jax.lax.cond(
        jnp.sum(x) > 0, lambda h: h @ params["a"], lambda h: h @ params["b"], h
    )
    h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ params["c"]), h)
    h, _ = jax.lax.while_loop(
        lambda carry: carry[1] < 2,
        lambda carry: (jnp.tanh(carry[0] @ params["c"]), carry[1] + 1),
        (h, 0),
    )
    h = jax.checkpoint(lambda h: jnp.sin(h) * params["scale"][None])(h)
    return h @ params["out"]


CONTROL_FLOW = {
    "in": (4, 6),
    "a": (6, 5),
    "b": (6, 5),
    "c": (5, 5),
    "scale": (5,),
    "out": (5, 2),
}


def fused_heads(params, x):
    """Queries, keys and values of one kernel; the number of heads is free."""
    batch, length, _ = x.shape
    qkv = (x @ params["qkv"]).reshape(batch, length, 3, -1, 4)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2)
    heads = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return heads.reshape(batch, length, -1) @ params["out"]


def gated(params, x):
    """A gate and what it gates are halves of one kernel; a class token in front."""
    width = params["in"].shape[-1]
    token = jnp.broadcast_to(params["token"][None, None], (x.shape[0], 1, width))
    h = jnp.concatenate([token, x @ params["in"]], 1) + params["positions"][None]
    a, b = jnp.split(h @ params["gates"], 2, -1)
    return jnp.mean((jax.nn.silu(a) * b + h) @ params["out"], 1)


GATED = {
    "in": (4, 6),
    "token": (6,),
    "positions": (6, 6),
    "gates": (6, 12),
    "out": (6, 2),
}


def pixel_shuffle(params, x):
    """Channels are split into pixels."""
    h = conv(x, params["a"])
    batch, height, width, channels = h.shape
    h = h.reshape(batch, height, width, 2, 2, channels // 4)
    h = h.transpose(0, 1, 3, 2, 4, 5)
    h = jax.nn.relu(h.reshape(batch, 2 * height, 2 * width, channels // 4))
    return conv(h, params["b"])


def stacked(params, x):
    h = jax.nn.relu(x @ params["in"])
    a, b, c = jnp.unstack(jnp.stack([h, h * params["scale"][None], h + 1], 1), axis=1)
    return jnp.tile((a * b + c) @ params["mid"], (2, 3)) @ params["out"]


STACKED = {"in": (4, 6), "scale": (6,), "mid": (6, 5), "out": (15, 2)}


def plain(fn, shapes, *args):
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(lambda shape: normal(*shape), shapes, is_leaf=is_shape)
    return fn, params, args


BUILD = {
    "nnx transformer": nnx_transformer,
    "equinox block": lambda: of_equinox(EquinoxBlock, inputs(2, 5, 8)),
    "equinox cnn": lambda: of_equinox(EquinoxCNN, inputs(2, 2, 6, 6)),
    "linen cnn": linen_cnn,
    "u-net": lambda: plain(u_net, U_NET, inputs(2, 4, 4, 2)),
    "scanned": lambda: plain(scanned, SCANNED, inputs(2, 3)),
    "recurrent": lambda: plain(recurrent, RECURRENT, inputs(5, 2, 3)),
    "gru": lambda: of_text("gru-64", width=6),
    "decoder": lambda: of_text("transformer-64x2", width=8, heads=2, blocks=1),
    "control flow": lambda: plain(control_flow, CONTROL_FLOW, inputs(2, 4)),
    "fused heads": lambda: plain(
        fused_heads, {"qkv": (8, 36), "out": (12, 3)}, inputs(2, 5, 8)
    ),
    "gated": lambda: plain(gated, GATED, inputs(2, 5, 4)),
    "stacked": lambda: plain(stacked, STACKED, inputs(2, 4)),
    "pixel shuffle": lambda: plain(
        pixel_shuffle, {"a": (1, 1, 2, 16), "b": (1, 1, 4, 2)}, inputs(2, 2, 2, 2)
    ),
}


@pytest.fixture(scope="session")
def build():
    """build(name): a pure function, its parameters and inputs; made once."""
    return functools.cache(lambda name: BUILD[name]())


@pytest.fixture(scope="session")
def silenced():
    """silenced(units, params, unit): the parameters with that unit of every class 0."""

    def silence(units, params, unit):
        zeros = {}
        for some in units.classes:
            for member in some.members:
                zeros.setdefault(member.leaf, []).append(member)

        def leaf(name, values):
            if name not in zeros:
                return values
            values = np.array(values)
            for member in zeros[name]:
                np.moveaxis(values, member.axis, 0)[member.index == unit] = 0
            return jnp.asarray(values)

        return map_named(leaf, params)

    return silence
