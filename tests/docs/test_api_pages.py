"""The user guide's API pages document every public name, and no other."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "api"
MODULES = {
    "optax_grda": "optax_grda",
    "proximal": "optax_grda.proximal",
    "diagnostics": "optax_grda.diagnostics",
    "packing": "optax_grda.packing",
    "landscape": "optax_grda.landscape",
    "curvature": "optax_grda.curvature",
    "units": "optax_grda.units",
}


def public_names(module):
    """What a package exports; of a module that is a file, what it defines."""
    home = "optax_grda" if hasattr(module, "__path__") else module.__name__
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").startswith(home)
    }


def documented_names(page):
    directive = r"^\.\. auto(?:function|class|exception):: (\w+)$"
    return re.findall(directive, page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", MODULES)
def test_a_page_documents_the_public_names_of_its_module_once(page):
    names = documented_names(PAGES / f"{page}.rst")
    assert sorted(names) == sorted(public_names(importlib.import_module(MODULES[page])))


def test_every_page_is_checked():
    assert {page.stem for page in PAGES.glob("*.rst")} == MODULES.keys()
