"""Sources of text: a file, a folder, a Hugging Face dataset or the interpreter's own documentation.

    source = open_source("notes/", text_field=None, split="train")
    for document in source.documents(): ...
    source.skipped                      # what was passed over and why

Documents are a stream in a fixed order; memory does not grow with the data. Unreadable data is skipped and counted; if
no text is left, that is an error. Knows nothing of tokens.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.beside import weightless
from engine.data.blocks import UnusableTurns
from engine.data.chosen_files import ACCEPTED, files_in, one_file
from engine.data.conversation import conversation_of, unread_fields
from engine.data.document import Document
from engine.data.fields import Unclear, all_fields, choose_form, is_conversation_as_text, without_header
from engine.data.file_kinds import ALIASES
from engine.data.folder import FoundFile, shown
from engine.data.form import Form
from engine.data.hub_dataset import dataset_rows, looks_like_dataset, require_datasets
from engine.data.known_sets import CHOICES
from engine.data.message_rows import are_message_rows, trees_of
from engine.data.mixed import form_of_mixed, other_form
from engine.data.packed import PACKED_SUFFIXES
from engine.data.pieces import cut_text
from engine.data.python_docs import python_documents
from engine.data.read_as import read_as
from engine.data.readers import MAX_DOCUMENT_CHARACTERS, READERS, Record, read_json
from engine.data.split_names import split_of_row, split_of_words
from engine.data.spoken import quoted
from engine.data.tally import Note, Tally, in_words
from engine.data.transcripts import reads_as_conversation
from engine.data.turns import told
from engine.errors import DataError, shown_value

PYTHON_DOCS = "python-docs"
"""The name of the built-in text."""

SHOWN_SUFFIXES = (*READERS, *ALIASES, *PACKED_SUFFIXES)
"""Suffixes of files that may hold text, for a user who looks for one."""

_FIRST_RECORDS = 32
_FIRST_CHARACTERS = 2**20
_SHOWN_FIELDS = 6
NO_WEIGHT = "row with the weight 0 in {} (to read it, give the field another name)"
OTHER_SPLIT = "row of the split {} (to read it, give its field 'split' another name)"
_OBJECT = "object among texts that stand alone"
_UNCLEAR = {
    "many": "file without clear text field",
    "none": "file without clear text field",
    "turns": "file whose records are single turns of conversations",
    "python": "file whose conversations are in Python's own notation (repr)",
    "header": "file whose first row does not name its columns",
    "structure": "file whose field holds JSON that is no conversation",
}


@dataclass(frozen=True)
class SourceSummary:
    """Survey of the data before reading.

    Attributes:
        files: that can be read; 0 where the text is not in files.
        bytes: of these files.
        kinds: files by suffix.
        text_field: the field that is read; None for plain text.
        has_messages: whether it holds conversations.
        skipped: what was passed over while looking, by reason.
    """

    files: int
    bytes: int
    kinds: dict[str, int]
    text_field: str | None
    has_messages: bool
    skipped: dict[str, int]


class TextSource:
    """A repeatable stream of documents.

    Attributes:
        data: as the user wrote it.
        whole_documents: whether the split into training and hold-out is by whole documents, however long: the demo's
            teacher was trained on one side of it.
        field: that is read of objects and rows; None before any were met.
        fields: of the first object or row that was met.
    """

    def __init__(self, data: str, text_field: str | None, split: str, files: list[FoundFile], found: Tally) -> None:
        self.data = data
        self.files = files
        self.whole_documents = data == PYTHON_DOCS
        self._text_field = text_field
        self._split = split
        self._found = found
        self._tally = found
        self.field: Form | None = None
        self.fields: tuple[str, ...] = ()

    @property
    def skipped(self) -> dict[str, int]:
        """Return the counts of skipped data so far, by reason."""
        return dict(self._tally.skipped)

    @property
    def found(self) -> Tally:
        """Return the data skipped during the search for files."""
        return self._found

    @property
    def tally(self) -> Tally:
        """All counts of the reading so far."""
        return self._tally

    @property
    def notes(self) -> dict[str, Note]:
        """Return the data read so far in another way than its name promises."""
        return dict(self._tally.notes)

    @property
    def total_bytes(self) -> int:
        """Of all files; 0 where the text is not in files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def bytes_read(self) -> int:
        """Bytes of files that are behind us."""
        return self._tally.bytes_read

    def documents(self) -> Iterator[Document]:
        """Every document, in an order that does not change.

        Raises:
            DataError: there is no usable text at all, or no field that holds it.
        """
        self._tally = tally = Tally()
        tally.add(self._found)
        if self.data == PYTHON_DOCS:
            yield from python_documents()
            return
        count = 0
        unclear: list[tuple[str, Unclear]] = []
        for document in self._all(tally, unclear):
            count += 1
            yield document
        if not count:
            raise self._nothing(tally, unclear)

    def file_documents(self, file: FoundFile, tally: Tally) -> Iterator[Document]:
        """The documents of one file; none if its text field is unclear."""
        return self._file_documents(file, tally, [])

    def describe(self) -> SourceSummary:
        """Survey the data from the folder's listing and the first documents.

        Raises:
            DataError: there is no usable text.
        """
        documents = self.documents()
        first = next(documents)
        documents.close()  # type: ignore[attr-defined]
        return SourceSummary(
            files=len(self.files),
            bytes=self.total_bytes,
            kinds=dict(Counter(file.suffix for file in self.files)),
            text_field=self.field.name if self.field else None,
            has_messages=first.messages is not None,
            skipped=dict(self._found.skipped),
        )

    def _all(self, tally: Tally, unclear: list[tuple[str, Unclear]]) -> Iterator[Document]:
        if not self.files:
            tally.file = self.data
            rows = dataset_rows(self.data, self._split)
            yield from self._documents_of(self.data, rows, tally, unclear)
        for file in self.files:
            try:
                yield from self._file_documents(file, tally, unclear)
            except OSError as error:
                if len(self.files) == 1:
                    raise DataError(
                        f"{shown(file.path)} cannot be read ({error.strerror or error}).", "", "Choose other --data."
                    ) from error
                tally.skip_file("file that cannot be read", file.size_bytes, where=file.name)

    def _file_documents(self, file: FoundFile, tally: Tally, unclear: list[tuple[str, Unclear]]) -> Iterator[Document]:
        tally.file, tally.line = file.name, 0
        behind = tally.bytes_read + file.size_bytes
        suffix = read_as(file, tally)
        if suffix is not None:
            records = (
                read_json(file.path, tally, self._split) if suffix == ".json" else READERS[suffix](file.path, tally)
            )
            is_table = suffix in (".csv", ".tsv")
            yield from self._documents_of(file.name, records, tally, unclear, file.size_bytes, is_table=is_table)
        tally.bytes_read = behind

    def _documents_of(
        self,
        name: str,
        records: Iterable[Record],
        tally: Tally,
        unclear: list[tuple[str, Unclear]],
        size_bytes: int = 0,
        *,
        is_table: bool = False,
    ) -> Iterator[Document]:
        """The documents of one stream of records, all of them read from the same field."""
        stream = iter(records)
        first = list(_first(stream))
        if self._text_field is None and are_message_rows([record for record in first if isinstance(record, dict)]):
            stream = trees_of(itertools.chain(first, stream), tally)
            first = list(_first(stream))
        rows = [record for record in first if isinstance(record, dict)]
        form = choose_form(rows, self._text_field) if rows else None
        if is_table and self._text_field is None:
            form = without_header(form, rows) or form
        if form is not None and self._text_field is None:
            form = form_of_mixed(rows, form)
        if isinstance(form, Unclear):
            unclear.append((name, form))
            reason = _UNCLEAR.get(form.why) or f"file without the field {self._text_field!r}"
            tally.skip_file(reason, size_bytes, where=name)
            form = None
        if form is not None:
            is_mixed = self._text_field is None
            _note_unread([row for row in rows if not (is_mixed and other_form(row, form))], form, name, tally)
            if form.kind in CHOICES:
                tally.note(CHOICES[form.kind], name)
            if not form.is_chat:
                _note_conversations([str(record.get(form.name) or "") for record in rows], name, tally)
        elif first and not rows:
            _note_conversations([str(record) for record in first], name, tally)
        # A file that is named for a split, and a data set of which one was chosen, have no rows of others.
        has_splits = bool(self.files) and split_of_words(name) is None
        self.field = self.field or form
        self.fields = self.fields or tuple(all_fields(rows))
        for number, record in enumerate(itertools.chain(first, stream), start=1):
            if isinstance(record, str):
                yield from _checked(Document(f"{name} {number}" if number > 1 else name, record), tally)
            elif not rows:
                tally.skip(_OBJECT, where=f"{name} {number}")
            elif form is not None:
                why_not = self._not_to_learn(record, has_splits=has_splits)
                if why_not is not None:
                    tally.pass_over(why_not)
                    continue
                other = other_form(record, form) if self._text_field is None else None
                if other is not None:
                    tally.note(
                        f"Conversations of another form among the records of {quoted(form.name)}, read too", name
                    )
                yield from _document(f"{name} {number}", record, other or form, tally)
            elif number > len(first):
                return

    def _not_to_learn(self, record: dict[str, Any], *, has_splits: bool) -> str | None:
        """Why a record is left out, where it says so itself; None for all others."""
        of = split_of_row(record, self._split) if has_splits else None
        weight = weightless(record)
        if of is not None:
            return OTHER_SPLIT.format(quoted(of))
        return None if weight is None else NO_WEIGHT.format(quoted(weight))

    def _nothing(self, tally: Tally, unclear: Sequence[tuple[str, Unclear]]) -> DataError:
        where = shown(self.data)
        if unclear:
            name, what = unclear[0]
            return DataError(*what.told(where, name, self._text_field))
        passed_over = in_words(tally.skipped)
        return DataError(
            f"There is no usable text in {where}.",
            f"Passed over: {passed_over}." if passed_over else "It is empty.",
            f"Give a file or folder with text ({ACCEPTED}).",
        )


