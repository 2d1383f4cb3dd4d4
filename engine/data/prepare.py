"""Phase 0: from text to tokens.h5. Reads, separates the hold-out by document, tokenises, packs and writes.

It makes one pass over the data in bounded memory, which ends once there are enough rows. If there is so little text
that the hold-out is empty, it reads the text again and splits it finer. Logs contain no text. Knows nothing of scoring
and training.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.channel.channel import PROGRESS_SECONDS, Channel
from engine.data import left_out
from engine.data.checks import check_models
from engine.data.document import Document
from engine.data.fields import PREFERENCE
from engine.data.holdout import smallest_fraction
from engine.data.left_out import LeftOut
from engine.data.packing import PackedRow, Packer, TokenisedDocument
from engine.data.sources import TextSource
from engine.data.split import FINE, USUAL, Cutting, pieces, stretches
from engine.data.tally import in_words, notes_in_words
from engine.data.tokenise import WEIGHT_0
from engine.data.tokens import Split, TokenFile, TokenFileWriter
from engine.errors import DataError
from engine.models.spec import ModelSpec
from engine.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from engine.data.tokenise import DocumentTokeniser

MOST_HOLDOUT_ROWS = 512
"""More would make each evaluation slow and hardly more certain."""

FEWEST_HOLDOUT_ROWS = 16
"""With --samples, reading goes on until this many rows are held out, or the data end."""

_ROUGH_BELOW_TOKENS = 2_000
_MOST_CUT = 0.05  # of the conversations; more are warned of
_BATCH_CHARACTERS = 2**19
_BATCH_TEXTS = 512

AS_ASKED = frozenset({WEIGHT_0, PREFERENCE})
"""Notes that the data's own format explains; they need no warning."""

READ_AS = "read-as"
"""Code of the event that says what was read in another way than its name promises."""

QUESTION_TOO_LONG = "conversation whose question alone fills a row"
NOTHING_TO_LEARN = "row without a token to learn"
NO_ROW = "text with a token that has no row in both embeddings"


@dataclass(frozen=True)
class PrepareResult:
    """Content of the token file.

    Attributes:
        documents, holdout_documents: stretches of text that were tokenised for each side.
        skipped: what was left out, reason to count.
        left_out: the same as text, with amounts; empty if nothing was left out.
        read_as: what was read in another way than its name promises, a sentence each.
        noted: what of the conversations that are used was changed or is not learned, reason to count.
        conversations: how many of the documents are conversations.
        cut: how many of these were longer than a row; labels behind its end are lost.
        plain_template: whether there are conversations and the tokenizer has no chat template, so that they are written
            plainly.
        sequence_length: most tokens in a row.
        vocab_size: V_eff.
        tokenizer_sha, chat_template_sha: of the vocabulary; the template's is empty unless the data are conversations.
        data_hash: of the training rows and their order.
        holdout_fraction: the share asked for, or the larger one that it took to hold out anything.
    """

    train_rows: int
    train_tokens: int
    train_scored: int
    holdout_rows: int
    holdout_tokens: int
    holdout_scored: int
    documents: int
    holdout_documents: int
    skipped: dict[str, int]
    left_out: str
    read_as: list[str]
    noted: dict[str, int]
    conversations: int
    cut: int
    plain_template: bool
    sequence_length: int
    vocab_size: int
    tokenizer_sha: str
    chat_template_sha: str
    data_hash: str
    holdout_data_hash: str
    holdout_fraction: float
    seconds: float


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of rows and hold-out.

    Attributes:
        sequence_length: most tokens in a row.
        samples: most rows to train on; None for all. The hold-out has the same share of it as it has of the documents,
            from FEWEST_HOLDOUT_ROWS to MOST_HOLDOUT_ROWS rows.
        holdout: share of the documents kept out of training.
        packing: whether a row holds several documents.
        trust_remote_code: whether a tokenizer may bring code.
        allow_losses: whether more than half of the documents may be left out.
    """

    sequence_length: int
    samples: int | None
    holdout: float
    packing: bool
    trust_remote_code: bool = False
    allow_losses: bool = False


def prepare(
    *,
    source: TextSource,
    teacher: ModelSpec,
    student: ModelSpec | None,
    settings: PrepareSettings,
    out: Path,
    channel: Channel,
) -> PrepareResult:
    """Make the token file.

    Args:
        source: where the text comes from.
        teacher: whose tokenizer is used.
        student: that has to have the same one; None when it is cut from the teacher.
        settings: of rows and hold-out.
        out: the file; it appears when it is whole.
        channel: receives the progress; its safe points are between two batches.

    Raises:
        DataError: there is no usable text, or too little to hold anything out.
        MostlyLeftOut: more than half of it would be left out, and allow_losses is not set.
        TokenizerMismatch, ModelError, SettingsError: the models cannot be used like this.
        DiskFull: no room; no file remains.
        Stopped: the user stopped the run; no file remains.
    """
    began = time.monotonic()
    vocabulary = check_models(teacher, student, settings.sequence_length)
    passes = _Passes(source, teacher, vocabulary, settings, channel)
    work = passes.write(out)
    lost = work.left_out(source)
    result = _result(out, source, work, lost, vocabulary, seconds=time.monotonic() - began)
    _tell(result, lost, settings, vocabulary, channel)
    return result


def wanted_holdout_rows(samples: int | None, holdout: float) -> int:
    """Most rows that are held out: the documents' share of the samples, within bounds."""
    if samples is None:
        return MOST_HOLDOUT_ROWS
    share = math.ceil(samples * holdout / (1 - holdout))
    return min(MOST_HOLDOUT_ROWS, max(FEWEST_HOLDOUT_ROWS, share))


