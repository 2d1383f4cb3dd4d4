"""Marks: the one-cell signs that stand beside a word, bars of blocks, and the same in plain ASCII.

A mark never stands alone: colour-blind eyes, NO_COLOR and screen dumps have the word next to it. Everything is drawn
in Unicode; where ASCII is asked for, :func:`plain` translates cell for cell on the way to the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

MARKS = {
    "good": "✓",
    "look": "!",
    "wrong": "✗",
    "live": "●",
    "stopped": "■",
    "waiting": "○",
    "yours": "✎",
    "lost": "?",
}

# The style of a mark and of the word beside it: a colour of the theme, so that it stays readable in each of them.
MARK_STYLES = {
    "good": "$text-success",
    "look": "$text-warning",
    "wrong": "$text-error",
    "live": "$text-primary",
    "stopped": "$text-warning",
    "waiting": "$text-quiet",
    "yours": "$text-accent",
    "lost": "$text-error",
}

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SPARKS = "▁▂▃▄▅▆▇█"
_EMPTY, _LIMIT = "·", "│"

_LIKENESSES = (
    ("✓", "+"), ("✗", "x"), ("●⬤•", "*"), ("■█▉▊▋▇▆", "#"), ("○⭘", "o"), ("✎", "e"), ("❯▶→⇥»", ">"), ("◀←⏎↵«", "<"),
    ("↑▲", "^"), ("↓▼", "v"), ("·┄┈", "."), ("…", "~"), ("─━╌╍—–▔▁", "-"), ("│┃┆┊▎▏▕▍▌▐", "|"), ("▂▃▄▅", "="),
    ("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫╋", "+"), ("×", "x"), ("±", "~"), ("≤", "<"), ("≥", ">"), ("’‘", "'"), ("“”▀", '"'),
)  # fmt: skip
_PLAIN = {ord(sign): likeness for signs, likeness in _LIKENESSES for sign in signs} | {0xA0: " "}


def plain(text: str) -> str:
    """The text in ASCII alone, as wide as it was; what has no likeness becomes a question mark for each cell."""
    if text.isascii():
        return text
    return "".join(sign if sign.isascii() else _plain_sign(sign) for sign in text.translate(_PLAIN))


def _plain_sign(sign: str) -> str:
    code = ord(sign)
    if 0x2800 <= code <= 0x28FF:  # braille: the upper half of the dots, the lower half, or both
        upper, lower = code & 0b00011011, code & 0b11100100
        return ":" if upper and lower else "'" if upper else "." if lower else " "
    return "?" * cell_len(sign)


def bar(share: float, width: int, *, limit: float | None = None) -> str:
    """A bar of ``width`` cells, filled to ``share`` of them, with a mark at ``limit``; both are shares of 1."""
    share = min(1.0, max(0.0, share))
    whole, part = divmod(round(share * width * 8), 8)
    cells = list("█" * whole + (_EIGHTHS[part] if part else ""))
    cells += _EMPTY * (width - len(cells))
    if limit is not None and 0 <= limit <= 1 and width:
        cells[min(width - 1, int(limit * width))] = _LIMIT
    return "".join(cells)


def spark(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as a line of small bars."""
    shown = values[-width:] if width > 0 else []
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round((value - low) / (high - low) * top) if high > low else 0] for value in shown)
