#!/usr/bin/env python3
"""Draws the dashboards as pictures from what a Prometheus has: the same panels, titles, legends, units and layout.

  dashboards/draw.py --prometheus http://127.0.0.1:9090 --to docs/pictures --minutes 5

It is no Grafana: it shows in a document, or where no Grafana runs, what one will see. Needs requirements.txt.
"""

import argparse
import datetime
import io
import json
import math
import pathlib
import re
import textwrap
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates  # noqa: E402
import matplotlib.pyplot as pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator  # noqa: E402
from PIL import Image  # noqa: E402

HERE = pathlib.Path(__file__).parent
COLOURS = ["#3d8f40", "#c98a00", "#1f8fb3", "#d9622b", "#c4282d", "#1f60c4", "#9a3d97", "#6d5bb5", "#5f8a14", "#8a6d00",
           "#0f6f8c", "#a3430f", "#8c1418", "#123f8a", "#6b2168", "#453991"]
THRESHOLDS = {"green": "#3d8f40", "yellow": "#c98a00", "red": "#c4282d"}
TEXT, FAINT, GROUND, PANEL = "#24292e", "#6e7781", "#f4f5f5", "#ffffff"
WIDTH, UNIT_HEIGHT, DPI = 16.0, 0.31, 100
MOST_IN_LEGEND = 8


