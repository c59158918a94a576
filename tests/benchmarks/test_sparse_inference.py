"""The benchmark of random zeros, on the networks of digits."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import sparse_inference


def kernels(network):
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    return [np.asarray(leaf) for leaf in leaves if leaf.ndim > 1]


@pytest.mark.parametrize("blocks", [1, 4])
def test_kernels_are_as_sparse_as_asked_for_and_as_large(blocks):
    dense, sparse = (
        kernels(sparse_inference.sparse_network("digits-wrn10x1", sparsity, blocks))
        for sparsity in (0.0, 0.9)
    )
    for before, after in zip(dense, sparse, strict=True):
        if before.size > 1000:
            assert np.mean(after == 0) == pytest.approx(0.9, abs=0.05)
            assert np.std(after) == pytest.approx(np.std(before), rel=0.2)


def test_zeros_come_in_blocks_of_output_channels():
    for kernel in kernels(sparse_inference.sparse_network("digits-wrn10x1", 0.5, 4)):
        whole = kernel[..., : kernel.shape[-1] // 4 * 4]
        zeros = whole.reshape(*whole.shape[:-1], -1, 4) == 0
        np.testing.assert_array_equal(zeros.all(axis=-1), zeros.any(axis=-1))
        assert zeros.any()
        assert not zeros.all()


def test_a_row_compares_with_the_fastest_dense_run(monkeypatch):
    monkeypatch.setattr(sparse_inference.card, "exported", lambda *_: ())
    options = sparse_inference.Options(sparsities=(0.9,), rounds=1)
    dense, sparse = sparse_inference.measure("digits-mlp", options)
    assert (dense["zeros, %"], sparse["zeros, %"]) == ("0", "90")
    ratios = [
        row["ratio to the fastest dense of as many threads (quartiles)"]
        for row in (dense, sparse)
    ]
    assert ratios[0] == "1.000 (1.000 to 1.000)"
    expected = float(sparse["ms, min"]) / float(dense["ms, min"])
    assert float(ratios[1].split()[0]) == pytest.approx(expected, rel=0.2)


def test_a_sparsity_of_one_is_refused():
    with pytest.raises(ValueError, match=r"sparsities must be in \(0, 1\), got"):
        sparse_inference.Options(sparsities=(1.0,))
