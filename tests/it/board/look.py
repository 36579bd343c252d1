"""How Grafana looks in the dark: sizes, colours, values with their units, and a sheet to draw on by pixels."""

import math

import numpy
from matplotlib import pyplot
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from PIL import Image

WIDTH, DPI = 1400, 100
EDGE, HEAD, ROW, GAP = 10, 56, 36, 6
COLUMN = (WIDTH - 2 * EDGE + GAP) / 24
CANVAS, PANEL, BORDER, GRID = "#111217", "#181b1f", "#2a2d33", "#2c3036"
TEXT, DIM, BLUE = "#d5d5e2", "#9a9aa8", "#6e9fff"
NAMED = {
    "green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "dark-red": "#c4162a", "yellow": "#fade2a", "blue": "#5794f2",
    "light-blue": "#8ab8ff", "purple": "#b877d9", "text": TEXT, "transparent": PANEL,
}
PALETTE = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#96d98d", "#ffb357", "#ca95e5"]

pyplot.rcParams.update({"font.family": "DejaVu Sans", "text.color": TEXT, "axes.unicode_minus": False})


def colour(name):
    return NAMED.get(name, name)


def place(grid):
    """Pixels of a place on Grafana's grid: left, top, width, height."""
    return (
        EDGE + grid["x"] * COLUMN, HEAD + grid["y"] * ROW, grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP,
    )


def rounded(value, decimals):
    if decimals is None:
        return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    return f"{value:.{decimals}f}"


def scaled(value, decimals, units):
    """In the largest of some units that is not above the value; `units` grow."""
    best = units[0]
    for unit in units:
        if abs(value) >= unit[0]:
            best = unit
    number = value / best[0]
    return rounded(number, 0 if number >= 100 else decimals), best[1]


SECONDS = [(1e-3, "ms"), (1, "s"), (60, "min"), (3600, "hours"), (86400, "days"), (7 * 86400, "weeks"), (365 * 86400, "years")]
BYTES = [(1, "B"), (1024, "KiB"), (1024**2, "MiB"), (1024**3, "GiB")]
SHORT = [(1, ""), (1e3, "K"), (1e6, "Mil")]


def shown(value, unit, decimals=None):
    """A value as Grafana writes it: the number, and its unit."""
    if unit == "percentunit":
        return rounded(100 * value, decimals), "%"
    if unit.startswith("suffix:"):
        return rounded(value, decimals), unit.removeprefix("suffix:")
    if unit in ("s", "bytes", "short"):
        if value == 0:
            return "0", " s" if unit == "s" else ""
        number, word = scaled(value, 0 if unit == "s" and value < 1 else decimals, {"s": SECONDS, "bytes": BYTES, "short": SHORT}[unit])
        return number, f" {word}" if word else ""
    return rounded(value, decimals), ""


def threshold(steps, value):
    """The colour of a value."""
    passed = [step for step in steps if step["value"] is None or value >= step["value"]]
    return colour(passed[-1]["color"])


class Sheet:
    """The whole picture, with its zero at the top left."""

    def __init__(self, height, found):
        self.height = height
        self.figure = pyplot.figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
        self.axes = self.figure.add_axes([0, 0, 1, 1])
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.axis("off")
        self.renderer = self.figure.canvas.get_renderer()
        times = [at for targets in found["panels"].values() for one in targets for series in one if len(series["values"]) > 1 for at, _ in series["values"]]
        self.begin, self.end = min(times), max(times)
        self.starts = [float(at) for at in found["starts"] if self.begin + 1 < float(at) < self.end]

    def box(self, x, y, width, height, face, edge="none", radius=2):
        style = f"round,pad=0,rounding_size={radius}"
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=0.8))

    def text(self, x, y, words, size=9, colour=TEXT, weight="normal", align="left", within=None):
        if within:
            while len(words) > 4 and self.width(words, size, weight) > within:
                words = words[:-2].rstrip(" ,.…") + "…"
        self.axes.text(x, y, words, size=size, color=colour, weight=weight, ha=align, va="center", parse_math=False)

    def width(self, words, size, weight="normal"):
        wide, _, _ = self.renderer.get_text_width_height_descent(words, FontProperties(size=size, weight=weight), False)
        return wide

    def plot(self, x, y, width, height):
        """Axes at a place, for what has a scale."""
        axes = self.figure.add_axes([x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height])
        axes.set_facecolor("none")
        return axes


def lessened(image):
    """The same picture in 256 colours, for a small file. Those with a name stay as they are: a palette that is made of the
    picture alone would leave out thin lines first."""
    names = sorted({CANVAS, PANEL, BORDER, GRID, TEXT, DIM, BLUE, *NAMED.values(), *PALETTE})
    own = [[int(name[at : at + 2], 16) for at in (1, 3, 5)] for name in names]
    others = numpy.array(image.quantize(256 - len(own)).getpalette()).reshape(-1, 3)
    palette = numpy.vstack([own, others])[:256]
    seen, where = numpy.unique(numpy.asarray(image).reshape(-1, 3), axis=0, return_inverse=True)
    nearest = [((palette - one) ** 2).sum(axis=1).argmin() for one in seen.astype(int)]
    less = Image.fromarray(numpy.array(nearest, dtype=numpy.uint8)[where.reshape(-1)].reshape(image.height, image.width), "P")
    less.putpalette(palette.astype(numpy.uint8).tobytes())
    return less


def unit_of(top, unit):
    """The size of the unit that a value is written in."""
    sizes = {"s": SECONDS, "bytes": BYTES, "short": SHORT}.get(unit, [(1, "")])
    return max([size for size, _ in sizes if size <= top], default=sizes[0][0])


def nice_top(value):
    """A round number above."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12) if step * power >= value * 1.02)