class Prometheus:
    def __init__(self, url, start, end, values):
        self.url, self.start, self.end, self.values = url.rstrip("/"), start, end, values
        self.step = max(1.0, (end - start) / 300)

    def ask(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def of(self, dashboard):
        """With the instances that the dashboard's variable offers, as Grafana names them all."""
        variable = next(one for one in dashboard["templating"]["list"] if one["name"] == "instance")
        match = variable["query"]["query"].removeprefix("label_values(").rsplit(", ", 1)[0].replace("$pool", ".*")
        url = f"{self.url}/api/v1/label/instance/values?{urllib.parse.urlencode({'match[]': match})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            instances = "|".join(re.escape(name).replace("\\", "\\\\") for name in json.load(answer)["data"])
        return Prometheus(self.url, self.start, self.end, [*self.values, ("$instance", instances)])

    def series(self, target):
        text = target["expr"]
        for name, value in self.values:
            text = text.replace(name, value)
        if target["instant"]:
            found = self.ask("query", query=text, time=self.end)
            rows = [(row["metric"], [(float(at), float(value)) for at, value in [row["value"]]]) for row in found]
        else:
            found = self.ask("query_range", query=text, start=self.start, end=self.end, step=self.step)
            rows = [(row["metric"], [(float(at), float(value)) for at, value in row["values"]]) for row in found]
        named = [(legend(target["legendFormat"], labels), points) for labels, points in rows]
        return sorted(named)


def legend(form, labels):
    return re.sub(r"{{\s*(\w+)\s*}}", lambda name: labels.get(name[1], ""), form).strip()


def formatted(value, unit, decimals=None):
    """A value as Grafana writes it, nearly."""
    if value is None or math.isnan(value):
        return ""
    if unit in ("bytes", "Bps"):
        size, names = abs(value), ["B", "KiB", "MiB", "GiB", "TiB"]
        power = min(int(math.log(size, 1024)), 4) if size >= 1 else 0
        return f"{value / 1024 ** power:.3g} {names[power]}" + ("/s" if unit == "Bps" else "")
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        for limit, factor, name in [(1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")]:
            if abs(value) < limit:
                return f"{value * factor:.3g} {name}" if value else "0 s"
        return f"{value / 3600:.3g} h"
    number = f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
    if abs(value) >= 10_000:
        number = f"{value / 1000:.4g} K"
    if unit.startswith("suffix:"):
        return f"{number}{unit.removeprefix('suffix:')}"
    return number + {"reqps": " req/s"}.get(unit, "")


def times(points):
    return [datetime.datetime.fromtimestamp(at, datetime.UTC) for at, _ in points]


def with_gaps(points, step):
    """Where nothing is for more than a step, the line is broken."""
    out = []
    for at, value in points:
        if out and at - out[-1][0] > 1.6 * step:
            out.append((out[-1][0] + step, math.nan))
        out.append((at, value))
    return out


def threshold_colour(value, panel):
    colour = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return THRESHOLDS[colour]


def overridden(panel, name):
    """Whether a series is dashed, and its unit on the right axis where it has one."""
    dashed, right = False, None
    for override in panel["fieldConfig"]["overrides"]:
        if re.search(override["matcher"]["options"].strip("/"), name):
            properties = {one["id"]: one["value"] for one in override["properties"]}
            dashed |= "custom.lineStyle" in properties
            right = properties.get("unit", right) if properties.get("custom.axisPlacement") == "right" else right
    return dashed, right


def draw_lines(axes, panel, series, marks, prometheus):
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    right_axes, right_unit, handles = None, None, []
    for index, (name, points) in enumerate(series):
        dashed, unit = overridden(panel, name)
        on = axes
        if unit is not None:
            right_axes = right_axes or axes.twinx()
            on, right_unit = right_axes, unit
        points = with_gaps(points, prometheus.step)
        x, y = times(points), [value for _, value in points]
        colour = COLOURS[index % len(COLOURS)]
        line, = on.plot(x, y, color=colour, linewidth=1.2, linestyle=(0, (5, 4)) if dashed else "-", label=name)
        if not dashed and unit is None and custom["fillOpacity"]:
            axes.fill_between(x, y, color=colour, alpha=custom["fillOpacity"] / 130, linewidth=0)
        handles.append(line)
    if custom["thresholdsStyle"]["mode"] == "line":
        for step in defaults["thresholds"]["steps"][1:]:
            axes.axhline(step["value"], color=THRESHOLDS[step["color"]], linewidth=0.8)
    for at in marks:
        axes.axvline(datetime.datetime.fromtimestamp(at, datetime.UTC), color="#a352cc", linewidth=0.9, linestyle=(0, (2, 2)))
    for on, unit in [(axes, defaults["unit"]), (right_axes, right_unit)]:
        if on is None:
            continue
        low, high = on.get_ylim()
        low = defaults.get("min", low) if on is axes and defaults.get("min", 0) <= 0 else min(low, 0)
        low = min(low, 0) if defaults.get("min", 0) == 0 else on.get_ylim()[0]
        highest = max((value for _, points in series for _, value in points if not math.isnan(value)), default=0)
        if on is axes and "max" in defaults:
            high = defaults["max"] * 1.02
        elif highest == 0 or high <= low:
            high = 1.0
        on.set_ylim(low, high)
        on.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: formatted(value, unit)))
        # Bytes go by powers of two.
        step = 2 ** math.ceil(math.log2(max(high - low, 4) / 5)) if unit in ("bytes", "Bps") else None
        on.yaxis.set_major_locator(MultipleLocator(step) if step else MaxNLocator(5))
        style(on)
    in_time(axes, prometheus)
    axes.grid(True, color="#e4e7ea", linewidth=0.6)
    add_legend(axes, handles, panel["gridPos"]["w"] * WIDTH / 24)


def add_legend(axes, handles, width):
    shown, left_out = handles[:MOST_IN_LEGEND], len(handles) - MOST_IN_LEGEND
    labels = [handle.get_label() for handle in shown]
    if left_out > 0:
        labels[-1] += f"  (and {left_out} more)"
    columns = legend_columns(labels, width)
    axes.legend(shown, labels, loc="upper left", bbox_to_anchor=(-0.06, -0.12), ncols=columns, frameon=False, fontsize=6.5,
                labelcolor=TEXT, handlelength=1.4, columnspacing=1.2, handletextpad=0.5, borderpad=0.1)


def draw_states(axes, panel, series, marks, prometheus):
    for index, (name, points) in enumerate(series):
        runs, colour = [], COLOURS[index % len(COLOURS)]
        for at, _ in points:
            if runs and at - runs[-1][1] <= 1.6 * prometheus.step:
                runs[-1][1] = at
            else:
                runs.append([at, at])
        for start, end in runs:
            begin = datetime.datetime.fromtimestamp(start, datetime.UTC)
            axes.barh(len(series) - 1 - index, datetime.timedelta(seconds=end - start + prometheus.step), left=begin, height=0.75,
                      color=colour, alpha=0.75)
    axes.set_yticks(range(len(series)), [name for name, _ in reversed(series)])
    axes.set_ylim(-0.6, max(len(series), 1) - 0.4)
    in_time(axes, prometheus)
    style(axes)


def draw_bars(axes, panel, series):
    defaults = panel["fieldConfig"]["defaults"]
    series = series[:14]
    most = max((points[-1][1] for _, points in series), default=1) or 1
    for index, (name, points) in enumerate(series):
        value, row = points[-1][1], len(series) - 1 - index
        axes.barh(row, most * 1.0, color="#eceff1", height=0.7)
        axes.barh(row, value, color=threshold_colour(value, panel), height=0.7, alpha=0.85)
        axes.text(most * 1.02, row, formatted(value, defaults["unit"], defaults.get("decimals")), va="center", fontsize=8,
                  color=threshold_colour(value, panel), fontweight="bold")
    axes.set_yticks(range(len(series)), [name for name, _ in reversed(series)])
    axes.set_xlim(0, most * 1.15)
    axes.set_xticks([])
    style(axes)


def draw_numbers(axes, panel, series):
    axes.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    series = series[:12]
    columns = 1 if len(series) <= 2 else 2 if len(series) <= 6 else 3
    rows = math.ceil(len(series) / columns) or 1
    for index, (name, points) in enumerate(series):
        x, y = (index % columns + 0.5) / columns, 1 - (index // columns + 0.5) / rows
        value = points[-1][1]
        text = formatted(round(value, 2) if abs(value) >= 1 else value, defaults["unit"], defaults.get("decimals"))
        axes.text(x, y + 0.02, text, ha="center", va="bottom", fontsize=17 if rows <= 3 else 12,
                  color=threshold_colour(value, panel), fontweight="bold", transform=axes.transAxes)
        axes.text(x, y, name, ha="center", va="top", fontsize=7, color=FAINT, transform=axes.transAxes)


def in_time(axes, prometheus):
    axes.set_xlim(*[datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (prometheus.start, prometheus.end)])
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))


