"""The directive `autofixture`: an entry for a pytest fixture, from its docstring, with the type of what it yields."""

import importlib
import inspect
import typing

from sphinx.util.docutils import SphinxDirective


class AutoFixture(SphinxDirective):
    required_arguments = 1

    def run(self):
        module = self.env.ref_context["py:module"]
        name = self.arguments[0]
        fixture = getattr(importlib.import_module(module), name)
        # pytest 8.4 has a class for it, older ones a function.
        function = inspect.unwrap(getattr(fixture, "_fixture_function", fixture))
        (kind,) = typing.get_args(typing.get_type_hints(function)["return"])
        doc = "\n".join(f"   {line}" for line in inspect.getdoc(function).splitlines())
        return self.parse_text_to_nodes(f".. py:data:: {name}\n   :type: {kind.__name__}\n\n{doc}\n")


def setup(app):
    app.add_directive("autofixture", AutoFixture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
