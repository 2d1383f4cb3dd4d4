"""Conversion of a GGUF file's vocabulary to tokenizer.json and related files, the inverse of the export.

Two kinds exist: byte-level BPE, whose way to cut text first goes by a name that llama.cpp knows, and SentencePiece's,
which becomes BPE with byte fall-back. Where the name is unknown the file is refused: a wrong cut gives other ids
without a word. The patterns are those of llama.cpp's ``src/llama-vocab.cpp``, in the words of the tokenizers library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown_value

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_PADDING = re.compile(r"\[PAD\d+\]|<pad_?\d+>|<unused_?\d+>|<\|?dummy\d+\|?>", re.IGNORECASE)
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d"
_LLAMA3 = (
    rf"(?i:{_WORDS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    _TEKKEN.replace(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:{_WORDS})?|")
    .replace(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:{_WORDS})?|")
    .replace(r"\p{N}| ", r"\p{N}{1,3}| ")
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PLAIN_BYTES = {**_BYTES, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _PLAIN_BYTES]}


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]}
_CUTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum"), _BYTES),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe",
         "chatglm-bpe"),
        _split(_LLAMA3),
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _split(_QWEN2)),
    "tekken": _split(_TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _split(_GPT4O)),
}  # fmt: skip
_IGNORES_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""llama.cpp takes a word that is a token as it is, and puts a begin-of-text token before each text, for these."""


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, where: str) -> list[int]:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a GGUF header into a folder.

    Args:
        metadata: of the header.
        folder: is there.
        where: the file, for messages.

    Returns:
        The ids that end an answer, the tokenizer's own first.

    Raises:
        ModelError: the tokenizer is of another kind, or damaged.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise _refused(where, "The file holds no list of tokens.")
    kinds = metadata.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise _refused(where, f"The file holds {len(tokens):,} tokens and the kinds of {len(kinds):,}.")
    count = len(tokens)
    while count and kinds[count - 1] == _UNUSED and _PADDING.fullmatch(tokens[count - 1]):
        count -= 1  # rows of the embedding beyond the tokenizer's ids
    tokens, kinds = tokens[:count], kinds[:count]
    model = str(metadata.get("tokenizer.ggml.model"))
    if model == "gpt2":
        content = _byte_level(metadata, tokens, where)
    elif model == "llama":
        content = _sentencepiece(metadata, tokens, kinds, where)
    else:
        raise _refused(where, f"It is of the kind {shown_value(model)}; gpt2 and llama can be read.")
    ids = special_ids(metadata)
    named = {
        name: tokens[number]
        for name in ("bos", "eos", "unk", "pad")
        if (number := ids.get(f"{name}_token_id")) is not None and number < count
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, kinds),
        **content,
        "post_processor": _post_processor(metadata, model, named, tokens),
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", newline="")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        **{f"{name}_token": token for name, token in named.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return _end_ids(metadata, tokens)


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the special tokens as config.json has them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(number) is int and 0 <= number < count:
            found[f"{name}_token_id"] = number
    return found


def _end_ids(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    found = []
    for key in ("eos", "eot", "eom"):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(number) is int and 0 <= number < len(tokens) and number not in found:
            found.append(number)
    return found


def _added(tokens: list[str], kinds: list[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut."""
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN)
    ]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: str) -> dict[str, Any]:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    cut = _CUTS.get(name)
    if cut is None:
        raise _refused(
            where,
            "The file does not say how it cuts text before it merges."
            if name == "default"
            else f"It cuts text in the way {shown_value(name)}, which is not known here.",
        )
    merges = metadata.get("tokenizer.ggml.merges")
    known = set(tokens)
    pairs = [str(merge).split(" ", 1) for merge in merges] if isinstance(merges, list) else []
    if not pairs or not all(len(pair) == 2 and known.issuperset((*pair, "".join(pair))) for pair in pairs):
        raise _refused(where, "Its merges are missing, or name tokens that it does not have.")
    return {
        "normalizer": {"type": "NFC"} if name in ("qwen2", "deepseek-r1-qwen") else None,
        "pre_tokenizer": cut,
        "decoder": {**_BYTES, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in _IGNORES_MERGES,
            "vocab": _ids(tokens),
            "merges": pairs,
        },
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], where: str) -> dict[str, Any]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise _refused(where, "Its scores are missing.")
    if not all(isinstance(score, int | float) for score in scores):
        raise _refused(where, "Its scores are no numbers.")
    begins_with_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, spaces] if begins_with_space else [spaces]
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if begins_with_space:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _ids(tokens),
            "merges": _merges(tokens, kinds, scores),
        },
    }


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[list[str]]:
    """All pairs that make a token, the token with the highest score first, as SentencePiece merges them.

    Source: transformers, ``convert_slow_tokenizer.generate_merges``.
    """
    ids = _ids(tokens)
    found = []
    for token, kind, score in zip(tokens, kinds, scores, strict=False):
        if kind not in (_NORMAL, _USER_DEFINED):
            continue
        pairs = [
            (ids[token[:place]], ids[token[place:]], token[:place], token[place:])
            for place in range(1, len(token))
            if token[:place] in ids and token[place:] in ids
        ]
        found += [(-score, len(left), len(right), left, right) for _, _, left, right in sorted(pairs)]
    found.sort(key=lambda pair: pair[:3])
    return [[left, right] for *_, left, right in found]


def _post_processor(
    metadata: Mapping[str, Any], model: str, named: Mapping[str, str], tokens: list[str]
) -> dict[str, Any]:
    """Begin and end tokens around each text, where the file asks for them."""
    by_default = model == "llama" or str(metadata.get("tokenizer.ggml.pre")) in _IGNORES_MERGES
    begins = bool(metadata.get("tokenizer.ggml.add_bos_token", by_default)) and "bos" in named
    ends = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos" in named
    ids = _ids(tokens)
    special = {
        named[name]: {"id": named[name], "ids": [ids[named[name]]], "tokens": [named[name]]}
        for name, is_put in (("bos", begins), ("eos", ends))
        if is_put
    }

    def around(letter: str, kind: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": letter, "type_id": kind}}]
        if begins:
            parts.insert(0, {"SpecialToken": {"id": named["bos"], "type_id": kind}})
        if ends:
            parts.append({"SpecialToken": {"id": named["eos"], "type_id": kind}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": special,
    }


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _refused(where: str, why: str) -> ModelError:
    return ModelError(
        f"The tokenizer in {where} cannot be read.",
        why,
        "Use the safetensors version of the model.",
    )
