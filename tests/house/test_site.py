"""The site of the docs is built, linked throughout, and fits the screen of a telephone, in the light and in the dark."""

import functools
import html
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest

import omniloop

# Found, not imported: that would take a part of every collection.
for needed in ("furo", "myst_parser", "sphinx_copybutton", "sphinx_design", "sphinxext"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"there is no {needed}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Building takes some seconds, a browser too, and more on a busy machine.
pytestmark = [pytest.mark.timeout(180), pytest.mark.heavy, pytest.mark.long, pytest.mark.xdist_group("site")]

# With the two that a star import leaves out, because they would hide others of the name.
PUBLIC = [*omniloop.__all__, "map", "queue"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", folder]
    built = subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, "DOCS_ONLINE": ""})
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """What a page offers as a goal of links, what it links to, and its code: the text, and whether it is a link or in a heading."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.code: list[tuple[str, bool]] = []
        self._open: list[str] = []
        self._text: list[str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "code" and "literal" in (values.get("class") or "").split():
            self._text = []
        if tag in ("a", "h1", "h2", "h3", "h4", "dt"):
            self._open.append(tag)

    def handle_data(self, data):
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag):
        if tag == "code" and self._text is not None:
            self.code.append(("".join(self._text), bool(self._open)))
            self._text = None
        if self._open and self._open[-1] == tag:
            self._open.pop()


@pytest.fixture(scope="module")
def pages(site):
    # Without the sources that viewcode shows, and what Sphinx makes for itself.
    paths = [path for path in site.rglob("*.html") if not {"_modules", "_static"} & set(path.parts)]
    return {path: Page(path) for path in paths}


def test_no_link_within_the_site_is_dead(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[goal].anchors if goal in pages else {parts.fragment}
            if not goal.exists() or (parts.fragment and urllib.parse.unquote(parts.fragment) not in anchors):
                dead.append(f"{path.relative_to(site)}: {link}")

    assert not dead, "\n".join(dead)


CALLS = [name for name in PUBLIC if name[0].islower() or name in ("TaskGroup", "Runtime", "ProcessPool")]
CALL = re.compile(rf"^(?:omniloop\.)?(?:{'|'.join(CALLS)})\(.*\)$", re.DOTALL)


def test_every_call_on_a_page_leads_to_its_contract(site, pages):
    """`go(coro)`, as code in a text, is a link; headings and the signatures themselves are left out."""
    calls = [
        (path, text, linked)
        for path, page in pages.items()
        if path.name not in ("promises.html", "changelog.html")
        for text, linked in page.code
        if CALL.match(text)
    ]
    unlinked = [f"{path.relative_to(site)}: {text}" for path, text, linked in calls if not linked]

    assert len(calls) > 100
    assert not unlinked, "\n".join(unlinked)


def test_every_way_of_which_call_do_i_want_is_linked(site, pages):
    page = pages[site / "index.html"]
    table = [text for text, linked in page.code if "(" in text and not linked]

    assert table == []


def test_each_public_name_has_an_entry_with_a_link_to_its_source(site, pages):
    reference = [page for path, page in pages.items() if path.is_relative_to(site / "reference")]
    missing = [name for name in PUBLIC if not any(f"omniloop.{name}" in page.anchors for page in reference)]
    sources = pages[site / "reference" / "api" / "starting.html"].links

    assert missing == []
    for call in ("go", "try_go", "call_soon", "call_later", "call_at", "every", "to_thread"):
        assert f"../../_modules/omniloop/_runtime.html#Runtime.{call}" in sources


def test_signatures_read_as_in_the_source(site):
    """No full path of a module of ours, no marks of Sphinx's, no constant without a public name."""
    signatures = [
        html.unescape(re.sub(r"<[^>]+>", "", entry))
        for path in (site / "reference").rglob("*.html")
        for entry in re.findall(r'<dt class="sig[^>]*>(.*?)</dt>', path.read_text(encoding="utf-8"), re.DOTALL)
    ]

    assert len(signatures) > 100
    assert not [text for text in signatures if re.search(r"~|omniloop\._|Unpack|= _[A-Z]|\[\[P\]", text)]
    assert any("to_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) → Task[T]" in s for s in signatures)


