"""Material that all students of a comparison share: rows, the teacher's hidden states, and caches of its records.

The teacher's layers run once. Its last hidden states are kept, so that every cache, and the full distribution, costs a
product with the head and no more. Caches are made by the engine's own scorer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.cache.counter import SAMPLING, row_key, uniforms
from engine.cache.record import Records
from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.passes import PrepareSettings
from engine.data.prepare import prepare
from engine.data.sources import open_source
from engine.data.tokens import SPLITS, Split, TokenFile
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student
from engine.models.documents import find_documents
from engine.models.packed import packed_hidden_states
from engine.models.resident import ResidentTeacher
from engine.planner.sizes import head_chunk_tokens
from engine.student.batches import MicroBatch, Source
from engine.student.loss import RecordTensors
from engine.teacher.sampling import draw_records
from engine.teacher.score import ScoreSettings, score
from tests.benchmarks.quality.arms import Setting

_WAVE_TOKENS = 16_384


class Material:
    """The rows and the teacher of a setting, in a folder; made when it is not there.

    Attributes:
        tokens: the rows.
        teacher: whole.
        student: a folder with the student's first weights.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.folder = folder
        (folder / "caches").mkdir(parents=True, exist_ok=True)
        self._channel = Channel(EventWriter(folder / "events.jsonl"))
        self._make_tokens(setting)
        self.tokens = TokenFile(folder / "tokens.h5")
        self.teacher = ResidentTeacher(setting.teacher, dtype=getattr(torch, setting.precision))
        self.student = folder / "student"
        if not (self.student / "config.json").exists():
            derive_student(read_spec(setting.teacher), setting.student_layers, self.student)
        self._make_states()
        self._states = {split: np.load(self._states_path(split), mmap_mode="r") for split in SPLITS}
        self._place = {
            row_hash: (split, index)
            for split in SPLITS
            for index, row_hash in reversed(list(enumerate(self.tokens.hashes(split))))
        }

    def store(self, kind: str, size: int, seed: int) -> CacheStore:
        """A cache of ``sampled`` or ``exact`` records; made by :meth:`make_store`."""
        return CacheStore.open(self._store_path(kind, size, seed), self._identity(size, seed), writable=False)

    def make_store(self, kind: str, size: int, seed: int) -> dict[str, float]:
        """Make a cache unless it is there; returns its bytes a token, its heads and its tail's mass."""
        path = self._store_path(kind, size, seed)
        identity, wait = self._identity(size, seed), lambda: None  # for another worker that is making it
        with CacheStore.open(path, identity, writable=True, wait=wait) as store:
            for split in SPLITS:
                if store.missing(self.tokens.hashes(split), top1=split == "holdout"):
                    self._score(store, kind, size, seed, split)
            train = [entry for entry in store.entries if not entry.has_top1]
            rows = self.tokens.hashes("train")[:100]
            records = store.fetch(rows)
            return {
                "bytes_per_token": sum(entry.bytes for entry in train) / sum(entry.tokens for entry in train),
                "mean_heads": float(records.num_head.mean()),
                "mean_tail_mass": float(records.tail_mass.mean()),
            }

    def logits(self, hidden_states: Tensor) -> Tensor:
        """The teacher's logits of its hidden states, as it computes them itself."""
        return self.teacher.logits(hidden_states.to(self.teacher.dtype))

    def full_records(self, hashes: Sequence[bytes], rows: np.ndarray, positions: np.ndarray) -> RecordTensors:
        """The teacher's whole distribution at some positions, as records of all ids."""
        states = np.stack(
            [
                self._states[self._place[hashes[row]][0]][self._place[hashes[row]][1], position]
                for row, position in zip(rows.tolist(), positions.tolist(), strict=True)
            ]
        )
        size = self.tokens.vocab_size
        log_probs = self.logits(torch.from_numpy(states))[:, :size].log_softmax(1)
        probs = log_probs.exp()
        count = len(probs)
        return RecordTensors(
            ids=torch.arange(size).expand(count, size),
            weights=probs,
            num_head=torch.full((count,), size),
            tail_mass=torch.zeros(count),
            entropy=-(probs * log_probs).sum(1),
        )

    def _make_tokens(self, setting: Setting) -> None:
        path = self.folder / "tokens.h5"
        if path.exists():
            return
        # 10 % of the text is what the demo's teacher has not seen.
        share = setting.holdout_rows / (setting.rows + setting.holdout_rows)
        prepare(
            source=open_source("python-docs", text_field=None, split="train"),
            teacher=read_spec(str(setting.teacher)),
            student=None,
            out=path,
            channel=self._channel,
            settings=PrepareSettings(
                sequence_length=setting.sequence_length, samples=setting.rows, holdout=min(share, 0.1), packing=True
            ),
        )

    def _make_states(self) -> None:
        for split in SPLITS:
            path = self._states_path(split)
            if path.exists():
                continue
            count, length = self.tokens.num_rows(split), self.tokens.sequence_length
            width = self.teacher.model.config.hidden_size
            partial = path.with_suffix(".tmp.npy")
            kept = np.lib.format.open_memmap(partial, "w+", np.float32, (count, length, width))
            for start in range(0, count, 16):
                rows = self.tokens.rows(split, range(start, min(start + 16, count)))
                documents = torch.from_numpy(rows.begins).cumsum(1) - 1
                with torch.no_grad():
                    states = packed_hidden_states(self.teacher.model, torch.from_numpy(rows.tokens), documents)
                kept[start : start + len(states), : states.shape[1]] = states.float().numpy()
            kept.flush()
            shutil.move(partial, path)

    def _states_path(self, split: Split) -> Path:
        return self.folder / f"document-states-{split}.npy"

    def _store_path(self, kind: str, size: int, seed: int) -> Path:
        return self.folder / "caches" / f"{kind}-{size}-{seed}"

    def _identity(self, size: int, seed: int) -> CacheIdentity:
        return CacheIdentity("quality", "", "", 1.0, size, self.tokens.vocab_size, seed, "fp32", "none")

    def _score(self, store: CacheStore, kind: str, size: int, seed: int, split: Split) -> None:
        chunk_tokens = head_chunk_tokens(self.tokens.vocab_size)
        if kind == "sampled":
            score(
                teacher=_Remembered(self),
                tokens=self.tokens,
                store=store,
                splits=[split],
                channel=self._channel,
                settings=ScoreSettings(
                    micro_batch=1,
                    wave_tokens=_WAVE_TOKENS,
                    chunk_tokens=chunk_tokens,
                    record_size=size,
                    temperature=1.0,
                    seed=seed,
                ),
            )
            return
        for start in range(0, self.tokens.num_rows(split), 128):
            rows = self.tokens.rows(split, range(start, min(start + 128, self.tokens.num_rows(split))))
            row, position = np.nonzero(rows.scored[:, 1:])
            states = torch.from_numpy(self._states[split][start : start + len(rows.hashes)][row, position])
            labels = torch.from_numpy(rows.tokens[row, position + 1])
            keys = np.array([row_key(rows.hashes[index]) for index in row], np.uint64)
            chance = torch.from_numpy(uniforms(seed, keys, position, SAMPLING))
            parts = [
                _exact_records(self.logits(states[at])[:, : self.tokens.vocab_size], labels[at], chance[at], size)
                for at in (slice(first, first + chunk_tokens) for first in range(0, len(states), chunk_tokens))
            ]
            records = Records.concatenate(parts)
            kept = records if split == "holdout" else records.without_top1()
            store.commit(list(zip(rows.hashes, rows.scored.sum(1).tolist(), strict=True)), kept)


