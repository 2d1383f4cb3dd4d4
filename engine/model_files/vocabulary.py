"""Which token ids a tokenizer can produce, and what they mean: read from its files, without loading it.

Records name token ids, so teacher and student must mean the same by each id. The name of a tokenizer proves nothing;
its vocabulary, merges and added tokens do. ``size`` is V_eff: the ids below it can occur, rows of an embedding past it
are padding and take no part in any softmax. Knows nothing of torch or transformers, and does not tokenise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import ModelError, TokenizerMismatch
from engine.model_files.descriptions import Descriptions, entries
from engine.model_files.headers import read_json, read_text
from engine.model_files.python_line import path_literal, python_command, python_line

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SHOWN_TOKENS = 3


@dataclass(frozen=True)
class Vocabulary:
    """Content of a tokenizer's files.

    Attributes:
        size: V_eff, the largest id that can occur plus one.
        sha: of ids, tokens, merges and added tokens; equal when records of one can be read by the other.
        eos_id: ends a text; None where there is no such token.
        pad_id: fills short rows: the padding token, else the end of text, else 0.
        bos_id: begins a text; None where there is no such token.
        chat_template: Jinja source that turns messages into text; None where there is none.
        chat_template_sha: empty where there is none.
        tokens: the token of each id.
        base_size: ids of the tokenizer's model; the added tokens from there on have been put behind it.
        merges_sha: of the rules that put the base tokens together.
        notes: which ids two models do not share, or which have no row; see :func:`shared_vocabulary`.
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
    base_size: int
    merges_sha: str
    notes: tuple[str, ...] = ()