def open_source(data: str, *, text_field: str | None, split: str) -> TextSource:
    """Find the text that ``--data`` names.

    Args:
        data: a file, a folder, ``python-docs`` or a Hugging Face dataset id (``name``, ``owner/name`` or
            ``owner/name:configuration``).
        text_field: the field that holds the text; detected when None.
        split: of a data set, on the hub or in a folder.

    Raises:
        DataError: there is no such file, or nothing in it that can be read.
    """
    tally = Tally()
    if data == PYTHON_DOCS:
        return TextSource(data, text_field, split, [], tally)
    try:
        path = Path(data).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
        exists = os.path.lexists(path)
    except (OSError, ValueError, RuntimeError):  # an invalid file name, or the home of an unknown user
        is_folder = is_file = exists = False
    if is_folder:
        return TextSource(data, text_field, split, files_in(path, split, tally), tally)
    if is_file:
        return TextSource(data, text_field, split, [one_file(path, split)], tally)
    if exists:
        raise DataError(f"{shown(path)} is neither a file nor a folder.", "", f"Give {ACCEPTED}.")
    if looks_like_dataset(data):
        require_datasets(data)
        return TextSource(data, text_field, split, [], tally)
    raise DataError(
        f"There is no file or folder {shown_value(shown(data))}.",
        "",
        f"Give a file or folder with {ACCEPTED}, or {PYTHON_DOCS}.",
    )


