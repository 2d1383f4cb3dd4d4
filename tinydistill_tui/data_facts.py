"""What a quick look at the data has shown, in words for the screen. Pure, no Textual."""

from __future__ import annotations

from engine.data.document import Document
from engine.data.survey import Survey
from engine.format import format_bytes, format_count, format_percent


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
    """The field, conversations and what is passed over, in a line; empty when there is nothing to say."""
    parts = []
    if found.text_field:
        parts.append(f"field {found.text_field}")
    if found.has_messages:
        parts.append("conversations: trained on the answers only")
    if found.skipped:
        parts.append("passed over: " + ", ".join(f"{count:,} {reason}" for reason, count in found.skipped.items()))
    if 0 < found.sampled < 0.995:
        parts.append(f"counted on {format_percent(found.sampled)} of the text")
    return " · ".join(parts)


def preview_text(document: Document) -> str:
    """The beginning of a document as it is read; turns of a conversation with who says them."""
    if document.messages:
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in document.messages)
    return document.text
