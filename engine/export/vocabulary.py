"""A tokenizer.json as llama.cpp reads a vocabulary: tokens, kinds, merges or scores, and how text is cut first.

Two kinds exist: byte-level BPE (GPT-2's, Llama 3's, Qwen's, SmolLM's) and BPE with byte fall-back that was made from a
SentencePiece model (Llama 2's, Gemma's, Phi-3's). Anything else is refused: a wrong cut gives other ids without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from engine.errors import ModelError
from engine.model_files.headers import read_json

if TYPE_CHECKING:
    import gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_LLAMA3 = r"\p{N}{1,3}"
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>"}
_QWEN2 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Write the vocabulary of a model's folder into a GGUF header.

    Args:
        writer: takes it.
        folder: has tokenizer.json.
        rows: of the embedding; ids beyond the tokenizer's are written as unused.

    Raises:
        ModelError: llama.cpp has no tokenizer of this kind.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise _refused(folder, "There is no tokenizer.json.")
    content = read_json(file)
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise _refused(folder, f"Its tokenizer is of the kind {model.get('type')}.")
    tokenizer = Tokenizer.from_file(str(file))
    tokens, kinds = _tokens(content, tokenizer, rows)
    if _is_byte_level(content):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_first_cut(folder, content))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in _pairs(model)])
    elif model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, _pairs(model)))
        writer.add_token_types([_byte_kind(token, kind) for token, kind in zip(tokens, kinds, strict=True)])
        writer.add_add_space_prefix(_adds_space(content))
    else:
        raise _refused(folder, "It is BPE without bytes.")
    _add_special(writer, folder, tokenizer)


def chat_template(folder: Path) -> str:
    """The folder's chat template; empty where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = _optional(folder / "tokenizer_config.json")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name, as transformers 4 wrote them
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def model_name(folder: Path) -> str:
    """The name that a file gives its model: the folder's, a run's where it is the run's student.

    llama.cpp goes by this name, too: where it has "phi-3" in it, each special token takes the white space behind it
    away, as Phi-3's do, and a vocabulary without Phi-3's tokens does not load.
    """
    place = folder.resolve()
    name = place.parent.name if place.name == "student" else place.name
    added = {
        each["content"]: bool(each.get("rstrip"))
        for each in _optional(folder / "tokenizer.json").get("added_tokens") or ()
    }
    if added.keys() >= _PHI3_TOKENS and added["<|user|>"]:
        return name if _PHI3.search(name) else f"{name} (phi-3)"
    return _PHI3.sub("phi 3", name)


def end_tokens(folder: Path) -> list[str]:
    """The tokens that end an answer: the tokenizer's and those of generation_config.json, each once."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = _optional(folder / "tokenizer_config.json")
    found = [_text(config.get("eos_token"))]
    for source in ("generation_config.json", "config.json"):
        ids = _optional(folder / source).get("eos_token_id")
        for number in ids if isinstance(ids, list) else [ids]:
            if isinstance(number, int):
                found.append(tokenizer.id_to_token(number) or "")
    return [token for place, token in enumerate(found) if token and token not in found[:place]]


def _add_special(writer: gguf.GGUFWriter, folder: Path, tokenizer: Tokenizer) -> None:
    config, model = _optional(folder / "tokenizer_config.json"), _optional(folder / "config.json")
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = _text(config.get(f"{name}_token"))
        number = tokenizer.token_to_id(token) if token else model.get(f"{name}_token_id")
        if isinstance(number, int):
            ids[name] = number
    ends = [number for token in end_tokens(folder) if (number := tokenizer.token_to_id(token)) is not None]
    if "eos" not in ids and ends:  # llama.cpp would take the token 11 for one that a file does not name
        ids["eos"] = ends[0]
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, number in ids.items():
        adders[name](number)
    beside = [number for number in ends if number != ids.get("eos")]
    for add, number in zip((writer.add_eot_token_id, writer.add_eom_token_id), beside, strict=False):
        add(number)
    plain, dressed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = len(dressed) - len(plain)
    writer.add_add_bos_token(bool(start and dressed[0] == ids.get("bos") and plain[:1] != dressed[:1]))
    writer.add_add_eos_token(bool(start and dressed[-1] == ids.get("eos") and plain[-1:] != dressed[-1:]))
    template = chat_template(folder)
    if template:
        writer.add_chat_template(template)


def _tokens(content: Mapping[str, Any], tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = {each["id"]: bool(each.get("special")) for each in content.get("added_tokens") or ()}
    unknown = (content.get("model") or {}).get("unk_token")
    taken = set(by_id.values())
    tokens, kinds = [], []
    for number in range(rows):
        token = by_id.get(number)
        if token is None:
            tokens.append(_unused(number, taken))
            kinds.append(_UNUSED)
            continue
        tokens.append(token)
        if number in added:
            kinds.append(_CONTROL if added[number] else _USER_DEFINED)
        else:
            kinds.append(_UNKNOWN if token == unknown else _NORMAL)
    return tokens, kinds


def _unused(number: int, taken: set[str]) -> str:
    """A name for a row without a token: llama.cpp ends where two tokens have the same."""
    name = f"[PAD{number}]"
    while name in taken:
        name = f"[{name}]"
    return name


def _byte_kind(token: str, kind: int) -> int:
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return _BYTE if is_byte and kind == _NORMAL else kind


def _pairs(model: Mapping[str, Any]) -> list[list[str]]:
    return [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model.get("merges") or ()]


def _scores(tokens: list[str], pairs: list[list[str]]) -> list[float]:
    """SentencePiece merges the pair with the highest score first; a merge's place gives it."""
    place: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        place.setdefault("".join(pair), number)
    return [-float(place[token]) - 1 if token in place else (-1e6 if len(token) == 1 else 0.0) for token in tokens]


def _steps(content: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    step = content.get(name)
    if not isinstance(step, Mapping):
        return []
    inner = step.get("pretokenizers") or step.get("normalizers")
    return list(inner) if step.get("type") == "Sequence" and isinstance(inner, list) else [step]


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(content, "pre_tokenizer"))


def _adds_space(content: Mapping[str, Any]) -> bool:
    prepends = any(step.get("type") == "Prepend" for step in _steps(content, "normalizer"))
    meta = [step for step in _steps(content, "pre_tokenizer") if step.get("type") == "Metaspace"]
    return prepends or any(step.get("prepend_scheme", "always") != "never" for step in meta)


def _first_cut(folder: Path, content: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer cuts text before it merges."""
    steps = _steps(content, "pre_tokenizer")
    kinds = [str(step.get("type")) for step in steps]
    byte_level = next(step for step in steps if step.get("type") == "ByteLevel")
    if _steps(content, "normalizer") and [step.get("type") for step in _steps(content, "normalizer")] != ["NFC"]:
        raise _refused(folder, "It changes text before it cuts it.")
    if byte_level.get("add_prefix_space"):
        raise _refused(folder, "It puts a space in front of each text.")
    if kinds == ["ByteLevel"] and byte_level.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and byte_level.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not byte_level.get("use_regex", True):
        pattern = str((steps[0].get("pattern") or {}).get("Regex", ""))
        if _LLAMA3 in pattern and r"[\r\n]*" in pattern and "(?i:" in pattern:
            return "llama-bpe"
        if _QWEN2 in pattern:
            return "qwen2"
    raise _refused(folder, f"It cuts text by {json.dumps(content.get('pre_tokenizer'), ensure_ascii=False)[:120]}.")


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")


def _optional(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"The tokenizer in {folder} cannot be written as GGUF.",
        why,
        "Use --format hf, and convert the folder with llama.cpp's own script.",
    )