class _Passes:
    """Passes over the data: one, and a second that cuts it finer if the first leaves a side without rows."""

    def __init__(
        self,
        source: TextSource,
        teacher: ModelSpec,
        vocabulary: Vocabulary,
        settings: PrepareSettings,
        channel: Channel,
    ) -> None:
        # Here, not above: transformers takes seconds to import, and the checks are quick to fail.
        from engine.models.faithful import check_ids
        from engine.models.load import load_tokenizer

        self._source = source
        self._teacher = teacher
        self._vocabulary = vocabulary
        self._settings = settings
        self._channel = channel
        self._tokenizer = load_tokenizer(
            teacher.path,
            trust_remote_code=settings.trust_remote_code,
            on_note=lambda note: channel.log("warning", note, "tokenizer-class"),
        )
        check_ids(self._tokenizer, vocabulary)

    def write(self, out: Path) -> _Pass:
        """Write the token file, and return the pass that did.

        Raises:
            DataError: no pass gives rows to both sides.
            MostlyLeftOut: more than half of the text would be left out, and the settings do not allow it.
        """
        cutting = None if self._source.whole_documents else USUAL
        work = self._pass(out, self._settings.holdout, cutting)
        if work.num_rows and not work.has_both and cutting is not None:
            work = self._pass(out, self._enough_for_one(work), FINE)
        if not work.has_both:
            raise _too_little(self._source, work)
        return work

    def _pass(self, out: Path, fraction: float, cutting: Cutting | None) -> _Pass:
        """Read the data once; the file appears if both sides have rows."""
        work = _Pass(self._tokeniser(), self._vocabulary, self._settings, fraction, cutting, self._channel)
        with TokenFileWriter(
            out,
            sequence_length=self._settings.sequence_length,
            vocab_size=self._vocabulary.size,
            pad_id=self._vocabulary.pad_id,
            eos_id=self._vocabulary.eos_id,
            attributes={
                "tokenizer": self._vocabulary.sha,
                "holdout": fraction,
                "packing": int(self._settings.packing),
            },
        ) as writer:
            work.run(self._source, writer)
            if work.has_both:
                self._refuse_losses(work)
                writer.commit()
        return work

    def _tokeniser(self) -> DocumentTokeniser:
        from engine.data.tokenise import DocumentTokeniser

        return DocumentTokeniser(self._tokenizer, str(self._teacher.path))

    def _refuse_losses(self, work: _Pass) -> None:
        lost = work.left_out(self._source)
        if lost.is_most and not self._settings.allow_losses:
            self._channel.log("info", "More than half of the text would not be used.", left_out.ASKS_FOR_LOSSES)
            raise lost.error()

    def _enough_for_one(self, work: _Pass) -> float:
        """The share of finely cut documents at which at least one is held out, the usable one whose hash is lowest.

        Raises:
            DataError: there is only one.
        """
        usable = _Usable(self._tokeniser(), self._settings.sequence_length)
        lowest: dict[str, float] = {}
        for document in self._source.documents():
            self._channel.safe_point()
            for piece in pieces(document, FINE):
                fraction = smallest_fraction(piece)
                if len(lowest) == 2 and fraction >= max(lowest.values()):
                    continue
                if not usable(document):
                    break
                lowest[piece] = fraction
                if len(lowest) > 2:
                    del lowest[max(lowest, key=lambda text: lowest[text])]
        if len(lowest) < 2:
            raise _too_little(self._source, work)
        return max(self._settings.holdout, min(lowest.values()))


