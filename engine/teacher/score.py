"""Scoring: the teacher reads all rows without records and writes their records.

Rows are taken in waves (:mod:`engine.teacher.waves`). A wave is as many rows as fit a number of tokens, in the order of
the token file: it ends with one committed shard, so an interrupted run continues with its current wave and leaves the
same shards, byte for byte. Several ranks share the waves.

Within a wave each *document* passes through the model separately: documents of a packed row do not attend to each
other. Long ones come first, so that a lack of memory shows at once, and documents of similar length share a
micro-batch. A draw depends on the seed, the document's tokens and the place in it. So a text's record is the same
(except for rounding in a matrix product) in any row and any run.

Knows nothing of the source of the teacher's layers, of sampling, or of the storage of records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cache.counter import SAMPLING, uniforms
from engine.cache.record import Places
from engine.cache.store import CacheStore
from engine.channel.channel import PROGRESS_SECONDS, Channel
from engine.data.tokens import Rows, Split, TokenFile
from engine.models.documents import Documents, batches_of, find_documents
from engine.models.transfer import to_device
from engine.ranks import ALONE, Rank
from engine.teacher.head import Scored, records_from_hidden
from engine.teacher.waves import Waves

# Work left after the last layer of a streamed wave: the lm_head.
_LAYERS_SHARE = 0.9


class Teacher(Protocol):
    """A teacher: engine.models.resident.ResidentTeacher or engine.models.streaming.teacher.StreamedTeacher.

    Attributes:
        whole_waves: whether a call costs a pass over all layers on disk, so that it should get a whole wave.
    """

    whole_waves: bool

    def last_hidden_states(
        self, micro_batches: Sequence[Tensor], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Tensor]:
        """[batch, length, hidden] of each [batch, length] micro-batch."""
        ...

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Float32 [tokens, vocab_rows] of [tokens, hidden] states."""
        ...


