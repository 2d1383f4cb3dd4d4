"""The teacher reads what was not read before, and leaves records.

Rows are taken in waves. A wave is as many rows as fit a number of tokens, in the order of the token file, cut from the
list of *all* rows: a wave ends with one committed shard, so an interrupted run goes on with the wave it was in and
leaves the same shards, byte for byte. Within a wave the long rows come first: memory is short at once or not at all,
and rows of the same length share a micro-batch.

Knows nothing of where the teacher's layers come from, of drawing, or of how records are stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.cache.counter import SAMPLING, row_key, uniforms
from engine.cache.store import CacheStore
from engine.data.tokens import Rows, Split, TokenFile
from engine.events import EventWriter
from engine.phase_control import PhaseControl
from engine.relief import Relief
from engine.teacher.head import Scored, records_from_hidden

_SECONDS_BETWEEN_EVENTS = 0.5
# What a streamed wave still has to do when its last layer is through: the head.
_LAYERS_SHARE = 0.9


class Teacher(Protocol):
    """What scores: :class:`engine.models.load.ResidentTeacher` or :class:`engine.models.stream.StreamedTeacher`.

    Attributes:
        whole_waves: whether a call costs a pass over all layers on disk, so that it wants a whole wave at a time.
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
    """What one call of :func:`score` did.

    Attributes:
        tokens: scored positions, without those that had records already.
        rows: rows they are in.
        shards: shards committed.
        seconds: time spent, without pauses.
    """

    tokens: int
    rows: int
    shards: int
    seconds: float


