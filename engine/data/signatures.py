"""What a file is when it is not the text that its name promises, told by its first bytes.

Reads a few bytes of a file and nothing else. A file that it does not know is left to its reader.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar"})
"""Suffixes of files that hold other files."""

_SIGNATURES = (
    (rb"\x1f\x8b", "gzip file (unpack it first)"),
    (rb"BZh[1-9]1AY&SY", "bzip2 file (unpack it first)"),
    (rb"\xfd7zXZ\0", "xz file (unpack it first)"),
    (rb"\x28\xb5\x2f\xfd", "zstd file (unpack it first)"),
    (rb"PK\x03\x04", "zip archive (unpack it first; a .docx or .epub has to be saved as text)"),
    (rb"%PDF-", "PDF (take the text out of it first)"),
    (rb"PAR1[\0-\x1f]", "parquet file under another name"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "file in UTF-32 (save it as UTF-8)"),
    (rb"\xff\xfe|\xfe\xff", "file in UTF-16 (save it as UTF-8)"),
)


def what_it_is_instead(path: Path) -> str | None:
    """A noun phrase for ``Tally.skip``; None for what may be text.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
    return next((said for signature, said in _SIGNATURES if re.match(signature, start)), None)
