import fractions
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from optax_grda import SparsityReport, sparsity, sparsity_report
from optax_grda._sparsity import LeafSparsity


def params_with(nonzero):
    """A leaf of every kind, of which the given counts are not zero."""
    shapes = {"bias": (5,), "kernel": (4, 6), "scale": (), "filter": (3, 3, 2, 2)}
    dtypes = {"bias": "bfloat16", "kernel": "float32", "scale": "float16"}
    params = {}
    for name, shape in shapes.items():
        flat = np.zeros(int(np.prod(shape)))
        flat[: nonzero[name]] = -1.0
        params[name] = jnp.asarray(flat.reshape(shape), dtypes.get(name, "complex64"))
    return params


COUNTS = st.fixed_dictionaries(
    {
        "bias": st.integers(0, 5),
        "kernel": st.integers(0, 24),
        "scale": st.integers(0, 1),
        "filter": st.integers(0, 36),
    }
)


@given(nonzero=COUNTS)
def test_counts_are_exact(nonzero):
    params = params_with(nonzero)
    report = sparsity_report(params)
    assert {leaf.path: leaf.nonzero for leaf in report.leaves} == nonzero
    assert all(type(leaf.nonzero) is int for leaf in report.leaves)
    assert report.total == 66
    assert report.nonzero == sum(nonzero.values())
    exact = fractions.Fraction(66 - report.nonzero, 66)
    assert report.sparsity == pytest.approx(float(exact), rel=1e-15)
    assert sparsity(params) == np.float32(exact)


def test_sparsity_is_a_float32_scalar_under_jit_and_vmap():
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    result = jax.jit(sparsity)(params)
    assert (result.shape, result.dtype) == ((), jnp.float32)
    assert result == np.float32(0.8)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params)
    assert jax.vmap(sparsity)(stacked).tolist() == [np.float32(0.8), 0]


def test_negative_zero_is_zero_and_nan_infinity_and_tiny_are_not():
    params = np.float32([-0.0, 0.0, np.nan, np.inf, np.finfo(np.float32).tiny])
    for array in params, jnp.asarray(params):
        assert sparsity(array) == np.float32(0.4)
        assert sparsity_report(array).nonzero == 3


def test_small_numbers_of_numpy_are_not_zeros_on_a_device():
    params = [np.array([0.0, 1e-300]), np.float64(1e-300), 1e-300, 0.0]
    assert sparsity(params) == np.float32(0.4)
    assert sparsity_report(params).nonzero == 3


def test_what_is_no_weight_is_not_counted():
    """What an NNX State holds beside weights; statistics are floats, and count."""
    state = {"drop": nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))}
    state |= {"int": np.zeros(2, int), "mask": np.zeros(2, bool), "kernel": np.eye(2)}
    assert sparsity(state) == 0.5
    assert jax.jit(sparsity)(state) == 0.5
    assert [leaf.path for leaf in sparsity_report(state).leaves] == ["kernel"]


def test_counts_stay_exact_above_the_integers_of_float32():
    params = np.zeros(2**24 + 3, "float16")  # 2^24 + 1 zeros: not a float32
    params[:2] = 1
    assert sparsity_report(params).nonzero == 2
    assert sparsity_report(jnp.asarray(params)).nonzero == 2


def test_more_entries_than_int32_holds():
    params = {"embedding": jax.ShapeDtypeStruct((50_000, 100_000), jnp.float32)}
    result = jax.eval_shape(sparsity, params)
    assert (result.shape, result.dtype) == ((), jnp.float32)


def test_table_is_aligned():
    params = {
        "layers": [
            {"kernel": np.eye(40), "bias": np.zeros(40)},
            {"kernel": np.ones((2, 3, 4)), "scale": np.ones(())},
        ],
        "none": np.zeros((0, 3)),
    }
    assert str(sparsity_report(params)) == (
        "leaf             shape       size  nonzero  sparsity\n"
        "layers/0/bias    40            40        0   100.00%\n"
        "layers/0/kernel  40 x 40    1,600       40    97.50%\n"
        "layers/1/kernel  2 x 3 x 4     24       24     0.00%\n"
        "layers/1/scale   scalar         1        1     0.00%\n"
        "none             0 x 3          0        0     0.00%\n"
        "total                       1,665       65    96.10%"
    )


def test_to_dict_survives_json():
    report = sparsity_report({"kernel": np.eye(4), "bias": np.zeros(4)})
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict() == {
        "total": 20,
        "nonzero": 4,
        "sparsity": 0.8,
        "leaves": [
            {"path": "bias", "shape": [4], "size": 4, "nonzero": 0, "sparsity": 1.0},
            {
                "path": "kernel",
                "shape": [4, 4],
                "size": 16,
                "nonzero": 4,
                "sparsity": 0.75,
            },
        ],
    }


def test_report_of_a_bare_array_and_of_python_numbers():
    assert sparsity_report(np.eye(2)).leaves == (LeafSparsity("", (2, 2), 4, 2),)
    assert sparsity_report([0.0, 1.0]) == SparsityReport(
        (LeafSparsity("0", (), 1, 0), LeafSparsity("1", (), 1, 1))
    )


def test_report_counts_arrays_that_are_split_over_devices():
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices("cpu"))
    sharding = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, "data")
    )
    params = [jax.device_put(np.eye(16, dtype="f4"), sharding), jnp.ones(2)]
    with jax.set_mesh(mesh):
        assert sparsity_report(params).nonzero == 18
        assert sparsity(params) == np.float32(1 - 18 / 258)
