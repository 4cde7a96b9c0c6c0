"""The directive `autofixture`: an entry for a pytest fixture, from its docstring, with the type of what it yields."""

import importlib
import inspect

from sphinx.util.docutils import SphinxDirective


class AutoFixture(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        fixture = getattr(importlib.import_module("_omniloop_pytest"), name)
        # pytest 8.4 has a class for it, older ones a function.
        function = inspect.unwrap(getattr(fixture, "_fixture_function", fixture))
        # "Iterator[Runtime]", as text: what it names is imported for type checkers alone.
        kind = function.__annotations__["return"].partition("[")[2].rstrip("]")
        doc = "\n".join(f"   {line}" for line in inspect.getdoc(function).splitlines())
        return self.parse_text_to_nodes(f".. py:data:: {name}\n   :type: {kind}\n\n{doc}\n")


def setup(app):
    app.add_directive("autofixture", AutoFixture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
