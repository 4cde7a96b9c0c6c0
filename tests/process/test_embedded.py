"""In a program of C's that embeds Python, and in threads that Python has not made. Each test is a process of its own."""

import asyncio
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import omniloop
from children import child_environment, run_child, without_remarks
from omniloop import go
from programs import source_of

# Runs the texts that it is given, in turn: one that begins with a C in a thread of C's, any other in the one that has initialised the
# interpreter. That is main; or, if the first is "aside", another.
EMBEDS = r"""
#include <Python.h>
#include <pthread.h>
#include <string.h>

static char **texts;

static void *run_in_thread(void *text) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyRun_SimpleString(text);
    PyGILState_Release(state);
    return NULL;
}

static void *run_all(void *nothing) {
    pthread_t thread;
    Py_Initialize();
    for (; *texts; texts++) {
        if (**texts != 'C') {
            PyRun_SimpleString(*texts);
            continue;
        }
        PyThreadState *state = PyEval_SaveThread();
        pthread_create(&thread, NULL, run_in_thread, *texts + 1);
        pthread_join(thread, NULL);
        PyEval_RestoreThread(state);
    }
    return Py_FinalizeEx() ? "failed" : NULL;
}

int main(int count, char **arguments) {
    pthread_t thread;
    void *outcome;
    texts = arguments + 1;
    if (strcmp(*texts, "aside"))
        return run_all(NULL) ? 120 : 0;
    texts++;
    pthread_create(&thread, NULL, run_all, NULL);
    pthread_join(thread, &outcome);
    return outcome ? 120 : 0;
}
"""


@pytest.fixture(scope="module")
def embeds(tmp_path_factory) -> str:
    """The path of the program."""
    variables = sysconfig.get_config_vars()
    library = Path(variables.get("LIBDIR") or "", variables.get("LDLIBRARY") or "")
    header = Path(sysconfig.get_path("include"), "Python.h")
    compiler = shutil.which("cc")
    if compiler is None or not header.exists() or not library.is_file():
        pytest.skip("no compiler, or what Python is embedded with is not installed")
    folder = tmp_path_factory.mktemp("embeds")
    (folder / "embeds.c").write_text(EMBEDS)
    libraries = f"{variables['LIBS']} {variables['SYSLIBS']} {variables['LINKFORSHARED']}".split()
    flags = [f"-I{header.parent}", library, f"-Wl,-rpath,{library.parent}", *libraries, "-lpthread"]
    subprocess.run([compiler, "embeds.c", "-o", "embeds", *flags], cwd=folder, check=True, timeout=60)
    return str(folder / "embeds")


def run_embedded(embeds, *texts) -> tuple[str, str, int]:
    path = os.pathsep.join([child_environment()["PYTHONPATH"], sysconfig.get_path("purelib")])
    result = subprocess.run(
        [embeds, *texts],
        env=child_environment({"PYTHONPATH": path, "PYTHONHOME": sys.base_prefix}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return result.stdout, without_remarks(result.stderr), result.returncode


async def work(what):
    await asyncio.sleep(0.05)
    print(what, flush=True)
    return what


def submits():
    assert omniloop.run(work("awaited")) == "awaited"
    go(work("forgotten"))
    go(asyncio.to_thread(print, "in a worker", flush=True))


@pytest.mark.promise(
    "In a program of C's that embeds Python, what was accepted is done when the interpreter is finalised; also from threads of C's",
    section="At exit",
)
@pytest.mark.parametrize("where", ["main", "aside"])
@pytest.mark.parametrize("threads", [["main"], ["C"], ["main", "C"], ["C", "main"], ["C", "C"]], ids="-".join)
def test_what_was_accepted_in_an_embedded_interpreter_is_done_when_that_is_finalised(embeds, threads, where):
    texts = [("C" if thread == "C" else "") + source_of(submits) for thread in threads]

    stdout, stderr, code = run_embedded(embeds, *(["aside"] if where == "aside" else []), *texts)

    assert sorted(stdout.splitlines()) == sorted(["awaited", "forgotten", "in a worker"] * len(threads))
    assert (stderr, code) == ("", 0)


@pytest.mark.promise("A callback that a thread of C's calls may submit work, and wait for it")
@pytest.mark.skipif(os.name != "posix", reason="makes a thread by pthread_create")
@pytest.mark.parametrize("by", ["ctypes", "cffi"])
def test_a_callback_in_a_foreign_thread_submits_work_and_waits_for_it(by):
    if importlib.util.find_spec(by) is None:
        pytest.skip(f"no {by}")

    def program():
        def submit(_):
            assert omniloop.run(work("awaited")) == "awaited"
            go(work("forgotten"))
            return NOTHING

        if by == "ctypes":
            library, NOTHING, thread = ctypes.CDLL(None), 0, ctypes.c_ulong()
            callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(submit)
            library.pthread_create(ctypes.byref(thread), None, callback, None)
            library.pthread_join(thread, None)
        else:
            import cffi

            ffi = cffi.FFI()
            ffi.cdef(
                "int pthread_create(unsigned long *, void *, void *(*)(void *), void *); int pthread_join(unsigned long, void *);"
            )
            library, NOTHING, thread = ffi.dlopen(None), ffi.NULL, ffi.new("unsigned long *")
            callback = ffi.callback("void *(void *)", submit)
            library.pthread_create(thread, ffi.NULL, callback, ffi.NULL)
            library.pthread_join(thread[0], ffi.NULL)

    result = run_child(program)

    assert result == ("awaited\nforgotten\n", "", 0, result.seconds)
