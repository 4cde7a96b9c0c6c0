"""The live view in a terminal: plots of the last minutes, and what the loops of a process are doing now. Needs Textual."""

from __future__ import annotations

import textwrap
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import DataTable, Footer, Header, Label, Sparkline, Static, TabbedContent, TabPane, Tree

from .._seen.look import chain_lines, line_of
from .client import NoAnswerError, asked, command_of
from .figures import FIGURES, figures

# Seconds between two questions, and how many answers the plots show: five minutes.
_EVERY: Final = 1.0
_HISTORY: Final = 300
# Columns that a tree needs for its guide lines and its scroll bar.
_MARGIN: Final = 12


def run(pid: int) -> None:
    """Show the process *pid* until the user quits."""
    Top(pid).run()


class _Plot(Vertical):
    """One figure: its current value, its maximum, and a plot of the last minutes."""

    def __init__(self, title: str, unit: str) -> None:
        super().__init__(classes="plot")
        self._title = title
        self._unit = unit
        self._values: deque[float] = deque(maxlen=_HISTORY)

    def compose(self) -> ComposeResult:
        yield Label(self._title, markup=False)
        # On lines of their own, because a terminal of 120 columns has only 18 for each figure.
        yield Label("", classes="now", markup=False)
        yield Label("", classes="most", markup=False)
        yield Sparkline([], summary_function=max)

    def show(self, value: float) -> None:
        self._values.append(value)
        most = max(self._values)
        self.query_one(".now", Label).update(f"{value:g}{self._unit}")
        self.query_one(".most", Label).update(f"max {most:g}")
        self.query_one(Sparkline).data = list(self._values)


class Top(App[None]):
    """The application. It asks from a thread, so that it stays usable while the process does not answer."""

    TITLE = "omniloop"
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("p", "pause", "Pause")]
    CSS = """
    #plots { height: 5; }
    .plot { width: 1fr; padding: 0 1; }
    .plot Sparkline { height: 2; }
    .most { color: $text-muted; }
    #status { height: auto; max-height: 6; padding: 0 1; }
    TabbedContent { height: 1fr; }
    ContentSwitcher, TabPane, Tree, DataTable { height: 1fr; }
    #status.bad { background: $error; color: $text; }
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self._last: dict[str, Any] | None = None
        self._paused = False
        self._asking = False

    def compose(self) -> ComposeResult:
        yield Header()
        with Horizontal(id="plots"):
            for title, unit in FIGURES:
                yield _Plot(title, unit)
        yield Static(f"asking the process {self._pid} …", id="status", markup=False)
        with TabbedContent():
            with TabPane("Tasks", id="tasks"):
                yield Tree("tasks", id="tree")
            with TabPane("Blocked", id="blocked"), VerticalScroll():
                yield Static("", id="stack", markup=False)
            with TabPane("Failures", id="failures"):
                yield Tree("failures", id="failed")
            with TabPane("Resources", id="resources"):
                yield DataTable(id="kept")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#kept", DataTable).add_columns("runtime", "name", "for")
        for tree in self.query(Tree):
            tree.show_root = False
            tree.root.expand()
        self.query_one("#tree", Tree).focus()
        self.set_interval(_EVERY, self.poll)
        self.poll()

    def action_pause(self) -> None:
        """Pause the display, or resume it."""
        self._paused = not self._paused
        self.sub_title = "paused" if self._paused else ""

    def poll(self) -> None:
        """Ask for a snapshot, unless the last one has not come yet."""
        if not (self._paused or self._asking):
            self._asking = True
            self._ask()

    @work(thread=True, group="poll")
    def _ask(self) -> None:
        try:
            snapshot = asked(self._pid, "snapshot")
        except NoAnswerError as error:
            self.call_from_thread(self._say, str(error), True)
        else:
            self.call_from_thread(self.show, snapshot)
        finally:
            self._asking = False

    # --- showing ------------------------------------------------------------------------------------------------------

    def show(self, snapshot: dict[str, Any]) -> None:
        """Display a snapshot."""
        for plot, value in zip(self.query(_Plot), figures(snapshot, self._last), strict=True):
            plot.show(value)
        self._last = snapshot
        runtimes = snapshot["runtimes"]
        unfinished = sum(runtime["unfinished"] for runtime in runtimes)
        words = (
            f"process {snapshot['pid']}, Python {snapshot['python']}, {unfinished} unfinished: {command_of(snapshot)}"
        )
        stacks = []
        for runtime in runtimes:
            if (blocked := runtime["blocked"]) is not None:
                whose = f"{runtime['name']}, for {blocked['for']:.1f} s"
                words += f"\na callback blocks the loop of {whose}: see Blocked"
                stacks.append(f"{whose}:\n{blocked['stack']}")
        self._say(words, bool(stacks))
        self.query_one("#stack", Static).update("\n\n".join(stacks) or "No loop is blocked.")
        width = self.size.width - _MARGIN
        self._show_rows("#tree", [_task_row(name, group, width) for name, group in _groups(runtimes)])
        # The latest failure first.
        self._show_rows("#failed", [_failure_row(failure, width) for failure in reversed(snapshot["failures"])])
        table = self.query_one("#kept", DataTable)
        table.clear()
        for runtime in runtimes:
            for resource in runtime["resources"]:
                table.add_row(runtime["name"], Text(resource["name"]), _seconds(resource["for"]))

    def _say(self, words: str, bad: bool) -> None:
        status = self.query_one("#status", Static)
        status.update(words)
        status.set_class(bad, "bad")

    def _show_rows(self, selector: str, rows: list[_Row]) -> None:
        tree: Tree[str] = self.query_one(selector, Tree)
        if [node.data for node in tree.root.children] != [key for key, _, _ in rows]:
            # The rows have changed: build the tree anew. Rows that were open stay open, and the cursor stays on its row.
            opened = {node.data for node in tree.root.children if node.is_expanded}
            cursor = tree.cursor_node.data if tree.cursor_node is not None else None
            tree.root.remove_children()
            for number, (key, _, _) in enumerate(rows):
                node = tree.root.add("", data=key, expand=key in opened or (selector == "#failed" and not number))
                if key == cursor:
                    self.call_after_refresh(tree.move_cursor, node)
        for node, (_, title, lines) in zip(tree.root.children, rows, strict=True):
            node.set_label(Text(title))
            if [str(child.label) for child in node.children] != lines:
                node.remove_children()
                for line in lines:
                    node.add_leaf(Text(line))


# A row of a tree: its key, which no other has, its title, and the lines below it.
_Row = tuple[str, str, list[str]]


def _groups(runtimes: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the groups of tasks with the names of their runtimes. Tasks that asyncio itself has started come last in each."""
    for runtime in runtimes:
        for group in (*runtime["groups"], *runtime["asyncio_tasks"]):
            yield runtime["name"], group


