"""Compressed files as streams: gzip, bzip2, xz and zstd, detected by their first bytes.

Nothing is unpacked to disk, and memory does not grow with the file. Knows nothing of text.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from engine.data.tally import Tally

PACKED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Suffixes that are taken off a name to see what is in it: ``notes.jsonl.gz``."""

NO_ZSTD = "zstd file (no library that reads it is installed: pip install zstandard)"

_SIGNATURES = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BLOCK_BYTES = 256 * 2**10


class CannotUnpack(Exception):
    """No library that reads this compression is installed."""


@dataclass(frozen=True)
class _Opened:
    file: Any
    errors: tuple[type[Exception], ...]


def packing_of(head: bytes) -> str | None:
    """``gzip``, ``bzip2``, ``xz`` or ``zstd``, by the first bytes of a file; None for anything else."""
    found = next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)
    if found == "bzip2" and not (head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
        return None  # a text may begin with the letters BZh
    return found


def unpacked(file: BinaryIO, packing: str, size_bytes: int, tally: Tally) -> Iterator[bytes]:
    """The content of a compressed file in blocks; a damaged file ends where the damage is, and is counted.

    Raises:
        CannotUnpack: nothing that reads this compression is installed.
        OSError: the disk failed.
    """
    opened = _open(file, packing)
    while True:
        try:
            block = opened.file.read(_BLOCK_BYTES)
        except opened.errors as error:
            if isinstance(error, OSError) and error.errno:
                raise  # of the system: it says nothing of the file
            left_bytes = 0 if file.closed else max(0, size_bytes - file.tell())
            tally.skip_file(f"damaged {packing} file (what comes before the damage is read)", left_bytes)
            return
        if not block:
            return
        yield block


def _open(file: BinaryIO, packing: str) -> _Opened:
    if packing == "gzip":
        return _Opened(gzip.GzipFile(fileobj=file), (OSError, EOFError, zlib.error))
    if packing == "bzip2":
        return _Opened(bz2.BZ2File(file), (OSError, EOFError, ValueError))
    if packing == "xz":
        return _Opened(lzma.LZMAFile(file), (lzma.LZMAError, EOFError))
    return _open_zstd(file)


def _open_zstd(file: BinaryIO) -> _Opened:
    """By Python itself (from 3.14 on), zstandard, or pyarrow, whichever is there."""
    try:
        zstd: Any = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return _Opened(zstd.ZstdFile(file), (zstd.ZstdError, EOFError, OSError))
    try:
        import zstandard
    except ImportError:
        pass
    else:
        return _Opened(_ZstdFrames(file, zstandard), (zstandard.ZstdError, EOFError, OSError))
    try:
        import pyarrow
    except ImportError:
        raise CannotUnpack(NO_ZSTD) from None
    return _Opened(
        pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"),
        (pyarrow.ArrowException, EOFError, OSError),
    )


class _ZstdFrames:
    """All frames of a zstd file. The stream reader of ``zstandard`` takes a file that is cut short for a whole one."""

    # Four bytes may stand for a block of 128 KiB: what one step can unpack stays below 32 MiB.
    _STEP_BYTES = 2**10

    def __init__(self, file: BinaryIO, zstandard: Any) -> None:
        self._file = file
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._rest = b""

    def read(self, num_bytes: int) -> bytes:
        """Some ``num_bytes`` (up to a step's more), and nothing at the end.

        Raises:
            EOFError: the file ends inside of a frame.
        """
        parts: list[bytes] = []
        missing = num_bytes
        while missing > 0:
            step = self._rest or self._file.read(self._STEP_BYTES)
            self._rest = b""
            if not step:
                if self._frame is not None and not parts:
                    raise EOFError
                break
            if self._frame is None:
                self._frame = self._new_frame()
            parts.append(self._frame.decompress(step))
            missing -= len(parts[-1])
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        return b"".join(parts)
