"""A plot in text: curves in braille, levels as dashed lines, points, and the numbers at the edges.

Where there is no height for axes it becomes one line: a sparkline with the newest value. It knows nothing of runs; what
to draw is a :class:`Drawing`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.cells import set_cell_size
from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from tinydistill_tui.view.marks import spark
from tinydistill_tui.widgets.braille import Canvas

_LEAST_ROWS = 3


@dataclass(frozen=True)
class Curve:
    """Values over x: each sample is (x, lowest, highest) of the values around it.

    Values of one column are drawn as their mean; with ``highest`` as the highest of them, where peaks matter.
    """

    samples: Sequence[tuple[float, float, float]]
    style: str = "$text-primary"
    highest: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line from ``start`` to ``end``, drawn with ``sign``; named at its right end."""

    start: float
    end: float
    value: float
    sign: str
    style: str
    name: str = ""


@dataclass(frozen=True)
class Drawing:
    """Content of a plot.

    Attributes:
        title: what it is, with the unit.
        newest: the newest value, in words; note: what else is to be known, below.
        x_end: where the x axis ends; it begins at ``x_start``.
        points: (x, y), drawn as ``o``.
        ticks: (x, word) below the axis.
        write: how a value is written at the y axis.
        from_zero: the y axis begins at 0.
        log: logarithmic y axis; values of 0 and less are left out.
        empty: what is said when there is nothing yet.
    """

    title: str
    newest: str = ""
    note: str = ""
    x_start: float = 0.0
    x_end: float = 1.0
    curves: Sequence[Curve] = ()
    levels: Sequence[Level] = ()
    points: Sequence[tuple[float, float]] = ()
    ticks: Sequence[tuple[float, str]] = ()
    write: Callable[[float], str] = field(default=lambda value: f"{value:.2f}")
    from_zero: bool = False
    log: bool = False
    empty: str = "nothing measured yet"


class Plot(Widget, can_focus=True):
    """Shows one drawing; the title stands in the border."""

    ALLOW_MAXIMIZE = True

    hint: str = ""
    drawing: Drawing = Drawing("")

    def show(self, drawing: Drawing) -> None:
        """Draw something else."""
        self.drawing = drawing
        title = drawing.title + (f" ── {drawing.newest}" if drawing.newest else "")
        self.border_title = Content(title)
        self.border_subtitle = Content(drawing.note)
        self.refresh()

    def render(self) -> RenderResult:
        """The drawing in the size there is."""
        width, height = self.size
        if height < _LEAST_ROWS:
            return _one_line(self.drawing, width)
        return Content("\n").join(draw(self.drawing, width, height))


def draw(drawing: Drawing, width: int, height: int) -> list[Content]:
    """The drawing as ``height`` lines of ``width`` cells: the y axis on the left, the x axis below."""
    values = _values(drawing)
    if not values or not any(curve.samples for curve in drawing.curves):
        return [Content.styled(set_cell_size(drawing.empty, width), "$text-quiet")]
    scale = _scale(drawing)
    low, high = _range(drawing, [scale(value) for value in values])
    rows = height - 1

    def row_of(value: float, cells: int = rows) -> int:
        share = (scale(value) - low) / (high - low)
        return min(cells - 1, max(0, round((1 - share) * (cells - 1))))

    back = math.exp if drawing.log else float
    labels = {0: drawing.write(back(high)), rows - 1: drawing.write(back(low))}
    labels |= {row_of(level.value): drawing.write(level.value) for level in drawing.levels}
    margin = max(len(label) for label in labels.values())
    columns = width - margin
    if columns < 4:
        return [_one_line(drawing, width)]
    grid: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(rows)]

    def column_of(x: float, cells: int = columns) -> int:
        span = drawing.x_end - drawing.x_start
        share = (x - drawing.x_start) / span if span > 0 else 0.0
        return min(cells - 1, max(0, round(share * (cells - 1))))

    for level in drawing.levels:
        row = grid[row_of(level.value)]
        for column in range(column_of(level.start), column_of(level.end) + 1):
            row[column] = (level.sign, level.style)
    for curve in drawing.curves:
        _draw_curve(grid, curve, drawing, lambda x: column_of(x, columns * 2), lambda y: row_of(y, rows * 4))
    for level in drawing.levels:
        _write_name(grid[row_of(level.value)], level)
    for x, y in drawing.points:
        if not drawing.log or y > 0:
            grid[row_of(y)][column_of(x)] = ("o", "bold $text-accent")
    lines = [
        Content.assemble((labels.get(number, "").rjust(margin), "$text-quiet"), *_runs(row))
        for number, row in enumerate(grid)
    ]
    return [*lines, Content.styled(" " * margin + _axis(drawing.ticks, columns, column_of), "$text-quiet")]


