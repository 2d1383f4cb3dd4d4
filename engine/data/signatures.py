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

# Notes about texts that begin in the way of another kind of file, after blanks. No text may be matched in two ways, or
# the time that a mismatch takes doubles with each of its lines.
_LOOKS = (
    (rb"<!doctype html|<html[\s>]|<\?xml\s|<(?!s>|think)[a-z][^<>]*>(?s:.*)</[a-z]+>", "its HTML or XML tags"),
    (rb"WEBVTT\b|(?:\d+\s+)?(?:\d\d:)?\d\d:\d\d[.,]\d{3} --> ", "the times of its subtitles"),
    (
        rb"From [^\s]+ [^\n]*\d\d:\d\d:\d\d \d{4}\s"
        rb"|(?:[A-Z][\w-]+: [^\n]*\n)*(?:Received|Return-Path|Message-ID|MIME-Version): ",
        "its mail headers",
    ),
    (rb"(?:%[^\n]*\n\s*)*\\documentclass\b", "its LaTeX commands"),
    (rb"---[ \t]*\r?\n(?:(?:\w[\w-]*:|[ \t-])[^\n]*\n)+---\s", "its front matter"),
)
_COMMENT = re.compile(rb"^[ \t]*(?://|/\*)", re.MULTILINE)  # a string in JSON has no line break in it
_CELL = re.compile(rb'"cell_type"\s*:\s*"')

HEAD_BYTES = 264  # a tar archive is known by bytes 257 to 261


def what_it_is_instead(head: bytes) -> str | None:
    """A noun phrase for ``Tally.skip_file``; None for what may be text."""
    return next((said for signature, said in _SIGNATURES if re.match(signature, head)), None)


def learned_with(head: bytes) -> str | None:
    """Parts of a text that are no prose and are learned with it; None for a text that begins like any other."""
    text = head.lstrip()
    return next((what for begin, what in _LOOKS if re.match(begin, text, re.IGNORECASE)), None)


def is_table_of_texts(head: bytes, names: frozenset[str]) -> bool:
    """Return whether a text is rather a table: its first line names columns, and the next ones have as many cells.

    Args:
        head: the first bytes of the file, as UTF-8.
        names: usual names of columns with text.
    """
    lines = [line for line in head.decode("utf-8", "replace").split("\n")[:5] if line.strip()]
    for delimiter in "\t,;|":
        columns = [cell.strip().strip('"').lower() for cell in lines[0].split(delimiter)] if lines else []
        if len(columns) > 1 and not names.isdisjoint(columns) and all(len(name.split()) < 4 for name in columns):
            return len(lines) > 1 and all(line.count(delimiter) >= len(columns) - 1 for line in lines[1:2])
    return False


def unread_json(head: bytes) -> str | None:
    """A noun phrase for ``Tally.skip_file`` for a notebook and for JSON with comments; None for all other JSON."""
    if _CELL.search(head) and b'"cells"' in head:
        return "notebook (jupyter nbconvert --to markdown writes its text)"
    if _COMMENT.search(head):
        return "JSON file with comments (take them out)"
    return None


def table_suffix(head: bytes) -> str | None:
    """``.parquet`` or ``.arrow`` for what is one of these, whatever its name; None for anything else."""
    return next((suffix for signature, suffix in _TABLES if re.match(signature, head, re.DOTALL)), None)
