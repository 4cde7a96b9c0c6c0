"""
Links what is written as code to what it names: `go(coro)` to the entry of `go`, `task.result()` to that of `Task.result`.

A page is written in plain Markdown, which reads in the repository too; the links are made when it is built. A literal is linked if it is
a public name of ours, or a call of one, alone or as the last part of a statement (`task = go(coro)`, `with enter(manager) as value`).
Of the standard library's names those are linked that the inventory of the Python docs has, where there is one (see `conf.py`).
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import omniloop
from omniloop._settings import SETTINGS

# What the pages call an instance of which class.
INSTANCES = {
    "task": "Task",
    "group": "TaskGroup",
    "runtime": "Runtime",
    "handler": "ext.logging.AsyncHandler",
    "pool": "ProcessPool",
}
EXT = {
    "AsyncHandler": "ext.logging.AsyncHandler",
    "guard": "ext.flask.guard",
    "RequestEndedError": "ext.flask.RequestEndedError",
    "go_on_commit": "ext.django.go_on_commit",
    "database": "ext.django.database",
    "Collector": "ext.prometheus.Collector",
    "instrument": "ext.opentelemetry.instrument",
}
# Too common a word, or another thing of the same name where it stands alone: linked as a call only.
ONLY_AS_CALL = {"map", "queue", "resource", "stats", "tasks", "background", "database", "run"}
STANDARD = (
    "asyncio",
    "concurrent",
    "contextvars",
    "contextlib",
    "threading",
    "logging",
    "multiprocessing",
    "os",
    "sys",
    "signal",
    "atexit",
    "gc",
    "time",
    "functools",
    "inspect",
    "queue",
)

# The words of a statement around the call: `async with`, `for item in`, `task =`, `await`, `@`.
AROUND = re.compile(
    r"^(?:@|await |async with |with |async for \w+ in |for \w+ in |with \w+\(\) as \w+: |\w+ = (?:await )?|from omniloop import )+"
)
NAME = re.compile(r"^(?P<dotted>[A-Za-z_][\w.]*)(?P<call>\(.*\)(?: as \w+.*)?)?$", re.DOTALL)


def target(text: str) -> tuple[str, str] | None:
    """What *text* names: `py` and a full name, or `setting` and a name; None for no name of ours or of the standard library."""
    whole = text.strip()
    short = AROUND.sub("", whole) if "(" in whole or whole.startswith("@") else whole
    match = NAME.match(short)
    if match is None:
        return None
    dotted, is_call = match["dotted"].removeprefix("omniloop."), match["call"] is not None or short != whole
    first, _, rest = dotted.partition(".")
    if first in INSTANCES and rest:
        return _ours(f"{INSTANCES[first]}.{rest}")
    if first in STANDARD and rest and not match["dotted"].startswith("omniloop."):
        return "py", dotted
    if first in SETTINGS and not is_call:
        return "setting", first
    if dotted in ONLY_AS_CALL and not is_call and not match["dotted"].startswith("omniloop."):
        return None
    return _ours(EXT.get(dotted, dotted))


def _ours(name: str) -> tuple[str, str] | None:
    first, _, rest = name.partition(".")
    if first == "ext":
        return "py", f"omniloop.{name}"
    # The two that a star import leaves out, because they would hide others of the name.
    if first not in (*omniloop.__all__, "map", "queue") or "." in rest:
        return None
    if rest and not hasattr(getattr(omniloop, first), rest):
        return None
    return "py", f"omniloop.{name}"


def options(kind: str, name: str) -> dict[str, object]:
    """Those of a reference to what `target` found."""
    if kind == "setting":
        goal = f"setting-{name}".replace("_", "-")
        return {"refdomain": "std", "reftype": "ref", "reftarget": goal, "refexplicit": True}
    return {"refdomain": "py", "reftype": "obj", "reftarget": name}


class LinkNames(SphinxTransform):
    """Puts a reference around each literal that names something."""

    # After the pages are parsed, before references are resolved.
    default_priority = 500

    def apply(self, **kwargs: object) -> None:
        if not self.env.docname or self.document.get("source", "").endswith(".py"):
            return
        for literal in list(self.document.findall(nodes.literal)):
            parent = literal.parent
            if isinstance(parent, addnodes.pending_xref) and parent.get("reftype") == "obj":
                # A name in a docstring, which may be written as a call.
                found = target(literal.astext())
                if found is not None:
                    parent.attributes.update(options(*found))
                continue
            if self._is_within(literal, (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)):
                continue
            found = target(literal.astext())
            if found is None:
                continue
            reference = addnodes.pending_xref("", refdoc=self.env.docname, refwarn=False, **options(*found))
            literal.replace_self(reference)
            reference += literal

    @staticmethod
    def _is_within(node: nodes.Node, kinds: tuple[type[nodes.Node], ...]) -> bool:
        while node.parent is not None:
            node = node.parent
            if isinstance(node, kinds):
                return True
        return False


def setup(app):
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