def _note_unread(rows: list[dict[str, Any]], form: Form, name: str, tally: Tally) -> None:
    fields = unread_fields(rows, form)
    if fields:
        more = f" and {len(fields) - _SHOWN_FIELDS} others" if len(fields) > _SHOWN_FIELDS else ""
        shown_fields = ", ".join(map(quoted, fields[:_SHOWN_FIELDS])) + more
        tally.note(f"Read from {quoted(form.name)} alone, not from {shown_fields}", name)


def _note_conversations(texts: list[str], name: str, tally: Tally) -> None:
    """Tell of texts that are conversations: a text is learned as a whole, with what the user says."""
    if reads_as_conversation(texts):
        tally.note(
            "Conversations that are written as texts, learned as they stand, the user's words too (as a list under "
            "'messages' only the answers are)",
            name,
        )


def _first(stream: Iterator[Record]) -> Iterator[Record]:
    """The records by which the field is chosen: some dozens, fewer where they are long."""
    characters = 0
    for record in itertools.islice(stream, _FIRST_RECORDS):
        yield record
        characters += len(record) if isinstance(record, str) else sum(map(_length, record.values()))
        if characters > _FIRST_CHARACTERS:
            return


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list) else 0


def _document(name: str, record: dict[str, Any], form: Form, tally: Tally) -> Iterator[Document]:
    if form.is_chat:
        try:
            conversation = conversation_of(record, form)
        except UnusableTurns as reason:
            tally.skip(str(reason), where=name)
            return
        document = Document(
            name, told(conversation.messages), conversation.messages, conversation.fields, conversation.notes
        )
        yield from _checked(document, tally)
        return
    value = record.get(form.name)
    if value is None:
        tally.skip(f"record without {form.name!r}", where=name)
    elif not isinstance(value, str):
        tally.skip(f"record whose {form.name!r} is no text", where=name)
    elif is_conversation_as_text(value):
        tally.skip(f"record whose {form.name!r} is a conversation written as text", where=name)
    else:
        yield from _checked(Document(name, value), tally)


def _checked(document: Document, tally: Tally) -> Iterator[Document]:
    """The document, cut where it is very long; nothing when the text is none."""
    name, text = document.name, document.text
    if not text or text.isspace():
        tally.skip("empty document", where=name)
    elif "\0" in text:
        tally.skip("document with NUL characters", where=name)
    elif not _is_unicode(text):
        tally.skip("document that is not valid Unicode", where=name)
    else:
        tally.documents += 1
        if document.messages is not None or len(text) <= MAX_DOCUMENT_CHARACTERS:
            yield document
            return
        for number, piece in enumerate(cut_text(text, MAX_DOCUMENT_CHARACTERS), start=1):
            yield Document(f"{name} part {number}", piece)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: bytes that were not UTF-8, or half of an escaped character
        return False
    return True
