"""The page on what zeros buy: its code runs, and its reader reads every packed file."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mktestdocs import check_md_file

from optax_grda.packing import pack, unpack

PAGE = Path(__file__).parents[2] / "docs" / "product.md"


@pytest.mark.usefixtures("standard_promotion")
def test_the_code_runs(tmp_path, monkeypatch):
    pytest.importorskip("MNN", reason="the extra 'mnn' is not installed")
    monkeypatch.chdir(tmp_path)
    check_md_file(PAGE, memory=True)


def test_the_reader_of_packed_files_is_short_and_right(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (code,) = (block for block in blocks if "def read_packed" in block)
    assert len(code.splitlines()) <= 30
    names = {}
    exec(code, names)
    kernel = np.eye(40)
    dtypes = ("bool", "int8", "uint16", "int32")
    dtypes += ("float16", "float32", "float64", "complex64")
    leaves = {dtype: kernel.astype(dtype) for dtype in dtypes}
    leaves |= {"bfloat16": kernel.astype(ml_dtypes.bfloat16), "dense": kernel + 1}
    leaves |= {"few": np.complex64([1, 0]), "eight": ml_dtypes.float8_e4m3fn(kernel)}
    pack(leaves, tmp_path / "file")
    expected, found = unpack(tmp_path / "file"), names["read_packed"](tmp_path / "file")
    assert found.keys() == expected.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], expected[name])
