"""Pictures of what was measured: SVG by hand, for light and dark pages, text as text."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from .measure import Figure, number, percentile

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 88, 36, 94, 58
GROWN = re.compile(r"(?P<rate>.+), (?P<rows>[\d,]+) finished rows")
WAITED = re.compile(r"enqueue to first line, (?P<kind>.+), all samples")

STYLE = """
    text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif }
    text, .ink { fill: #1f2328 }
    .title { font-size: 16px; font-weight: 600 }
    .soft { fill: #59636e }
    .page { fill: #ffffff; stroke: #d1d9e0 }
    .grid { stroke: #d1d9e0; fill: none }
    .axis { stroke: #818b98; fill: none }
    .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
    .bare { stroke-width: 1.5; stroke-dasharray: 2 5 }
    .a { stroke: #0969da } .dot.a { fill: #0969da }
    .b { stroke: #bc4c00 } .dot.b { fill: #bc4c00 }
    .c { stroke: #1a7f37 } .dot.c { fill: #1a7f37 }
    @media (prefers-color-scheme: dark) {
        text, .ink { fill: #f0f6fc }
        .soft { fill: #9198a1 }
        .page { fill: #0d1117; stroke: #3d444d }
        .grid { stroke: #2a313c }
        .axis { stroke: #656c76 }
        .a { stroke: #58a6ff } .dot.a { fill: #58a6ff }
        .b { stroke: #f0883e } .dot.b { fill: #f0883e }
        .c { stroke: #3fb950 } .dot.c { fill: #3fb950 }
    }
"""
COLOURS = "abc"


def draw(figures: Sequence[Figure], folder: Path) -> None:
    """Writes `growth.svg` and `latency.svg`, each if its figures are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("growth", growth(figures)), ("latency", latency(figures))):
        if picture is not None:
            (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


# The pictures


def growth(figures: Sequence[Figure]) -> str | None:
    """Rates by the number of finished jobs in the file, with the range of the rounds."""
    rates: dict[str, dict[int, Sequence[float]]] = {}
    for figure in figures:
        if found := GROWN.fullmatch(figure.what):
            rows = int(found["rows"].replace(",", ""))
            rates.setdefault(found["rate"], {})[rows] = figure.ours
    if not rates:
        return None
    sizes = sorted({rows for rate in rates.values() for rows in rate})
    top = max(max(values) for rate in rates.values() for values in rate.values())
    x = Axis(
        "finished jobs in the file (points: median, bars: range of the rounds)",
        sizes[0] * 0.8,
        sizes[-1] * 1.25,
        sizes,
        "log",
        ",.0f",
    )
    y = Axis("jobs per second", 0, *ceiling(top), "linear", ",.0f")
    parts = [*frame("Rates in a growing file", x, y)]
    for colour, rate in zip(COLOURS, rates.values(), strict=False):
        middles = {rows: median(values) for rows, values in sorted(rate.items())}
        parts += whiskers(x, y, rate, colour)
        parts += curve(x, y, middles, colour)
        parts += dots(x, y, middles, colour)
    parts += legend([(name, "", colour) for name, colour in zip(rates, COLOURS, strict=False)])
    return page("Rates in a growing file", parts)


def latency(figures: Sequence[Figure]) -> str | None:
    """The share of jobs whose first line had come after so many milliseconds."""
    waits: list[tuple[str, Sequence[float], str, str]] = []
    found = [(match["kind"], f) for f in figures if (match := WAITED.fullmatch(f.what))]
    for colour, (kind, figure) in zip(COLOURS, found, strict=False):
        waits.append((kind, figure.ours, colour, ""))
        if figure.theirs:
            waits.append((f"{kind}, {figure.beside}", figure.theirs, colour, "bare"))
    if not waits:
        return None
    low = min(min(samples) for _, samples, _, _ in waits)
    high = max(percentile(samples, 99.5) for _, samples, _, _ in waits)
    x = Axis("milliseconds", low * 0.9, high * 1.1, steps(low * 0.9, high * 1.1), "log", "g")
    y = Axis("share of jobs", 0, 1, [0, 0.25, 0.5, 0.75, 0.9, 1], "linear", ".0%")
    title = "From enqueue to the handler’s first line"
    parts = [*frame(title, x, y)]
    names = []
    for kind, samples, colour, style in waits:
        ordered = [wait for wait in sorted(samples) if wait <= x.high]
        shares = {wait: (n + 1) / len(samples) for n, wait in enumerate(ordered)}
        parts += curve(x, y, shares, f"{colour} {style}")
        p50, p99 = (number(percentile(samples, share)) for share in (50, 99))
        names.append((f"{kind}: median {p50} ms, p99 {p99}", style, colour))
    return page(title, [*parts, *legend(names)])


# What they are made of


@attrs.frozen
class Axis:
    """One direction: from values to places."""

    label: str
    low: float
    high: float
    marks: Sequence[float]
    scale: str
    form: str

    def share(self, value: float) -> float:
        """How far along a value lies, from 0 to 1."""
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def across(x: Axis, value: float) -> float:
    return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)


def up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)


def ceiling(top: float) -> tuple[float, list[float]]:
    """The end of an axis that begins at 0, and its round marks."""
    power = 10 ** math.floor(math.log10(top))
    step = next(s * power for s in (0.2, 0.25, 0.5, 1, 2) if top / (s * power) <= 5.5)
    marks = [step * n for n in range(math.ceil(top / step) + 1)]
    return marks[-1], marks


def steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**p for p in powers for s in (1, 2, 5) if low <= s * 10.0**p <= high]


def frame(title: str, x: Axis, y: Axis) -> Iterator[str]:
    """Title, grid, axes and what stands at them."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    yield f'<text class="title" x="{LEFT}" y="30">{escape(title)}</text>'
    for mark in y.marks:
        place = up(y, mark)
        yield f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"/>'
        text = format(mark, y.form)
        yield f'<text class="soft" x="{LEFT - 10}" y="{place + 4:.1f}" {END}>{text}</text>'
    yield f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'
    for mark in x.marks:
        place = across(x, mark)
        yield f'<path class="axis" d="M{place:.1f} {bottom}v5"/>'
        text = format(mark, x.form)
        yield f'<text class="soft" x="{place:.1f}" y="{bottom + 20}" {MIDDLE}>{text}</text>'
    middle = (LEFT + right) / 2
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 15}" {MIDDLE}>{escape(x.label)}</text>'
    turned = f'transform="translate(22 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    yield f"<text {turned} {MIDDLE}>{escape(y.label)}</text>"


END, MIDDLE = 'text-anchor="end"', 'text-anchor="middle"'


def curve(x: Axis, y: Axis, values: Mapping[Any, float], style: str) -> Iterator[str]:
    """A line through points; those that would fall on the same pixel are left out."""
    points = dict.fromkeys(f"{across(x, a):.1f} {up(y, b):.1f}" for a, b in values.items())
    yield f'<path class="line {style.strip()}" d="M{"L".join(points)}"/>'


def dots(x: Axis, y: Axis, values: Mapping[int, float], style: str) -> Iterator[str]:
    for a, b in values.items():
        place = f'cx="{across(x, a):.1f}" cy="{up(y, b):.1f}"'
        yield f'<circle class="dot {style}" r="3.5" {place}/>'


def whiskers(x: Axis, y: Axis, ranges: Mapping[int, Sequence[float]], style: str) -> Iterator[str]:
    """From the least to the most of the rounds."""
    for a, values in ranges.items():
        low, high = up(y, min(values)), up(y, max(values))
        yield f'<path class="line {style}" d="M{across(x, a):.1f} {low:.1f}V{high:.1f}"/>'


def legend(names: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Names beside samples of their lines, in two columns under the title."""
    for n, (name, style, colour) in enumerate(names):
        left, height = LEFT + (n % 2) * 310, 50 + n // 2 * 19
        sample = f'd="M{left} {height}h22"'
        yield f'<path class="line {colour} {style}" {sample}/>'
        yield f'<text x="{left + 30}" y="{height + 4}">{escape(name)}</text>'


def page(title: str, parts: Sequence[str]) -> str:
    """The whole file."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' width="{WIDTH}" height="{HEIGHT}">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>\n'
        f"{body}\n</svg>\n"
    )
