"""Panels by their kind: stat, timeseries, heatmap, table. Each gets its JSON, the series of its queries, and where it lies."""

import math
import re
from datetime import datetime, timezone

import look
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

LEGEND = 15
SPECTRAL = LinearSegmentedColormap.from_list("spectral", ["#3b528b", "#3288bd", "#66c2a5", "#e6f598", "#fdae61", "#d53e4f"])


def named(legend, labels):
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def changed(panel, name):
    """What the overrides say of a field."""
    told = {}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            told.update({one["id"]: one["value"] for one in override["properties"]})
    return told


def fields(panel, found):
    """The fields of a panel: name, points (no value: NaN), and what overrides say."""
    all_fields = []
    for target, series in zip(panel["targets"], found):
        for one in series:
            name = named(target["legendFormat"], one["labels"])
            points = [(at, math.nan if value is None else value) for at, value in one["values"]]
            all_fields.append((name, points, changed(panel, name)))
    return all_fields


def mapped(mappings, value):
    """What stands for a value, `text` and perhaps `color`."""
    for mapping in mappings or []:
        if mapping["type"] == "special":
            if math.isnan(value):
                return mapping["options"]["result"]
        elif option := mapping["options"].get(f"{value:g}"):
            return option
    return {}


def draw_stat(sheet, panel, found, box):
    x, y, width, height = box
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    all_fields = fields(panel, found) or [("", [], {})]
    each = (width - 8) / len(all_fields)
    for number, (name, points, told) in enumerate(all_fields):
        left = x + 4 + number * each
        values = [value for _, value in points if not math.isnan(value)]
        steps = told.get("thresholds", defaults["thresholds"])["steps"]
        told_last = options["reduceOptions"]["calcs"] == ["last"]
        newest = points[-1:] if told_last else [point for point in points if not math.isnan(point[1])][-1:]
        value = newest[0][1] if newest else math.nan
        instead = mapped(defaults.get("mappings"), value)
        tone = look.DIM if math.isnan(value) else look.threshold(steps, value)
        tone = look.colour(instead["color"]) if "color" in instead else tone
        word = instead.get("text") or (defaults["noValue"] if math.isnan(value) else None)
        big, unit = (word, "") if word else look.shown(value, defaults["unit"], defaults.get("decimals"))
        if options["colorMode"] == "background_solid":
            sheet.box(left + 2, y, each - 4, height - 5, tone, radius=3)
            sheet.text(left + each / 2, y + (height - 5) / 2, big + unit, size=17, colour="#111217", weight="bold", align="center")
            continue
        if options["graphMode"] == "area" and len(points) > 1:
            axes = sheet.plot(left + 3, y + height * 0.55, each - 6, height * 0.45 - 3)
            times, line = zip(*points)
            axes.plot(times, line, color=tone, linewidth=1)
            axes.fill_between(times, line, 0, color=tone, alpha=0.15, linewidth=0)
            top = max(values, default=1) or 1
            axes.set(xlim=(sheet.begin, sheet.end), ylim=(0, top * 1.05))
            axes.axis("off")
        with_name = options["textMode"] == "value_and_name"
        middle = y + height * (0.36 if options["graphMode"] == "area" else 0.5)
        if with_name:
            middle += 6
            sheet.text(left + each / 2, middle - 30, name, size=9, colour=look.DIM, align="center", within=each - 8)
        size = 24 if len(all_fields) == 1 else 19
        while size > 9 and sheet.width(big, size, "bold") + sheet.width(unit, size * 0.6, "bold") > each - 10:
            size -= 1
        wide = sheet.width(big, size, "bold")
        begin = left + (each - wide - sheet.width(unit, size * 0.6, "bold")) / 2
        sheet.text(begin, middle, big, size=size, colour=tone, weight="bold")
        sheet.text(begin + wide, middle + size * 0.22, unit, size=size * 0.6, colour=tone, weight="bold")


def legend(sheet, entries, x, bottom, width, lines_max=3):
    """Lines of names, upwards from `bottom`; gives how high they are."""
    lines, at = [[]], 0
    for name, tone in entries:
        wide = sheet.width(name, 8.5) + 30
        if at + wide > width and lines[-1]:
            if len(lines) == lines_max:
                lines[-1].append((at, "…", None))
                break
            lines.append([])
            at = 0
        lines[-1].append((at, name, tone))
        at += wide
    for row, line in enumerate(lines):
        y = bottom - (len(lines) - 1 - row) * LEGEND
        for left, name, tone in line:
            if tone:
                sheet.box(x + left, y - 2, 12, 3, tone, radius=1)
            sheet.text(x + left + 17, y, name, size=8.5, colour=look.DIM, within=width - left - 14)
    return len(lines) * LEGEND


