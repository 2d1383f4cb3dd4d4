"""A shard: the records of some rows in one HDF5 file, immutable after its rename.

::

    rows                  [rows]    each row's hash, and where its records, log-probs of heads and bytes of ids end;
                                    they begin where those of the row before it end
    layout                [bytes]   the order of the ids (id_layout.py)
    ids, tail_mass, ...             the columns of EncodedRecords, row after row

HDF5 describes the seven data sets of a training row's shard in 2 KiB; more than eight would take 4.

HDF5 builds the file in memory; plain system calls write and read the bytes. Therefore a full disk is an ordinary error
(HDF5 crashes on it), the checksum is that of the intended bytes, reading a row takes some microseconds and no open
file, and a file that shrinks during a read causes an error instead of killing the process, as a mapped file would. Data
sets are contiguous, and the file has no timestamps: the same records give the same bytes.

Knows nothing of journals or of the index of rows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from engine.cache.id_layout import layout_from_bytes
from engine.cache.record import COLUMNS, EncodedRecords
from engine.disk.fault import commit_point
from engine.disk.files import written_whole
from engine.machine.out_of_memory import is_out_of_memory

HASH_BYTES = 16
_ROW = np.dtype([("hash", "u1", HASH_BYTES), ("records", "<u4"), ("heads", "<u4"), ("id_bytes", "<u4")])
_NAMES = ("rows", "layout", *COLUMNS)


class DamagedShard(Exception):
    """A shard is damaged or missing; the text describes the damage as a sentence fragment."""


def shard_image(
    hashes: Sequence[bytes], encoded: EncodedRecords, num_heads: NDArray[np.int64], *, belongs_to: str
) -> bytes:
    """Return the bytes of a shard.

    Args:
        hashes: of the rows, in the order of the records.
        encoded: the records.
        num_heads: [N], heads of each record.
        belongs_to: a short name of the cache.
    """
    rows = np.empty(len(hashes), _ROW)
    rows["hash"] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)
    rows["records"] = encoded.row_records.cumsum()
    rows["heads"] = np.concatenate([[0], num_heads.cumsum()])[rows["records"]]
    rows["id_bytes"] = encoded.row_bytes.cumsum()
    image = io.BytesIO()
    with h5py.File(image, "w", libver="v110") as file:
        file.attrs["belongs_to"] = np.bytes_(
            belongs_to
        )  # of fixed length: strings of variable length take a heap of 4 KiB
        file.create_dataset("rows", data=rows)
        file.create_dataset("layout", data=encoded.layout.to_bytes())
        for name in COLUMNS:
            if (values := getattr(encoded, name)) is not None:
                file.create_dataset(name, data=values.astype(values.dtype.newbyteorder("<"), copy=False))
    return image.getvalue()


def write_shard(path: Path, image: bytes) -> str:
    """Write a shard and rename it once it is complete on the disk; return its SHA-256 in hex.

    Raises:
        OSError: it cannot be written; no file remains.
    """
    try:
        with written_whole(path, point="shard") as file:
            file.write(image)
        commit_point("shard-folder-synced")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return hashlib.sha256(image).hexdigest()


class Shard:
    """A shard that can be read row by row.

    Attributes:
        path: the file.
        belongs_to: short name of the cache that it was made for.
        hashes: uint8 [rows, 16]; the caller may delete them after use.
        num_rows: rows.
        num_records: records.

    Raises:
        DamagedShard: it cannot be parsed.
        OSError: the disk failed, or too many files are open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _opened(path) as descriptor:
                self._columns, self.belongs_to = _layout(path)
                rows = self._columns["rows"].read(descriptor).view(_ROW)
                self.hashes: NDArray[np.uint8] = rows["hash"].copy()
                self._record_ends: NDArray[np.uint32] = rows["records"].copy()
                self._head_ends: NDArray[np.uint32] = rows["heads"].copy()
                self._id_ends: NDArray[np.uint32] = rows["id_bytes"].copy()
                self.num_rows = len(self.hashes)
                ends_are_right = all(
                    _lead_to(ends, self.num_rows, self._columns[name])
                    for ends, name in (
                        (self._record_ends, "tail_mass"),
                        (self._head_ends, "head_log_probs"),
                        (self._id_ends, "ids"),
                    )
                )
        except KeyError as error:
            raise DamagedShard(f"it has no {error.args[0]}") from None
        except ValueError:
            raise DamagedShard("it has no table of its rows") from None
        if not ends_are_right:
            raise DamagedShard("it has no table of its rows")
        self.num_records = int(self._record_ends[-1]) if self.num_rows else 0

    def read(self, first: int, last: int) -> EncodedRecords:
        """Return the records of the rows in [first, last).

        Raises:
            DamagedShard: bytes are missing.
            OSError: the disk failed, or too many files are open.
        """
        records = _between(self._record_ends, first, last)
        others = {
            "head_log_probs": _between(self._head_ends, first, last),
            "ids": _between(self._id_ends, first, last),
        }
        with _opened(self.path) as descriptor:
            layout = self._columns["layout"].read(descriptor).tobytes()
            found: dict[str, Any] = {
                name: self._columns[name].read(descriptor, *others.get(name, records))
                for name in COLUMNS
                if name in self._columns
            }
        try:
            found["layout"] = layout_from_bytes(layout)
        except ValueError as error:
            raise DamagedShard("the order of its ids cannot be read") from error
        found["row_records"] = _sizes(self._record_ends, first, last)
        found["row_bytes"] = _sizes(self._id_ends, first, last)
        return EncodedRecords(**found)

    def num_records_of(self, row: int) -> int:
        """Records of a row."""
        first, last = _between(self._record_ends, row, row + 1)
        return last - first

    def check(self, sha256: str) -> None:
        """Verify every byte.

        Raises:
            DamagedShard: the checksum differs.
            OSError: the disk failed, or too many files are open.
        """
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DamagedShard("it is missing") from None
        if found != sha256:
            raise DamagedShard("its checksum is not the one in the journal")

    def column_bytes(self) -> dict[str, int]:
        """Bytes of each data set."""
        return {name: column.num_bytes for name, column in self._columns.items()}


