"""What Graphviz leaves undone in an SVG that a browser is to show.

Browsers show the `<title>` of what is under the pointer, not Graphviz's names and links;
they count in CSS pixels; and they may be set to dark.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Final

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
_PIXELS: Final = 96 / 72
"""CSS pixels of a point."""
_DARK: Final = {
    "#ffffff": "#14181d",
    "#f6f8fa": "#1b2128",
    "#dcebf9": "#1d3a57",
    "#39658f": "#7fb2e5",
    "#e4e4e4": "#33383e",
    "#8a8a8a": "#9aa4ae",
    "#b8c4d0": "#4a5663",
    "#555555": "#b4bec8",
    "#f9d6d2": "#5a2520",
    "#b3392b": "#ff9d90",
    "#d9f2e0": "#17452a",
    "#1f8a4c": "#5fd592",
}


def for_browsers(svg: bytes, title: str) -> bytes:
    """Return a picture that Graphviz has drawn with tooltips, a title, pixels and colours."""
    for prefix, name in (("", _SVG), ("xlink", _XLINK)):
        ET.register_namespace(prefix, name)
    root = ET.fromstring(svg)
    for group in [*root.iter(f"{{{_SVG}}}g")]:
        named = group.find(f"{{{_SVG}}}title")
        if named is not None:
            group.remove(named)
    for link in [*root.iter(f"{{{_SVG}}}a")]:
        tooltip = link.attrib.pop(f"{{{_XLINK}}}title", "")
        link.attrib.clear()
        link.tag = f"{{{_SVG}}}g"
        link.set("class", "tip")
        _put(link, "title", tooltip)
    _put(root, "style", _style())
    if title:
        _put(root, "title", title)
    for side in ("width", "height"):
        root.set(side, f"{float(root.get(side, '0').removesuffix('pt')) * _PIXELS:.0f}")
    picture = ET.tostring(root, "unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{picture}\n'.encode()


def _put(parent: ET.Element, tag: str, text: str) -> None:
    child = ET.Element(f"{{{_SVG}}}{tag}")
    child.text = text
    child.tail = "\n"
    parent.insert(0, child)


def _style() -> str:
    dark = [f"svg {{ background: {_DARK['#ffffff']} }} text {{ fill: #e8edf2 }}"]
    for light, colour in _DARK.items():
        dark.append(
            f'[fill="{light}"] {{ fill: {colour} }} [stroke="{light}"] {{ stroke: {colour} }}'
        )
    return (
        "svg { background: #ffffff } .tip:hover > polygon, .tip:hover > path { stroke-width: 2.5 }"
        f"\n@media (prefers-color-scheme: dark) {{\n{chr(10).join(dark)}\n}}\n"
    )