def style(axes):
    axes.tick_params(labelsize=7, colors=FAINT, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def draw(dashboard, prometheus, file):
    prometheus = prometheus.of(dashboard)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height = rows * UNIT_HEIGHT + 0.55
    figure = pyplot.figure(figsize=(WIDTH, height), dpi=DPI, facecolor=GROUND)
    place = lambda x, y, w, h: [x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height]  # noqa: E731
    figure.text(0.2 / WIDTH, 1 - 0.3 / height, dashboard["title"], fontsize=15, fontweight="bold", color=TEXT, va="center")
    marks = [at for annotation in dashboard["annotations"]["list"] if "expr" in annotation
             for _, points in prometheus.series({**annotation, "instant": False, "legendFormat": ""}) for at, _ in points]
    # A mark for each change, not for each step that still sees it.
    marks = [at for at in sorted(set(marks)) if at - prometheus.step * 12 not in marks] if len(marks) < 40 else sorted(marks)[::12]
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        x, y = grid["x"] * WIDTH / 24, 0.55 + grid["y"] * UNIT_HEIGHT
        w, h = grid["w"] * WIDTH / 24, grid["h"] * UNIT_HEIGHT
        if panel["type"] == "row":
            figure.text((x + 0.2) / WIDTH, 1 - (y + h / 2) / height, panel["title"], fontsize=11, color=TEXT, va="center")
            continue
        ground = figure.add_axes(place(x + 0.05, y + 0.04, w - 0.1, h - 0.08), facecolor=PANEL)
        ground.set_xticks([]), ground.set_yticks([])
        for side in ground.spines.values():
            side.set_color("#d8dcdf")
        title = textwrap.fill(panel["title"], int(w * 12.5))
        lines = title.count("\n") + 1
        figure.text((x + 0.15) / WIDTH, 1 - (y + 0.12) / height, title, fontsize=8.5, fontweight="bold", color=TEXT, va="top")
        series = [one for target in panel["targets"] for one in prometheus.series(target)]
        # Those that are nothing all the time say nothing in a picture.
        top, kind = 0.2 + 0.15 * lines, panel["type"]
        labels = max((len(name) for name, _ in series), default=0) * 0.058 if kind in ("bargauge", "state-timeline") else 0
        unit = panel["fieldConfig"]["defaults"]["unit"]
        ticks = 0.42 + 0.055 * len(unit.removeprefix("suffix:")) if unit.startswith("suffix:") or unit == "Bps" else 0.42
        left, right = 0.15 + (labels or ticks), 0.42 if any(overridden(panel, name)[1] for name, _ in series) else 0.15
        below = 0.25 if kind in ("stat", "bargauge", "state-timeline") else 0.3 + legend_height(series, w)
        axes = figure.add_axes(place(x + left, y + top, w - left - right, h - top - below), facecolor=PANEL)
        if not series:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "No data", ha="center", va="center", color=FAINT, fontsize=10, transform=axes.transAxes)
        elif kind == "timeseries":
            draw_lines(axes, panel, series, marks, prometheus)
        elif kind == "state-timeline":
            draw_states(axes, panel, series, marks, prometheus)
        elif kind == "bargauge":
            draw_bars(axes, panel, series)
        else:
            draw_numbers(axes, panel, series)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", facecolor=GROUND)
    pyplot.close(figure)
    # A palette makes a picture of lines and text a third as large.
    Image.open(raw).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size // 1024} KiB")