def test_the_sidebar_has_groups_of_a_dozen_at_the_most(site):
    sidebar = (
        (site / "index.html").read_text(encoding="utf-8").partition('class="sidebar-tree"')[2].partition("</div>")[0]
    )
    # Those lists that hold no other.
    deepest = re.findall(r"<ul>((?:(?!<ul>).)*?)</ul>", sidebar, re.DOTALL)

    assert "how-to/frameworks.html" in sidebar
    assert "reference/api/groups.html" in sidebar
    assert deepest
    assert all(group.count("<li") <= 12 for group in deepest)


def test_extensions_and_fixtures_have_anchors(site, pages):
    anchors = pages[site / "reference" / "api" / "extensions.html"].anchors

    for name in (
        "ext.logging.AsyncHandler",
        "ext.flask.guard",
        "ext.django.go_on_commit",
        "ext.prometheus.Collector",
        "ext.opentelemetry.instrument",
        "testing.omniloop_runtime",
        "testing.omniloop_clock",
        "testing.Clock.advance",
    ):
        assert f"omniloop.{name}" in anchors


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no chromium with its chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        # A telephone's scroll bars take no room.
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def show(browser, address, page, width, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(f"{address}/{page}")


# What is wider than the screen, unless a box around it scrolls, or it is meant to be out of sight (the drawers, the skip link).
TOO_WIDE = """
    const width = document.documentElement.clientWidth, found = [];
    if (document.documentElement.scrollWidth > width) found.push(`the page: ${document.documentElement.scrollWidth} > ${width}`);
    const scrolls = (element) => {
        for (let at = element; at; at = at.parentElement) {
            if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
        }
        return false;
    };
    for (const element of document.querySelectorAll("article *")) {
        const box = element.getBoundingClientRect();
        if (box.width && box.right > width + 1 && !scrolls(element)) found.push(`${element.tagName}.${element.className}: ${Math.round(box.right)} > ${width}`);
    }
    return found.slice(0, 5);
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_the_console_is_silent(site, pages, browser, address, width):
    wrong = []
    for path in pages:
        page = path.relative_to(site).as_posix()
        show(browser, address, page, width)
        wrong += [f"{page}: {what}" for what in browser.execute_script(TOO_WIDE)]
        wrong += [f"{page}: {entry['message']}" for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("go", "api/starting.html#omniloop.go"),
        ("tkinter", "how-to/windows.html"),
        ("pyside", "how-to/windows.html"),
        ("pyside6", "how-to/windows.html"),
        ("websocket", "how-to/fastapi.html"),
        ("mcp", "how-to/agents.html"),
        ("tqdm", "how-to/groups.html"),
        ("mypy", "how-to/typing.html"),
        ("nest_asyncio", "how-to/migrating.html"),
        ("BackgroundTasks", "how-to/fastapi.html"),
    ],
)
def test_search_finds(browser, address, words, page):
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, address, f"search.html?q={words}", 1280)
    links = WebDriverWait(browser, 60).until(
        lambda driver: driver.execute_script(
            "return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
        )
    )

    assert any(page in link for link in links), links


def test_the_dark_is_dark_and_text_stands_out_from_its_ground(browser, address):
    """The contrast of the running text, of links and of code, by WCAG's formula: 4.5 at the least."""
    script = """
        const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; })
            .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
        const ground = (element) => {
            for (let at = element; at; at = at.parentElement) {
                const color = numbers(getComputedStyle(at).backgroundColor);
                if (color.length < 4 || color[3] === 1) return color;
            }
            return [255, 255, 255];
        };
        return ["article p", "article p a.reference", "article code.literal", "article h2"].map((selector) => {
            const element = document.querySelector(selector);
            const pair = [light(numbers(getComputedStyle(element).color)), light(ground(element))].sort();
            return [selector, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), light(ground(element))];
        });
    """
    for scheme in ("light", "dark"):
        show(browser, address, "index.html", 1280, scheme)
        for selector, contrast, ground in browser.execute_script(script):
            assert contrast >= 4.5, (scheme, selector, contrast)
            assert (ground < 0.1) == (scheme == "dark"), (scheme, selector, ground)
