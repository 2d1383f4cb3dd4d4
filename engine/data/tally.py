"""Tally of skipped data and progress of reading: every skipped part is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

MAX_RECORD_BYTES = 16 * 2**20
"""A line or value of JSON or a CSV row longer than this is passed over: it would be in memory as a whole."""

NO_ANSWER = "conversation without an answer"
NOT_LEARNED = "conversation of which every answer has the weight 0"


@dataclass
class Note:
    """A note about files that were read in another way than their names promise.

    Attributes:
        files: how many files.
        first: the first of them, with what is special about it.
    """

    files: int
    first: str


class Tally:
    """Counts of one reading.

    Attributes:
        skipped: everything that was passed over, reason to count.
        lost: the part of it that are documents: records, rows, lines. Not in it are files, and what is no text by its
            name (pictures, hidden files, another split).
        unread, unread_bytes: files with text in them that could not be read, reason to count, and their size.
        beside, beside_bytes: of them those that are known by their names alone (archives, PDFs), which are not counted
            among the files to read.
        examples: where each reason was met first: a file's name, and the line or record in it.
        notes: what was read in another way than its name promises, sentence to files.
        documents: that were read.
        bytes_read: bytes of files that are behind us, passed-over files included.
        file: the file that is being read, for examples.
        line: the line of it that is being read; 0 where lines mean nothing.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.unread_bytes = 0
        self.beside = 0
        self.beside_bytes = 0
        self.examples: dict[str, str] = {}
        self.notes: dict[str, Note] = {}
        self.documents = 0
        self.bytes_read = 0
        self.file = ""
        self.line = 0
        self._noted: dict[str, str] = {}  # the file for which each note was made last

    @property
    def here(self) -> str:
        """The place that is being read: ``line 5 of a.jsonl``."""
        return f"line {self.line} of {self.file}" if self.line else self.file

    def pass_over(self, reason: str, count: int = 1) -> None:
        """Count what is no text of this data set, or a line of a text; the reason is a noun phrase in the singular."""
        self.skipped[reason] += count
        if self.line:
            self._remember(reason, self.here)

    def skip(self, reason: str, count: int = 1, *, where: str = "") -> None:
        """Count documents that are lost.

        Args:
            reason: a noun phrase in the singular.
            count: how many.
            where: the first of them; the line or file that is being read when empty.
        """
        self.skipped[reason] += count
        self.lost[reason] += count
        self._remember(reason, where or self.here)

    def skip_file(self, reason: str, size_bytes: int, *, where: str = "") -> None:
        """Count a file, or the rest of one, that has text in it and could not be read."""
        self.skipped[reason] += 1
        self.unread[reason] += 1
        self.unread_bytes += size_bytes
        self._remember(reason, where or self.file)

    def skip_beside(self, reason: str, size_bytes: int, *, where: str) -> None:
        """Count a file whose text cannot be read as it stands, by its name: an archive, a PDF."""
        self.skip_file(reason, size_bytes, where=where)
        self.beside += 1
        self.beside_bytes += size_bytes

    def note(self, sentence: str, first: str) -> None:
        """Remember that a file was read in another way than its name promises."""
        if self._noted.get(sentence) != self.file or not self.file:
            self._noted[sentence] = self.file
            self.notes.setdefault(sentence, Note(0, first)).files += 1

    def add(self, other: Tally) -> None:
        """Copy all counts of another tally."""
        self.skipped += other.skipped
        self.lost += other.lost
        self.unread += other.unread
        self.unread_bytes += other.unread_bytes
        self.beside += other.beside
        self.beside_bytes += other.beside_bytes
        self.examples = {**other.examples, **self.examples}
        for sentence, note in other.notes.items():
            self.notes.setdefault(sentence, Note(0, note.first)).files += note.files
        self.documents += other.documents
        self.bytes_read += other.bytes_read

    def _remember(self, reason: str, where: str) -> None:
        if where:
            self.examples.setdefault(reason, where)


def in_words(skipped: Mapping[str, int]) -> str:
    """``3 × empty document, 1 × broken JSON``; nothing for nothing."""
    return ", ".join(
        f"{count:,} × {reason}" for reason, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    )


def notes_in_words(notes: dict[str, Note]) -> list[str]:
    """``Read as Windows-1252: rows.csv (30 of 101 lines are not UTF-8).``, one sentence for each note."""
    return [
        f"{sentence}: {note.first}." if note.files == 1 else f"{sentence}: {note.files:,} files, first {note.first}."
        for sentence, note in notes.items()
    ]
