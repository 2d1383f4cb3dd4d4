"""Tokenizers of the kinds that GGUF has, tiny: folders with tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.tiny import tiny_texts

IDS = 640
_TEXTS = [*tiny_texts(), *(["12 34 1234 123 99 1999's IT'S it's we'll \n\n\n  x\t\ty, ünï ... != -- ()"] * 20)]

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d"
LLAMA3 = (
    rf"(?i:{WORDS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    """Cut by a pattern, then take bytes."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**_BYTES, "use_regex": False}]}


CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTES,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]},
    "llama-bpe": split(LLAMA3),
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
}
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|over|>", "<|stop|>", "[PAD464]", "[PAD511]")
"""Unknown to llama.cpp by their names, and two that rows without a token could be named."""


def _added(tokens: dict[str, int], **more: Any) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **more}
    return [{"id": number, "content": token, **plain} for token, number in tokens.items()]


def _begins(token: str, number: int) -> dict[str, Any]:
    parts = {
        letter: [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": letter, "type_id": 0}}]
        for letter in "AB"
    }
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {
        "type": "TemplateProcessing",
        "single": parts["A"],
        "pair": [*parts["A"], *parts["B"]],
        "special_tokens": special,
    }


def _write(folder: Path, content: dict[str, Any], bos: str, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"version": "1.0", "truncation": None, "padding": None, **content}
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def byte_level(folder: Path, cut: str, *, adds_bos: bool = False, **settings: Any) -> Path:
    """Write byte-level BPE that cuts text first in one of CUTS' ways; IDS ids."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=IDS, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(_TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    content = {
        "added_tokens": _added({token: number for number, token in enumerate(SPECIAL)}),
        "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
        "pre_tokenizer": CUTS[cut],
        "decoder": _BYTES,
        "post_processor": _begins("<s>", 1) if adds_bos else None,
        "model": {**model, "ignore_merges": cut == "llama-bpe"},
    }
    return _write(folder, content, "<s>", **settings)


def sentencepiece(
    folder: Path, *, adds_space: bool = True, strips: bool = False, adds_bos: bool = True, **settings: Any
) -> Path:
    """Write BPE with byte fall-back, as transformers makes it of a SentencePiece model (Llama 2, Gemma, Phi-3).

    Args:
        folder: to write.
        adds_space: in front of a text, as Llama 2 has it and Gemma has not.
        strips: special tokens take the white space behind them away, as Phi-3's.
        adds_bos: in front of a text.
        settings: of tokenizer_config.json.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=IDS - 256 - len(SPECIAL) - 1, show_progress=False)
    trained.train_from_iterator(_TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    names = [*SPECIAL, "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted(model["vocab"], key=model["vocab"].__getitem__)
    ids = {token: number for number, token in enumerate(names)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}, replace] if adds_space else [replace]
    special = {token: ids[token] for token in (*SPECIAL, "<|endoftext|>")}
    kept = ("<unk>", "<s>", "<|endoftext|>")
    content = {
        "added_tokens": [
            {**each, "rstrip": strips and each["content"] not in kept} for each in _added(special)
        ],
        "normalizer": {"type": "Sequence", "normalizers": before},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "post_processor": _begins("<s>", 1) if adds_bos else None,
        "model": {
            **{key: model[key] for key in ("type", "dropout", "continuing_subword_prefix", "end_of_word_suffix")},
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": model["merges"],
        },
    }  # fmt: skip
    return _write(folder, content, "<s>", **settings)