def _exact_records(logits: Tensor, labels: Tensor, chance: Tensor, size: int) -> Records:
    """Records as others keep them: the likeliest ids are all exact, but for one that stands for the rest."""
    log_probs = logits.log_softmax(1)
    sampled = draw_records(log_probs, record_size=size, uniforms=chance)
    top = log_probs.topk(size, dim=1)
    head = torch.arange(size) < size - 1
    return Records(
        ids=top.indices.int().numpy(),
        num_head=np.full(len(labels), size - 1, np.uint8),
        head_log_probs=top.values.masked_fill(~head, -torch.inf).numpy(),
        tail_mass=(1 - top.values[:, :-1].exp().sum(1)).clamp(min=0).numpy(),
        label_log_prob=log_probs.gather(1, labels[:, None])[:, 0].numpy(),
        entropy=sampled.entropy.numpy(),
        top1_id=top.indices[:, 0].int().numpy(),
        top1_log_prob=top.values[:, 0].numpy(),
    )


class _Remembered:
    """A teacher for the scorer whose hidden states are there already."""

    whole_waves = False

    def __init__(self, material: Material) -> None:
        self._material = material
        self._by_tokens: dict[tuple[int, ...], tuple[Split, int, int]] = {}
        for split in SPLITS:
            for index in range(material.tokens.num_rows(split)):
                rows = material.tokens.rows(split, [index])
                found = find_documents(rows.begins, rows.lengths)
                for start, length in zip(found.starts.tolist(), found.lengths.tolist(), strict=True):
                    self._by_tokens[tuple(rows.tokens[0, start : start + length].tolist())] = (split, index, start)
        self._lengths = sorted({len(tokens) for tokens in self._by_tokens}, reverse=True)

    def last_hidden_states(
        self, micro_batches: Sequence[Tensor], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Tensor]:
        return [torch.stack([self._states_of(row.tolist()) for row in ids]) for ids in micro_batches]

    def _states_of(self, padded: list[int]) -> Tensor:
        """Of a document that is padded with its first token: the longest that it can be."""
        length = next(
            length
            for length in self._lengths
            if length <= len(padded) and tuple(padded[:length]) in self._by_tokens and {*padded[length:]} <= {padded[0]}
        )
        split, index, start = self._by_tokens[tuple(padded[:length])]
        states = torch.from_numpy(self._material._states[split][index][start : start + length].copy())
        return torch.nn.functional.pad(states, (0, 0, 0, len(padded) - length))

    def logits(self, hidden_states: Tensor) -> Tensor:
        return self._material.logits(hidden_states)


class ComparedSource(Source):
    """Rows with the records of an arm. To measure with, it is the whole distribution for all of them.

    Args:
        material: rows and teacher.
        stores: caches, one for each epoch, the last one for all that follow.
        full: train on the whole distribution too.
    """

    def __init__(self, material: Material, stores: list[CacheStore], *, full: bool) -> None:
        super().__init__(material.tokens, stores[0])
        self._material = material
        self._stores = stores
        self._full = full
        self._read = 0

    def micro_batch(self, split: Split, indices: Sequence[int]) -> tuple[MicroBatch, Any]:
        if split == "train":
            epoch = self._read // self.num_rows("train")
            self._store = self._stores[min(epoch, len(self._stores) - 1)]
            self._read += len(indices)
        batch, records = super().micro_batch(split, indices)
        if split == "holdout" or self._full:
            with self._lock:
                rows = self._tokens.rows(split, indices)
            row, position = np.nonzero(rows.scored[:, 1:])
            full = self._material.full_records(rows.hashes, row, position)
            batch = replace(batch, records=full)
        return batch, records
