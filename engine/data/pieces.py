"""Splitting of a long text at natural borders. The pieces in order are the whole text."""

from __future__ import annotations

_BORDERS = ("\n\n", "\n", " ")


def cut_text(text: str, piece_characters: int) -> list[str]:
    """Cut a text at paragraph borders, else at line borders, else between words, else anywhere.

    Args:
        text: any text.
        piece_characters: pieces have from half of this to one and a half times this; a shorter text is one piece.
    """
    pieces = []
    start = 0
    while len(text) - start > piece_characters + piece_characters // 2:
        end = _border(text, start + max(1, piece_characters // 2), start + piece_characters)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _border(text: str, low: int, high: int) -> int:
    for border in _BORDERS:
        found = text.rfind(border, low, high)
        if found >= 0:
            return found + len(border)
    return high
