"""The README's Python code runs, block after block, as a reader would run it."""

from pathlib import Path

from mktestdocs import check_md_file

README = Path(__file__).parents[1] / "README.md"


def test_the_code_of_the_readme_runs(capsys):
    check_md_file(README, memory=True)
    assert "sparsity" in capsys.readouterr().out


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 110
