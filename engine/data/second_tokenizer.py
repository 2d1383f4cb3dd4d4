"""A second tokenizer with the ids of another one, in which some added tokens have names that no text has.

It shares the vocabulary and the merges of the first where it can: a tokenizer of 49,152 ids takes 55 MiB, and its files
as Python reads them as much for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class NotApart(Exception):
    """No second tokenizer can be made of this one."""


def private_name(token_id: int) -> str:
    """A name in characters that Unicode leaves to private use."""
    return "\U000f5a00" + "".join(chr(0xF5A01 + int(digit)) for digit in str(token_id)) + "\U000f5a0b"


class SecondTokenizer:
    """A tokenizer in which the control tokens have private names.

    Args:
        backend: the first tokenizer, of the package tokenizers; nothing of it is changed.
        ids: of the control tokens by name.

    Raises:
        NotApart: there is none that reads the names as text.
    """

    def __init__(self, backend: Any, ids: Mapping[str, int]) -> None:
        self._ids: Mapping[int, int] = {}
        for make in (_sharing, _copied):
            self._tokenizer, self._ids = make(backend, ids)
            if self._tokenizer is not None and not self._reads_a_token_in(ids):
                return
        raise NotApart

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and of each token the first character and the one behind it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        return [self._ids.get(token_id, token_id) for token_id in ids] if self._ids else ids, encoding.offsets

    def _reads_a_token_in(self, ids: Mapping[str, int]) -> bool:
        """Whether the name of a control token becomes the token: it is a piece of the vocabulary as well."""
        tokens = set(ids.values())
        return any(tokens & set(self.encode(text)[0]) for name in ids for text in (name, f"a{name}b", f"a {name} b"))


def _sharing(backend: Any, ids: Mapping[str, int]) -> tuple[Any, Mapping[int, int]]:
    """A tokenizer with the parts of the first, and the first one's ids of its new tokens; None where ids collide."""
    from tokenizers import AddedToken, Tokenizer

    second = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(second, part, value)
    names = {token_id: private_name(token_id) for token_id in ids.values()}
    added = sorted(backend.get_added_tokens_decoder().items())
    kept = {token_id: names.get(token_id, token.content) for token_id, token in added}
    for token_id, token in added:
        flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        second.add_tokens([AddedToken(kept[token_id], **flags)])
    moved: dict[int, int] = {}
    for token_id, name in kept.items():
        new = second.token_to_id(name)
        if new is None or (new != token_id and backend.model.id_to_token(new) is not None):
            return None, {}
        if new != token_id:
            moved[new] = token_id
    return second, moved


def _copied(backend: Any, ids: Mapping[str, int]) -> tuple[Any, Mapping[int, int]]:
    """A tokenizer with a vocabulary of its own, in which the names are changed too; None where there is none."""
    from tokenizers import Tokenizer

    data = json.loads(backend.to_str())
    new = {name: private_name(token_id) for name, token_id in ids.items()}
    for token in data["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    model = data["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {new.get(name, name): token_id for name, token_id in vocab.items()}
    else:
        model["vocab"] = [[new.get(name, name), score] for name, score in vocab]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    data["truncation"] = data["padding"] = None
    try:
        renamed = Tokenizer.from_str(json.dumps(data))
    except Exception:  # the package raises no other kind, here where a merge has one of the old names
        return None, {}
    is_same = all(renamed.token_to_id(new[name]) == token_id for name, token_id in ids.items())
    return (renamed if is_same else None), {}
