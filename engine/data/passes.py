"""Passes over the data: they read text, separate the hold-out by document, tokenise, pack and write the rows.

A pass takes bounded memory and ends once there are enough rows. If there is so little text that a side has no rows, a
second pass splits the text finer.
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
from engine.data.chat_template import CONSTANT, PLAIN_TEMPLATE, REFUSED, TURN_LOST
from engine.data.document import Document
from engine.data.holdout import smallest_fraction, wanted_holdout_rows
from engine.data.left_out import LeftOut
from engine.data.packing import PackedRow, Packer, TokenisedDocument
from engine.data.sources import TextSource
from engine.data.split import FINE, USUAL, Cutting, pieces, stretches
from engine.data.tokens import Split, TokenFileWriter
from engine.errors import DataError
from engine.model_files.spec import ModelSpec
from engine.model_files.vocabulary import Vocabulary

if TYPE_CHECKING:
    from engine.data.tokenise import DocumentTokeniser

_BATCH_CHARACTERS = 2**19
_BATCH_TEXTS = 512

MOST_TEMPLATE_BYTES = 60_000  # HDF5 takes attributes below 64 KiB
QUESTION_TOO_LONG = "conversation whose question alone fills a row"
NOTHING_TO_LEARN = "row without a token to learn"
NO_ROW = "text with a token that has no row in both embeddings"


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of rows and hold-out.

    Attributes:
        sequence_length: most tokens in a row.
        samples: most rows to train on; None for all. The hold-out has the same share of it as it has of the documents,
            within the bounds of :mod:`engine.data.holdout`.
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


class Passes:
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

    def write(self, out: Path) -> Pass:
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

    def _pass(self, out: Path, fraction: float, cutting: Cutting | None) -> Pass:
        """Read the data once; the file appears if both sides have rows."""
        work = Pass(self._tokeniser(), self._vocabulary, self._settings, fraction, cutting, self._channel)
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

        return DocumentTokeniser(self._tokenizer, str(self._teacher.path), self._vocabulary.size)

    def _refuse_losses(self, work: Pass) -> None:
        lost = work.left_out(self._source)
        if lost.is_most and not self._settings.allow_losses:
            self._channel.log("info", "More than half of the text would not be used.", left_out.ASKS_FOR_LOSSES)
            raise lost.error()

    def _enough_for_one(self, work: Pass) -> float:
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
            raise _too_little(self._source, work, copies=sum(work.documents.values()) if lowest else 0)
        return max(self._settings.holdout, min(lowest.values()))


class Pass:
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
        self._template = vocabulary.chat_template
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
        template = self._template or PLAIN_TEMPLATE
        if self.has_messages and len(template.encode()) <= MOST_TEMPLATE_BYTES:
            writer.keep("chat_template", template)
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


def _is_refused(work: Pass) -> bool:
    """Return whether the template itself refused conversations, so that another one would take them."""
    return any(reason.startswith((REFUSED, TURN_LOST, CONSTANT)) for reason in work.tokeniser.skipped)


def _too_little(source: TextSource, work: Pass, *, copies: int = 0) -> DataError:
    if copies > 1:
        return DataError(
            f"The {copies:,} texts of {source.data} that can be used are one and the same.",
            "Equal texts are all trained on or all held out, and a student is evaluated on texts that it was not "
            f"trained on. {work.left_out(source).sentences()}".strip(),
            "Give different texts.",
        )
    lost = work.left_out(source).sentences()
    if work.has_messages and not work.num_rows:
        if 2 * work.skipped[QUESTION_TOO_LONG] > sum(work.left_out(source).lost.values()):
            return DataError(
                f"No conversation of {source.data} can be trained on.",
                lost,
                "Give longer rows: --sequence_length.",
            )
        return DataError(
            f"No conversation of {source.data} can be trained on.",
            lost,
            "Use data with answers of the assistant in the form of the model's chat template"
            + (", or put another chat_template.jinja into the folders of both models." if _is_refused(work) else "."),
        )
    return DataError(
        f"There is too little text in {source.data}: it cannot be split into training and hold-out.",
        f"The student is evaluated on documents that it was not trained on. {lost}".strip(),
        "Give more text, or another --holdout.",
    )
