"""Preview of the first training rows as text: trained parts, context, and borders of documents.

It uses the reading, hold-out, tokenizer, chat template and packing of phase 0 for a few rows and writes no file; only a
text so small that its hold-out would be empty is split finer by a run. A tokenizer takes seconds and hundreds
of megabytes to load, so a program with a screen asks a process: ``python -m engine.data.row_preview`` takes a request
as JSON on standard input and answers in JSON on standard output. Importing this module loads nothing of that.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.data.document import Document
from engine.data.sources import open_source
from engine.data.split import USUAL, stretches
from engine.errors import DataError, TinyDistillError
from engine.machine import safe_child

if TYPE_CHECKING:
    from engine.data.packing import PackedRow, TokenisedDocument
    from engine.data.tokenise import DocumentTokeniser

ROWS = 4
_MOST_SECONDS = 20.0
_MOST_DOCUMENTS = 5_000


@dataclass(frozen=True)
class RowRequest:
    """Settings that the rows depend on; names and meanings as in RunConfig."""

    teacher: str
    data: str
    text_field: str | None
    data_split: str
    sequence_length: int
    packing: bool
    holdout: float
    trust_remote_code: bool


@dataclass(frozen=True)
class ShownPiece:
    """Some text of a row.

    Attributes:
        kind: ``learned``, ``read`` (it stands before what is learned, and is no label), or ``border``: the text is the
            name of the document that begins here.
    """

    kind: Literal["learned", "read", "border"]
    text: str


@dataclass(frozen=True)
class ShownRow:
    """A row.

    Attributes:
        tokens: how many there are.
        learned: how many of them are labels.
        pieces: one behind the other, the whole row.
    """

    tokens: int
    learned: int
    pieces: tuple[ShownPiece, ...]


def first_rows(request: RowRequest, most: int = ROWS) -> list[ShownRow]:
    """The first rows of the training side; fewer where the text ends, or nothing more is found in some seconds.

    Raises:
        TinyDistillError: the text, the model or its tokenizer cannot be read.
    """
    # Here, not above: transformers takes seconds to import.
    from engine.data.tokenise import DocumentTokeniser
    from engine.model_files.spec import read_spec
    from engine.model_files.vocabulary import read_vocabulary
    from engine.models.load import load_tokenizer

    folder = read_spec(request.teacher, trust_remote_code=request.trust_remote_code).path
    eos_id = read_vocabulary(folder).eos_id
    tokenizer = load_tokenizer(folder, trust_remote_code=request.trust_remote_code)
    tokeniser = DocumentTokeniser(tokenizer, str(folder))
    rows = (
        ShownRow(len(row.tokens), int(row.scored.sum()), tuple(_pieces(tokenizer, row, names)))
        for row, names in _packed(request, tokeniser, eos_id)
        if row.scored.any()
    )
    found = list(itertools.islice(rows, most))
    if not found:
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in tokeniser.skipped.items())
        raise DataError(
            "There is no row to train on yet.",
            f"Left out: {skipped}." if skipped else "The text read so far is held out or too short.",
            "Give more text, or another --holdout.",
        )
    return found


def _packed(
    request: RowRequest, tokeniser: DocumentTokeniser, eos_id: int | None
) -> Iterator[tuple[PackedRow, list[str]]]:
    """Packed rows, each with the name of the document that each of its tokens is of."""
    from engine.data.packing import Packer

    packer = Packer(request.sequence_length, eos_id=eos_id, packing=request.packing, bos_id=tokeniser.bos_id)
    names: list[str] = []  # of the documents, in the order in which the packer is given them

    def named(row: PackedRow) -> tuple[PackedRow, list[str]]:
        which = row.document_begins().cumsum() - 1
        return row, [names[row.documents[place]] for place in which.tolist()]

    for name, document in _tokenised(request, tokeniser):
        names.append(name)
        yield from map(named, packer.add(document))
    yield from map(named, packer.finish())


def _tokenised(request: RowRequest, tokeniser: DocumentTokeniser) -> Iterator[tuple[str, TokenisedDocument]]:
    """Documents of the training side by name, until there are none or it has taken long."""
    source = open_source(request.data, text_field=request.text_field, split=request.data_split)
    until = time.monotonic() + _MOST_SECONDS
    for document in itertools.islice(source.documents(), _MOST_DOCUMENTS):
        if time.monotonic() > until:
            return
        for held_out, text in stretches(document, request.holdout, None if source.whole_documents else USUAL):
            if not held_out and (tokens := _ids(document, text, tokeniser)) is not None and tokens.ids:
                yield document.name, tokens


def _ids(document: Document, text: str, tokeniser: DocumentTokeniser) -> TokenisedDocument | None:
    if document.messages is not None:
        return tokeniser.conversation(document.messages, document.fields, document.notes)
    return tokeniser.texts([text])[0]


def _pieces(tokenizer: Any, row: PackedRow, names: list[str]) -> Iterator[ShownPiece]:
    """A row's tokens as text, those that belong together in one piece."""
    scored = row.scored.tolist()
    for first in row.document_begins().nonzero()[0].tolist():
        # never a label, but only for want of something before it
        scored[first] = scored[first + 1] if first + 1 < len(scored) else False
    before = ""
    for (name, is_learned), group in itertools.groupby(
        zip(row.tokens.tolist(), names, scored, strict=True), key=lambda each: each[1:]
    ):
        if name != before:
            yield ShownPiece("border", name)
        before = name
        text = tokenizer.decode([token for token, _, _ in group], clean_up_tokenization_spaces=False)
        yield ShownPiece("learned" if is_learned else "read", text)


def rows_from_json(text: str) -> list[ShownRow]:
    """The rows of an answer.

    Raises:
        ValueError: it is none.
    """
    try:
        return [
            ShownRow(row["tokens"], row["learned"], tuple(ShownPiece(**piece) for piece in row["pieces"]))
            for row in json.loads(text)
        ]
    except (TypeError, KeyError) as error:
        raise ValueError("no rows") from error


def main() -> int:
    """Answer the request on standard input; return the exit code. Errors go to standard error."""
    out = safe_child.answers()
    request = RowRequest(**json.load(sys.stdin))
    try:
        rows = first_rows(request)
    except TinyDistillError as error:
        sys.stderr.write(f"{error.paragraph()}\n")
        return error.exit_code
    with out:
        out.write(json.dumps([asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
