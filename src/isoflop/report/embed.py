"""From a matplotlib figure to files and to SVG that lives inside a page.

Inside the page an SVG is part of the document: its colours become CSS variables, so that it follows a light or dark
page, its text stays text, and its ids get a prefix, so that the figures of one page do not refer to each other's parts.
"""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoflop.report.style import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARAMETERS: Final[Any] = {"font.family": ["DejaVu Sans"], "svg.hashsalt": "isoflop", "path.simplify": True}
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write `stem`.png (144 dots per inch) and `stem`.svg (text as outlines), both on the light surface."""
    import matplotlib

    freeze(figure)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context({**_PARAMETERS, "svg.fonttype": "path"}):
        figure.savefig(paths[0], dpi=144, facecolor=LIGHT["surface"], metadata={"Software": None})
        figure.savefig(paths[1], facecolor=LIGHT["surface"], metadata=_NO_METADATA)
    return paths


def freeze(figure: "Figure") -> None:
    """Lay the figure out once, so that each way of saving it need not."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def inline_svg(figure: "Figure", *, prefix: str, description: str) -> str:
    """The figure as an `<svg>` element for HTML; `description` is what a screen reader says."""
    import matplotlib
    from markupsafe import escape

    buffer = io.StringIO()
    with matplotlib.rc_context({**_PARAMETERS, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    for role, color in LIGHT.items():
        text = re.sub(re.escape(color), f"var(--{role})", text, flags=re.IGNORECASE)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    head = f'<svg role="img" aria-label="{escape(description)}"'
    return head + text.removeprefix("<svg")
