"""The benchmark of sparse files, on a tiny network."""

import jax
import numpy as np
import pytest

from benchmarks import packing


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_arrays_are_as_sparse_as_asked_for(sparsity):
    arrays = packing.sparse_arrays("digits-mlp", sparsity)
    assert sorted(arrays)[:2] == ["layers.0.bias", "layers.0.kernel"]
    entries = np.concatenate([array.ravel() for array in arrays.values()])
    assert entries.size == 17_226
    assert np.mean(entries == 0) == pytest.approx(sparsity, abs=0.01)


@pytest.mark.parametrize("name", packing.FORMATS)
def test_every_format_reads_what_it_wrote(name, tmp_path):
    arrays = packing.sparse_arrays("digits-mlp", 0.9)
    write, read = packing.FORMATS[name]
    write(arrays, tmp_path / "file")
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "file"), arrays)


def test_sizes_are_compared_with_a_dense_file():
    rows = packing.measure("mnist-mlp", 0.9, rounds=1)
    smaller = {row["format"]: float(row["times smaller than dense"]) for row in rows}
    assert smaller["safetensors"] == 1
    assert smaller["packed"] > 7.5
    assert float(rows[1]["MB"]) == pytest.approx(407_050 * 4e-6, rel=0.01)
