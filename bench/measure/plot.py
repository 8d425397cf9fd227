"""Plots as SVG: grouped bars, drawn directly, so that the same figures always give the same file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .results import Spread

# Distinguishable with any colour vision (Okabe and Ito); ours is the first.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
WIDTH, PLOT_HEIGHT, TOP, LEFT, RIGHT = 760, 260, 44, 72, 16
LINE = 18


@dataclass(frozen=True)
class Series:
    """A contestant's bars, one a group; None where nothing was measured."""

    name: str
    values: Sequence[Spread | None]


def bars(title: str, unit: str, groups: Sequence[str], series: Sequence[Series], logarithmic: bool = False) -> str:
    """Grouped bars; thin lines go from the lowest round to the highest."""
    highs = [one.high for each in series for one in each.values if one]
    lows = [one.low for each in series for one in each.values if one and one.low > 0]
    scale = Scale.over(min(lows, default=1), max(highs, default=1), logarithmic)
    legend_lines = math.ceil(len(series) / 3)
    label_lines = max(len(lines_of(name)) for name in groups)
    below = TOP + PLOT_HEIGHT + 14 + label_lines * LINE
    height = below + legend_lines * LINE + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        text(LEFT, 18, title, "start", 'font-weight="bold" font-size="14"'),
        text(LEFT, 35, unit + (", logarithmic" if logarithmic else ""), "start", 'fill="#555"'),
        *axis(scale),
        *(part for nth, name in enumerate(groups) for part in group(nth, len(groups), name, series, scale)),
        *legend([each.name for each in series], below),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class Scale:
    """From values to heights."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def over(cls, low: float, high: float, logarithmic: bool) -> "Scale":
        """One that has room for these."""
        if not logarithmic:
            return cls(0, nice(high), False)
        bottom, top = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        return cls(bottom, top if top > bottom else bottom * 10, True)

    def y(self, value: float) -> float:
        """Where a value is drawn."""
        if self.logarithmic:
            share = (math.log10(max(value, self.low)) - math.log10(self.low)) / math.log10(self.high / self.low)
        else:
            share = value / self.high
        return TOP + PLOT_HEIGHT * (1 - share)

    def ticks(self) -> list[float]:
        """Values with a line of their own."""
        if not self.logarithmic:
            return [self.high * nth / 5 for nth in range(6)]
        decades = round(math.log10(self.high / self.low))
        return [self.low * 10**nth for nth in range(decades + 1)]


def nice(high: float) -> float:
    """The next round number."""
    power: float = 10 ** math.floor(math.log10(high)) if high > 0 else 1
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= high)


def axis(scale: Scale) -> list[str]:
    """Horizontal lines and their values."""
    parts = []
    for tick in scale.ticks():
        y = scale.y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, y + 4, f"{tick:,.10g}", "end", 'fill="#555"'))
    return parts


def group(nth: int, groups: int, name: str, series: Sequence[Series], scale: Scale) -> list[str]:
    """The bars of one group."""
    width = (WIDTH - LEFT - RIGHT) / groups
    bar = width * 0.8 / len(series)
    start = LEFT + width * (nth + 0.1)
    middle = LEFT + width * (nth + 0.5)
    parts = [text(middle, TOP + PLOT_HEIGHT + LINE * (at + 1), line, "middle") for at, line in enumerate(lines_of(name))]
    for index, each in enumerate(series):
        value = each.values[nth]
        if value is None:
            continue
        x, y = start + index * bar, scale.y(value.median)
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.9:.1f}" height="{TOP + PLOT_HEIGHT - y:.1f}" '
            f'fill="{colour(index)}"><title>{escape(each.name)}: {value.median:,.4g}</title></rect>'
        )
        centre = x + bar * 0.45
        parts.append(
            f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{scale.y(value.high):.1f}" y2="{scale.y(value.low):.1f}" '
            'stroke="#222"/>'
        )
    return parts


def lines_of(name: str) -> list[str]:
    """A group's name, a line for each part."""
    return name.split(", ")


def legend(names: Sequence[str], top: float) -> list[str]:
    """Names and colours, three a line."""
    parts = []
    column = (WIDTH - LEFT - RIGHT) / 3
    for index, name in enumerate(names):
        x, y = LEFT + column * (index % 3), top + LINE * (index // 3)
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="12" height="12" fill="{colour(index)}"/>')
        parts.append(text(x + 18, y + 10, name, "start"))
    return parts


def colour(index: int) -> str:
    """Of a series."""
    return COLOURS[index % len(COLOURS)]


def text(x: float, y: float, content: str, anchor: str, more: str = "") -> str:
    """A label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(content)}</text>'