_kept: Descriptions[Vocabulary] = Descriptions(2)  # the teacher's and the student's: 150,000 tokens take 25 MB


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer in a model's folder; once, while its files stay as they are.

    Raises:
        ModelError: there is none, none that can be read without running code, or a damaged one.
    """
    try:
        return _kept.of(folder, lambda: _read(folder), lambda _: entries(folder))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"The tokenizer in {folder} is damaged ({type(error).__name__}).",
            "Its files do not have the form that a tokenizer's have.",
            "Download or save the tokenizer again.",
        ) from error


def forget_vocabularies() -> None:
    """Give the memory of the vocabularies that are kept back: a process that watches a run has no use for them."""
    _kept.forget()


def _read(folder: Path) -> Vocabulary:
    settings = _optional_json(folder / "tokenizer_config.json")
    base, merges, added_in_file, wanted = _tables(folder)
    # What AutoTokenizer adds when it loads the folder, in its order: tokens with an id that they wish for, the named
    # special tokens, the others. The two older files count only where the settings have no list of their own.
    if "added_tokens_decoder" in settings:
        wished = {int(number): _content(token) for number, token in (settings["added_tokens_decoder"] or {}).items()}
    else:
        settings |= _optional_json(folder / "special_tokens_map.json")
        wished = {number: token for token, number in wanted.items()}
    added = _Added(base)
    added.put(added_in_file)
    added.put(wished[number] for number in sorted(wished))
    more_named = [name for name in settings if name.endswith("_token") and name not in _SPECIAL]
    added.put(_content(settings.get(name)) for name in (*_SPECIAL, *more_named))
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    added.put(_content(token) for token in (extra.values() if isinstance(extra, dict) else extra))
    ids = {**base, **added.ids}
    if not ids:
        raise ModelError(f"The tokenizer in {folder} has no tokens.", "", "Download or save the tokenizer again.")
    if not all(type(number) is int and number >= 0 for number in ids.values()):
        raise ValueError("an id is a whole number from 0 up")

    config = _optional_json(folder / "config.json")
    eos_id = _special_id(ids, settings, config, "eos")
    pad_id = _special_id(ids, settings, config, "pad")
    template = _chat_template(folder, settings)
    by_id = sorted((number, token) for token, number in ids.items())
    told = json.dumps([by_id, merges, sorted(added.ids.items())], ensure_ascii=False)
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
        base_size=max(base.values(), default=-1) + 1,
        merges_sha=_sha(json.dumps(merges, ensure_ascii=False)),
    )


class _Added:
    """Tokens that are added to a tokenizer's model, with ids as the tokenizers library gives them.

    A token that the model has keeps its id. Another one gets the id behind the largest, whatever id a file wishes for:
    https://github.com/huggingface/tokenizers, AddedVocabulary::add_tokens.
    """

    def __init__(self, base: dict[str, int]) -> None:
        self._base = base
        self._next = len(base)
        self.ids: dict[str, int] = {}

    def put(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            if not token or token in self.ids:
                continue
            if token in self._base:
                self.ids[token] = self._base[token]
                self._next = max(self._next, self._base[token] + 1)
            else:
                self.ids[token] = self._next
                self._next += 1


def shared_vocabulary(
    teacher: Vocabulary, teacher_rows: int, student: Vocabulary | None = None, student_rows: int = 0
) -> Vocabulary:
    """The teacher's vocabulary as far as both models have it: ``size`` is V_eff, ``notes`` name the tokens beyond it.

    The ids below ``size`` mean the same to both and have a row in both embeddings. Only added tokens behind the
    tokenizer's own model may differ or lack a row: like padded rows they take no part in either softmax, and texts
    that hold one are left out.

    Args:
        teacher: the teacher's.
        teacher_rows: rows of its embedding.
        student: the student's; None when it has the teacher's.
        student_rows: rows of its embedding.

    Raises:
        TokenizerMismatch: other ids differ, or the token that ends a text is among those that differ.
        ModelError: other ids have no row, or the token that ends or begins a text has none.
    """
    notes: list[str] = []
    sizes = [teacher.size]
    if student is not None and student.sha != teacher.sha:
        sizes.append(_shared_ids(teacher, student))
        if sizes[-1] < max(teacher.size, student.size):
            notes.append(_untaught(teacher, student, sizes[-1]))
    for role, vocabulary, rows in (("teacher", teacher, teacher_rows), ("student", student, student_rows)):
        if vocabulary is None or rows >= min(*sizes, vocabulary.size):
            continue
        needed = [vocabulary.eos_id, vocabulary.bos_id]
        if rows < vocabulary.base_size or any(number is not None and number >= rows for number in needed):
            raise _too_few_rows(role, vocabulary, rows)
        notes.append(
            f"The {role}'s embedding has {rows:,} rows and its tokenizer {vocabulary.size:,} ids: texts with "
            f"{_listed(vocabulary, rows)} are left out."
        )
        sizes.append(rows)
    size = min(sizes)
    return replace(
        teacher,
        size=size,
        pad_id=next((number for number in (teacher.pad_id, teacher.eos_id) if number is not None and number < size), 0),
        notes=tuple(notes),
    )


def _shared_ids(teacher: Vocabulary, student: Vocabulary) -> int:
    """The first id by which the two mean something else; every id from there on is an added token's.

    Raises:
        TokenizerMismatch: they differ in more than that.
    """
    differing = [
        number
        for number in sorted(teacher.tokens.keys() | student.tokens.keys())
        if teacher.tokens.get(number) != student.tokens.get(number)
    ]
    same_model = teacher.base_size == student.base_size and teacher.merges_sha == student.merges_sha
    if differing and same_model and differing[0] >= teacher.base_size:
        ends = [number for number in (teacher.eos_id, student.eos_id, teacher.bos_id) if number is not None]
        if all(number < differing[0] for number in ends):
            return differing[0]
    if differing:
        first = differing[0]
        how = (
            f"{_counted(len(differing), 'id differs', 'ids differ')}, the first is {first}: {_quoted(teacher, first)} "
            f"for the teacher, {_quoted(student, first)} for the student."
        )
    else:
        how = "The tokens are the same, but the rules that combine them differ (merges, added tokens)."
    raise TokenizerMismatch(
        f"Teacher and student have different tokenizers ({teacher.size:,} ids in {teacher.folder}, "
        f"{student.size:,} in {student.folder}). {how}",
        "The teacher's records name token ids: the student would learn wrong tokens.",
        "Choose a student with the teacher's tokenizer, or --student from-teacher.",
    )


def _untaught(teacher: Vocabulary, student: Vocabulary, size: int) -> str:
    told = [
        f"{_counted(vocabulary.size - size, 'id', 'ids')} of the {role} ({_listed(vocabulary, size)})"
        for role, vocabulary in (("student", student), ("teacher", teacher))
        if vocabulary.size > size
    ]
    verb = "is" if len(told) == 1 and max(teacher.size, student.size) - size == 1 else "are"
    return f"The tokenizers share {size:,} ids; {' and '.join(told)} {verb} not taught."


def _too_few_rows(role: str, vocabulary: Vocabulary, rows: int) -> ModelError:
    missing = "Some tokens" if rows < vocabulary.base_size else "The token that begins or ends a text"
    return ModelError(
        f"The {role} in {vocabulary.folder} has an embedding of {rows:,} rows, and its tokenizer has "
        f"{vocabulary.size:,} ids.",
        f"{missing} would have no row.",
        "Resize the model's embedding (resize_token_embeddings), or use the tokenizer it was trained with.",
    )


def _listed(vocabulary: Vocabulary, first: int) -> str:
    """The tokens from an id on, the first few of them."""
    tokens = [repr(token) for number, token in sorted(vocabulary.tokens.items()) if number >= first]
    shown = ", ".join(tokens[:_SHOWN_TOKENS])
    return shown if len(tokens) <= _SHOWN_TOKENS else f"{shown} and {len(tokens) - _SHOWN_TOKENS:,} more"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _tables(folder: Path) -> tuple[dict[str, int], list[str], list[str], dict[str, int]]:
    """Ids by token, merges in order, the added tokens of tokenizer.json, and added_tokens.json."""
    wished = _optional_json(folder / "added_tokens.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json(folder / "tokenizer.json")
        model = tokenizer.get("model") or {}
        vocabulary = model.get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: pieces with scores, the place is the id
            vocabulary = {str(piece[0]): number for number, piece in enumerate(vocabulary)}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
        return vocabulary, merges, [token["content"] for token in tokenizer.get("added_tokens") or []], wished
    if (folder / "vocab.json").is_file():
        merges_file = folder / "merges.txt"
        lines = read_text(merges_file).splitlines() if merges_file.is_file() else []
        merges = [line for line in lines if line and not line.startswith("#version")]
        return read_json(folder / "vocab.json"), merges, [], wished
    if (folder / "vocab.txt").is_file():
        lines = read_text(folder / "vocab.txt").splitlines()
        return {token: number for number, token in enumerate(lines)}, [], [], wished
    for pattern, todo in (
        ("*.model", f"Convert it once; this writes tokenizer.json: {_save_again(folder)}"),
        ("*.tiktoken", "Use a copy of the model that has a tokenizer.json."),
        ("tekken.json", "Use a copy of the model that has a tokenizer.json."),  # Mistral's own
    ):
        if pieces := sorted(file.name for file in folder.glob(pattern)):
            raise ModelError(
                f"The tokenizer in {folder} exists only as {pieces[0]}.",
                "Its ids cannot be compared without running its code.",
                todo,
            )
    raise ModelError(
        f"There is no tokenizer in {folder}.",
        "There is no tokenizer.json and no vocab.json.",
        "Copy the model's tokenizer files into its folder.",
    )


def _save_again(folder: Path) -> str:
    """Commands that write the tokenizer.json of a SentencePiece model beside it."""
    name = path_literal(folder)
    code = f"from transformers import AutoTokenizer as T; T.from_pretrained({name}).save_pretrained({name})"
    return f"{python_command()} -P -m pip install sentencepiece protobuf && {python_line(code)}"


def _special_id(ids: dict[str, int], settings: dict[str, Any], config: dict[str, Any], which: str) -> int | None:
    """The id of the tokenizer's own special token, else the one that config.json names."""
    token = _content(settings.get(f"{which}_token"))
    if token in ids:
        return ids[token]
    named = config.get(f"{which}_token_id")
    numbers = named if isinstance(named, list) else [named]
    return next((each for each in numbers if isinstance(each, int) and 0 <= each <= max(ids.values())), None)


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a model's folder; None where there is none."""
    return _chat_template(folder, _optional_json(folder / "tokenizer_config.json"))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
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
