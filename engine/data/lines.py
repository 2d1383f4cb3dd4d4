"""Lines of a file in bounded memory, whatever it holds. Knows bytes; what a line means is its readers' business."""

from __future__ import annotations

from collections.abc import Iterator

from engine.data.byte_stream import ByteStream
from engine.data.encoding import BOM
from engine.data.tally import Tally

_LAST_BYTES_OF_A_CHARACTER = 3  # a UTF-8 character is at most four bytes


def cut_lines(stream: ByteStream, tally: Tally, limit: int) -> Iterator[bytes]:
    """Lines with their newline; one longer than ``limit`` comes in several parts, cut between two characters."""
    for line, is_cut in _lines(stream, tally, limit):
        part = line
        for _ in range(_LAST_BYTES_OF_A_CHARACTER if is_cut else 0):
            byte = stream.peek(1)
            if not byte or not 0x80 <= byte[0] < 0xC0:
                break
            part += stream.read(1)
        yield part


def whole_lines(stream: ByteStream, tally: Tally, limit: int) -> Iterator[bytes | None]:
    """Lines with their newline; None for one longer than ``limit``, which is read past and not kept."""
    passing_over = False
    for line, is_cut in _lines(stream, tally, limit):
        if passing_over:
            passing_over = is_cut
        elif is_cut:
            passing_over = True
            yield None
        else:
            yield line


def _lines(stream: ByteStream, tally: Tally, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether the limit cut them; without the byte-order marks that joined files have in their middle."""
    is_cut = False
    while line := stream.readline(limit):
        begins = not is_cut
        is_cut = len(line) == limit and not line.endswith(b"\n")
        if begins:
            tally.line += 1
            line = line.removeprefix(BOM)
        yield line, is_cut
