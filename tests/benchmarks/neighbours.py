"""
Asks omniloop and its neighbours the same questions, each in an interpreter of its own, and prints the table of docs/explanation/comparison.md.

`python tests/benchmarks/neighbours.py [name…]`, with the extra `bench` installed. What is asked is what each does when it is used as its
own documentation says; "no" is no blame: most of them are for something else.
"""

import importlib.metadata
import platform
import subprocess
import sys
import textwrap

# How each starts: `run` blocks and gives the value, `submit` returns a handle, or is None where there is none.
STARTS = {
    "omniloop": """
        import omniloop
        def run(fn, *args): return omniloop.run(fn(*args))
        def submit(fn, *args): return omniloop.go(fn(*args))
    """,
    "asyncio": """
        import threading
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        def submit(fn, *args): return asyncio.run_coroutine_threadsafe(fn(*args), loop)
        def run(fn, *args): return submit(fn, *args).result()
    """,
    # The rest of the program is in its block: that is how it is used, and what waits at the end.
    "anyio": """
        import anyio.from_thread
        with anyio.from_thread.start_blocking_portal() as portal:
            def submit(fn, *args): return portal.start_task_soon(fn, *args)
            def run(fn, *args): return portal.call(fn, *args)
    """,
    "asgiref": """
        from asgiref.sync import async_to_sync
        def run(fn, *args): return async_to_sync(fn)(*args)
        submit = None
    """,
    "synchronicity": """
        import synchronicity
        synchronizer = synchronicity.Synchronizer()
        def run(fn, *args): return synchronizer.wrap(fn)(*args)
        def submit(fn, *args): return synchronizer.wrap(fn)(*args, _future=True)
    """,
    "crochet": """
        from twisted.internet import asyncioreactor
        asyncioreactor.install()
        import crochet
        from twisted.internet.defer import Deferred
        crochet.setup()
        @crochet.run_in_reactor
        def submit(fn, *args): return Deferred.fromFuture(asyncio.ensure_future(fn(*args)))
        def _result(self, timeout=60): return self.wait(timeout)
        crochet.EventualResult.result = _result
        def run(fn, *args): return submit(fn, *args).wait(60)
    """,
    "unsync": """
        from unsync import unsync
        def submit(fn, *args): return unsync(fn)(*args)
        def run(fn, *args): return submit(fn, *args).result()
    """,
    "fsspec": """
        import fsspec.asyn
        def run(fn, *args): return fsspec.asyn.sync(fsspec.asyn.get_loop(), fn, *args)
        def submit(fn, *args): return asyncio.run_coroutine_threadsafe(fn(*args), fsspec.asyn.get_loop())
    """,
}

# A question, whether it is about `submit`, and the program; the answer is yes if "yes" is printed within the time.
QUESTIONS = {
    "forgotten work is done before the program ends": (
        True,
        """
        async def work():
            await asyncio.sleep(0.5)
            print("yes")
        submit(work)
        """,
    ),
    "a failure that nobody asks for is told of": (
        True,
        """
        import logging, sys
        sys.stderr = sys.stdout
        logging.basicConfig(stream=sys.stdout, force=True)
        async def work():
            raise LookupError("ye" + "s")
        submit(work)
        time.sleep(0.3)
        import gc
        gc.collect()
        """,
    ),
    "a blocking call works where a loop runs (notebooks)": (
        False,
        """
        async def value():
            await asyncio.sleep(0)
            return "yes"
        async def main():
            print(run(value))
        asyncio.run(main())
        """,
    ),
    "the handle can be awaited as it is, on another loop": (
        True,
        """
        async def value():
            await asyncio.sleep(0.1)
            return "yes"
        handle = submit(value)
        async def main():
            print(await handle)
        asyncio.run(main())
        """,
    ),
    "a client made in one call works in the next": (
        False,
        """
        async def make():
            return asyncio.get_running_loop()
        async def same(loop):
            return loop is asyncio.get_running_loop() and not loop.is_closed()
        print("yes" if run(same, run(make)) else "no")
        """,
    ),
    "it works in a forked child, after use in the parent": (
        False,
        """
        import os, warnings
        warnings.simplefilter("ignore")
        async def value():
            await asyncio.sleep(0)
            return "yes"
        run(value)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            print(run(value), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        """,
    ),
    "waiting on the loop's own thread is an error, not a hang": (
        False,
        """
        async def inner(): pass
        async def outer():
            try:
                run(inner)
            except Exception:
                return "yes"
            return "yes"
        print(run(outer))
        """,
    ),
    "Ctrl-C in a blocking call cancels the work": (
        False,
        """
        import signal, threading
        async def work():
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                await asyncio.sleep(1.5)
            except asyncio.CancelledError:
                print("yes", flush=True)
                raise
        try:
            run(work)
        except KeyboardInterrupt:
            time.sleep(0.5)
            os._exit(0)
        """,
    ),
    "a task that raises SystemExit does not take it down": (
        False,
        """
        import threading
        async def leave(): raise SystemExit(3)
        async def value(): return "yes"
        def first():
            try:
                run(leave)
            except BaseException:
                pass
        thread = threading.Thread(target=first, daemon=True)
        thread.start()
        thread.join(1)
        print(run(value), flush=True)
        """,
    ),
    "who cancels can wait for the clean-up": (
        True,
        """
        import concurrent.futures, threading
        started, done = threading.Event(), []
        async def work():
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.2)
                done.append(1)
        handle = submit(work)
        started.wait(5)
        handle.cancel()
        try:
            handle.result(5)
        except BaseException:
            pass
        print("yes" if done else "no", flush=True)
        os._exit(0)
        """,
    ),
}


def ask(name: str, question: str) -> str:
    about_submit, program = QUESTIONS[question]
    start = textwrap.dedent(STARTS[name])
    if about_submit and "submit = None" in start:
        return "–"
    body = textwrap.dedent(program)
    if name == "anyio":
        body = textwrap.indent(body, "    ")
    source = f"import asyncio, os, sys, time\n{start}\n{body}"
    try:
        child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=12)
    except subprocess.TimeoutExpired as error:
        return "yes, then hangs" if b"yes" in (error.stdout or b"") else "hangs"
    if "-v" in sys.argv and "yes" not in child.stdout:
        print(f"--- {name}: {question}\n{child.stdout}{child.stderr[-400:]}", file=sys.stderr)
    return "yes" if "yes" in child.stdout else "no"


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name in STARTS] or list(STARTS)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names if name != "asyncio"]
    print(f"CPython {platform.python_version()}; {', '.join(versions)}\n")
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for question in QUESTIONS:
        print(f"| {question} | {' | '.join(ask(name, question) for name in names)} |", flush=True)
