"""Draws the dashboard in Grafana's dark look: its own panels, from what its own queries found in a real Prometheus.

    draw.py DASHBOARD SERIES PICTURE

SERIES is what tests/it/board.rs writes. PICTURE remembers, by a digest, which dashboard it shows.
"""

import hashlib
import io
import json
import sys

import matplotlib

matplotlib.use("agg")

import look  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from panels import draw_heatmap, draw_series, draw_stat, draw_table  # noqa: E402
from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

DRAW = {"stat": draw_stat, "timeseries": draw_series, "heatmap": draw_heatmap, "table": draw_table}


def draw_head(sheet, board):
    sheet.text(look.EDGE + 4, 31, board["title"], size=15, weight="bold")
    right = look.WIDTH - look.EDGE
    for variable in reversed([one for one in board["templating"]["list"] if one["type"] != "datasource"]):
        for words, colour in (("All", look.BLUE), (variable["label"], look.TEXT)):
            width = sheet.width(words, 9) + 18
            right -= width
            sheet.box(right, 17, width, 26, look.PANEL, look.BORDER)
            sheet.text(right + 9, 30, words, size=9, colour=colour)
        right -= 10
    begin = look.EDGE + 130
    sheet.text(begin, 31, board["description"], size=9.5, colour=look.DIM, within=right - begin)


def main(board_file, series_file, picture_file):
    text = open(board_file, "rb").read()
    board = json.loads(text)
    found = json.load(open(series_file, encoding="utf-8"))
    height = look.HEAD + look.ROW * max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) + look.EDGE
    sheet = look.Sheet(height, found)
    draw_head(sheet, board)
    for panel in board["panels"]:
        x, y, width, high = look.place(panel["gridPos"])
        if panel["type"] == "row":
            sheet.text(x + 4, y + high / 2 + 4, "⌄", size=11, colour=look.DIM, weight="bold")
            sheet.text(x + 22, y + high / 2 + 3, panel["title"], size=12, weight="bold")
            continue
        sheet.box(x, y, width, high, look.PANEL, look.BORDER)
        sheet.text(x + 10, y + 15, panel["title"], size=9.5, weight="bold", within=width - 16)
        DRAW[panel["type"]](sheet, panel, found["panels"][str(panel["id"])], (x, y + 28, width, high - 28))
    raw = io.BytesIO()
    sheet.figure.savefig(raw, dpi=look.DPI, facecolor=look.CANVAS)
    pyplot.close(sheet.figure)
    image = look.lessened(Image.open(raw).convert("RGB"))
    told = PngInfo()
    told.add_text("dashboard", hashlib.sha256(text).hexdigest())
    image.save(picture_file, optimize=True, pnginfo=told)


if __name__ == "__main__":
    main(*sys.argv[1:])
