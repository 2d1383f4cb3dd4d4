"""Records as readable text: tokens, and their context if a run has stored it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.cache.garbage import users
from engine.cache.record import Records
from engine.cache.shard import DamagedShard
from engine.cache.store import CacheStore
from engine.data.tokens import SPLITS, TokenFile
from engine.errors import TinyDistillError
from engine.model_files.hub import resolve_model

_CONTEXT_TOKENS = 16


@dataclass(frozen=True)
class ShownRecord:
    """One record for display.

    Attributes:
        context: the tokens before, if known.
        label: the true next token, if known.
        label_log_prob: the teacher's, at temperature 1.
        entropy: in nats.
        tail_mass: probability of the sampled ids together.
        heads: exact ids with their weights.
        tail: sampled ids.
    """

    context: list[int]
    label: int | None
    label_log_prob: float
    entropy: float
    tail_mass: float
    heads: list[tuple[int, float]]
    tail: list[int]


class Words:
    """Turns ids into text, or into numbers where no tokenizer is known."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, ids: list[int]) -> str:
        """Some ids on one line; what cannot be printed is shown by its code."""
        if self._tokenizer is None:
            return " ".join(str(token) for token in ids)
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def find_words(store: CacheStore, model: Path | None) -> Words:
    """The tokenizer of a model, or else of the teacher of a run that used the cache.

    Raises:
        ModelError: the model that was named has none.
    """
    if model is not None:
        return Words(_tokenizer(resolve_model(model)))
    for run in users(store.path):
        with contextlib.suppress(TinyDistillError, OSError, ValueError, KeyError, TypeError):
            settings = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]
            return Words(_tokenizer(resolve_model(str(settings["teacher"]))))
    return Words(None)


def some_records(store: CacheStore, number: int) -> list[ShownRecord]:
    """Records from all over a cache, with the words before them where a run has kept them."""
    found = list(_with_context(store, number))
    return found or list(_without_context(store, number))


def _with_context(store: CacheStore, number: int) -> Iterator[ShownRecord]:
    for run in users(store.path):
        try:
            with TokenFile(run / "tokens.h5") as tokens:
                for split in SPLITS:
                    hashes = tokens.hashes(split)
                    there = sorted({*range(len(hashes))} - {*store.missing(hashes)})
                    for chosen in _spread(len(there), number):
                        rows = tokens.rows(split, [there[chosen]])
                        labels = np.flatnonzero(rows.scored[0])
                        if len(labels):
                            place = len(labels) // 2
                            at = int(labels[place])
                            ids = rows.tokens[0].tolist()
                            begin = int(np.flatnonzero(rows.begins[0, :at])[-1])  # of the document
                            context = ids[max(begin, at - _CONTEXT_TOKENS) : at]
                            yield _shown(store.fetch(rows.hashes), place, context, ids[at])
                    if there:
                        return
        except TinyDistillError:
            continue


def _without_context(store: CacheStore, number: int) -> Iterator[ShownRecord]:
    entries = [entry for entry in store.entries if entry.tokens]
    for chosen in _spread(len(entries), number):
        shard = store.shard(entries[chosen])
        row = next(row for row in range(shard.num_rows) if shard.num_records_of(row))
        with contextlib.suppress(DamagedShard):
            yield _shown(store.peek(entries[chosen], row, row + 1), shard.num_records_of(row) // 2, [], None)


def _shown(records: Records, place: int, context: list[int], label: int | None) -> ShownRecord:
    ids, weights = records.ids[place].tolist(), records.weights()[place].tolist()
    num_head = int(records.num_head[place])
    return ShownRecord(
        context=context,
        label=label,
        label_log_prob=float(records.label_log_prob[place]),
        entropy=float(records.entropy[place]),
        tail_mass=sum(weights[num_head:]),
        heads=list(zip(ids[:num_head], weights[:num_head], strict=True)),
        tail=ids[num_head:],
    )


def _spread(count: int, number: int) -> list[int]:
    """So many places of a list of ``count``, from its beginning to its end."""
    number = min(number, count)
    return [place * count // number for place in range(number)]


def _tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None
