"""Stream of a text file: decompressed, in UTF-8, without a byte-order mark, in bounded memory.

Readers count how much of it they took; from that comes how much of the file on disk is behind us.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from engine.data.encoding import UnknownEncoding, Utf8Blocks
from engine.data.packed import CannotUnpack, packing_of, unpacked
from engine.data.tally import Tally

_BLOCK_BYTES = 256 * 2**10


class ByteStream:
    """The bytes of a text file.

    Args:
        path: the file.
        tally: receives unreadable parts and the progress of reading.

    Attributes:
        packing: how it is compressed; None for a plain file.
        is_unreadable: whether it, or the rest of it, cannot be read; it has been counted then.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, tally: Tally) -> None:
        self.is_unreadable = False
        self._size = path.stat().st_size
        self._tally = tally
        self._name = tally.file or path.name
        self._begun_at = tally.bytes_read
        self._taken = 0
        self._file: BinaryIO = path.open("rb", buffering=_BLOCK_BYTES)
        head = self._file.read(16)
        self._file.seek(0)
        self.packing = packing_of(head)
        self._utf8 = Utf8Blocks(self._packed_blocks())
        self._buffer = io.BufferedReader(_Joined(self._blocks()), _BLOCK_BYTES)
        tally.line = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def peek(self, size: int) -> bytes:
        """The next bytes, left where they are; fewer than asked for near the end or a block's border."""
        return self._buffer.peek(size)[:size]

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        return self._took(self._buffer.read(size))

    def readline(self, limit: int) -> bytes:
        """A line with its newline, or the first ``limit`` bytes of it; nothing at the end."""
        return self._took(self._buffer.readline(limit))

    def _took(self, data: bytes) -> bytes:
        self._taken += len(data)
        given = self._utf8.given_bytes
        # pyarrow closes the file behind its last byte.
        came_in = self._size if self._file.closed else self._file.tell()
        behind = came_in * self._taken / given if given else 0.0
        self._tally.bytes_read = self._begun_at + min(self._size, round(behind))
        return data

    def _packed_blocks(self) -> Iterator[bytes]:
        if self.packing is None:
            while block := self._file.read(_BLOCK_BYTES):
                yield block
            return
        damaged = sum(self._tally.unread.values())
        try:
            yield from unpacked(self._file, self.packing, self._size, self._tally)
            self.is_unreadable = sum(self._tally.unread.values()) > damaged
        except CannotUnpack as error:
            self.is_unreadable = True
            self._tally.skip_file(str(error), self._size)

    def _blocks(self) -> Iterator[bytes]:
        told = ""
        try:
            for block in self._utf8:
                name = self._utf8.encoding.name
                if name not in ("UTF-8", told):
                    told = name
                    counted = f" ({self._utf8.encoding.counted})" if self._utf8.encoding.bad_lines else ""
                    self._tally.note(f"Read as {name}", f"{self._name}{counted}")
                yield block
        except UnknownEncoding as error:
            self.is_unreadable = True
            what = "rest of a file" if error.is_rest else "file"
            self._tally.skip_file(
                f"{what} in an encoding that is not known ({error.encoding.counted}, and it makes no words in "
                "Windows-1252; save it as UTF-8)",
                self._size,
            )


class _Joined(io.RawIOBase):
    """Blocks as one file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