class _Column(NamedTuple):
    """Position of a data set in its file: contiguous values of one size. Each shard has several, so they are small."""

    offset: int | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, descriptor: int, first: int = 0, last: int | None = None) -> NDArray[Any]:
        shape = ((self.shape[0] if last is None else last) - first, *self.shape[1:])
        one = math.prod(shape[1:]) * self.dtype.itemsize
        wanted = shape[0] * one
        if not wanted:
            return np.empty(shape, self.dtype)
        assert self.offset is not None
        data = os.pread(descriptor, wanted, self.offset + first * one)
        if len(data) < wanted:
            raise DamagedShard("it was truncated")
        return np.frombuffer(data, self.dtype).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DamagedShard("it is missing") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _layout(path: Path) -> tuple[dict[str, _Column], str]:
    """Return the positions of the data sets, and the name of the cache that the shard belongs to.

    Uses h5py's low-level API: the high-level one takes three times as long, and a large cache has thousands of shards.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_file_locking(False, True)  # an immutable file needs no lock, and some network disks have none
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, access)
        try:
            root = h5py.h5g.open(file, b"/")
            names = [name for name in _NAMES if root.links.exists(name.encode())]
            columns = {name: _column(h5py.h5d.open(file, name.encode())) for name in names}
            attribute = h5py.h5a.open(file, b"belongs_to")
            belongs_to = np.empty((), attribute.dtype)
            attribute.read(belongs_to)
            return columns, bytes(belongs_to.item()).decode()
        finally:
            file.close()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or is_out_of_memory(error):
            raise  # an error of the system, not of the file
        raise DamagedShard("it is not a complete HDF5 file") from error


def _column(dataset: Any) -> _Column:
    column = _Column(dataset.get_offset(), _shared(dataset.dtype.str), dataset.shape)
    if column.offset is None and column.num_bytes:
        raise ValueError("not contiguous")
    return column


@lru_cache
def _shared(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype)


def _lead_to(ends: NDArray[np.uint32], num_rows: int, column: _Column) -> bool:
    """Return whether the ends of rows increase and the last one is the column's end."""
    last = int(ends[-1]) if len(ends) else 0
    return len(ends) == num_rows and bool((ends[1:] >= ends[:-1]).all()) and last == column.shape[0]


def _between(ends: NDArray[np.uint32], first: int, last: int) -> tuple[int, int]:
    return (int(ends[first - 1]) if first else 0, int(ends[last - 1]) if last else 0)


def _sizes(ends: NDArray[np.uint32], first: int, last: int) -> NDArray[np.int64]:
    """Return the part of the rows in [first, last)."""
    to = np.concatenate([[_between(ends, first, first)[0]], ends[first:last]]).astype(np.int64)
    sizes: NDArray[np.int64] = to[1:] - to[:-1]
    return sizes
