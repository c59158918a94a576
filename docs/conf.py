"""Configuration of Sphinx, which builds this user guide: `make docs`."""

import dataclasses
import importlib.metadata
import inspect
import os
import re

from docutils import nodes
from sphinx.util import rst

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the pages' code runs on CPUs

project = "optax_grda"
author = "The optax_grda authors"
release = importlib.metadata.version("optax-grda")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = project
html_theme_options = {"top_of_page_buttons": ["view"]}
html_show_copyright = False

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every page's code runs at every build, in a directory of its own; what fails, or
# prints to stderr, fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_output_stderr = "remove-warn"
nb_render_markdown_format = "myst"

# Types stand in the docstrings, in words.
autodoc_typehints = "none"
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
# References into this project must resolve; those of others would need the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(jax|numpy|optax|scipy)\..*")]


def describe_fields(app, what, name, obj, options, lines) -> None:
    """Adds the fields of a NamedTuple or dataclass, which comments describe."""
    if what != "class" or not (
        dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")
    ):
        return
    fields, above = [], []
    for line in inspect.getsource(obj).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
        elif field := re.fullmatch(r"    (\w+): .*?(?:  # (?!pyright)(.*))?", line):
            described = rst.escape(" ".join(above) or field[2] or "")
            fields.append(f"  {field[1]}: {described}")
        if not comment:
            above = []
    lines += ["", "Attributes:", *fields]


def keep_returns_whole(app, what, name, obj, options, lines) -> None:
    """Keeps napoleon from taking what stands before a colon for the type."""
    for i in reversed([i for i, line in enumerate(lines) if line == "Returns:"]):
        lines.insert(i + 1, "  \\")  # joins the next line to this one


def let_align_stand_alone(app, doctree) -> None:
    """MathJax 4 refuses align within the environments that Sphinx puts around it."""
    for block in doctree.findall(nodes.math_block):
        block["no-wrap"] = block.astext().lstrip().startswith(r"\begin{align")


def setup(app) -> None:
    for prepare in (describe_fields, keep_returns_whole):  # before napoleon reads them
        app.connect("autodoc-process-docstring", prepare, priority=400)
    app.connect("doctree-read", let_align_stand_alone)