class _Pass:
    """One pass over the data.

    Args:
        tokeniser: of documents and conversations.
        vocabulary: the models'.
        settings: of rows and hold-out.
        fraction: share of the documents that are held out.
        cutting: how long texts are cut into documents; None for texts that are documents.
        channel: receives the progress.
    """

    def __init__(
        self,
        tokeniser: DocumentTokeniser,
        vocabulary: Vocabulary,
        settings: PrepareSettings,
        fraction: float,
        cutting: Cutting | None,
        channel: Channel,
    ) -> None:
        wanted_holdout = wanted_holdout_rows(settings.samples, settings.holdout)
        self.fraction = fraction
        self._cutting = cutting
        self.tokeniser = tokeniser
        self._vocab_size = vocabulary.size
        self.limits: dict[Split, float] = {"train": settings.samples or math.inf, "holdout": wanted_holdout}
        self.rows: dict[Split, int] = {"train": 0, "holdout": 0}
        self.documents: dict[Split, int] = {"train": 0, "holdout": 0}
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # a conversation for each reason for which one was left out
        self.has_messages = False
        self._packers: dict[Split, Packer] = {
            split: Packer(
                settings.sequence_length,
                eos_id=vocabulary.eos_id,
                packing=settings.packing,
                bos_id=tokeniser.bos_id,
            )
            for split in self.rows
        }
        self._channel = channel
        self._began = time.monotonic()

    @property
    def num_rows(self) -> int:
        """Rows written so far."""
        return sum(self.rows.values())

    @property
    def has_both(self) -> bool:
        """Whether there are rows to train on and rows held out."""
        return all(self.rows.values())

    def run(self, source: TextSource, writer: TokenFileWriter) -> None:
        """Read until there is enough or no more."""
        for batch in self._batches(source):
            self._channel.safe_point()
            for split, document in self._tokenised(batch):
                if max(document.ids, default=0) >= self._vocab_size:
                    self.skipped[NO_ROW] += 1
                elif document.ids and not self._is_full(split):
                    self.documents[split] += 1
                    self._write(split, self._packers[split].add(document), writer)
            self._progress(source)
            if self._is_full("train") and self._is_full("holdout"):
                break
        for split in self.rows:
            self._write(split, self._packers[split].finish(), writer)
        lost = sum(packer.num_lost for packer in self._packers.values())
        if lost:
            self.skipped[QUESTION_TOO_LONG] = lost
        writer.keep("end_ids", " ".join(map(str, sorted(self.tokeniser.end_ids))))
        self._progress(source, at_end=True)

    def left_out(self, source: TextSource) -> LeftOut:
        """Return the data that was left out."""
        refused = Counter(self.tokeniser.skipped)
        for reason in (NO_ROW, QUESTION_TOO_LONG):
            if self.skipped[reason]:
                refused[reason] = self.skipped[reason]
        return left_out.left_out(
            source.tally,
            files=len(source.files),
            total_bytes=source.total_bytes,
            conversations=self.has_messages,
            refused=refused,
            examples=self.examples,
            rows={NOTHING_TO_LEARN: self.skipped[NOTHING_TO_LEARN]} if self.skipped[NOTHING_TO_LEARN] else None,
        )

    def _batches(self, source: TextSource) -> Iterator[list[tuple[Split, str | Document]]]:
        """Stretches of text and conversations, as many as are tokenised at a time; none for a side that is full."""
        batch: list[tuple[Split, str | Document]] = []
        characters = seen = 0
        for document in source.documents():
            for held_out, text in stretches(document, self.fraction, self._cutting):
                split: Split = "holdout" if held_out else "train"
                seen += len(text)
                if not self._is_full(split):
                    batch.append((split, text if document.messages is None else document))
                    characters += len(text)
            if characters > _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS or seen > 16 * _BATCH_CHARACTERS:
                yield batch
                batch, characters, seen = [], 0, 0
        yield batch

    def _tokenised(self, batch: list[tuple[Split, str | Document]]) -> Iterator[tuple[Split, TokenisedDocument]]:
        texts = self.tokeniser.texts([item for _, item in batch if isinstance(item, str)])
        plain = iter(texts)
        for split, item in batch:
            if isinstance(item, str):
                yield split, next(plain)
            else:
                self.has_messages = True
                before = dict(self.tokeniser.skipped)
                conversation = self.tokeniser.conversation(item.messages or (), item.fields, item.notes)
                if conversation is not None:
                    yield split, conversation
                    continue
                for reason, count in self.tokeniser.skipped.items():
                    if count > before.get(reason, 0):
                        self.examples.setdefault(reason, item.name)

    def _write(self, split: Split, rows: Iterator[PackedRow], writer: TokenFileWriter) -> None:
        for row in rows:
            if self._is_full(split):
                continue  # more than was asked for
            if not row.scored.any():
                self.skipped[NOTHING_TO_LEARN] += 1
                continue
            writer.add(split, row)
            self.rows[split] += 1

    @property
    def conversations(self) -> tuple[int, int]:
        """How many were packed, and how many of them were longer than a row."""
        packers = self._packers.values()
        return sum(packer.num_whole for packer in packers), sum(packer.num_cut for packer in packers)

    def _is_full(self, split: Split) -> bool:
        return self.rows[split] >= self.limits[split]

    def _progress(self, source: TextSource, *, at_end: bool = False) -> None:
        done = self.num_rows
        total = done if at_end else max(done, self._expected(source))
        rate = done / max(time.monotonic() - self._began, 1e-3)
        self._channel.progress(done, total, "rows", rate=rate, seconds=0 if at_end else PROGRESS_SECONDS)

    def _expected(self, source: TextSource) -> int:
        """Rows in the end, as far as can be told: by what share of the files' bytes is behind us."""
        share = source.bytes_read / source.total_bytes if source.total_bytes else 0.0
        done = self.num_rows
        by_bytes = done / share if share > 0 else math.inf
        by_limit = self.limits["train"] + self.limits["holdout"]
        expected = min(by_bytes, by_limit)
        return math.ceil(expected) if math.isfinite(expected) else done