def style(axes, sheet, width):
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlim(sheet.begin, sheet.end)
    axes.tick_params(colors=look.DIM, length=0, pad=3, labelsize=8)
    axes.grid(color=look.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    step = next(step for step in (5, 10, 15, 30, 60, 120, 300, 600) if (sheet.end - sheet.begin) / step <= width / 62)
    ticks = [at for at in range(int(sheet.begin), int(sheet.end) + 1) if at % step == 0]
    axes.xaxis.set_major_locator(FixedLocator([at for at in ticks if 0.03 < (at - sheet.begin) / (sheet.end - sheet.begin) < 0.96]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, timezone.utc):%H:%M:%S}"))


def ticks_of(unit, top, decimals):
    """Round numbers from 0 to the top, and how they are written."""
    if unit == "percentunit":
        size = 0.01
    else:
        size = look.unit_of(top, unit)
    step = look.nice_top(top / size / 4.2)
    if decimals == 0:
        step = max(1, math.ceil(step))
    places = 0 if step == int(step) else 1 if round(step, 1) == round(step, 6) else 2
    word = look.shown(top, unit)[1]
    ticks = [number * step for number in range(int(top / size / step + 1e-9) + 1)]
    return [tick * size for tick in ticks], [f"{tick:.{places}f}{word}" if tick else f"0{word}" for tick in ticks]


def logarithmic(all_fields, unit):
    values = [value for _, points, _ in all_fields for _, value in points if value > 0]
    low, high = min(values) * 0.7, max(values) * 1.5
    ticks = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return (low, high), ticks, ["".join(look.shown(tick, unit)) for tick in ticks]


def layers(all_fields, right, custom):
    """Times, values and what lies under them, for each field; and the highest value of each axis."""
    stack, lines, tops = {}, [], {False: 0, True: 0}
    for (_, points, _), is_right in zip(all_fields, right):
        times = [at for at, _ in points]
        line = [value for _, value in points]
        floor = [0.0] * len(line)
        if custom["stacking"]["mode"] == "normal":
            floor = [stack.get(at, 0) for at in times]
            own = [0 if math.isnan(value) else value for value in line]
            line = [value + under for value, under in zip(own, floor)]
            stack.update(zip(times, line))
            # Nothing of its own: no line above the others.
            near = [max(own[max(0, place - 1) : place + 2]) for place in range(len(own))]
            line = [value if some else math.nan for value, some in zip(line, near)]
        # Where scrapes are missing, Grafana leaves a gap.
        for place in range(len(times) - 1, 0, -1):
            if times[place] - times[place - 1] > 1.5:
                times.insert(place, times[place] - 0.1)
                line.insert(place, math.nan)
                floor.insert(place, math.nan)
        lines.append((times, line, floor))
        tops[is_right] = max([tops[is_right], *(value for value in line if not math.isnan(value))])
    return lines, tops


def draw_series(sheet, panel, found, box):
    x, y, width, height = box
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    all_fields = fields(panel, found)
    tones = [look.colour(told["color"]["fixedColor"]) if "color" in told else look.PALETTE[number % len(look.PALETTE)]
             for number, (_, _, told) in enumerate(all_fields)]
    high = legend(sheet, [(name, tone) for (name, _, _), tone in zip(all_fields, tones)], x + 10, y + height - 10, width - 14)
    right = [told.get("custom.axisPlacement") == "right" for _, _, told in all_fields]
    is_log = custom.get("scaleDistribution", {}).get("type") == "log"
    lines, tops = layers(all_fields, right, custom)
    if is_log:
        limits, ticks, labels = logarithmic(all_fields, unit)
    else:
        top = look.nice_top(max(tops[False], custom.get("axisSoftMax", 0), 1 if defaults.get("decimals") == 0 else 0) * 1.03)
        limits = (0, top)
        ticks, labels = ticks_of(unit, top, defaults.get("decimals"))
    left, pad = 18 + max(sheet.width(label, 8) for label in labels), 10
    if any(right):
        twin_unit = next(told.get("unit", unit) for _, _, told in all_fields if told.get("custom.axisPlacement") == "right")
        twin_top = look.nice_top(tops[True] * 1.03)
        twin_ticks, twin_labels = ticks_of(twin_unit, twin_top, None)
        pad = 16 + max(sheet.width(label, 8) for label in twin_labels)
    axes = sheet.plot(x + left, y + 4, width - left - pad, height - high - 28)
    style(axes, sheet, width - left - pad)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(*limits)
    axes.set_yticks(ticks, labels)
    twin = None
    if any(right):
        twin = axes.twinx()
        style(twin, sheet, width - left - pad)
        twin.grid(False)
        twin.set_ylim(0, twin_top)
        twin.set_yticks(twin_ticks, twin_labels)
    for (times, line, floor), (_, _, told), tone, is_right in zip(lines, all_fields, tones, right):
        here = twin if is_right else axes
        steps = custom["lineInterpolation"] == "stepAfter"
        dashed = (0, (5, 4)) if "custom.lineStyle" in told else "solid"
        here.plot(times, line, color=tone, linewidth=1.2, linestyle=dashed, drawstyle="steps-post" if steps else "default")
        alone = [place for place, value in enumerate(line) if not math.isnan(value)
                 and all(math.isnan(line[near]) for near in (place - 1, place + 1) if 0 <= near < len(line))]
        here.plot([times[place] for place in alone], [line[place] for place in alone], ".", color=tone, markersize=4)
        fill = told.get("custom.fillOpacity", custom["fillOpacity"]) / 100
        if fill and not is_log:
            here.fill_between(times, line, floor, color=tone, alpha=fill, linewidth=0, step="post" if steps else None)
    for start in sheet.starts:
        axes.axvline(start, color=look.BLUE, linewidth=0.8, linestyle=(0, (4, 3)))


def draw_heatmap(sheet, panel, found, box):
    x, y, width, height = box
    rows = sorted(((float(one["labels"]["le"]), one["values"]) for one in found[0]), key=lambda row: row[0])
    times = [at for at, _ in rows[0][1]][::8]
    bounds = [bound for bound, _ in rows]
    counts = []
    for number, (_, points) in enumerate(rows):
        mine = dict(points)
        under = dict(rows[number - 1][1]) if number else {}
        counts.append([max(0.0, (mine.get(at) or 0) - (under.get(at) or 0)) for at in times])
    used = [number for number, row in enumerate(counts) if any(row)]
    low, high = max(0, used[0] - 1), min(len(rows) - 1, used[-1] + 1)
    counts = [[math.nan if value < 1e-9 else value for value in row] for row in counts[low : high + 1]]
    most = max(value for row in counts for value in row if not math.isnan(value))
    axes = sheet.plot(x + 52, y + 4, width - 66, height - 46)
    style(axes, sheet, width - 66)
    axes.grid(False)
    edges = [*times, 2 * times[-1] - times[-2]]
    axes.pcolormesh(edges, range(len(counts) + 1), counts, cmap=SPECTRAL, norm=PowerNorm(0.5, 0, most), linewidth=0, antialiased=False)
    axes.set_ylim(0, len(counts))
    labels = ["".join(look.shown(bound, "s")) if bound < math.inf else "more" for bound in bounds[low : high + 1]]
    apart = math.ceil(15 * len(counts) / (height - 46))
    ticks = range(len(counts), 0, -apart)
    axes.set_yticks(ticks, [labels[tick - 1] for tick in ticks])
    bar = sheet.plot(x + 52, y + height - 17, 150, 7)
    bar.imshow([[number / 99 for number in range(100)]], cmap=SPECTRAL, aspect="auto")
    bar.axis("off")
    sheet.text(x + 52 + 158, y + height - 13, f"1 to {most:.0f} rings", size=8.5, colour=look.DIM)


def draw_table(sheet, panel, found, box):
    x, y, width, height = box
    rows = {}
    for number, series in enumerate(found):
        for one in series:
            key = (one["labels"].get("app", ""), one["labels"].get("environment", ""))
            rows.setdefault(key, {})[number] = one["values"][-1][1]
    columns = [changed(panel, name) for name in ("app", "environment")]
    columns += [changed(panel, f"Value #{target['refId']}") for target in panel["targets"]]
    shares = []
    for told in columns:
        mapped_to = [option["text"] for mapping in told.get("mappings", []) for option in mapping["options"].values()]
        shares.append(max(64, *[10 + sheet.width(words, 9.5, "bold") for words in (told["displayName"], *mapped_to)]))
    lefts = [x + 14 + (width - 20) * sum(shares[:number]) / sum(shares) for number in range(len(columns))]
    for number, told in enumerate(columns):
        sheet.text(lefts[number], y + 8, told["displayName"], size=9, colour=look.BLUE, weight="bold")
    order = sorted(rows, key=lambda key: (rows[key].get(1) is None, rows[key].get(1), key))
    line = min(28, (height - 24) / max(1, len(order)))
    for place, key in enumerate(order):
        top = y + 22 + place * line
        sheet.box(x + 6, top, width - 12, 0.4, look.GRID)
        for number, told in enumerate(columns):
            tone, words = look.TEXT, None
            if number < 2:
                words = key[number]
            else:
                value = rows[key].get(number - 2)
                words = "–" if value is None else mapped(told.get("mappings"), value).get("text") or "".join(look.shown(value, told["unit"], told["decimals"]))
                if value is not None and "thresholds" in told:
                    tone = look.threshold(told["thresholds"]["steps"], value)
            sheet.text(lefts[number], top + line / 2, words, size=9.5, colour=tone)
