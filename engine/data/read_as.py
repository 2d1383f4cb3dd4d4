"""The reader of a file, chosen by its content and its name."""

from __future__ import annotations

from engine.data.byte_stream import ByteStream
from engine.data.folder import FoundFile, is_packed
from engine.data.form import ANSWERS, QUESTIONS, TEXT_FIELDS
from engine.data.readers import content_suffix
from engine.data.signatures import (
    HEAD_BYTES,
    is_table_of_texts,
    learned_with,
    table_suffix,
    unread_json,
    what_it_is_instead,
)
from engine.data.tally import Tally

_COLUMNS = frozenset({*TEXT_FIELDS, *QUESTIONS, *ANSWERS})
_SNIFFED_BYTES = 64 * 2**10


def read_as(file: FoundFile, tally: Tally) -> str | None:
    """Return the suffix of the reader for a file, or None for a file without text.

    Args:
        file: to be read.
        tally: takes a file without text, and notes about one that is read in another way than its name says.
    """
    with file.path.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    table = table_suffix(head)
    if table is not None:
        if file.kind != table:
            tally.note(f"Read as {table}", file.name)
        return table
    if file.kind in (".parquet", ".arrow") and is_packed(file.suffix):
        tally.skip_file(f"compressed {file.kind} file (unpack it first)", file.size_bytes)
        return None
    with ByteStream(file.path, Tally()) as stream:
        content = stream.peek(_SNIFFED_BYTES)
        was_packed = stream.packing is not None
    other = what_it_is_instead(head) or (what_it_is_instead(content[:HEAD_BYTES]) if was_packed else None)
    if other is not None and file.kind != ".parquet":
        tally.skip_file(other, file.size_bytes)
        return None
    suffix = content_suffix(content, file.kind, is_all=len(content) < _SNIFFED_BYTES)
    unread = unread_json(content) if suffix == ".json" else None
    if unread is not None:
        tally.skip_file(unread, file.size_bytes)
        return None
    if suffix in (".txt", ".md"):
        _note_looks(content, file.name, tally)
    if suffix != file.kind and file.kind:
        tally.note(f"Read as {suffix}, for its lines are JSON", file.name)
    return suffix


def _note_looks(content: bytes, name: str, tally: Tally) -> None:
    """Tell of a text that begins like a file of another kind: it is learned as it stands."""
    part = learned_with(content)
    if part is not None:
        tally.note(f"Read with {part}, learned as text", name)
    elif is_table_of_texts(content, _COLUMNS):
        tally.note("Read as plain text though it looks like a table (named .csv or .tsv, its columns are read)", name)