def _draw_curve(
    grid: list[list[tuple[str, str]]],
    curve: Curve,
    drawing: Drawing,
    column_of: Callable[[float], int],
    row_of: Callable[[float], int],
) -> None:
    canvas = Canvas(len(grid[0]), len(grid))
    before: tuple[int, int] | None = None
    usable = (sample for sample in curve.samples if not drawing.log or sample[1] > 0)
    for column, group in itertools.groupby(usable, lambda sample: column_of(sample[0])):
        together = list(group)
        highest = max(high for _, _, high in together)
        mean = sum(low + high for _, low, high in together) / (2 * len(together))
        place = (column, row_of(highest if curve.highest else mean))
        canvas.line(*(before or place), *place)
        before = place
    for (column, row), sign in canvas.cells().items():
        grid[row][column] = (sign, curve.style)


def _write_name(row: list[tuple[str, str]], level: Level) -> None:
    """The level's name at the right, unless a curve is there."""
    start = len(row) - len(level.name)
    if level.name and start > 0 and all(sign in (" ", level.sign) for sign, _ in row[start - 1 :]):
        row[start - 1] = (" ", "")
        row[start:] = [(letter, level.style) for letter in level.name]


def _one_line(drawing: Drawing, width: int) -> Content:
    start = f"{drawing.title} "
    end = f" {drawing.newest}" if drawing.newest else ""
    highs = [sample[2] for curve in drawing.curves[:1] for sample in curve.samples]
    small = spark(highs, max(0, width - len(start) - len(end))) if highs else ""
    line = Content.assemble((start, "$text-quiet"), (small, "$text-primary"), end)
    return line.truncate(width, ellipsis=True)


def _values(drawing: Drawing) -> list[float]:
    values = [value for curve in drawing.curves for sample in curve.samples for value in sample[1:]]
    values += [y for _, y in drawing.points] + [level.value for level in drawing.levels]
    return [value for value in values if value > 0] if drawing.log else values


def _scale(drawing: Drawing) -> Callable[[float], float]:
    return (lambda value: math.log(value) if value > 0 else -math.inf) if drawing.log else float


def _range(drawing: Drawing, scaled: Sequence[float]) -> tuple[float, float]:
    low, high = min(scaled), max(scaled)
    if drawing.from_zero and not drawing.log:
        low = min(0.0, low)
    if high <= low:
        spread = abs(high) * 0.1 or 1.0
        return (low, low + spread) if drawing.from_zero else (low - spread, high + spread)
    return low, high


def _axis(ticks: Sequence[tuple[float, str]], columns: int, column_of: Callable[[float], int]) -> str:
    """The words below the axis, each at its place; one that would touch its neighbour is left out.

    The last tick is the most important one, so it is placed first.
    """
    cells = [" "] * columns
    for x, word in reversed(ticks):
        start = min(column_of(x), columns - len(word))
        if start < 0 or any(cell != " " for cell in cells[max(0, start - 1) : start + len(word) + 1]):
            continue
        cells[start : start + len(word)] = word
    return "".join(cells)


def _runs(row: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbouring cells of one style, joined."""
    joined: list[tuple[str, str]] = []
    for sign, style in row:
        if joined and joined[-1][1] == style:
            joined[-1] = (joined[-1][0] + sign, style)
        else:
            joined.append((sign, style))
    return joined
