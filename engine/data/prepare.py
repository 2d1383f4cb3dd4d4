"""Phase 0: from text to tokens.h5. Reads, separates the hold-out by document, tokenises, packs and writes.

It makes one pass over the data in bounded memory, which ends once there are enough rows. If there is so little text
that the hold-out is empty, it reads the text again and splits it finer. Logs contain no text. Knows nothing of scoring
and training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.channel.channel import Channel
from engine.data import left_out
from engine.data.checks import check_models
from engine.data.conversation import PREFERENCE
from engine.data.holdout import ROUGH_BELOW_TOKENS
from engine.data.left_out import LeftOut
from engine.data.passes import Pass, Passes, PrepareSettings
from engine.data.sources import TextSource
from engine.data.split import FINE
from engine.data.tally import in_words, notes_in_words
from engine.data.tokenise import WEIGHT_0
from engine.data.tokens import TokenFile
from engine.model_files.spec import ModelSpec
from engine.model_files.vocabulary import Vocabulary, read_chat_template

if TYPE_CHECKING:
    pass

_MOST_CUT = 0.05  # of the conversations; more are warned of
AS_ASKED = frozenset({WEIGHT_0, PREFERENCE})
"""Notes that the data's own format explains; they need no warning."""

READ_AS = "read-as"
"""Code of the event that says what was read in another way than its name promises."""


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
    passes = Passes(source, teacher, vocabulary, settings, channel)
    work = passes.write(out)
    lost = work.left_out(source)
    result = _result(out, source, work, lost, vocabulary, seconds=time.monotonic() - began)
    _tell(result, lost, settings, vocabulary, channel)
    if student is not None and work.has_messages and student.path != teacher.path:
        _tell_of_templates(vocabulary, read_chat_template(student.path), channel)
    return result


def _result(
    out: Path, source: TextSource, work: Pass, lost: LeftOut, vocabulary: Vocabulary, *, seconds: float
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
            read_as=[*notes_in_words(source.tally.notes), *_of_texts(work.tokeniser.noted_texts)],
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


def _tell_of_templates(vocabulary: Vocabulary, students: str | None, channel: Channel) -> None:
    if students != vocabulary.chat_template and (students or vocabulary.chat_template):
        has = "has another chat template than the teacher" if students else "has no chat template"
        channel.log(
            "warning",
            f"The student {has}: it is trained in the teacher's form, and its folder gets the template of it.",
            "student-template",
        )


def _tell_of_holdout(result: PrepareResult, holdout: float, channel: Channel) -> None:
    if result.holdout_fraction > holdout:
        channel.log(
            "warning",
            f"The text is short: a hold-out of {holdout:.3g} is less than one document. The text was cut into pieces "
            f"of about {FINE.piece_characters:,} characters, and {result.holdout_documents} of "
            f"{result.holdout_documents + result.documents} are held out.",
            "fine-holdout",
        )
    if result.holdout_scored < ROUGH_BELOW_TOKENS:
        channel.log(
            "warning",
            f"The hold-out has only {result.holdout_scored:,} tokens: figures measured with it are rough.",
            "small-holdout",
        )


def _of_texts(noted: Mapping[str, int]) -> list[str]:
    return [f"Of the texts: {in_words(noted)}."] if noted else []


def _texts(count: int) -> str:
    return f"{count:,} text" if count == 1 else f"{count:,} texts"
