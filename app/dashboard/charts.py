"""Charts as SVG, drawn on the server by pygal.

Its style sheet and script are left out for ours, so that the strict Content-Security-Policy holds, and light and dark come
from the same tokens as everything else.
"""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pygal
from markupsafe import Markup
from pygal.style import Style

from app.dashboard.presentation import number
from app.dashboard.queries import Stretch
from app.intake.tally import Outcome

OUTCOMES = {
    Outcome.ACCEPTED: "accepted",
    Outcome.DUPLICATE: "duplicate",
    Outcome.QUARANTINED: "quarantined",
    Outcome.REFUSED: "refused (401)",
    Outcome.PUT_OFF: "put off (503)",
    Outcome.INVALID: "invalid (4xx)",
}
"""In the order in which they are stacked, and the words for them."""

SPEEDS = {"median": "half are faster", "slow": "99 of 100 are faster"}

# The last thing that pygal does when it is imported is to add a finder for its maps, which we have not, to the import system.
# It lacks what Python has asked of finders since 3.4, and 3.11 warns of that at every import that comes later.
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

_SVG = "{http://www.w3.org/2000/svg}"
_NOT_SHOWN = ("tooltip-overlay", "text-overlay")
_WIDTH, _HEIGHT = 640, 230
_LABELS = 7
_HOUR = timedelta(hours=1)
_DISTANCES = (timedelta(minutes=10), timedelta(hours=4), timedelta(days=1))
_FORMATS = {True: "%H:%M", False: "%d %b %H:%M"}
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

ET.register_namespace("", "http://www.w3.org/2000/svg")


def callbacks(stretches: Sequence[Stretch], step: timedelta) -> Markup | None:
    """How many callbacks were answered in which way; None where there were none."""
    if not any(stretch.outcomes for stretch in stretches):
        return None
    chart = pygal.StackedBar(
        **_options(stretches, step), value_formatter=lambda value: number(float(value)), order_min=0
    )
    for outcome, words in OUTCOMES.items():
        chart.add(words, [stretch.outcomes.get(outcome) for stretch in stretches])
    return _svg(chart, "Callbacks by how they were answered", list(OUTCOMES))


def latencies(stretches: Sequence[Stretch], step: timedelta) -> Markup | None:
    """How long callbacks waited for their commit, in milliseconds; None where there were none."""
    if all(stretch.slow_ms is None for stretch in stretches):
        return None
    chart = pygal.Line(
        **_options(stretches, step),
        value_formatter=lambda value: f"{value:g} ms",
        allow_interruptions=True,
        dots_size=2,
    )
    chart.add(SPEEDS["median"], [one.median_ms for one in stretches])
    chart.add(SPEEDS["slow"], [one.slow_ms for one in stretches])
    return _svg(chart, "Milliseconds until a callback was committed", list(SPEEDS))


def _options(stretches: Sequence[Stretch], step: timedelta) -> dict[str, Any]:
    labels = [f"{one.start:{_FORMATS[step < _HOUR]}}" for one in stretches]
    # At round times: those whole in the shortest of these that leaves few enough.
    distance = next(each for each in _DISTANCES if len(stretches) * step <= each * _LABELS)
    round_ones = [label for label, one in zip(labels, stretches, strict=True) if not (one.start - _EPOCH) % distance]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "margin": 6,
        "max_scale": 5,
        "min_scale": 3,
        "include_x_axis": True,
        "show_legend": False,
        "js": [],
        "no_prefix": True,
        "style": Style(label_font_size=18, major_label_font_size=18),  # room for labels, also on a phone
        "x_labels": labels,
        "x_labels_major": round_ones,
        "show_minor_x_labels": False,
        "truncate_label": -1,
    }


def _svg(chart: Any, label: str, names: Sequence[str]) -> Markup:
    """The chart without what the policy forbids, and with each value as a title, which browsers show.

    `names` are the classes of its series, in their order.
    """
    root = ET.fromstring(chart.render())  # noqa: S314 - it was written by pygal a moment ago, and is well-formed
    for parent in list(root.iter()):
        for child in list(parent):
            if _is_left_out(child):
                parent.remove(child)
    for group in root.iter(f"{_SVG}g"):
        for place, name in enumerate(names):
            if f"serie-{place}" in group.get("class", "").split():
                group.set("class", f"series is-{name}")
        described = {child.get("class"): child for child in group.findall(f"{_SVG}desc")}
        for child in described.values():
            group.remove(child)
        if "value" in described:
            title = ET.SubElement(group, f"{_SVG}title")
            title.text = f"{described['x_label'].text}: {described['value'].text}"
    root.attrib = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": label, "class": "chart"}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - numbers, times and words of ours, escaped by pygal


def _is_left_out(element: ET.Element) -> bool:
    """Whether the policy forbids it, it is told otherwise, or nothing of it can be seen."""
    if element.tag in {f"{_SVG}defs", f"{_SVG}title"}:
        return True
    bar = element.find(f"{_SVG}rect")
    is_flat = element.get("class") == "bar" and bar is not None and float(bar.get("height", "0")) == 0
    return is_flat or element.get("class", "").endswith(_NOT_SHOWN)
