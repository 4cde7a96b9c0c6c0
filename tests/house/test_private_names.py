"""Private names of CPython's stand in `omniloop._cpython`, and those of another library in the one module that knows it."""

import ast

from test_floors import modules, tree_of

# Documented, or exported by asyncio for those who write loops.
NOT_PRIVATE = {
    *("_asdict", "_current_frames", "_exit", "_fields", "_get_running_loop", "_getframe", "_replace", "_thread", "_typeshed"),
}  # fmt: skip

# Of other libraries, each by the module that knows it.
OF_LIBRARIES = {
    "_bridges.queue": {"_SyncQueueProxy", "_is_shutdown", "_sync_tasks_done", "_sync_tasks_done_waiting", "_unfinished_tasks"},
    "_guests.asgiref": {"_Storage", "_work_thread"},
    "_guests.surroundings": {"_parent_pid"},
    "_processes.pool": {"_allowed_kwargs", "_kwargs"},
    "ext.django.tasks": {"_return_value"},
    "ext.flask": {"_get_current_object"},
    "ext.procrastinate": {"_pool_args"},
    "ext.taskiq": {"_ack", "_ack_controller", "_prepare_message"},
}  # fmt: skip


def is_private(name):
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_names_read(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}:
            yield getattr(node.args[1], "value", None)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            yield from (alias.name for alias in node.names)


def names_defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.Constant) and is_private(node.value):
            # Of `__slots__`; and the name of a variable or an attribute that is set by name.
            yield node.value


def test_private_names_of_cpython_stand_in_one_module():
    trees = {module: tree_of(module) for module in modules() if module != "_cpython"}
    read = {module: set(filter(is_private, private_names_read(tree))) for module, tree in trees.items()}
    stored = {
        name
        for module, tree in trees.items()
        for name in names_defined(tree)
        if name not in OF_LIBRARIES.get(module, ())
    }

    foreign = {module: names - stored - NOT_PRIVATE for module, names in read.items()}
    assert {module: names for module, names in foreign.items() if names} == {
        module: names & foreign[module] for module, names in OF_LIBRARIES.items() if names & foreign[module]
    }
