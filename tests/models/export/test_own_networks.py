"""Networks of users, in NNX, Linen and Equinox: what JAX, ONNX Runtime and MNN give."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen, nnx

from models.export.to_mnn import load_mnn, to_mnn
from models.export.to_onnx import to_onnx

SHAPE = (12, 12, 3)


class NnxNetwork(nnx.Module):
    """Padding by numbers, BatchNorm, pooling of both kinds, a split in two."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
        left, right = jnp.split(nnx.avg_pool(x, (2, 2), (2, 2)), 2, axis=-1)
        return self.head((left * right).mean((1, 2)))


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), padding=1)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.max_pool(x, (2, 2), (2, 2)) + linen.avg_pool(x, (2, 2), (2, 2))
        return linen.Dense(5)(x.reshape(x.shape[0], -1))


def filled(tree):
    """Arrays of positive numbers: variances are among them. No program is compiled."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(rng.uniform(0.1, 0.3, leaf.shape)), tree
    )


def nnx_network(_):
    model = nnx.eval_shape(lambda: NnxNetwork(nnx.Rngs(0)))
    nnx.update(model, filled(nnx.state(model)))
    evaluated = nnx.clone(model)
    evaluated.eval()
    return model, evaluated, SHAPE


def linen_network(_):
    module = LinenNetwork()
    images = jnp.ones((1, *SHAPE))
    variables = filled(jax.eval_shape(module.init, jax.random.key(0), images))

    def apply(images):
        return module.apply(variables, images)

    return apply, apply, SHAPE


def equinox_network(monkeypatch):
    """With the channels first."""
    import equinox as eqx

    def build(key):
        layers = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=key),
            eqx.nn.Lambda(jax.nn.silu),
            eqx.nn.MaxPool2d(3, 2, padding=1),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(8 * 3 * 3, 5, key=key),
        ]
        return eqx.nn.Sequential(layers)

    shapes, static = eqx.partition(
        eqx.filter_eval_shape(build, jax.random.key(0)),
        lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
    )
    # jax2onnx builds dozens of its layers if it is loaded where Equinox is in use.
    if "jax2onnx" not in sys.modules:
        monkeypatch.delitem(sys.modules, "equinox")
    apply = jax.vmap(eqx.combine(filled(shapes), static))
    return apply, apply, SHAPE[::-1]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("build", [nnx_network, linen_network, equinox_network])
def test_logits_are_the_same_everywhere(build, quickly, tmp_path, monkeypatch):
    model, apply, shape = build(monkeypatch)
    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    expected = np.asarray(quickly(lambda images: apply(images))(images))
    to_onnx(model, tmp_path / "network.onnx", shape)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    runs = [lambda images: session.run(["logits"], {"images": images})[0]]
    if importlib.util.find_spec("MNN"):
        to_mnn(tmp_path / "network.onnx", tmp_path / "network.mnn")
        runs += [load_mnn(tmp_path / "network.mnn")]
    for run in runs:
        for n in 3, 1:
            np.testing.assert_allclose(
                run(images[:n]), expected[:n], rtol=0, atol=1e-4 * abs(expected).max()
            )


def test_what_mnn_computes_wrong_is_refused(tmp_path):
    """Should a new MNN compute LayerNorm right, another example is wanted."""
    pytest.importorskip("MNN", reason="the extra 'mnn' is not installed")
    rngs = nnx.Rngs(0)  # random keys and counts are in the model too
    model = nnx.Sequential(nnx.LayerNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    to_onnx(model, tmp_path / "network.onnx", (6,))
    (tmp_path / "network.mnn").write_bytes(b"an older one")
    with pytest.raises(ValueError, match="MNN computes right, got logits that are off"):
        to_mnn(tmp_path / "network.onnx", tmp_path / "network.mnn")
    assert (tmp_path / "network.mnn").read_bytes() == b"an older one"