def legend_columns(labels, width):
    """As many as fit, by the width of a letter."""
    longest = max((len(label) for label in labels), default=0)
    return max(1, min(4, int((width - 0.2) / (longest * 0.055 + 0.38))))


def legend_height(series, width):
    labels = [name for name, _ in series[:MOST_IN_LEGEND]]
    if len(series) > MOST_IN_LEGEND:
        labels[-1] += "  (and 00 more)"
    return 0.135 * math.ceil(len(labels) / legend_columns(labels, width)) + 0.06


def main():
    parser = argparse.ArgumentParser(description="Draws the dashboards from what a Prometheus has.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="the directory for the pictures")
    parser.add_argument("--minutes", type=float, default=30, help="how far back")
    parser.add_argument("--end", type=float, help="until when, as Unix time; now otherwise")
    parser.add_argument("--rate", default="1m", help="what rates are taken over; at least four scrapes")
    parser.add_argument("--baseline", default="1", help="the parallelism that others are compared with")
    parser.add_argument("--baseline-pool", default="default", help="the pool that others are compared with")
    arguments = parser.parse_args()
    end = arguments.end or datetime.datetime.now(datetime.UTC).timestamp()
    values = [("$__rate_interval", arguments.rate), ("$__range", f"{round(arguments.minutes * 60)}s"),
              ("$baseline_pool", arguments.baseline_pool), ("$baseline", arguments.baseline), ("$pool", ".*"),
              ("$integration", ".*")]
    prometheus = Prometheus(arguments.prometheus, end - arguments.minutes * 60, end, values)
    arguments.to.mkdir(parents=True, exist_ok=True)
    for file in sorted(HERE.glob("*.json")):
        draw(json.loads(file.read_text()), prometheus, arguments.to / f"{file.stem}.png")


if __name__ == "__main__":
    main()