class _Usable:
    """Whether a document gives a label: a template may refuse a conversation, or a question may fill the row."""

    def __init__(self, tokeniser: DocumentTokeniser, sequence_length: int) -> None:
        self._tokeniser = tokeniser
        self._length = sequence_length

    def __call__(self, document: Document) -> bool:
        if document.messages is None:
            return True
        found = self._tokeniser.conversation(document.messages, document.fields)
        return found is not None and any((found.trained or [])[1 : self._length])


def _too_little(source: TextSource, work: _Pass) -> DataError:
    lost = work.left_out(source).sentences()
    if work.has_messages and not work.num_rows:
        return DataError(
            f"No conversation of {source.data} can be trained on.",
            lost,
            "Use data with answers of the assistant in the form of the model's chat template.",
        )
    return DataError(
        f"There is too little text in {source.data}: it cannot be split into training and hold-out.",
        f"The student is evaluated on documents that it was not trained on. {lost}".strip(),
        "Give more text, or another --holdout.",
    )


def _result(
    out: Path, source: TextSource, work: _Pass, lost: LeftOut, vocabulary: Vocabulary, *, seconds: float
) -> PrepareResult:
    with TokenFile(out) as file:
        return PrepareResult(
            train_rows=file.num_rows("train"),
            train_tokens=file.num_tokens("train"),
            train_scored=file.num_scored("train"),
            holdout_rows=file.num_rows("holdout"),
            holdout_tokens=file.num_tokens("holdout"),
            holdout_scored=file.num_scored("holdout"),
            documents=work.documents["train"],
            holdout_documents=work.documents["holdout"],
            skipped={**source.skipped, **work.skipped, **work.tokeniser.skipped},
            left_out=lost.sentences(),
            read_as=notes_in_words(source.tally.notes),
            noted=dict(work.tokeniser.noted),
            conversations=work.conversations[0],
            cut=work.conversations[1],
            plain_template=work.has_messages and not work.tokeniser.has_template,
            sequence_length=file.sequence_length,
            vocab_size=vocabulary.size,
            tokenizer_sha=vocabulary.sha,
            chat_template_sha=vocabulary.chat_template_sha if work.has_messages else "",
            data_hash=file.data_hash("train"),
            holdout_data_hash=file.data_hash("holdout"),
            holdout_fraction=work.fraction,
            seconds=seconds,
        )


