"""Rows of a .parquet file as dictionaries, a few hundred at a time. Needs pyarrow, which is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.data.tally import Tally
from engine.errors import DataError
from engine.out_of_memory import is_out_of_memory

_ROWS_AT_A_TIME = 256


def read_parquet(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    """Yield the columns of each row that are text or lists.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} cannot be read without pyarrow.",
            "It reads .parquet files, and is not installed.",
            "Install it: pip install pyarrow",
        ) from None
    size = path.stat().st_size
    done = 0
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            columns = [field.name for field in file.schema_arrow if _may_hold_text(field.type, pyarrow.types)]
            rows = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns, use_threads=False):
                yield from batch.to_pylist()
                part = int(size * min(1.0, batch.num_rows / max(1, rows)))
                tally.bytes_read += part
                done += part
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, PermissionError) or is_out_of_memory(error):
            raise
        tally.skip("damaged .parquet file")
    tally.bytes_read += size - done


def _may_hold_text(kind: Any, types: Any) -> bool:
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_list(kind)
        or types.is_large_list(kind)
        or (types.is_dictionary(kind) and types.is_string(kind.value_type))
    )