def score(
    *,
    teacher: Teacher,
    tokens: TokenFile,
    store: CacheStore,
    splits: Sequence[Split],
    micro_batch: int,
    wave_tokens: int,
    chunk_tokens: int,
    record_size: int,
    temperature: float,
    seed: int,
    events: EventWriter,
    control: PhaseControl,
    relief: Relief | None = None,
) -> ScoreResult:
    """Score every row whose records are not in the store.

    Args:
        teacher: makes hidden states and logits.
        tokens: the rows.
        store: takes the records; one shard for each wave.
        splits: which rows, in this order.
        micro_batch: rows that go through the model together.
        wave_tokens: most tokens in a wave (padding included), but at least one row.
        chunk_tokens: positions whose logits exist at a time.
        record_size: ids in a record.
        temperature: of the distribution that is recorded.
        seed: of the draws.
        events: gets ``progress`` and ``shard``.
        control: asked at safe points; a stop loses at most one wave.
        relief: looks at memory meanwhile; while it is short waves are shorter, which changes shards but no record.

    Raises:
        Stopped: the person asked to stop.
        BadNumbers: the teacher gives NaN or infinity.
    """
    progress = _Progress(tokens, store, splits, events, control, relief)
    scored_tokens = scored_rows = shards = 0
    rows_in_wave = max(1, wave_tokens // tokens.sequence_length)
    for split in splits:
        hashes = tokens.hashes(split)
        is_holdout = split == "holdout"  # only to measure with is the teacher's first choice needed
        end = 0
        while end < len(hashes):
            if relief is not None:
                relief.look()
            start = end
            # A wave begins again where the next one would have, or the shards of a resumed run would be others.
            end = min(len(hashes), (start // rows_in_wave + 1) * rows_in_wave)
            if relief is not None and relief.is_short:
                end = min(end, start + max(micro_batch, rows_in_wave // 2))
            indices = _missing(store, hashes, range(start, end), top1=is_holdout)
            if not indices:
                continue
            control.safe_point()
            rows = _longest_first(tokens.rows(split, indices))
            counts = rows.scored.sum(1)
            progress.wave(int(counts.sum()))
            records = records_from_hidden(
                _scored_positions(teacher, rows, micro_batch, seed, progress),
                teacher.logits,
                vocab_size=tokens.vocab_size,
                record_size=record_size,
                temperature=temperature,
                chunk_tokens=chunk_tokens,
            )
            kept = records if is_holdout else records.without_top1()
            entry = store.commit(list(zip(rows.hashes, counts.tolist(), strict=True)), kept)
            events.write("shard", path=entry.name, tokens=entry.tokens, bytes=entry.bytes)
            progress.wave_done()
            scored_tokens += int(counts.sum())
            scored_rows += len(indices)
            shards += 1
    progress.end()
    return ScoreResult(scored_tokens, scored_rows, shards, progress.seconds)


def _missing(store: CacheStore, hashes: list[bytes], indices: range, *, top1: bool) -> list[int]:
    """Those of a wave's rows that have no records, each text once."""
    absent = [indices[place] for place in store.missing([hashes[index] for index in indices], top1=top1)]
    first_of = {hashes[index]: index for index in reversed(absent)}
    return sorted(first_of.values())


def _longest_first(rows: Rows) -> Rows:
    order = np.argsort(-rows.lengths, kind="stable")
    return Rows(
        rows.tokens[order], rows.scored[order], rows.lengths[order], [rows.hashes[place] for place in order.tolist()]
    )


def _scored_positions(
    teacher: Teacher, rows: Rows, micro_batch: int, seed: int, progress: _Progress
) -> Iterator[Scored]:
    """The positions of a wave, one micro-batch at a time, each with its hidden state."""
    starts = range(0, len(rows.lengths), micro_batch)
    ids = [torch.from_numpy(rows.tokens[start : start + micro_batch, : rows.lengths[start]].copy()) for start in starts]
    # Of a whole wave each is let go of when its turn has come.
    wave = teacher.last_hidden_states(ids, on_progress=progress.layers)[::-1] if teacher.whole_waves else None
    for start, batch_ids in zip(starts, ids, strict=True):
        part = slice(start, start + micro_batch)
        hidden_states = teacher.last_hidden_states([batch_ids])[0] if wave is None else wave.pop()
        # The record of token i + 1 is made from the hidden state of token i.
        is_label = rows.scored[part, 1 : batch_ids.shape[1]]
        row, position = np.nonzero(is_label)
        hashes = np.array([row_key(value) for value in rows.hashes[part]], np.uint64)
        device = hidden_states.device
        hidden_states = hidden_states[torch.from_numpy(row).to(device), torch.from_numpy(position).to(device)]
        yield Scored(
            hidden_states=hidden_states,
            labels=batch_ids[torch.from_numpy(row), torch.from_numpy(position) + 1].to(device),
            uniforms=torch.from_numpy(uniforms(seed, hashes[row], position, SAMPLING)).to(device),
        )
        progress.micro_batch(len(row))


class _Progress:
    """Tells how far the scoring is, at most twice a second, and stops where the person asks for it.

    Rows that had their records already count as done; how many tokens they hold is told from the average row.
    """

    def __init__(
        self,
        tokens: TokenFile,
        store: CacheStore,
        splits: Sequence[Split],
        events: EventWriter,
        control: PhaseControl,
        relief: Relief | None,
    ) -> None:
        self._events = events
        self._relief = relief
        self._control = control
        self._began = time.monotonic() - control.paused_seconds
        self._last = 0.0
        self._total = sum(tokens.num_scored(split) for split in splits)
        self._before = 0
        for split in splits:
            hashes = tokens.hashes(split)
            present = 1.0 - len(store.missing(hashes, top1=split == "holdout")) / max(1, len(hashes))
            self._before += round(present * tokens.num_scored(split))
        self._committed = self._in_wave = self._wave = 0
        self._through_layers = False

    @property
    def seconds(self) -> float:
        """Time since the beginning, without pauses."""
        return time.monotonic() - self._began - self._control.paused_seconds

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

    def wave_done(self) -> None:
        """The wave's shard is committed."""
        self._committed += self._wave
        self._in_wave = 0
        self._tell(safe=False)

    def end(self) -> None:
        """Everything is scored."""
        self._before = self._total - self._committed
        self._last = 0.0
        self._tell(safe=False)

    def _tell(self, *, safe: bool = True) -> None:
        if safe:
            self._control.safe_point()
            if self._relief is not None:
                self._relief.look()
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_EVENTS:
            return
        self._last = now
        scored = self._committed + self._in_wave
        done = min(self._total, self._before + scored)
        rate = scored / self.seconds if scored and self.seconds > 0 else None
        self._events.progress(
            done, self._total, "tokens", rate=rate, eta_seconds=(self._total - done) / rate if rate else None
        )
