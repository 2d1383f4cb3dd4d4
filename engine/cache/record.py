"""Records: the stored part of the teacher's distribution at each scored token, and its encoding in bytes.

A record has k ids. The first ``num_head`` are the exact ids, the *head*, with their own log-probs. The others, the
*tail*, are sampled and share the remaining mass equally. The weights sum to 1; their expectation is the teacher's
distribution.

Bytes per position at k = 12, a vocabulary of 49,152 and real text, where 3 ids are heads::

    ids, and which are heads      16     as a set, the frequent ones in fewer bits, see id_layout.py
    log-prob of each head          3     over [-16, 0]
    mass of the tail               1
    label's log-prob, entropy      2     over [-64, 0] and [0, 16] nats

Rows of the hold-out have 8 more: the label's log-prob and the entropy as half floats, and the teacher's first choice.

A byte b encodes ``largest * (b / 255)^2``, which is finer near probability 1, tail mass 0 and entropy 0. Values between
two bytes are rounded stochastically, so that the expectation is exact (for log-probs: the expected probability is the
probability). Rounding to the nearest byte would bias a head always in the same direction. Scaling the heads to 1 - tail
mass afterwards leaves a bias below 0.05 % of a head. On the demo teacher's distributions these bytes add 0.1 % to the
squared error of a record at k = 12; the rest comes from sampling the tail.

Knows nothing of files or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.cache.counter import ROUNDING_ENTROPY, ROUNDING_HEADS, ROUNDING_LABEL, ROUNDING_TAIL, uniforms
from engine.cache.id_layout import IdLayout, fitting_layout
from engine.cache.id_pack import pack_ids, unpack_ids

LOWEST_LOG_PROB = -16.0  # of a head
LARGEST_SURPRISE = 64.0  # of a label, in nats
LARGEST_ENTROPY = 16.0  # e^16 is 8.9 million words
MOST_IDS = 255

_SQUARES = (np.arange(256) / 255.0) ** 2
_TAIL = 256  # sorts behind every byte of a head


@dataclass(frozen=True)
class Records:
    """Records of N positions with k ids each.

    Attributes:
        ids: int32 [N, k], heads first (by falling log-prob), all different within a position.
        num_head: uint8 [N].
        head_log_probs: float32 [N, k], -inf past the heads.
        tail_mass: float32 [N], the probability outside the head.
        label_log_prob: float32 [N], of the true next token, at temperature 1.
        entropy: float32 [N], of the teacher's distribution at the run's temperature, in nats.
        top1_id: int32 [N], the teacher's first choice; None if it was not stored.
        top1_log_prob: float32 [N], its log-prob at temperature 1; None if it was not stored.
    """

    ids: NDArray[np.int32]
    num_head: NDArray[np.uint8]
    head_log_probs: NDArray[np.float32]
    tail_mass: NDArray[np.float32]
    label_log_prob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    top1_id: NDArray[np.int32] | None = None
    top1_log_prob: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.num_head)

    def weights(self) -> NDArray[np.float32]:
        """Return the weight of each id: float32 [N, k], rows sum to 1.

        Heads have ``exp(log_prob)`` scaled to ``1 - tail_mass``, the tail's ids ``tail_mass / (k - num_head)`` each. A
        record whose ids are all heads has no tail to give mass to: its heads are scaled to 1.
        """
        size = self.ids.shape[1]
        heads = np.exp(self.head_log_probs)  # float32: sums of at most 255 numbers
        num_tail = np.float32(size) - self.num_head
        tail_mass = np.where(num_tail > 0, self.tail_mass, np.float32(0))
        tail_mass = np.where(self.num_head == 0, np.float32(1), tail_mass)
        heads *= ((1 - tail_mass) / np.maximum(heads.sum(1), np.float32(1e-30)))[:, None]
        is_tail = np.arange(size) >= self.num_head[:, None]
        return np.where(is_tail, (tail_mass / np.maximum(num_tail, 1))[:, None], heads)

    @classmethod
    def none(cls, record_size: int) -> Self:
        """Records of no position, with k ids each."""
        ids, numbers = np.empty((0, record_size), np.int32), np.empty(0, np.float32)
        return cls(
            ids=ids,
            num_head=np.empty(0, np.uint8),
            head_log_probs=ids.astype(np.float32),
            tail_mass=numbers,
            label_log_prob=numbers,
            entropy=numbers,
            top1_id=np.empty(0, np.int32),
            top1_log_prob=numbers,
        )

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """Records one behind the other; a field that one of them lacks is lacking."""
        if len(parts) == 1:
            return parts[0]
        found = {field.name: _concatenated([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        return cls(**found)

    def without_top1(self) -> Self:
        """The same without the teacher's first choice, which only the hold-out needs."""
        return replace(self, top1_id=None, top1_log_prob=None)

    def take(self, positions: slice | NDArray[np.int64]) -> Self:
        """Some of the positions."""
        found: dict[str, Any] = {
            name: None if values is None else values[positions] for name, values in vars(self).items()
        }
        return type(self)(**found)


