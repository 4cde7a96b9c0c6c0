"""How the docs are built: `python -m sphinx -W -b html docs <folder>`. The package must be installed, for its docstrings."""

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx import addnodes

import omniloop

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
    """Write types as in the source: Sphinx gives up on a signature with a ParamSpec in it, `~collections.abc.Callable[[~P], …]`."""

    def shorter(text):
        text = re.sub(r"~(\w+\.)*", "", text)
        text = text.replace("*args: P,", "*args: P.args,").replace("**kwargs: P)", "**kwargs: P.kwargs)")
        return re.sub(r"Unpack\[(\w+)\]", r"*\1", text)

    return signature and (shorter(signature), returns and shorter(returns))


def finish_signatures(app, doctree):
    """
    Drop the brackets that Sphinx puts around a ParamSpec, in overloads too; and let a function of the module have a source.

    Those are methods of the shared runtime: their source is that of the methods.
    """
    for bracket in list(doctree.findall(addnodes.desc_sig_punctuation)):
        # What was taken out meanwhile is in the list still.
        around = bracket.parent.children
        at = around.index(bracket) if bracket in around else 0
        if at and [node.astext() for node in around[at - 1 : at + 3]] == ["[", "[", "P", "]"]:
            del around[at + 2], around[at]
    for entry in doctree.findall(addnodes.desc_signature):
        if entry.get("module") == "omniloop" and hasattr(omniloop.Runtime, entry.get("fullname", "")):
            entry["module"], entry["fullname"] = "omniloop._runtime", f"Runtime.{entry['fullname']}"


def setup(app):
    app.connect("autodoc-process-signature", shorten)
    # Before viewcode, which looks.
    app.connect("doctree-read", finish_signatures, priority=400)
