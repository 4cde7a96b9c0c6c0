"""The programs of the page on agents and MCP, each a file of its own, against stand-ins on this machine."""

import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from children import child_environment

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "agents.md"
PROGRAM = re.compile(
    r"^```python\n(?P<code># (?P<name>\w+\.py)\n.*?)^```$(?:\n+```text\n(?P<said>.*?)^```$)?", re.MULTILINE | re.DOTALL
)
PROGRAMS = {found["name"]: found for found in PROGRAM.finditer(PAGE.read_text(encoding="utf-8"))}
NEEDED = {
    "ask.py": "openai",
    "call_tools.py": "mcp",
    "tool.py": "langchain_core",
    "stream.py": "pydantic_ai",
    "agent.py": "agents",
    "app.py": "openai",
    "log.py": "litellm",
}
pytestmark = pytest.mark.timeout(120)


class Model(http.server.BaseHTTPRequestHandler):
    """Says again what it was told, in three words; whole, or as a stream."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = asked["messages"][-1]["content"]
        words = ["You ", "said: ", question if isinstance(question, str) else question[0]["text"]]
        about = {"id": "1", "created": 1, "model": asked["model"]}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            self.answer({**about, "object": "chat.completion", "usage": usage, "choices": choices})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(words):
            delta = {"role": "assistant", "content": word}
            choices = [{"index": 0, "delta": delta, "finish_reason": "stop" if number == 2 else None}]
            self.send_chunk(json.dumps({**about, "object": "chat.completion.chunk", "choices": choices}))
        self.send_chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in ("small", "large")]
        self.answer({"object": "list", "data": models, "has_more": False})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_chunk(self, content):
        body = f"data: {content}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))

    def log_message(self, *args): ...


@pytest.fixture(scope="module")
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_each_program_of_the_page_is_run():
    assert set(NEEDED) == set(PROGRAMS) - {"server.py"}


@pytest.mark.promise(
    "Agents in sync code: the twin of openai's client with streams and pages, MCP clients, LangChain's tools, streams of pydantic-ai, "
    "the OpenAI Agents SDK inside a running loop, a token stream through Flask whose reader leaves, and litellm's log",
    section="Frameworks and servers",
)
@pytest.mark.parametrize("name", NEEDED)
def test_the_programs_on_agents_print_what_the_page_shows(name, service, tmp_path):
    if importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"without {NEEDED[name]}")
    for other, found in PROGRAMS.items():
        (tmp_path / other).write_text(found["code"], encoding="utf-8")

    ended = subprocess.run(
        [sys.executable, name],
        cwd=tmp_path,
        env=child_environment() | {
            "OPENAI_BASE_URL": service,
            "OPENAI_API_KEY": "none",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYDANTIC_AI_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert [line.rstrip() for line in ended.stdout.splitlines()] == [
        line.rstrip() for line in PROGRAMS[name]["said"].splitlines()
    ], ended.stderr


@pytest.mark.promise("Where nest_asyncio is applied, work is done and clean-up runs at exit, and nothing is said")
def test_where_nest_asyncio_is_applied_the_exit_is_quiet():
    pytest.importorskip("nest_asyncio")
    code = """
import asyncio, nest_asyncio
nest_asyncio.apply()
from omniloop import go, run

async def items():
    try:
        yield 1
    finally:
        print("closed", flush=True)

async def daemon(started):
    started.set_result(None)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

async def left():
    await asyncio.sleep(0.05)
    print("done", flush=True)

async def main():
    global kept
    kept = items()
    await anext(kept)
    started = asyncio.get_running_loop().create_future()
    go(daemon(started), daemon=True)
    await started
    asyncio.create_task(left())

run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split("\n")) == ["", "cleaned up", "closed", "done"]
