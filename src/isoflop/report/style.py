"""How the figures look: one palette, one set of number formats, one way to make axes.

The palette is fixed by meaning, not by order of appearance: dense is ink, an MoE's colour is its granularity (warm to
cold, lightness falling, so that it survives colour blindness and a grey print), and marker and dash repeat the
distinction. Depth routing without experts is green, the darker the fewer tokens it computes; its markers tell its
architectures apart. Each colour of the light palette has a twin of the dark one; the page swaps them with CSS
variables.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from isoflop.errors import InputError
from isoflop.laws import exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.report.view import Architecture

WIDE: Final = 8.8
"""Inches of a figure across a column of text."""

NARROW: Final = 3.7
"""Inches of a figure on a telephone."""

LIGHT: Final[dict[str, str]] = {
    "surface": "#fdfdfc",
    "ink": "#1d2126",
    "muted": "#626a73",
    "grid": "#e3e5e8",
    "accent": "#0b6e6e",
    "g1": "#cf7400",
    "g2": "#d4503f",
    "g4": "#bd2a6c",
    "g8": "#8c2795",
    "g16": "#5b2fa9",
    "g32": "#31349b",
    "g64": "#14305f",
    "c1": "#6a9a1f",
    "c2": "#3d8a3a",
    "c4": "#157552",
    "c8": "#0b5a55",
}
"""Colours by role; the saved PNG and SVG files use these."""

DARK: Final[dict[str, str]] = {
    "surface": "#15181b",
    "ink": "#e9ebed",
    "muted": "#9aa3ad",
    "grid": "#2c3238",
    "accent": "#4fc4bb",
    "g1": "#ffc45c",
    "g2": "#ff9d78",
    "g4": "#ff7fa6",
    "g8": "#e583e6",
    "g16": "#b795ff",
    "g32": "#93a9ff",
    "g64": "#7fc5f5",
    "c1": "#c8e36a",
    "c2": "#9ad884",
    "c4": "#74cfa0",
    "c8": "#5cc2bb",
}
"""The same roles on a dark page."""

_MARKERS: Final = {"ink": "o", "g1": "s", "g2": "^", "g4": "D", "g8": "v", "g16": "P", "g32": "X", "g64": "p"}
_MOST_NAMED: Final = 12
_DEPTH_MARKERS: Final = "^vsDPXph*<>d8"
DASHES: Final[tuple[Any, ...]] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one architecture is drawn in every figure."""

    color: str
    marker: str
    dash: Any
    """Line style; solid unless another architecture has the same colour."""
    filled: bool = True
    """Whether its markers are filled; not, if another architecture has the same colour."""

    @property
    def marks(self) -> dict[str, Any]:
        """Keywords of matplotlib for its markers."""
        face = self.color if self.filled else LIGHT["surface"]
        return {"marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.color, "markeredgewidth": 1.0}

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of matplotlib for its line."""
        return {"color": self.color, "linestyle": self.dash, "linewidth": 1.5}


def look_of(architectures: "Iterable[Architecture]") -> dict[str, Look]:
    """The look of each architecture, by name; a second one of the same colour gets another dash, and among
    depth-routed ones another marker."""
    taken: dict[str, int] = {}
    result = {}
    n_depth = 0
    for architecture in architectures:
        role = _role(architecture)
        repeat = taken.get(role, 0)
        taken[role] = repeat + 1
        marker, filled = _MARKERS.get(role), repeat == 0
        if marker is None:
            marker, filled = _DEPTH_MARKERS[n_depth % len(_DEPTH_MARKERS)], True
            n_depth += 1
        result[architecture.name] = Look(
            color=LIGHT[role], marker=marker, dash=DASHES[repeat % len(DASHES)], filled=filled
        )
    return result


def _role(architecture: "Architecture") -> str:
    """Key of the palette."""
    if architecture.dense:
        return "ink"
    if not architecture.has_experts:
        return f"c{2 ** min(3, max(0, round(-math.log2(min(1.0, architecture.depth_capacity)))))}"
    return f"g{2 ** min(6, max(0, round(math.log2(max(1.0, architecture.granularity)))))}"


def grid(count: int, *, width: float, panel_height: float, most: int = 3) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` panels, as many side by side as the width holds; returns it and its axes."""
    new_figure = _figure_class()
    columns = max(1, min(count, most, int(width // 2.6)))
    rows = math.ceil(count / columns)
    figure = new_figure(figsize=(width, rows * panel_height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    flat = list(axes.flat)
    for extra in flat[count:]:
        extra.remove()
    for axis in flat[:count]:
        dress(axis)
    return figure, flat[:count]


def outer(axes: "Axes") -> bool:
    """Whether the panel stands in the first column, where the axis is named."""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def dress(axes: "Axes") -> None:
    """Quiet axes: no box, light grid, muted ticks."""
    axes.set_axisbelow(True)
    axes.grid(color=LIGHT["grid"], linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(LIGHT["muted"])
        axes.spines[side].set_linewidth(0.7)
    axes.tick_params(colors=LIGHT["muted"], labelcolor=LIGHT["muted"], labelsize=8.5, width=0.7, length=3)
    axes.xaxis.label.set_color(LIGHT["ink"])
    axes.yaxis.label.set_color(LIGHT["ink"])
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def title(axes: "Axes", text: str) -> None:
    """A panel's title, on the left in ink."""
    axes.set_title(text, loc="left", fontsize=9.5, color=LIGHT["ink"], fontweight="bold")


def legend(figure: "Figure", entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One key for all panels, above them, in as many columns as the figure is wide; an entry is name and line style.

    The figure grows by the key's height.
    """
    if not entries:
        return
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for _, style in entries]
    labels = [plain(name) for name, _ in entries]
    widest = max(len(label) for label in labels)
    columns = max(1, min(len(entries), int((figure.get_figwidth() - 0.2) / (0.55 + 0.068 * widest))))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.17 * math.ceil(len(entries) / columns))
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=LIGHT["ink"],
        handlelength=2.0,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def name_lines(axes: "Axes", labels: Sequence[tuple[str, float, float, dict[str, Any]]]) -> None:
    """Name lines right of the axes, moved apart where they would overlap, with a thin line from each line's end.

    On a narrow figure with long names, which would leave no room for the lines, a legend above names them instead; so
    it does for many lines, whose names would lie far from them.

    Args:
        axes: the axes, with its limits set by the data already drawn.
        labels: text, x and y of the line's end, style of the line with its `color`.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    if len(labels) > _MOST_NAMED or max(len(text) for text, _, _, _ in labels) > 3.2 * figure.get_figwidth():
        legend(figure, [(text, style) for text, _, _, style in labels])
        return
    axes.set_ylim(axes.get_ylim())
    to_share = axes.transData + axes.transAxes.inverted()
    ends = [to_share.transform((x, y)) for _, x, y, _ in labels]
    gap = 0.165 / (figure.get_figheight() * 0.82)
    placed = spread([float(end[1]) for end in ends], gap=gap, low=0.0, high=1.0)
    for (text, _, _, style), end, share in zip(labels, ends, placed, strict=True):
        color = style["color"]
        axes.annotate(
            plain(text),
            xy=(float(end[0]), min(1.0, max(0.0, float(end[1])))),
            xycoords="axes fraction",
            xytext=(1.03 if figure.get_figwidth() > 5 else 1.06, share),
            textcoords="axes fraction",
            color=color,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.7,
                "shrinkA": 1.5,
                "shrinkB": 3.5,
                "relpos": (0.0, 0.5),
            },
        )


def reach(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """An interval as matplotlib's two error lengths."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def plain(text: str) -> str:
    """Text that matplotlib shows as it stands (a dollar sign starts no formula)."""
    return text.replace("$", r"\$")


def log_axis(
    axes: "Axes", which: str, values: Sequence[float], *, most: int = 5, kind: str = "count", margin: float = 0.06
) -> None:
    """Make an axis logarithmic, with a few round ticks in plain numbers that cover the data.

    Args:
        axes: the axes.
        which: x or y.
        values: the data on it.
        most: how many ticks at most.
        kind: count (1M), flops (3e12) or factor (1.5×).
        margin: share of the range that stays free on both sides.
    """
    low, high = min(values), max(values)
    room = max(margin * math.log(high / low), 0.05)
    low, high = low * math.exp(-room), high * math.exp(room)
    write = {"count": short, "flops": flops, "factor": factor}[kind]
    ticks = _log_ticks(low, high, most)
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed so that neighbours stand at least `gap` apart, inside [low, high].

    Used to place direct labels; order is kept. If they do not fit, the gap shrinks.
    """
    if not positions:
        return []
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    placed = [min(max(positions[index], low), high) for index in order]
    for _ in range(200):
        moved = False
        for index in range(len(placed) - 1):
            lack = gap - (placed[index + 1] - placed[index])
            if lack > 1e-9 * max(1.0, gap):
                placed[index] -= lack / 2
                placed[index + 1] += lack / 2
                moved = True
        placed = [
            min(max(value, low + rank * gap), high - (len(placed) - 1 - rank) * gap)
            for rank, value in enumerate(placed)
        ]
        if not moved:
            break
    result = [0.0] * len(positions)
    for rank, index in enumerate(order):
        result[index] = placed[rank]
    return result


def short(value: float | None, digits: int = 3) -> str:
    """1.23M, 4.37B, 900; an en dash if missing."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def flops(value: float | None, digits: int = 3) -> str:
    """3e12, 2.95e18; an en dash if missing."""
    return "–" if value is None or not math.isfinite(value) else exponent(value, digits)


def factor(value: float | None) -> str:
    """1.5×; an en dash if missing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}×"


def require_matplotlib() -> None:
    """Raise InputError with the command that installs it, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "matplotlib is not installed and figures need it; install it with: pip install 'isoflop[report]'"
        ) from None


def _figure_class() -> "type[Figure]":
    """matplotlib's Figure on the Agg canvas: no pyplot, no global state, no display."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers inside [low, high], at most `most` and where possible at least three."""
    best: list[float] = []
    for steps in (
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8),
        (1, 1.5, 2, 3, 4, 5, 7),
        (1, 2, 3, 5),
        (1, 2, 5),
        (1, 3),
        (1,),
    ):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        best = [tick for tick in ticks if low <= tick <= high]
        if len(best) <= most:
            return best or [float(f"{math.sqrt(low * high):.2g}")]
    stride = math.ceil(len(best) / most)
    return best[::stride]
