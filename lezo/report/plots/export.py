"""From a drawing to what a file holds and to what a page shows: the same, in the page's colours and with words for a pointer."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from lezo.report.palette import GREYS, LIGHT
from lezo.report.plots.sheet import FAINT, INK, Sheet
from lezo.report.text import printable

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(LIGHT)},
    **{grey: f"var(--g{number})" for number, grey in enumerate(GREYS)},
}
_UNSAID = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # so that the same runs make the same file
_UNDATED = dict.fromkeys(("CreationDate", "Creator", "Producer"))


@dataclass(frozen=True)
class Plot:
    """A figure. ``of``: its task and model; None: of all. ``page``: an SVG element for a page; ``svg``, ``pdf``: files' contents.

    ``shared_legend``: whether the page has to say what its lines are. ``pdf`` is empty where no files were asked for.
    """

    name: str
    caption: str
    of: tuple[str, str] | None
    page: str
    svg: str
    pdf: bytes
    shared_legend: bool = False


def exported(sheet: Sheet, number: int, *, files: bool) -> Plot:
    """The finished drawing; ``number``: that of no other drawing on the page.

    The canvases are asked themselves, since ``savefig`` lays out and draws a figure twice.
    """
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sheet.finish()
    text, pdf = io.StringIO(), io.BytesIO()
    FigureCanvasSVG(sheet.figure).print_svg(text, metadata=_UNSAID)  # type: ignore[no-untyped-call]
    if files:
        sheet.figure.set_layout_engine("none")  # it is laid out
        FigureCanvasPdf(sheet.figure).print_pdf(pdf, metadata=_UNDATED)  # type: ignore[no-untyped-call]
    svg = text.getvalue()
    return Plot(
        sheet.name,
        sheet.caption,
        sheet.of,
        _element(sheet, svg, number),
        svg,
        pdf.getvalue(),
        sheet.shared_legend,
    )


def _element(sheet: Sheet, svg: str, number: int) -> str:
    """The drawing as an element as wide as its place, without a legend that the page has once for several."""
    for prefix, space in (("", _SVG), ("xlink", _LINK)):
        ET.register_namespace(prefix, space)
    root = ET.fromstring(svg)
    _cut(root, sheet)
    by_id = {element.get("id"): element for element in root.iter()}
    for name, texts in sheet.tips.items():
        _tell(by_id[name], texts)
    for name, (method, words) in sheet.series.items():
        by_id[name].set("data-method", printable(method))
        if words:
            by_id[name].set("data-series", printable(words))
    root.set("data-plot", json.dumps(_scales(sheet)))
    root.set("role", "img")
    root.set("aria-label", printable(sheet.caption))
    _own_ids(root, f"p{number}-")
    return _coloured(_short(ET.tostring(root, encoding="unicode")))


def _cut(root: ET.Element, sheet: Sheet) -> None:
    """Take off the legend, its room, the background, and what a page says elsewhere."""
    width, height = 72 * float(sheet.figure.get_figwidth()), 72 * float(sheet.figure.get_figheight())
    cut = 72 * sheet.legend_height if sheet.shared_legend else 0
    root.set("viewBox", f"0 0 {width:g} {height - cut:g}")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    unwanted = ("patch_1", "patch_2", *(["legend"] if sheet.shared_legend else []))
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.tag.rpartition("}")[2]
            if kind in ("metadata", "style") or child.get("id") in unwanted:
                parent.remove(child)


def _tell(group: ET.Element, texts: list[str]) -> None:
    """A title in each mark, which browsers show without any script."""
    marks = [element for element in group.iter(f"{{{_SVG}}}use")] or [group]
    for mark, text in zip(marks, texts, strict=True):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = printable(text)
        mark.insert(0, title)


def _scales(sheet: Sheet) -> dict[str, Any]:
    """Where the axes lie in the drawing and what values their ends have, by which a script tells a point's values."""
    box, height = sheet.axes.get_window_extent(), 72 * float(sheet.figure.get_figheight())
    unit = 72 / float(sheet.figure.dpi)
    places = {"x": (unit * box.x0, unit * box.x1), "y": (height - unit * box.y0, height - unit * box.y1)}
    return {name: _scale(sheet, name, ends) for name, ends in places.items()}


def _scale(sheet: Sheet, name: str, ends: tuple[float, float]) -> dict[str, Any]:
    limits = getattr(sheet.axes, f"get_{name}lim")()
    log = getattr(sheet.axes, f"get_{name}scale")() == "log"
    label = getattr(sheet.axes, f"get_{name}label")()
    return {
        "at": [round(end, 3) for end in ends],
        "is": [float(end) for end in limits],
        "log": log,
        "label": label,
    }


def _own_ids(root: ET.Element, prefix: str) -> None:
    """Identifiers that no other drawing of the page has."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, prefix + value)
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))


def _short(svg: str) -> str:
    """Coordinates to a thousandth of a point."""
    return re.sub(
        r'\b(?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d{3})\d+", r"\1", " ".join(found[0].split())), svg
    )


def _coloured(svg: str) -> str:
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
