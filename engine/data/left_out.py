"""Messages about data that is left out: how much, why, and an example.

Unusable documents and unreadable files are losses. Files whose names show that they are not text of the data (pictures,
a licence, another split) are not losses, but are listed too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.data.tally import Tally, in_words
from engine.errors import DataError
from engine.format import format_bytes, format_percent

MUCH = 0.1
"""Of the documents, or of the files' bytes: more than this is a warning."""

MOST = 0.5
"""More than this is asked for, or needs --allow_losses."""

CODE = "skipped"
"""Of the ``log`` event that says it."""


ASKS_FOR_LOSSES = "mostly-left-out"
"""Of the ``log`` event before the error of a run that would leave out more than half of its text."""


class MostlyLeftOut(DataError):
    """More than half of the documents, or of the files' bytes, would not be used."""


@dataclass(frozen=True)
class LeftOut:
    """Amount of data that was left out, of a total.

    Attributes:
        noun: ``documents`` or ``conversations``.
        total: documents that were looked at.
        lost: of them, reason to count.
        files, bytes: that were looked at.
        unread: files that cannot be read, reason to count.
        unread_bytes: their size.
        not_text: what is no text of the data, reason to count.
        examples: where a reason was met.
        share_looked_at: of the data; 1 is all.
        rows: rows that teach nothing, reason to count.
    """

    noun: str
    total: int
    lost: Mapping[str, int]
    files: int
    bytes: int
    unread: Mapping[str, int]
    unread_bytes: int
    not_text: Mapping[str, int]
    examples: Mapping[str, str]
    share_looked_at: float = 1.0
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The larger one of the shares of documents and of bytes that are lost."""
        by_documents = sum(self.lost.values()) / max(1, self.total)
        return max(by_documents, min(1.0, self.unread_bytes / max(1, self.bytes)))

    @property
    def is_much(self) -> bool:
        """Return whether it is worth a warning."""
        return self.share > MUCH

    @property
    def is_most(self) -> bool:
        """Return whether it has to be asked for."""
        return self.share > MOST

    def sentences(self) -> str:
        """All of it in words; nothing where nothing was left out."""
        rows = f"Of the rows: {in_words(self.rows)}." if self.rows else ""
        return " ".join(filter(None, (self._documents(), self._files(), self._others(), rows)))

    def error(self) -> MostlyLeftOut:
        """Return the error of a run without --allow_losses."""
        return MostlyLeftOut(
            f"More than half of the text would not be used. {self.sentences()}",
            "The student would learn from the readable part only.",
            "Fix the data, or continue without these documents: --allow_losses.",
        )

    def _documents(self) -> str:
        if not self.lost:
            return ""
        lost = sum(self.lost.values())
        of = "" if self.share_looked_at > 0.995 else f" (of the {format_percent(self.share_looked_at)} looked at)"
        return f"{lost:,} of {self.total:,} {self.noun} left out{of}: {in_words(self.lost)}{self._example(self.lost)}."

    def _files(self) -> str:
        if not self.unread:
            return ""
        count = sum(self.unread.values())
        share = f", {format_percent(min(1.0, self.unread_bytes / self.bytes))} of the bytes" if self.bytes else ""
        size = f" ({format_bytes(self.unread_bytes)})" if self.unread_bytes else ""
        are = "is" if count == 1 else "are"
        return (
            f"{count:,} of {max(count, self.files):,} files{share}{size}, {are} not read: "
            f"{in_words(self.unread)}{self._example(self.unread)}."
        )

    def _others(self) -> str:
        return f"No text of the data: {in_words(self.not_text)}." if self.not_text else ""

    def _example(self, reasons: Mapping[str, int]) -> str:
        most = max(reasons, key=lambda reason: reasons[reason])
        found = self.examples.get(most) or next((self.examples[each] for each in reasons if each in self.examples), "")
        return f", for example {found}" if found else ""


def left_out(
    tally: Tally,
    *,
    files: int,
    total_bytes: int,
    conversations: bool,
    refused: Mapping[str, int] | None = None,
    examples: Mapping[str, str] | None = None,
    share_looked_at: float = 1.0,
    rows: Mapping[str, int] | None = None,
) -> LeftOut:
    """Data that a reader has left out.

    Args:
        tally: of the reading.
        files: that may hold text.
        total_bytes: of these files.
        conversations: whether the documents are conversations.
        refused: documents that were read and could not be used, reason to count.
        examples: where these were met.
        share_looked_at: of the data.
        rows: rows that teach nothing, reason to count.
    """
    lost = tally.lost + Counter(refused or {})
    unread_files = sum(tally.unread.values())
    return LeftOut(
        noun="conversations" if conversations else "documents",
        total=tally.documents + sum(tally.lost.values()),
        lost=lost,
        files=max(files + tally.beside, unread_files),
        bytes=max(total_bytes + tally.beside_bytes, tally.unread_bytes),
        unread=tally.unread,
        unread_bytes=tally.unread_bytes,
        not_text=tally.skipped - tally.lost - tally.unread,
        examples={**tally.examples, **(examples or {})},
        share_looked_at=share_looked_at,
        rows=rows or {},
    )
