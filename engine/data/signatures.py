"""File types by their first bytes, for files that are not the text that their names promise.

It reads only a few bytes of a file. Unknown files are left to their readers.
"""

from __future__ import annotations

import re

_UNPACK = "unpack it first"
_SIGNATURES = (
    (rb"PK\x03\x04", f"zip archive ({_UNPACK}; a .docx, .xlsx or .epub has to be saved as text)"),
    (rb"7z\xbc\xaf\x27\x1c", f"7z archive ({_UNPACK})"),
    (rb"Rar!\x1a\x07", f"rar archive ({_UNPACK})"),
    (rb"(?s:.{257})ustar", f"tar archive ({_UNPACK})"),
    (rb"%PDF-", "PDF (extract its text first)"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "file of an old office program (save it as text)"),
    (rb"\{\\rtf", "rtf file (save it as text)"),
    (rb"SQLite format 3\0", "SQLite database (save its rows as .jsonl or .csv)"),
    (rb"version https://git-lfs\.github\.com/spec/", "Git LFS pointer (git lfs pull fetches the file)"),
)
_TABLES = ((rb"PAR1[\0-\x1f]", ".parquet"), (rb"ARROW1\0\0", ".arrow"), (rb"\xff\xff\xff\xff.{2}\0\0", ".arrow"))

MARKUP = frozenset({".html", ".htm", ".xhtml", ".xml", ".svg"})
"""Suffixes of files whose text stands between tags."""
_MARKUP = re.compile(rb"\s*(?:<!doctype html|<html[\s>]|<\?xml\s)", re.IGNORECASE)

HEAD_BYTES = 264  # a tar archive is known by bytes 257 to 261


def what_it_is_instead(head: bytes) -> str | None:
    """A noun phrase for ``Tally.skip_file``; None for what may be text."""
    return next((said for signature, said in _SIGNATURES if re.match(signature, head)), None)


def is_markup(head: bytes) -> bool:
    """Return whether a text begins as an HTML or XML file does."""
    return bool(_MARKUP.match(head))


def table_suffix(head: bytes) -> str | None:
    """``.parquet`` or ``.arrow`` for what is one of these, whatever its name; None for anything else."""
    return next((suffix for signature, suffix in _TABLES if re.match(signature, head, re.DOTALL)), None)
