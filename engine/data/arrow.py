"""Rows of an .arrow file as dictionaries, some at a time: as save_to_disk and the datasets library's cache write them.

Both forms are read, the stream and the file (Feather). Needs pyarrow, which is an extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.data.optional_package import why_not
from engine.data.parquet import ROWS_AT_A_TIME, plain_rows, wanted_columns
from engine.data.tally import Tally
from engine.errors import DataError
from engine.machine.out_of_memory import is_out_of_memory


def read_arrow(path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    """Yield the columns of each row that may hold text, and numbers.

    Raises:
        DataError: pyarrow cannot be imported.
    """
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError as error:
        why, todo = why_not("pyarrow", error)
        raise DataError(
            f"{path} cannot be read without pyarrow.",
            f"It reads .arrow files, as save_to_disk writes them, and {why}.",
            f"{todo}. Or write the data set as JSON lines with the datasets library: "
            'load_from_disk(folder).to_json("train.jsonl"); to_parquet() writes files that need pyarrow as well.',
        ) from None
    size = path.stat().st_size
    begun_at = tally.bytes_read
    try:
        with _opened(path, pyarrow) as file:
            for batch in _batches(file, ipc):
                chosen = batch.select(wanted_columns(batch.schema, pyarrow.types))
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    yield from plain_rows(chosen.slice(start, ROWS_AT_A_TIME))
                tally.bytes_read = begun_at + min(size, file.tell())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if (isinstance(error, OSError) and error.errno) or is_out_of_memory(error):
            raise  # of the system: it says nothing of the file
        tally.skip_file(
            "damaged .arrow file (load_from_disk(folder).to_parquet(file) of the datasets library gives details)", size
        )


def _opened(path: Path, pyarrow: Any) -> Any:
    """The file, mapped where its file system can: of a large record batch only the rows that are looked at are read."""
    try:
        return pyarrow.memory_map(str(path))
    except (OSError, ValueError):
        return pyarrow.OSFile(str(path))


def _batches(file: Any, ipc: Any) -> Iterator[Any]:
    if file.read(6) == b"ARROW1":
        file.seek(0)
        reader = ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    file.seek(0)
    yield from ipc.open_stream(file)