@dataclass(frozen=True)
class EncodedRecords:
    """Records of some rows as stored in a shard; the names of columns are those of its data sets.

    Attributes:
        layout: the order of the ids.
        row_records: int64 [rows], how many of the N records are of each row.
        row_bytes: int64 [rows], how many of the bytes of ``ids`` are of each row.
        ids: uint8 [bytes]; a row begins with a byte. By their places in the order, of its records one after another: a
            bit each for heads and their buckets in unary; then the place of each in its bucket.
        head_log_probs: uint8 [all heads], position after position, by their place in the order within each.
        tail_mass: uint8 [N].
        label_log_prob: uint8 [N], or float16 [N] where ``top1_id`` is there.
        entropy: as ``label_log_prob``.
        top1_id: uint32 [N] or None.
        top1_log_prob: float16 [N] or None.
    """

    layout: IdLayout
    row_records: NDArray[np.int64]
    row_bytes: NDArray[np.int64]
    ids: NDArray[np.uint8]
    head_log_probs: NDArray[np.uint8]
    tail_mass: NDArray[np.uint8]
    label_log_prob: NDArray[np.uint8] | NDArray[np.float16]
    entropy: NDArray[np.uint8] | NDArray[np.float16]
    top1_id: NDArray[np.uint32] | None = None
    top1_log_prob: NDArray[np.float16] | None = None

    @property
    def decodes_with(self) -> tuple[object, ...]:
        """Where this is the same, records can be decoded in one go."""
        return self.layout.widths, self.top1_id is None


COLUMNS = ("ids", "head_log_probs", "tail_mass", "label_log_prob", "entropy", "top1_id", "top1_log_prob")
"""The fields of :class:`EncodedRecords` that are data sets of a shard."""


@dataclass(frozen=True)
class Places:
    """Where N records belong; their random numbers come from it.

    Attributes:
        seed: of the run.
        row_keys: uint64 [N], of what holds each: its document (:meth:`engine.models.documents.Documents.keys`).
        positions: int64 [N], place in it.
    """

    seed: int
    row_keys: NDArray[np.uint64]
    positions: NDArray[np.int64]

    def uniforms(self, stream: int) -> NDArray[np.float64]:
        """One number in [0, 1) for each record."""
        return uniforms(self.seed, self.row_keys, self.positions, stream)


def encode(records: Records, vocab_size: int, places: Places, row_records: Sequence[int]) -> EncodedRecords:
    """Turn records into bytes.

    Args:
        records: N positions, row after row.
        vocab_size: V_eff; every id is below it.
        places: of the N records; the same figures at the same places give the same bytes in whatever company.
        row_records: how many of the records are of each row.
    """
    num, size = records.ids.shape
    assert 1 <= size <= MOST_IDS, "the settings allow no more"
    layout = fitting_layout(records.ids, vocab_size)
    columns = np.argsort(records.ids, axis=1)
    log_probs = np.zeros((num, size), np.uint8)
    rows, ranks = np.nonzero(columns < records.num_head[:, None])
    heads = columns[rows, ranks]
    chance = uniforms(places.seed, places.row_keys[rows], places.positions[rows], ROUNDING_HEADS + ranks)
    log_probs[rows, heads] = _log_probs_to_bytes(records.head_log_probs[rows, heads], chance)

    in_order = layout.places(records.ids)
    columns = np.argsort(in_order, axis=1)
    is_head = columns < records.num_head[:, None]
    has_top1 = records.top1_id is not None and records.top1_log_prob is not None
    surprise = -records.label_log_prob
    counts = np.array(row_records, np.int64)
    packed, row_bytes = pack_ids(np.take_along_axis(in_order, columns, 1), is_head, layout, counts)
    return EncodedRecords(
        layout=layout,
        row_records=counts,
        row_bytes=row_bytes,
        ids=packed,
        head_log_probs=np.take_along_axis(log_probs, columns, 1)[is_head],
        tail_mass=_to_bytes(records.tail_mass, 1.0, places.uniforms(ROUNDING_TAIL)),
        label_log_prob=_half(records.label_log_prob)
        if has_top1
        else _to_bytes(surprise, LARGEST_SURPRISE, places.uniforms(ROUNDING_LABEL)),
        entropy=_half(records.entropy)
        if has_top1
        else _to_bytes(records.entropy, LARGEST_ENTROPY, places.uniforms(ROUNDING_ENTROPY)),
        top1_id=None if records.top1_id is None else records.top1_id.astype(np.uint32),
        top1_log_prob=None if records.top1_log_prob is None else _half(records.top1_log_prob),
    )


