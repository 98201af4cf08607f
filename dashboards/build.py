#!/usr/bin/env python3
"""Writes the Grafana dashboards from source/*.toml, or with --check says which of them are not what the sources say.

A source has what a person decides: titles, what good looks like, queries, units, widths. All else, the same for each
panel, is here. In a query, `@i` selects the chosen instances, `@b` the chosen integrations of those, `@t` the chosen
pools of those, and `[@]` is the range of a rate. Needs Python 3.11 and nothing else.
"""

import json
import pathlib
import sys
import tomllib

HERE = pathlib.Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
INSTANCE = 'instance=~"$instance"'
INTEGRATION = f'integration=~"$integration", {INSTANCE}'
SHORT = {"@i": INSTANCE, "@b": INTEGRATION, "@t": f'pool=~"$pool", {INTEGRATION}', "[@]": "[$__rate_interval]"}
LEVELS = ["1", "2-15", "16-50", "51-150", "151-500", "501+"]
PANEL_KEYS = {"title", "about", "good", "unit", "queries", "kind", "width", "height", "dashed", "right", "decimals",
              "min", "max", "steps", "instant", "stacked"}


def query_text(text):
    for short, long in SHORT.items():
        text = text.replace(short, long)
    return " ".join(text.split())


def variable(name, label, description, query, **more):
    return {
        "name": name, "label": label, "description": description, "type": "query", "datasource": SOURCE,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "hide": 0, "regex": "",
        "options": [], "multi": False, "includeAll": False, "current": {}, **more,
    }


def variables(names, role):
    several = {"multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"}}
    # Routers send to the pools of the settings, too, which only the metrics of their shares name.
    chosen = f'{{__name__=~"weir_pool_info|weir_router_pool_share_ratio", pool=~"$pool"{role}}}'
    # Of instances there is no value for all: those of the chosen pools are meant, and each is named.
    known = {
        "datasource": {
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1,
            "hide": 0, "multi": False, "includeAll": False, "regex": "", "options": [], "current": {},
        },
        "pool": variable("pool", "Pool", "", "label_values(weir_pool_info, pool)", allValue=".*", **several),
        "integration": variable("integration", "Integration", "",
                                "label_values(weir_gate_integration_slots_held, integration)", allValue=".*", **several),
        "instance": variable("instance", "Instance", "The processes of the chosen pools.",
                             f"label_values({chosen}, instance)", **several),
        "baseline": {
            "name": "baseline", "label": "Baseline parallelism", "type": "custom", "hide": 0, "multi": False,
            "description": "The level that the others are compared with.", "query": ",".join(LEVELS),
            "includeAll": False, "current": {"text": "1", "value": "1"},
            "options": [{"text": level, "value": level, "selected": level == "1"} for level in LEVELS],
        },
        "baseline_pool": variable("baseline_pool", "Baseline pool", "The pool that the others are compared with.",
                                  "label_values(weir_task_duration_seconds_count, pool)"),
    }
    return [known[name] for name in ["datasource", *names]]


def annotations(settings):
    marks = [{
        "builtIn": 1, "datasource": {"type": "grafana", "uid": "-- Grafana --"}, "enable": True, "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard",
    }]
    if settings:
        marks.append({
            "name": "Settings applied", "datasource": SOURCE, "enable": True, "iconColor": "purple", "step": "10s",
            "expr": query_text("changes(weir_settings_applied_timestamp_seconds{@i}[@]) > 0"),
            "titleFormat": "Settings applied on {{instance}}",
        })
    return marks


def steps(values):
    colours = ["green", "yellow", "red"]
    if len(values) == 1:
        colours = ["green", "red"]
    return [{"color": colour, "value": value} for colour, value in zip(colours, [None, *values])]