def _tell(
    result: PrepareResult, lost: LeftOut, settings: PrepareSettings, vocabulary: Vocabulary, channel: Channel
) -> None:
    channel.log(
        "info",
        f"{result.train_rows:,} rows to train on ({result.train_tokens:,} tokens of {_texts(result.documents)}), "
        f"{result.holdout_rows:,} held out ({result.holdout_tokens:,} tokens of {_texts(result.holdout_documents)}).",
    )
    if result.left_out:
        channel.log("warning" if lost.is_much else "info", result.left_out, left_out.CODE)
    _tell_of_tokenizer(result, vocabulary, channel)
    _tell_of_conversations(result, channel)
    if settings.samples is not None and result.train_rows < settings.samples:
        said = f"The text gives {result.train_rows:,} rows, not {settings.samples:,}."
        channel.log("warning", said, "fewer-rows")
    _tell_of_holdout(result, settings.holdout, channel)


def _tell_of_tokenizer(result: PrepareResult, vocabulary: Vocabulary, channel: Channel) -> None:
    for note in vocabulary.notes:
        channel.log("warning", note, "untaught-ids")
    for note in result.read_as:
        channel.log("warning", note, READ_AS)
    if vocabulary.eos_id is None:
        said = "The tokenizer has no token that ends a text: documents follow each other without one."
        channel.log("warning", said, "no-eos")


def _tell_of_conversations(result: PrepareResult, channel: Channel) -> None:
    if result.noted:
        level = "info" if set(result.noted) <= AS_ASKED else "warning"
        channel.log(level, f"Of the conversations: {in_words(result.noted)}.", "conversations-noted")
    if result.cut:
        channel.log(
            "warning" if result.cut > _MOST_CUT * result.conversations else "info",
            f"{result.cut:,} of {result.conversations:,} conversations are longer than a row of "
            f"{result.sequence_length:,} tokens and were cut there. Longer rows hold more of them: --sequence_length.",
            "cut-conversations",
        )
    if result.plain_template:
        channel.log(
            "warning",
            "The tokenizer has no chat template: conversations are written plainly, as User: and Assistant: with a "
            "blank line between them. For another form put a chat_template.jinja into the folders of both models.",
            "plain-template",
        )


def _tell_of_holdout(result: PrepareResult, holdout: float, channel: Channel) -> None:
    if result.holdout_fraction > holdout:
        channel.log(
            "warning",
            f"Of so little text a hold-out of {holdout:.3g} is not one document: it was cut into pieces of about "
            f"{FINE.piece_characters:,} characters, and {result.holdout_documents} of "
            f"{result.holdout_documents + result.documents} stretches are held out.",
            "fine-holdout",
        )
    if result.holdout_scored < _ROUGH_BELOW_TOKENS:
        channel.log(
            "warning",
            f"The hold-out has only {result.holdout_scored:,} tokens: figures measured with it are rough.",
            "small-holdout",
        )


def _texts(count: int) -> str:
    return f"{count:,} text" if count == 1 else f"{count:,} texts"
