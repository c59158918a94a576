"""The README's Python code runs, block after block, as a reader would run it."""

import re
from pathlib import Path

import pytest
from mktestdocs import check_md_file

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.usefixtures("standard_promotion")  # Optax's schedules need it
def test_every_block_of_the_readme_ends_with_a_sparse_kernel(capsys):
    check_md_file(README, memory=True)
    printed = capsys.readouterr().out
    kernels = re.findall(r"^kernel .* (\S+)%$", printed, re.MULTILINE)
    assert len(kernels) == README.read_text().count("```python")
    assert min(map(float, kernels)) > 80
    # The last one keeps the bias out.
    assert re.search(r"^bias .* 0\.00%\nkernel [^\n]*\ntotal [^\n]*\n\Z", printed, re.M)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 110