def field_config(panel, kind):
    defaults = {
        "unit": panel["unit"],
        "color": {"mode": "palette-classic" if kind in ("timeseries", "state-timeline") else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps(panel.get("steps", []))},
    }
    if kind in ("timeseries", "bargauge"):
        defaults["min"] = 0
    defaults.update({key: panel[key] for key in ("min", "max", "decimals") if key in panel})
    if kind == "timeseries":
        stacking = {"mode": "normal" if panel.get("stacked") else "none", "group": "A"}
        defaults["custom"] = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 40 if panel.get("stacked") else 8,
            "showPoints": "never", "spanNulls": False, "stacking": stacking,
            "thresholdsStyle": {"mode": "line" if panel.get("steps") else "off"},
        }
    elif kind == "state-timeline":
        defaults["custom"] = {"lineWidth": 0, "fillOpacity": 70}
    overrides = []
    if "dashed" in panel:
        style = [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
                 {"id": "custom.fillOpacity", "value": 0}]
        overrides.append({"matcher": {"id": "byRegexp", "options": f"/{panel['dashed']}/"}, "properties": style})
    if "right" in panel:
        pattern, unit = panel["right"]
        style = [{"id": "custom.axisPlacement", "value": "right"}, {"id": "unit", "value": unit}]
        overrides.append({"matcher": {"id": "byRegexp", "options": f"/{pattern}/"}, "properties": style})
    return {"defaults": defaults, "overrides": overrides}


def options(kind):
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if kind == "timeseries":
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "state-timeline":
        return {"legend": {**legend, "showLegend": False}, "tooltip": {"mode": "single", "sort": "none"},
                "showValue": "never", "mergeValues": True, "alignValue": "left", "rowHeight": 0.8}
    if kind == "bargauge":
        return {"orientation": "horizontal", "displayMode": "basic", "showUnfilled": True, "reduceOptions": reduced}
    return {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
            "reduceOptions": reduced}


def targets(panel, kind):
    instant = panel.get("instant", kind in ("bargauge", "stat"))
    for ref_id, (legend, text) in zip("ABCDEFGH", panel["queries"], strict=False):
        yield {"refId": ref_id, "datasource": SOURCE, "expr": query_text(text), "legendFormat": legend,
               "editorMode": "code", "range": not instant, "instant": instant}


def panels(rows):
    number, y, all_panels = 0, 0, []
    for row in rows:
        number += 1
        all_panels.append({"id": number, "type": "row", "title": row["title"], "collapsed": False,
                           "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []})
        x, y = 0, y + 1
        for panel in row["panel"]:
            assert set(panel) <= PANEL_KEYS, f"{panel['title']}: {set(panel) - PANEL_KEYS} is no key of a panel"
            number += 1
            kind, width, height = panel.get("kind", "timeseries"), panel.get("width", 8), panel.get("height", 8)
            if x + width > 24:
                x, y = 0, y + height
            all_panels.append({
                "id": number, "type": kind, "title": panel["title"],
                "description": " ".join(f"{panel['about']} Good: {panel['good']}".split()),
                "datasource": SOURCE, "gridPos": {"h": height, "w": width, "x": x, "y": y},
                "fieldConfig": field_config(panel, kind), "options": options(kind),
                "targets": list(targets(panel, kind)),
            })
            x += width
        y += height
    return all_panels


def dashboard(source):
    text = tomllib.loads(source.read_text())
    role = f', role="{text["role"]}"' if "role" in text else ""
    others = [{"title": "All of weir", "type": "dashboards", "tags": ["weir"], "asDropdown": True, "icon": "external link",
               "includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "", "url": ""}]
    return {
        "title": text["title"], "uid": f"weir-{source.stem}", "description": " ".join(text["about"].split()),
        "tags": ["weir"], "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1, "timezone": "browser",
        "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "fiscalYearStartMonth": 0, "weekStart": "",
        "links": others, "templating": {"list": variables(text["variables"], role)},
        "annotations": {"list": annotations(text.get("marks_settings", True))}, "panels": panels(text["row"]),
    }


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit("build.py: use --check or nothing")
    stale = []
    for source in sorted((HERE / "source").glob("*.toml")):
        file, text = HERE / f"{source.stem}.json", json.dumps(dashboard(source), indent=2, ensure_ascii=False) + "\n"
        if arguments and (not file.exists() or file.read_text() != text):
            stale.append(file.name)
        elif not arguments:
            file.write_text(text)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what the sources say; run dashboards/build.py")


if __name__ == "__main__":
    main(sys.argv[1:])
