# /// script
# requires-python = "==3.14.*"
# dependencies = ["playwright==1.65.2"]
#
# [tool.field]
# commands = ["chromium"]
# ///
"""
playwright's async API with Debian's Chromium, in `enter`: five pages at once, an event of the page, a script's value, a screenshot; its sync API in a thread beside it.

Differs: The sync API refuses to start in a thread with a running event loop. omniloop's is in a thread of its own: both work in one program.
"""

import contextlib

from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright

import omniloop
from ending import right

OPTIONS = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}
PAGE = "data:text/html,<title>page {}</title><script>console.log('said {}')</script>"


@contextlib.asynccontextmanager
async def browsing():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


async def look(browser, number):
    page = await browser.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    await page.goto(PAGE.format(number, number))
    title, value = await page.title(), await page.evaluate("6 * 7")
    picture = await page.screenshot()
    await page.close()
    return title, value, said, picture[:4]


with omniloop.enter(browsing()) as browser:
    with omniloop.TaskGroup() as group:
        handles = [group.go(look(browser, number)) for number in range(5)]
    for number, handle in enumerate(handles):
        assert handle.result() == (f"page {number}", 42, [f"said {number}"], b"\x89PNG"), handle.result()
    with sync_playwright() as playwright:
        other = playwright.chromium.launch(**OPTIONS)
        page = other.new_page()
        page.goto(PAGE.format("sync", ""))
        assert page.title() == "page sync"
        assert omniloop.run(look(browser, 9), timeout=60)[0] == "page 9"
        other.close()
right(
    "A browser that sync code keeps open in a `with`, five pages at once, and the sync API beside it in the main thread."
)