@dataclass(frozen=True)
class ScoreResult:
    """Result of one call of :func:`score`.

    Attributes:
        tokens: scored positions, without those that already had records.
        rows: rows they are in.
        shards: shards committed.
        seconds: time spent, without pauses.
    """

    tokens: int
    rows: int
    shards: int
    seconds: float


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of records, and of the passes that make them.

    Attributes:
        micro_batch: rows of full length per forward pass; of short documents as many as have the same number of tokens.
        wave_tokens: maximum number of tokens in a wave (padding included), but at least one row.
        chunk_tokens: positions whose logits exist at a time.
        record_size: ids in a record.
        temperature: of the distribution that is recorded.
        seed: of the draws.
        short_last_waves: whether the last waves are short, so that ranks end at about the same time. A teacher whose
            layers are read for each wave has long ones only.
    """

    micro_batch: int
    wave_tokens: int
    chunk_tokens: int
    record_size: int
    temperature: float
    seed: int
    short_last_waves: bool = False

    def waves(self, tokens: TokenFile, splits: Sequence[Split], rank: Rank) -> Waves:
        """A rank's waves of some rows."""
        rows_in_wave = max(1, self.wave_tokens // tokens.sequence_length)
        return Waves(
            tokens,
            splits,
            rows_in_wave=rows_in_wave,
            fewest=self.micro_batch,
            short_last=self.short_last_waves,
            rank=rank,
        )


def score(
    *,
    teacher: Teacher,
    tokens: TokenFile,
    store: CacheStore,
    splits: Sequence[Split],
    settings: ScoreSettings,
    channel: Channel,
    rank: Rank = ALONE,
) -> ScoreResult:
    """Score every row of this rank whose records are not in the store.

    Args:
        teacher: makes hidden states and logits.
        tokens: the rows.
        store: takes the records; one shard for each wave.
        splits: the rows to score, in this order.
        settings: of records and passes.
        channel: gets ``progress`` and ``shard``. A stop at one of its safe points loses at most one wave. While memory
            is short, waves are shorter, which changes shards but no record.
        rank: which waves are this process's; every process of the world needs the same rows and waves.

    Raises:
        Stopped: the user stopped the run.
        BadNumbers: the teacher gives NaN or infinity.
    """
    progress = _Progress(tokens, store, splits, channel, rank)
    for split, indices in settings.waves(tokens, splits, rank).left(store, channel):
        rows = tokens.rows(split, indices)
        counts = rows.scored.sum(1).tolist()
        wave = _Wave(rows, settings.micro_batch * tokens.sequence_length, tokens.sequence_length, settings.seed)
        progress.wave(sum(counts))
        records = records_from_hidden(
            _scored_positions(teacher, wave, progress),
            teacher.logits,
            vocab_size=tokens.vocab_size,
            record_size=settings.record_size,
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
        )
        kept = (records if split == "holdout" else records.without_top1()).take(wave.row_order())
        entry = store.commit(list(zip(rows.hashes, counts, strict=True)), kept, wave.places())
        channel.write("shard", path=entry.name, tokens=entry.tokens, bytes=entry.bytes)
        progress.wave_done(len(indices))
    progress.end()
    return progress.result


def has_work(
    tokens: TokenFile, store: CacheStore, splits: Sequence[Split], settings: ScoreSettings, rank: Rank = ALONE
) -> bool:
    """Return whether :func:`score` would score a row; the arguments are the same."""
    return settings.waves(tokens, splits, rank).has_work(store)


@dataclass(frozen=True)
class _Batch:
    """Documents of one forward pass.

    Attributes:
        ids: int64 [documents, length], right-padded.
        document: int64 [N], the batch row of each scored position.
        position: int64 [N], its place in the document: the record of token i + 1 is made from the state of token i.
        key: uint64 [N], of its document.
        place: int64 [N], where it stands in all rows of the wave, flattened.
    """

    ids: NDArray[np.int64]
    document: NDArray[np.int64]
    position: NDArray[np.int64]
    key: NDArray[np.uint64]
    place: NDArray[np.int64]

    def labels(self) -> NDArray[np.int64]:
        """The token that follows each scored position, int64 [N]."""
        return self.ids[self.document, self.position + 1]


class _Wave:
    """The rows of a wave as batches of documents, and the way back from their order to that of the rows."""

    def __init__(self, rows: Rows, most_tokens: int, longest: int, seed: int) -> None:
        self.seed = seed
        documents = find_documents(rows.begins, rows.lengths)
        keys = documents.keys(rows.tokens)
        batches = batches_of(documents.lengths, most_tokens=most_tokens, longest=longest)
        self.batches = [_batch(rows, documents, keys, chosen, length) for chosen, length in batches]

    def row_order(self) -> NDArray[np.int64]:
        """Which record comes where, for records in the order of the batches to be in that of the rows."""
        return np.argsort(self._all("place"), kind="stable")

    def places(self) -> Places:
        """Where the records belong, in the order of the rows."""
        order = self.row_order()
        return Places(self.seed, self._all("key")[order], self._all("position")[order])

    def _all(self, name: str) -> NDArray[Any]:
        return np.concatenate([getattr(batch, name) for batch in self.batches])


def _batch(
    rows: Rows, documents: Documents, keys: NDArray[np.uint64], chosen: NDArray[np.int64], length: int
) -> _Batch:
    row, column, is_real = documents.places(chosen, length)
    ids, is_label = rows.tokens[row, column], rows.scored[row, column] & is_real
    document, position = np.nonzero(is_label[:, 1:])
    place = documents.rows[chosen][document] * rows.tokens.shape[1] + documents.starts[chosen][document] + position
    return _Batch(ids, document, position, keys[chosen][document], place)


def _scored_positions(teacher: Teacher, wave: _Wave, progress: _Progress) -> Iterator[Scored]:
    """The positions of a wave, one micro-batch at a time, each with its hidden state."""
    ids = [torch.from_numpy(batch.ids) for batch in wave.batches]
    # Each micro-batch of a wave is freed after its turn.
    states = teacher.last_hidden_states(ids, on_progress=progress.layers)[::-1] if teacher.whole_waves else None
    for batch, batch_ids in zip(wave.batches, ids, strict=True):
        hidden_states = teacher.last_hidden_states([batch_ids])[0] if states is None else states.pop()
        chance = uniforms(wave.seed, batch.key, batch.position, SAMPLING)
        arrays = batch.document, batch.position, batch.labels(), chance
        document, position, labels, numbers = to_device(
            [torch.from_numpy(array) for array in arrays], hidden_states.device
        )
        yield Scored(hidden_states=hidden_states[document, position], labels=labels, uniforms=numbers)
        progress.micro_batch(len(batch.position))


class _Progress:
    """Reporter of the scoring's progress, at most twice per second, which also handles requests to stop.

    Rows that had their records already count as done; their number of tokens is estimated from the average row.
    """

    def __init__(
        self,
        tokens: TokenFile,
        store: CacheStore,
        splits: Sequence[Split],
        channel: Channel,
        rank: Rank,
    ) -> None:
        self._store = store
        self._rank = rank
        self._channel = channel
        self._began = time.monotonic() - channel.paused_seconds
        self._total = sum(tokens.num_scored(split) for split in splits)
        self._before = 0
        for split in splits:
            hashes = tokens.hashes(split)
            present = 1.0 - len(store.missing(hashes, top1=split == "holdout")) / max(1, len(hashes))
            self._before += round(present * tokens.num_scored(split))
        self._committed = self._in_wave = self._wave = self._rows = self._shards = 0
        self._through_layers = False

    @property
    def result(self) -> ScoreResult:
        """The work done so far."""
        return ScoreResult(self._committed, self._rows, self._shards, self.seconds)

    @property
    def seconds(self) -> float:
        """Time since the beginning, without pauses."""
        return time.monotonic() - self._began - self._channel.paused_seconds

    def wave(self, tokens: int) -> None:
        """A wave of so many scored tokens begins."""
        self._wave, self._in_wave, self._through_layers = tokens, 0, False

    def layers(self, done: int, total: int) -> None:
        """A streamed wave is so far through its layers."""
        self._through_layers = True
        self._in_wave = int(_LAYERS_SHARE * self._wave * done / total)
        self._tell()

    def micro_batch(self, tokens: int) -> None:
        """The records of a micro-batch are made."""
        share = 1.0 - _LAYERS_SHARE if self._through_layers else 1.0
        self._in_wave += int(share * tokens)
        self._tell()

    def wave_done(self, rows: int) -> None:
        """The wave's shard is committed, with the records of so many rows."""
        self._committed += self._wave
        self._rows += rows
        self._shards += 1
        self._in_wave = 0
        self._tell(safe=False)

    def end(self) -> None:
        """Everything of this rank is scored."""
        if self._rank.world == 1:
            self._before = self._total - self._committed
        self._tell(safe=False, seconds=0)

    def _tell(self, *, safe: bool = True, seconds: float = PROGRESS_SECONDS) -> None:
        if safe:
            self._channel.safe_point()
        scored = self._committed + self._in_wave
        if self._rank.world > 1:  # of all ranks what is committed, as none knows how far into a wave the others are
            scored = self._committed + self._store.tokens_of_others()
        done = min(self._total, self._before + scored)
        rate = scored / self.seconds if scored and self.seconds > 0 else None
        self._channel.progress(done, self._total, "tokens", rate=rate, seconds=seconds * self._rank.world)
