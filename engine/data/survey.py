"""Quick survey of the data: its amount, its kinds, and its first documents.

It counts files and bytes exactly, and reads a sample of the files (some megabytes, evenly spaced) to estimate documents
and tokens, without tokenizer, torch or network. The wizard calls it when the path changes, the planner for its plan.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.data.document import Document
from engine.data.folder import FoundFile
from engine.data.left_out import LeftOut, left_out
from engine.data.python_docs import python_documents
from engine.data.sources import PYTHON_DOCS, TextSource, open_source
from engine.data.tally import NO_ANSWER, NOT_LEARNED, Tally, notes_in_words
from engine.data.turns import Messages, is_empty, is_learned

CHARACTERS_PER_TOKEN = 4.0
"""Of English in the vocabularies of today's models; code and other languages have fewer."""

# Size of the built-in text: within some per cent in every Python from 3.11 on, and reading it takes
# two seconds (CPython 3.11: 963 documents, 2,226,607 characters).
_PYTHON_DOCS_DOCUMENTS = 960
_PYTHON_DOCS_CHARACTERS = 2_200_000

_MOST_FILES = 200
_MOST_CHARACTERS = 4_000_000
_MOST_SECONDS = 1.5
_FEWEST_FILES = 10  # that the characters are shared among, where there are as many
_PREVIEW_CHARACTERS = 2_000
_MOST_CONVERSATIONS = 256
_MOST_CONVERSATION_CHARACTERS = 1_000_000

# Tokens that a chat template writes around a turn: the speaker, the begin and the end. Once the models are
# known it is counted with their template and tokenizer (engine.data.chat_lengths).
_TOKENS_PER_TURN = 5


@dataclass(frozen=True)
class Survey:
    """Result of a survey.

    Attributes:
        files: that can be read; 0 where the text is not in files.
        bytes: of these files.
        kinds: files by suffix.
        skipped: what is passed over, reason to count; of the folder all, within files those of the sample.
        text_field: the field that is read; None for plain text.
        fields: every field of the first records, to choose another.
        has_messages: whether conversations were found.
        documents, characters, estimated_tokens: of all; None if only reading would show them (a dataset on the hub).
        sampled: share of the bytes that was read to estimate this; 1 is all.
        preview: the first documents, each cut to its beginning.
        conversations: some of them, whole, to be counted with a chat template.
        cancelled: whether it ended early.
        left_out: what is left out of what was looked at; None where nothing was.
        notes: what was read in another way than its name promises, a sentence each.
    """

    files: int
    bytes: int
    kinds: dict[str, int]
    skipped: dict[str, int]
    text_field: str | None
    fields: tuple[str, ...]
    has_messages: bool
    documents: int | None
    characters: int | None
    estimated_tokens: int | None
    sampled: float
    preview: tuple[Document, ...]
    cancelled: bool
    conversations: tuple[Document, ...] = ()
    left_out: LeftOut | None = None
    notes: tuple[str, ...] = ()


