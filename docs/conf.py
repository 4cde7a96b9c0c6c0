"""How the docs are built: `python -m sphinx -W -b html docs <folder>`. The package must be installed, for its docstrings."""

import os
import re
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "omniloop"
copyright = "the omniloop contributors"
version = release = version_of("omniloop")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",
    # Ours: what is written as code becomes a link to what it names; pytest fixtures have entries.
    "names",
    "fixtures",
]
exclude_patterns = ["_build", "_ext"]

# Single backticks in docstrings are names of ours where there is such a name, and code where there is none.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# The signatures say the types; the docstrings say what they mean.
autodoc_typehints = "signature"
# Described without being imported: the docs need no framework.
autodoc_mock_imports = [
    name for name in ("django", "flask", "prometheus_client", "opentelemetry", "pytest") if find_spec(name) is None
]
napoleon_numpy_docstring = False

# The Python docs' own list of names. Nothing is fetched unless DOCS_ONLINE=1 says that there is a network: a build without one would
# warn, and so fail. Debian's package python3-doc has the list too.
INVENTORY = "/usr/share/doc/python3-doc/html/objects.inv"
intersphinx_mapping = {}
if os.environ.get("DOCS_ONLINE") == "1":
    intersphinx_mapping["python"] = ("https://docs.python.org/3", None)
elif os.path.exists(INVENTORY):
    intersphinx_mapping["python"] = ("https://docs.python.org/3", INVENTORY)

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
# So that a page may link to a heading of another.
myst_heading_anchors = 3

# What is copied is what one would type: no prompts, and no output between them.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Without the address of the site there are no absolute links, and no cards.
ogp_site_url = os.environ.get("DOCS_URL", "")
ogp_image = "_static/mark.svg"
ogp_social_cards = {"enable": False}
ogp_description_length = 200

html_theme = "furo"
html_title = f"omniloop {version}"
html_logo = html_favicon = "_static/mark.svg"
html_static_path = ["_static"]
html_css_files = ["omniloop.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2a5fc4", "color-brand-content": "#2a5fc4"},
    "dark_css_variables": {"color-brand-primary": "#7aa7ff", "color-brand-content": "#7aa7ff"},
}


def shorten(app, what, name, thing, options, signature, returns):
    """Sphinx gives up on a signature with a ParamSpec in it: `~collections.abc.Callable[[~P], …]`."""
    return signature and (re.sub(r"~(\w+\.)*", "", signature), returns)


def setup(app):
    app.connect("autodoc-process-signature", shorten)
