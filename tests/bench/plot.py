"""Draws tests/bench/plot.svg from what `cargo bench --bench clock` and `--bench growth` kept: a folder of JSON lines, and where to draw.

Left: how long a call is the worker's, by the calls that come. Right: what a push costs, by the number of what there is of it.
Only what Python itself brings is used, and the same figures make the same file.
"""

import json
import math
import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1120, 440
PANEL = 430  # across and, less, down
TOP, DOWN = 70, 290
LEFT = (80, 640)
OURS, BARE = "#0b6e99", "#b0552b"
ROWS = ("#0b6e99", "#b0552b", "#4b7f2a", "#7a4fa3", "#8a7a1f")
INK, FAINT = "#222222", "#d9d9d9"
# What the dearest of a row may cost beside the cheapest, unless it is explained.
GROWTH_MAX = 1.2


def lines(folder, name):
    file = folder / f"{name}.jsonl"
    if not file.exists():
        sys.exit(f"{file} is not there: run cargo bench --bench {name}")
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not found:
        sys.exit(f"{file} is empty: run cargo bench --bench {name} again")
    return found


class Drawing:
    def __init__(self):
        self.parts = []

    def line(self, points, colour, width=1.0, dash=""):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')

    def text(self, x, y, words, colour=INK, size=12, anchor="start", weight="normal"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(words)}</text>'
        )

    def svg(self):
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )


class Axis:
    """A scale between two values, linear or by powers of ten."""

    def __init__(self, low, high, begin, end, powers):
        self.low, self.high, self.begin, self.end, self.powers = low, high, begin, end, powers

    def at(self, value):
        if self.powers:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)


def number(value):
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if value >= 1_000:
        return f"{value / 1_000:g}k"
    return f"{value:g}"


def clock(drawing, left, figures):
    figures = sorted(figures, key=lambda each: each["rate"])
    rates = [each["rate"] for each in figures]
    values = [each[who][share] for each in figures for who in ("ringcast_us", "bare_us") for share in ("p50", "p99", "p99.9")]
    low = 10 ** math.floor(math.log10(max(min(values), 1)))
    high = 10 ** math.ceil(math.log10(max(values) * 1.01))
    across = Axis(0, max(rates) * 1.05, left, left + PANEL, False)
    down = Axis(low, high, TOP + DOWN, TOP, True)
    drawing.text(left, 28, "From the invite in the pipe to the request at the peer", size=15, weight="bold")
    drawing.text(left, 47, "µs, by invites a second; ringcast pipe, and a bare h2 client that is fed the same", size=12)
    value = low
    while value <= high:
        drawing.line([(left, down.at(value)), (left + PANEL, down.at(value))], FAINT)
        drawing.text(left - 8, down.at(value) + 4, number(value), anchor="end")
        value *= 10
    for rate in rates:
        drawing.line([(across.at(rate), TOP + DOWN), (across.at(rate), TOP + DOWN + 5)], INK)
        drawing.text(across.at(rate), TOP + DOWN + 20, number(rate), anchor="middle")
    for who, colour in (("ringcast_us", OURS), ("bare_us", BARE)):
        for share, dash in (("p50", ""), ("p99", "6 3"), ("p99.9", "2 3")):
            points = [(across.at(each["rate"]), down.at(max(each[who][share], low))) for each in figures]
            drawing.line(points, colour, 2, dash)
            for x, y in points:
                drawing.dot(x, y, colour)
    legend = TOP + DOWN + 45
    for at, (words, colour, dash) in enumerate(
        (("Ringcast", OURS, ""), ("bare h2", BARE, ""), ("p50", INK, ""), ("p99", INK, "6 3"), ("p99.9", INK, "2 3"))
    ):
        x = left + at * 86
        drawing.line([(x, legend - 4), (x + 22, legend - 4)], colour, 2, dash)
        drawing.text(x + 27, legend, words)


def growth(drawing, left, figures):
    rows = {}
    for each in figures:
        # "up to 1000", "16", "100, two keys": the number is what counts; what has no other number than another size is left out.
        words = each["size"].removeprefix("up to ")
        if words.isdigit():
            rows.setdefault(each["row"], []).append((int(words), each["times"]))
    times = [value for row in rows.values() for _, value in row]
    most = max(size for row in rows.values() for size, _ in row)
    across = Axis(1, most, left, left + PANEL, True)
    down = Axis(0, max(1.4, max(times) * 1.1), TOP + DOWN, TOP, False)
    drawing.text(left, 28, "CPU of a push, beside the first of its row", size=15, weight="bold")
    drawing.text(left, 47, "by how many there are; dashed: 1.2 times more or less", size=12)
    tick = 0.0
    while tick <= down.high:
        drawing.line([(left, down.at(tick)), (left + PANEL, down.at(tick))], FAINT)
        drawing.text(left - 8, down.at(tick) + 4, f"{tick:.1f}", anchor="end")
        tick = round(tick + 0.2, 1)
    for limit in (1 / GROWTH_MAX, GROWTH_MAX):
        drawing.line([(left, down.at(limit)), (left + PANEL, down.at(limit))], INK, 1, "4 4")
    size = 1
    while size <= most:
        drawing.line([(across.at(size), TOP + DOWN), (across.at(size), TOP + DOWN + 5)], INK)
        drawing.text(across.at(size), TOP + DOWN + 20, number(size), anchor="middle")
        size *= 10
    for at, (name, row) in enumerate(rows.items()):
        colour = ROWS[at % len(ROWS)]
        points = [(across.at(size), down.at(value)) for size, value in row]
        drawing.line(points, colour, 2)
        for x, y in points:
            drawing.dot(x, y, colour)
        x, y = left + (at % 3) * 145, TOP + DOWN + 45 + (at // 3) * 18
        drawing.line([(x, y - 4), (x + 22, y - 4)], colour, 2)
        drawing.text(x + 27, y, name.removesuffix(", 500 in flight"))


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py FOLDER FILE")
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    drawing = Drawing()
    clock(drawing, LEFT[0], lines(folder, "clock"))
    growth(drawing, LEFT[1], lines(folder, "growth"))
    file.write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