def survey(
    data: str,
    *,
    text_field: str | None = None,
    split: str = "train",
    characters_per_token: float = CHARACTERS_PER_TOKEN,
    previews: int = 8,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda looked_at, files: None,
) -> Survey:
    """Survey the data in a second or two.

    Args:
        data: as for ``open_source``.
        text_field: likewise.
        split: likewise.
        characters_per_token: of the tokenizer that will be used, where it is known.
        previews: documents of which the beginning is wanted. With 0 the built-in text is not read, which takes seconds.
        cancelled: checked between documents; True ends the survey with the results so far.
        on_progress: called after each file with the number of files read and of all files.

    Raises:
        DataError: there is no such data, nothing in it can be read, or the text field is wrong.
    """
    source = open_source(data, text_field=text_field, split=split)
    if data == PYTHON_DOCS:
        return _of_python_docs(characters_per_token, previews)
    if not source.files:
        return _of_hub_dataset()
    sample = _Sample(_MOST_CHARACTERS // min(len(source.files), _FEWEST_FILES), previews)
    for number, file in enumerate(_spread(source.files)):
        if sample.is_enough or cancelled():
            break
        sample.take(source, file, cancelled)
        on_progress(number + 1, len(source.files))
    if not sample.documents and not cancelled():
        source.describe()  # reads on from the first file, and raises when there is no text at all
    return _estimated(source, sample, characters_per_token, cancelled=cancelled())


def _estimated(source: TextSource, sample: _Sample, characters_per_token: float, *, cancelled: bool) -> Survey:
    """The survey of all files, from a sample of them."""
    share = sample.covered_bytes / source.total_bytes if source.total_bytes else 1.0
    tally = Tally()
    tally.add(source.found)
    tally.add(sample.tally)
    found = Survey(
        files=len(source.files),
        bytes=source.total_bytes,
        kinds=dict(Counter(file.suffix for file in source.files)),
        skipped=dict(tally.skipped),
        text_field=source.field.name if source.field else None,
        fields=source.fields,
        has_messages=sample.has_messages,
        documents=None,
        characters=None,
        estimated_tokens=None,
        sampled=min(1.0, share),
        preview=tuple(sample.preview),
        cancelled=cancelled,
        conversations=tuple(sample.conversations),
        left_out=left_out(
            tally,
            files=len(source.files),
            total_bytes=source.total_bytes,
            conversations=sample.has_messages,
            share_looked_at=min(1.0, share),
        ),
        notes=tuple(notes_in_words(tally.notes)),
    )
    if not sample.covered_bytes:
        return found
    characters = round(sample.characters / share)
    tokens = round(characters / characters_per_token + _TOKENS_PER_TURN * sample.turns / share)
    documents = round(sample.documents / share)
    return replace(found, documents=documents, characters=characters, estimated_tokens=tokens)


def _of_python_docs(characters_per_token: float, previews: int) -> Survey:
    preview = tuple(map(_beginning, itertools.islice(python_documents(), previews))) if previews else ()
    return replace(
        _of_hub_dataset(),
        documents=_PYTHON_DOCS_DOCUMENTS,
        characters=_PYTHON_DOCS_CHARACTERS,
        estimated_tokens=round(_PYTHON_DOCS_CHARACTERS / characters_per_token),
        preview=preview,
    )


def _beginning(document: Document) -> Document:
    return Document(document.name, document.text[:_PREVIEW_CHARACTERS], document.messages)


def _of_hub_dataset() -> Survey:
    """Nothing is known of a dataset on the hub before it is opened, and a look does not use the network."""
    return Survey(
        files=0,
        bytes=0,
        kinds={},
        skipped={},
        text_field=None,
        fields=(),
        has_messages=False,
        documents=None,
        characters=None,
        estimated_tokens=None,
        sampled=0.0,
        preview=(),
        cancelled=False,
    )


@dataclass
class _Sample:
    """Result of reading some of the files."""

    characters_per_file: int
    previews: int
    documents: int = 0
    characters: int = 0
    covered_bytes: float = 0.0
    turns: int = 0
    has_messages: bool = False
    tally: Tally = field(default_factory=Tally)
    preview: list[Document] = field(default_factory=list)
    conversations: list[Document] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def is_enough(self) -> bool:
        late = time.monotonic() - self.began > _MOST_SECONDS
        return self.documents > 0 and (late or self.characters > _MOST_CHARACTERS)

    def take(self, source: TextSource, file: FoundFile, cancelled: Callable[[], bool]) -> None:
        """Read one file, or the beginning of it."""
        tally = Tally()
        characters = 0
        whole = True
        try:
            for document in source.file_documents(file, tally):
                self.documents += 1
                characters += len(document.text)
                if document.messages is not None:
                    self._conversation(document, characters)
                reason = _teaches_nothing(document.messages) if document.messages else None
                if reason is not None:
                    tally.documents -= 1
                    tally.skip(reason, where=document.name)
                if len(self.preview) < self.previews:
                    self.preview.append(_beginning(document))
                if characters > self.characters_per_file or cancelled():
                    whole = False
                    break
        except OSError:
            tally.skip_file("file that cannot be read", file.size_bytes, where=file.name)
        self.characters += characters
        self.tally.add(tally)
        self.covered_bytes += file.size_bytes if whole else min(file.size_bytes, tally.bytes_read)

    def _conversation(self, document: Document, characters: int) -> None:
        self.has_messages = True
        self.turns += len(document.messages or ())
        within = self.characters + characters <= _MOST_CONVERSATION_CHARACTERS
        if len(self.conversations) < _MOST_CONVERSATIONS and (within or not self.conversations):
            self.conversations.append(document)


def _spread(files: list[FoundFile]) -> list[FoundFile]:
    """Files evenly spread over the list, the first one first."""
    step = max(1.0, len(files) / _MOST_FILES)
    return [files[int(number * step)] for number in range(min(len(files), _MOST_FILES))]


def _teaches_nothing(messages: Messages) -> str | None:
    """Why nothing of a conversation is learned, as far as its turns tell; None where they have an answer."""
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    learned = list(filter(is_learned, answers))
    if answers and not learned:
        return NOT_LEARNED
    return NO_ANSWER if all(map(is_empty, learned)) else None
