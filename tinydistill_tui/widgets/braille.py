"""A canvas of braille signs: 2 x 4 dots in each cell. Pure."""

from __future__ import annotations

# Bit of the dot in column x (0, 1) and row y (0 to 3 from the top) of a cell: Unicode, block "Braille Patterns".
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Canvas:
    """Dots on ``width`` x ``height`` cells; dots outside are left out."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._cells: dict[tuple[int, int], int] = {}

    def dot(self, x: int, y: int) -> None:
        """Set the dot in column ``x`` from the left and row ``y`` from the top."""
        if 0 <= x < self.width * 2 and 0 <= y < self.height * 4:
            cell = (x // 2, y // 4)
            self._cells[cell] = self._cells.get(cell, 0) | _BITS[x % 2][y % 4]

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Set the dots between two points, both included."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            self.dot(round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps))

    def cells(self) -> dict[tuple[int, int], str]:
        """The cells that have dots: (column, row) and the sign."""
        return {place: chr(0x2800 | bits) for place, bits in self._cells.items()}
