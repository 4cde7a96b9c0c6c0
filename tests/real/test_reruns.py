"""Scripts that a host runs again and again: nothing piles up, and one client serves all runs."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

import servers

from children import run_child

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "reruns.md"


@pytest.mark.timeout(60)
@pytest.mark.promise(
    "The script of the page on Streamlit opens one client for all runs", section="Frameworks and servers"
)
def test_the_script_of_the_page_opens_one_client_for_all_runs(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    counted = script.replace("class Client:", "print('run', flush=True)\nclass Client:").replace(
        "    async def get", "    def __init__(self):\n        print('opened', flush=True)\n\n    async def get", 1
    )
    (tmp_path / "script.py").write_text(counted)

    result = run_child(
        f"""
        from streamlit.testing.v1 import AppTest
        app = AppTest.from_file({str(tmp_path / "script.py")!r}, default_timeout=30).run()
        for _ in range(10):
            app.button[0].click().run()
        print(app.markdown[0].value, [error.value for error in app.exception])
        """,
        timeout=50,
    )

    lines = result.stdout.splitlines()
    assert lines.count("run") == 11, result
    assert lines[-2:] == ["contents of /orders []", "closed"], result
    assert lines.count("opened") == lines.count("closed") == 1


@pytest.mark.timeout(60)
@pytest.mark.promise(
    "Streamlit itself closes what a run has replaced, when it runs the script again", section="Frameworks and servers"
)
def test_a_resource_at_the_top_of_a_streamlit_script_is_closed_by_the_next_runs(tmp_path):
    script = tmp_path / "script.py"
    (tmp_path / "library.py").write_text(
        "class Client:\n"
        "    def __init__(self): print('opened', flush=True)\n"
        "    async def get(self): return 42\n"
        "    async def aclose(self): print('closed', flush=True)\n"
    )
    script.write_text(
        "import streamlit as st\n"
        "import library\n"
        "from omniloop import resource\n"
        "def make(): return library.Client()\n"
        "client = resource(make)\n"
        "st.write(client.run(lambda c: c.get(), timeout=5))\n"
        "st.button('again')\n"
    )

    result = run_child(
        f"""
        import gc, omniloop, asyncio, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from streamlit.testing.v1 import AppTest
        app = AppTest.from_file({str(script)!r}, default_timeout=30).run()
        for _ in range(20):
            app.button[0].click().run()
        gc.collect()
        omniloop.run(asyncio.sleep(0.1))
        print("end", flush=True)
        """,
        timeout=50,
    )

    before_the_end, _, _ = result.stdout.partition("end")
    assert before_the_end.count("opened") == 21, result
    assert before_the_end.count("closed") >= 20, result


@pytest.mark.timeout(60)
@pytest.mark.promise("`streamlit run` finishes at its end what the runs have left", section="Frameworks and servers")
def test_streamlit_run_drains_at_its_end(tmp_path):
    import signal

    (tmp_path / "script.py").write_text(
        "import asyncio\nimport streamlit as st\nimport omniloop\n"
        "async def late():\n    await asyncio.sleep(1)\n    print('late: done', flush=True)\n"
        "omniloop.go(late())\nst.write('ran')\nprint('left', flush=True)\n"
    )
    port = servers.free_port()
    command = [sys.executable, "-m", "streamlit", "run", "script.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--browser.gatherUsageStats=false", "--server.address=127.0.0.1"]
    with servers.process(command, tmp_path / "server.log", tmp_path) as server:
        server.wait_for_page(f"http://127.0.0.1:{port}/_stcore/health")
        # A session begins with a web socket; this one only begins.
        _begin_session(port)
        server.wait_for_log("left")
        server.signal(signal.SIGTERM)
        server.wait()

        assert "late: done" in server.log()


def _begin_session(port: int) -> None:
    import asyncio

    import aiohttp

    async def begin() -> None:
        async with aiohttp.ClientSession() as client:
            socket = await client.ws_connect(f"http://127.0.0.1:{port}/_stcore/stream", protocols=["streamlit"])
            # A BackMsg of protobuf, with an empty request to run the script again.
            await socket.send_bytes(b"\x5a\x00")
            await asyncio.sleep(2)
            await socket.close()

    asyncio.run(begin())