def decode(parts: Sequence[EncodedRecords], record_size: int) -> Records:
    """Decode bytes into records, one part after the other.

    Raises:
        ValueError: the bytes are not records.
    """
    runs = groupby(
        parts, key=lambda part: part.decodes_with
    )  # parts of the same kind are decoded together: a batch has many parts
    decoded = [_decode(list(run), record_size) for _, run in runs]
    return Records.concatenate(decoded) if decoded else Records.none(record_size)


def _decode(parts: list[EncodedRecords], record_size: int) -> Records:
    columns = {name: _concatenated([getattr(part, name) for part in parts]) for name in COLUMNS}
    row_records, row_bytes = (np.concatenate([getattr(part, name) for part in parts]) for name in _ROW_FIELDS)
    in_order, is_head = unpack_ids(columns["ids"], parts[0].layout, row_records, row_bytes, record_size)
    ids, begin = np.empty(in_order.shape, np.int64), 0
    for part in parts:
        end = begin + len(part.tail_mass)
        ids[begin:end] = part.layout.ids(in_order[begin:end])
        begin = end
    # One sort brings the heads to the front by falling log-prob, and the tail behind them by rising id.
    keys = np.full(ids.shape, _TAIL << 32, np.int64)
    keys[is_head] = columns["head_log_probs"].astype(np.int64) << 32
    keys |= ids
    keys.sort(axis=1)
    top1_id, top1_log_prob = columns["top1_id"], columns["top1_log_prob"]
    return Records(
        ids=(keys & 0xFFFF_FFFF).astype(np.int32),
        num_head=np.count_nonzero(is_head, axis=1).astype(np.uint8),
        head_log_probs=_LOG_PROBS[keys >> 32],
        tail_mass=_SQUARES.astype(np.float32)[columns["tail_mass"]],
        label_log_prob=-_figures(columns["label_log_prob"], LARGEST_SURPRISE, -1),
        entropy=_figures(columns["entropy"], LARGEST_ENTROPY, 1),
        top1_id=None if top1_id is None else top1_id.astype(np.int32),
        top1_log_prob=None if top1_log_prob is None else top1_log_prob.astype(np.float32),
    )


_ROW_FIELDS = ("row_records", "row_bytes")


def _concatenated(values: list[Any]) -> Any:
    """Concatenate arrays; None if one of them is None."""
    return None if any(value is None for value in values) else np.concatenate(values)


_LOG_PROBS = np.append(LOWEST_LOG_PROB * _SQUARES, -np.inf).astype(np.float32)


def _to_bytes(values: NDArray[np.float32], largest: float, chance: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return bytes whose expected value is ``values``; values outside of [0, largest] are clamped."""
    share = np.clip(values.astype(np.float64) / largest, 0.0, 1.0)
    lower = np.minimum(np.sqrt(share) * 255, 254).astype(np.int64)
    below, above = _SQUARES[lower], _SQUARES[lower + 1]
    return (lower + (chance * (above - below) < share - below)).astype(np.uint8)


def _log_probs_to_bytes(log_probs: NDArray[np.float32], chance: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return bytes whose expected probability is ``exp(log_probs)``, for values within the range."""
    share = np.clip(log_probs.astype(np.float64) / LOWEST_LOG_PROB, 0.0, 1.0)
    lower = np.minimum(np.sqrt(share) * 255, 254).astype(np.int64)
    probs = np.exp(LOWEST_LOG_PROB * _SQUARES)
    likelier, rarer = probs[lower], probs[lower + 1]
    return (lower + (chance * (likelier - rarer) < likelier - np.exp(LOWEST_LOG_PROB * share))).astype(np.uint8)


def _figures(stored: NDArray[Any], largest: float, sign: int) -> NDArray[np.float32]:
    if stored.dtype == np.uint8:
        return (largest * _SQUARES).astype(np.float32)[stored]
    return sign * stored.astype(np.float32)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16)
