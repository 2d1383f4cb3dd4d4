"""Lines of a file in bounded memory, whatever it holds. Knows bytes; what a line means is its readers' business."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from engine.data.tally import Tally

BOM = b"\xef\xbb\xbf"
_LAST_BYTES_OF_A_CHARACTER = 3  # a UTF-8 character is at most four bytes


def cut_lines(file: BinaryIO, tally: Tally, limit: int) -> Iterator[bytes]:
    """Lines with their newline; one longer than ``limit`` comes in several parts, cut between two characters."""
    for line, is_cut in _lines(file, tally, limit):
        part = line
        for _ in range(_LAST_BYTES_OF_A_CHARACTER if is_cut else 0):
            byte = file.read(1)
            if not byte or not 0x80 <= byte[0] < 0xC0:
                if byte:
                    file.seek(-1, 1)
                break
            part += byte
            tally.bytes_read += 1
        yield part


def whole_lines(file: BinaryIO, tally: Tally, limit: int) -> Iterator[bytes | None]:
    """Lines with their newline; None for one longer than ``limit``, which is read past and not kept."""
    passing_over = False
    for line, is_cut in _lines(file, tally, limit):
        if passing_over:
            passing_over = is_cut
        elif is_cut:
            passing_over = True
            yield None
        else:
            yield line


def _lines(file: BinaryIO, tally: Tally, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Lines without a byte-order mark, and whether the limit cut them."""
    first = True
    while line := file.readline(limit):
        tally.bytes_read += len(line)
        is_cut = len(line) == limit and not line.endswith(b"\n")
        yield (line.removeprefix(BOM) if first else line), is_cut
        first = False
