"""Which token ids a tokenizer can produce, and what they mean: read from its files, without loading it.

Records name token ids, so teacher and student must mean the same by each id. The name of a tokenizer proves nothing;
its vocabulary, merges and added tokens do. ``size`` is V_eff: the ids below it can occur, rows of an embedding past it
are padding and take no part in any softmax. Knows nothing of torch or transformers, and does not tokenise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ModelError, TokenizerMismatch
from engine.models.headers import read_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's files say.

    Attributes:
        size: V_eff, the largest id that can occur plus one.
        sha: of ids, tokens, merges and added tokens; equal when records of one can be read by the other.
        eos_id: ends a text; None where there is no such token.
        pad_id: fills short rows: the padding token, else the end of text, else 0.
        bos_id: begins a text; None where there is no such token.
        chat_template: Jinja source that turns messages into text; None where there is none.
        chat_template_sha: empty where there is none.
        tokens: the token of each id.
    """

    folder: Path
    size: int
    sha: str
    eos_id: int | None
    pad_id: int
    bos_id: int | None
    chat_template: str | None
    chat_template_sha: str
    tokens: dict[int, str] = field(repr=False)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer in a model's folder.

    Raises:
        ModelError: there is none, none that can be read without running code, or a damaged one.
    """
    try:
        return _read(folder)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"The tokenizer in {folder} is damaged ({type(error).__name__}).",
            "Its files do not have the form that a tokenizer's have.",
            "Download or save the tokenizer again.",
        ) from error


def _read(folder: Path) -> Vocabulary:
    settings = _optional_json(folder / "tokenizer_config.json")
    ids, merges, added = _tables(folder)
    # Added tokens may stand in the settings alone; a special token that is nowhere else gets the next free id. This is
    # what AutoTokenizer does when it loads the folder.
    for text_id, token in (settings.get("added_tokens_decoder") or {}).items():
        added.setdefault(_content(token), int(text_id))
    ids = {**ids, **added}
    for name in _SPECIAL:
        token = _content(settings.get(name))
        if token and token not in ids:
            ids[token] = added[token] = max(ids.values(), default=-1) + 1
    if not ids:
        raise ModelError(f"The tokenizer in {folder} has no tokens.", "", "Download or save the tokenizer again.")
    if not all(type(number) is int and number >= 0 for number in ids.values()):
        raise ValueError("an id is a whole number from 0 up")

    config = _optional_json(folder / "config.json")
    eos_id = _special_id(ids, settings, config, "eos")
    pad_id = _special_id(ids, settings, config, "pad")
    template = _chat_template(folder, settings)
    by_id = sorted((number, token) for token, number in ids.items())
    told = json.dumps([by_id, merges, sorted(added.items())], ensure_ascii=False)
    return Vocabulary(
        folder=folder,
        size=by_id[-1][0] + 1,
        sha=_sha(told),
        eos_id=eos_id,
        pad_id=next((number for number in (pad_id, eos_id) if number is not None), 0),
        bos_id=_special_id(ids, settings, config, "bos"),
        chat_template=template,
        chat_template_sha=_sha(template) if template else "",
        tokens={number: token for number, token in reversed(by_id)},
    )


def compare(teacher: Vocabulary, student: Vocabulary) -> None:
    """Make sure that both mean the same by every token id.

    Raises:
        TokenizerMismatch: they do not; says how large each is and which id differs first.
    """
    if teacher.sha == student.sha:
        return
    differing = [
        number
        for number in sorted(teacher.tokens.keys() | student.tokens.keys())
        if teacher.tokens.get(number) != student.tokens.get(number)
    ]
    if differing:
        first = differing[0]
        how = (
            f"{len(differing):,} ids differ, the first is {first}: {_quoted(teacher, first)} for the teacher, "
            f"{_quoted(student, first)} for the student."
        )
    else:
        how = "The tokens are the same, but not the rules that put them together (merges, added tokens)."
    raise TokenizerMismatch(
        f"Teacher and student have different tokenizers ({teacher.size:,} ids in {teacher.folder}, "
        f"{student.size:,} in {student.folder}). {how}",
        "The teacher's records name token ids: the student would learn the wrong words.",
        "Choose a student with the teacher's tokenizer, or --student from-teacher.",
    )


def _tables(folder: Path) -> tuple[dict[str, int], list[str], dict[str, int]]:
    """Ids by token, merges in order, and ids by added token."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json(folder / "tokenizer.json")
        model = tokenizer.get("model") or {}
        vocabulary = model.get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: pieces with scores, the place is the id
            vocabulary = {str(piece[0]): number for number, piece in enumerate(vocabulary)}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
        return vocabulary, merges, {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    added = _optional_json(folder / "added_tokens.json")
    if (folder / "vocab.json").is_file():
        merges_file = folder / "merges.txt"
        lines = merges_file.read_text("utf-8").splitlines() if merges_file.is_file() else []
        merges = [line for line in lines if line and not line.startswith("#version")]
        return read_json(folder / "vocab.json"), merges, added
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
        return {token: number for number, token in enumerate(lines)}, [], added
    pieces = sorted(file.name for pattern in ("*.model", "*.tiktoken") for file in folder.glob(pattern))
    if pieces:
        raise ModelError(
            f"The tokenizer in {folder} is only there as {pieces[0]}.",
            "Its ids cannot be compared without running its code.",
            'Convert it once: python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{folder}').save_pretrained('{folder}')\" (it writes tokenizer.json).",
        )
    raise ModelError(
        f"There is no tokenizer in {folder}.",
        "There is no tokenizer.json and no vocab.json.",
        "Copy the model's tokenizer files into its folder.",
    )


def _special_id(ids: dict[str, int], settings: dict[str, Any], config: dict[str, Any], which: str) -> int | None:
    """The id of the tokenizer's own special token, else the one that config.json names."""
    token = _content(settings.get(f"{which}_token"))
    if token in ids:
        return ids[token]
    number = config.get(f"{which}_token_id")
    if isinstance(number, list):
        number = number[0] if number else None
    return number if isinstance(number, int) and 0 <= number <= max(ids.values()) else None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    template = settings.get("chat_template") or _optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _content(token: object) -> str:
    """A token is written as a string, or as an object with its content."""
    if isinstance(token, dict):
        return str(token.get("content") or "")
    return token if isinstance(token, str) else ""


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _quoted(vocabulary: Vocabulary, number: int) -> str:
    return repr(vocabulary.tokens[number]) if number in vocabulary.tokens else "nothing"


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
