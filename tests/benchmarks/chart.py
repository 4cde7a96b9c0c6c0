"""Draws the charts of docs/explanation/speed.md: small, in the colour of the text around them, one message each."""

from html import escape
from pathlib import Path
from typing import Any

# In units of the drawing, which is as wide as a telephone's column: text of 13 stays readable there.
_WIDTH, _ROW, _BAR, _LABEL = 340, 24, 14, 150

# Of the measures, those that a user would ask about, and the file of each.
CHARTS = {
    "submit": ("chart-submit.svg", "Start a coroutine and forget it"),
    "round trip, one core": ("chart-run.svg", "Run a coroutine and wait for it"),
}


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Write the charts of what was measured."""
    for measure, (file, title) in CHARTS.items():
        if measure in results:
            rows = {name.strip("()"): it["best"] * 1e6 for name, it in results[measure].items() if name[0] != "("}
            (folder / file).write_text(bars(title, rows), encoding="utf-8")
            print("drawn:", folder / file)


def bars(title: str, rows: dict[str, float]) -> str:
    """
    One bar each, the shortest first, with its microseconds at its end.

    The axis is linear, from 0: lengths can be compared. What is far longer than the rest is cut, and its bar ends in a gap.
    """
    ordered = sorted(rows.items(), key=lambda row: row[1])
    longest = min(ordered[-1][1], 4 * ordered[len(ordered) // 2][1])
    room = _WIDTH - _LABEL - 62
    height = _ROW * len(ordered) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-family="system-ui, sans-serif" font-size="13" fill="currentColor">',
        f"<title>{escape(title)}, µs: {escape(', '.join(f'{name} {value:.1f}' for name, value in ordered))}</title>",
    ]
    for number, (name, value) in enumerate(ordered):
        top = number * _ROW + 5
        length = max(2, room * min(value, longest) / longest)
        ours = name == "omniloop"
        look = 'fill="#3574e2"' if ours else 'fill="currentColor" opacity="0.45"'
        weight = ' font-weight="700"' if ours else ""
        label = {"run_coroutine_threadsafe": "asyncio"}.get(name, name)
        parts.append(f'<text x="{_LABEL - 8}" y="{top + 12}" text-anchor="end"{weight}>{escape(label)}</text>')
        parts.append(f'<rect x="{_LABEL}" y="{top}" width="{length:.0f}" height="{_BAR}" rx="2" {look}/>')
        if value > longest:
            # Cut: two stripes of the ground.
            parts.append(
                f'<path d="M{_LABEL + room - 24} {top + _BAR + 2}l6 -{_BAR + 4}m5 0l-6 {_BAR + 4}" stroke="var(--color-background-primary, #fff)" '
                'stroke-width="3"/>'
            )
        text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
        parts.append(f'<text x="{_LABEL + length + 6:.0f}" y="{top + 12}"{weight}>{text} µs</text>')
    return "\n".join([*parts, "</svg>", ""])
