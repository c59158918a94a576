"""The programs of docs/examples are small, and pages. `make docs` runs them."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
LONGEST = {"feature_interactions": 100}  # else 80 lines
GUIDE_HAS = {"equinox", "flax", "jax", "matplotlib", "numpy", "optax", "sklearn"}


def imports(program):
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_is_short_and_imports_what_there_is(program):
    assert len(program.read_text().splitlines()) < LONGEST.get(program.stem, 80)
    for module, name in imports(program):
        root = module.partition(".")[0]
        assert root in GUIDE_HAS | {"optax_grda"} | sys.stdlib_module_names
        if root == "optax_grda":
            assert name is None or hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_is_a_page_with_a_title_and_a_picture(program):
    text = program.read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    assert "\n# %%\n" in text  # code cells
    assert "\nplt.show()\n" in text


def test_the_index_lists_every_program_once():
    tree = (EXAMPLES / "index.md").read_text().partition("```{toctree}")[2]
    listed = [line for line in tree.splitlines() if line.isidentifier()]
    assert sorted(listed) == [program.stem for program in PROGRAMS]
