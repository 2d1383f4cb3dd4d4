"""Texts about the survey of the data for the screen. Pure: no screens, no files."""

from __future__ import annotations

import re

from textual.content import Content

from engine.data.document import Document
from engine.data.row_preview import ShownRow
from engine.data.survey import Survey
from engine.format import format_bytes, format_count, format_percent

_LEARNED = ("»", "«")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def what_there_is(found: Survey) -> str:
    """Files, bytes and kinds in a line."""
    if not found.files:
        if found.documents is None:
            return "A data set on the Hugging Face hub: it is opened when the run starts."
        return f"{found.documents:,} documents, about {format_count(found.characters)} characters, already here"
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(found.kinds.items(), key=lambda each: -each[1])[:4])
    files = f"{found.files:,} file{'s' if found.files != 1 else ''}"
    documents = "" if found.documents is None else f" · {found.documents:,} documents"
    return f"{files} · {format_bytes(found.bytes)} · {kinds}{documents}"


def what_is_special(found: Survey) -> str:
    """The field, conversations and how much was looked at, in a line; empty when there is nothing to say."""
    parts = []
    if found.text_field:
        parts.append(f"field {found.text_field}")
    if found.has_messages:
        parts.append("conversations: trained on the answers only")
    if 0 < found.sampled < 0.995:
        parts.append(f"counted on {format_percent(found.sampled)} of the text")
    return " · ".join(parts)


def what_is_left_out(found: Survey) -> tuple[str, bool]:
    """List data that is left out or read in another way than its name promises, and whether it is much."""
    lost = found.left_out
    told = [lost.sentences() if lost is not None else "", *found.notes]
    return " ".join(filter(None, told)), lost is not None and lost.is_much


def preview_text(document: Document, note: str = "") -> Content:
    """The beginning of a document as it is read; turns of a conversation with who says them; a note goes before it."""
    text = document.text
    if document.messages:
        text = "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in document.messages)
    return Content.assemble((f"{note}\n\n" if note else "", "$text-warning"), printable(text))


def row_words(row: ShownRow) -> str:
    """How much of a row is learned, and how that is seen."""
    if _all_is_learned(row):
        return f"{row.tokens:,} tokens, all are learned"
    return f"{row.tokens:,} tokens, {row.learned:,} are learned: {_LEARNED[0]}these{_LEARNED[1]}"


def row_text(row: ShownRow, width: int) -> Content:
    """A row with the borders of its documents, and with marks around what is learned unless all of it is."""
    before, after = ("", "") if _all_is_learned(row) else _LEARNED
    parts: list[str | tuple[str, str]] = []
    for piece in row.pieces:
        text = printable(piece.text)
        if piece.kind == "border":
            line = f"── {text[-max(1, width - 8) :]} "
            parts.append((("\n" if parts else "") + line + "─" * max(2, width - len(line)) + "\n", "$text-quiet"))
        elif piece.kind == "learned":
            parts += [(before, "$text-accent"), text, (after, "$text-accent")]
        else:
            parts.append((text, "$text-quiet"))
    return Content.assemble(*parts)


def printable(text: str) -> str:
    """Text of other people's making, with nothing in it that a terminal would obey."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def _all_is_learned(row: ShownRow) -> bool:
    return all(piece.kind != "read" for piece in row.pieces)
