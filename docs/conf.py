"""Configuration of Sphinx, which builds this user guide: `make docs`."""

import ast
import dataclasses
import importlib.metadata
import inspect
import os
import re
import textwrap

from docutils import nodes
from math_core import LatexToMathML
from sphinx.util import rst

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the pages' code runs on CPUs

project = "optax_grda"
author = "The optax_grda authors"
release = importlib.metadata.version("optax-grda")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "conf.py", "images"]

html_theme = "furo"
html_title = project
html_theme_options = {"top_of_page_buttons": ["view"]}
html_show_copyright = False
html_math_renderer = "mathml"  # which browsers show without a script
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor what was printed

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The programs of examples/ are pages too.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
# Every page's code runs at every build, in a directory of its own; what fails, or
# prints to stderr, fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
nb_output_stderr = "remove-warn"
nb_render_markdown_format = "myst"

autodoc_typehints = "none"  # the signatures' are as_written
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
maximum_signature_line_length = 88

# References must resolve: those of others in the lists here, without the network.
intersphinx_mapping = {
    "jax": ("https://docs.jax.dev/en/latest/", "inventories/jax.txt"),
    "optax": ("https://optax.readthedocs.io/en/latest/", "inventories/optax.txt"),
}
nitpicky = True
nitpick_ignore = [("py:class", "PyTree")]
# What has no page: NumPy's and Python's names, and our own for a type.
nitpick_ignore_regex = [
    ("py:.*", r"(np|numpy|scipy|os)\..*"),
]


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


def as_written(app, what, name, obj, options, signature, returns):
    """Shows types as the source has them: ArrayLike, not the union behind it."""
    if what != "function":
        return None
    function = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    returned = function.returns and ast.unparse(function.returns)
    return f"({ast.unparse(function.args)})", returned


to_mathml = LatexToMathML().convert_with_local_state


def inline_math(translator, node) -> None:
    translator.body.append(to_mathml(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def block_math(translator, node) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(to_mathml(node.astext().strip(), displaystyle=True))
    translator.body.append("</div>")
    raise nodes.SkipNode


def setup(app) -> None:
    for prepare in (describe_fields, keep_returns_whole):  # before napoleon reads them
        app.connect("autodoc-process-docstring", prepare, priority=400)
    app.connect("autodoc-process-signature", as_written)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
