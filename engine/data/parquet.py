"""Rows of a .parquet file as dictionaries, some at a time. Needs pyarrow, which is an extra."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.data.form import ANSWERS, CHAT_FIELDS, QUESTIONS, TEXT_FIELDS
from engine.data.optional_package import why_not
from engine.data.tally import Tally
from engine.errors import DataError
from engine.machine.out_of_memory import is_out_of_memory

ROWS_AT_A_TIME = 64
_BATCH_BYTES = 4 * 2**20
# A column of a row group is read through a buffer of this size. Without one it is read as a whole, and a file is often
# one row group.
_BUFFER_BYTES = 2**20
_NAMES_OF_TEXT = frozenset({*TEXT_FIELDS, *CHAT_FIELDS, *QUESTIONS, *ANSWERS})


def read_parquet(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    """Yield the columns of each row, without those of bytes that are called as none of text.

    Objects of one column all have the same keys in a .parquet file; a key without a value was not there before.

    Raises:
        DataError: pyarrow cannot be imported.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        why, todo = why_not("pyarrow", error)
        raise DataError(
            f"{path} cannot be read without pyarrow.", f"It reads .parquet files, and {why}.", todo
        ) from None
    size = path.stat().st_size
    begun_at = tally.bytes_read
    done = 0
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            columns = wanted_columns(file.schema_arrow, pyarrow.types)
            rows = max(1, file.metadata.num_rows)
            for group in range(file.metadata.num_row_groups):
                for batch in file.iter_batches(
                    batch_size=_batch_rows(file.metadata.row_group(group)),
                    row_groups=[group],
                    columns=columns,
                    use_threads=False,
                ):
                    yield from plain_rows(batch)
                    done += batch.num_rows
                    tally.bytes_read = begun_at + int(size * min(1.0, done / rows))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if (isinstance(error, OSError) and error.errno) or is_out_of_memory(error):
            raise  # of the system: it says nothing of the file
        tally.skip_file("damaged .parquet file", size)


def without_nulls(value: Any) -> Any:
    """A value without the keys that are null in the objects within it."""
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def _batch_rows(group: Any) -> int:
    """Rows that are some megabytes, at most 256."""
    bytes_per_row = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(256, _BATCH_BYTES // max(1, bytes_per_row)))


def wanted_columns(schema: Any, types: Any) -> list[str]:
    """Columns that may hold texts or conversations, or say something of them: a label, an answer that is a number.

    Columns of bytes are pictures and sounds, unless they are called as one that holds text.
    """
    return [field.name for field in schema if _is_wanted(field.name, field.type, types)]


def _is_wanted(name: str, kind: Any, types: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return name.lower() in _NAMES_OF_TEXT if is_bytes or types.is_fixed_size_binary(kind) else True


def plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch without the nulls of their objects, with values as JSON has them: bytes and dates as texts.

    Bytes that are not UTF-8 become lone surrogates, as in a text file. Values that Python has no type for (a moment
    to the nanosecond, a year behind 9999) stay numbers: a column of them costs no text beside it.
    """
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, LookupError):
        columns = [_as_stored(column) for column in batch.columns]
        rows = [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    for row in rows:
        yield {name: _plain(value) for name, value in row.items()}


def _as_stored(column: Any) -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, LookupError):
        found = [_decoded(value) for value in column.cast(_stored_type(column.type)).to_pylist()]
    return found


def _decoded(value: Any) -> Any:
    """A value with the bytes in it as text."""
    if isinstance(value, list):
        return [_decoded(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _decoded(inner) for key, inner in value.items()}
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _stored_type(kind: Any) -> Any:
    """The type of a column, with whole numbers for moments and durations, and bytes for texts."""
    import pyarrow
    from pyarrow import types

    if types.is_temporal(kind):
        return pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct([(inner.name, _stored_type(inner.type)) for inner in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        return (pyarrow.list_ if types.is_list(kind) else pyarrow.large_list)(_stored_type(kind.value_type))
    return kind


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return without_nulls(value)
