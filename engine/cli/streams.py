"""Standard output and error with limited encodings or a closed reader.

A log that is ASCII, ``LC_ALL=C`` and ``PYTHONIOENCODING=latin-1`` get the nearest plain sign instead of an error.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

_HANDLER = "tinydistill-plain"
_PLAIN = {
    "±": "+/-", "·": "-", "…": "...", "–": "-", "—": "-", "×": "x", "→": "->", "←": "<-", "≥": ">=", "≤": "<=",
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "•": "*", "°": " deg", "µ": "u", "²": "^2", "³": "^3",
    "━": "-", "─": "-", "│": "|", "╸": "-", "╺": "-", "█": "#", "▌": "#", "░": ".", "✓": "ok", "✗": "x",
    "\N{NO-BREAK SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ",
}  # fmt: skip


def make_fit() -> None:
    """Let standard output and error take any text, whatever their encoding is; closed streams get the null device."""
    _open_closed()
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=_HANDLER)


def _open_closed() -> None:
    """Open the null device in place of standard streams that were closed (``<&-``): Python has None there.

    Their numbers are taken first, or a file that is opened later would get the text that is written to them.
    """
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) < 3:
            os.set_inheritable(number, True)
        os.close(number)
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 it lives with the process


def flush() -> None:
    """Flush the output.

    Raises:
        BrokenPipeError: the reader has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def silence() -> None:
    """Discard all further output: its reader is gone, and the interpreter would fail at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in text), error.end
