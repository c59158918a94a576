"""Which parameters make up a hidden unit, and that dead units can be cut out."""

import jax
import numpy as np
import pytest
from flax import nnx

from models.export.shrink import shrink
from models.units import hidden_units
from optax_grda import sparsity_report
from optax_grda.proximal import groups as group_proximal


def alone(*layers):
    return {layer: layer for layer in layers}


def with_norm(*pairs):
    return {module: layer for layer, norm in pairs for module in (layer, norm)}


VGG = [f"blocks/{n}" for n in ("0/0", "0/1", "1/0")]
VGG_BN = with_norm(*((f"{layer}/conv", f"{layer}/norm") for layer in VGG))
HIDDEN = alone("hidden/0", "hidden/1")
BOTTLENECKS = [f"stages/{n}/layer{i}" for n in ("0/0", "1/0", "1/1") for i in (1, 2)]
# Of the fixtures' networks: the modules that belong to hidden units, and the layer
# whose outputs these are. In a residual network, none that write to the stream.
UNITS = {
    "mnist-mlp": alone("layers/0"),
    "digits-mlp": alone("layers/0", "layers/1"),
    "keras-cnn": alone("pairs/0/0", "pairs/0/1", "hidden"),
    "vgg16": alone(*(f"{layer}/conv" for layer in VGG)) | HIDDEN,
    "vgg16bn": VGG_BN | HIDDEN,
    "vgg16bn-authors": VGG_BN | HIDDEN,
    "wrn28x10": with_norm(
        *((f"stages/{n}/0/conv1", f"stages/{n}/0/norm2") for n in range(3))
    ),
    "resnet50": with_norm(
        *((f"{layer}/conv", f"{layer}/norm") for layer in BOTTLENECKS)
    ),
}


def split(model):
    """The structure, the parameters as experiments.training has them, and the rest."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, jax.tree.map(np.asarray, nnx.to_pure_dict(params)), rest


@pytest.mark.parametrize("name", UNITS)
def test_every_parameter_is_of_one_layers_units_or_of_none(name, tiny):
    model = tiny(name)
    groups, found = hidden_units(model), {}
    for leaf in sparsity_report(split(model)[1]).leaves:
        module = leaf.path.rpartition("/")[0]
        layer = UNITS[name].get(module)
        assert groups(leaf.path, leaf.shape) == (layer and (layer, -1))
        found[module] = layer
    assert UNITS[name].items() <= found.items()


def draw(name, params):
    """Random parameters, those of every other hidden unit far smaller; and which."""
    rng = np.random.default_rng(0)

    def weak(path, leaf):
        """Where the leaf belongs to a hidden unit of odd number."""
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        odd = np.arange(leaf.shape[-1]) % 2 == 1
        grouped = path.rpartition("/")[0] in UNITS[name]
        return np.broadcast_to(grouped & odd, leaf.shape)

    def values(weak):
        modulus = np.where(weak, 0.005, 1) * rng.uniform(1, 2, weak.shape)
        return np.float32(modulus * rng.choice([-1, 1], weak.shape))

    weak = jax.tree_util.tree_map_with_path(weak, params)
    return jax.tree.map(values, weak), weak


def test_units_below_the_threshold_die_as_wholes(tiny):
    model = tiny("vgg16bn")
    params, weak = draw("vgg16bn", split(model)[1])
    # Ten times the norm of a weak parameter at least, a tenth of another's at most.
    weights = jax.jit(group_proximal(hidden_units(model)))(params, 0.1)
    jax.tree.map(
        lambda w, dead: np.testing.assert_array_equal(w == 0, dead), weights, weak
    )


@pytest.mark.parametrize("name", UNITS)
def test_dead_units_are_cut_out(name, tiny):
    model = tiny(name)
    graphdef, params, rest = split(model)
    params, weak = draw(name, params)
    params = jax.tree.map(lambda w, dead: np.where(dead, 0, w), params, weak)
    small = shrink(nnx.merge(graphdef, nnx.State(params), rest))

    # Of the authors' VGG, half runs whatever is zero.
    expected = widths(shrink(model) if name == "vgg16bn-authors" else model)
    for layer in set(UNITS[name].values()):
        expected[layer] -= expected[layer] // 2
    assert widths(small) == expected


def widths(model):
    return {
        "/".join(map(str, path)): module.out_features
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Conv | nnx.Linear)
    }


def test_other_modules_are_refused():
    with pytest.raises(TypeError, match=r"network of models.names\(\), got .*Dropout"):
        hidden_units(nnx.Dropout(0.5))
