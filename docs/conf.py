"""How the docs are built: `python -m sphinx -W -b html docs <folder>`. The package must be installed, for its docstrings."""

import re
from importlib.metadata import version as version_of

project = "omniloop"
copyright = "the omniloop contributors"
version = release = version_of("omniloop")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Single backticks in docstrings are names of ours where there is such a name, and code where there is none.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# The signatures say the types; the docstrings say what they mean.
autodoc_typehints = "signature"
napoleon_numpy_docstring = False

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
# So that a page may link to a heading of another.
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"omniloop {version}"


def shorten(app, what, name, thing, options, signature, returns):
    """Sphinx gives up on a signature with a ParamSpec in it: `~collections.abc.Callable[[~P], …]`."""
    return signature and (re.sub(r"~(\w+\.)*", "", signature), returns)


def setup(app):
    app.connect("autodoc-process-signature", shorten)