def _task_row(runtime: str, group: dict[str, Any], width: int) -> _Row:
    """The row of a group: below it the place of submission, the await chain, and the tasks that it has started."""
    name, place = group["name"], group["place"]
    key = f"{runtime}/{group.get('kind')}/{group.get('submitted')}/{group['chain'] or (name, place)}"
    kind = " (daemon)" if group.get("kind") == "daemon" else "" if "kind" in group else " (asyncio task)"
    age = f", the oldest for {_seconds(group['oldest'])}" if group.get("oldest") is not None else ""
    title = f"{group['count']:>7}  {name}{kind}{age}"
    submitted = [f"submitted at {line_of(group['submitted'])}"] if "submitted" in group else []
    lines = [*submitted, *chain_lines(group, "")]
    if len(title) + 2 + len(place) <= width:
        return key, f"{title}, {place}", _fitted(lines, width)
    return key, title, _fitted([place, *lines], width)


def _failure_row(failure: dict[str, Any], width: int) -> _Row:
    when = time.strftime("%H:%M:%S", time.localtime(failure["time"]))
    title, *rest = _fitted([f"{when}  {failure['name']}: {failure['error']}"], width)
    submitted = [f"submitted at {failure['submitted']}"] if failure["submitted"] else []
    return str(failure["time"]), title, [*rest, *_fitted([*submitted, *failure["traceback"].splitlines()], width)]


def _fitted(lines: list[str], width: int) -> list[str]:
    """Wrap long lines between words, because a tree cuts off what does not fit into the width."""
    fitted: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line, max(width, 40), subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False
        )
        fitted += wrapped or [""]
    return fitted


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"
