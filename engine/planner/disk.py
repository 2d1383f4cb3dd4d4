"""Formulas of a run's bytes on the disk."""

from __future__ import annotations

import math

from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import ModelShape

# Of a record beside its ids: rest mass, label's log-prob and entropy, one byte each.
_RECORD_FIXED_BYTES = 3
# Share of ids that are heads, whose log-probs take one byte each: of 12 ids some 3 on text that a model knows well.
_HEADS = 0.25
# Of an id's place in its bucket, on text; and of the list of frequent ids in a shard, for each of its records.
_PLACE_BITS = 7.2
_LIST_BYTES = 0.3
_CHECKPOINT_STATE_BYTES = {"adamw": 8.0, "adamw-8bit": 2.0 + 8 / 256}


def record_bytes(record_size: int, vocab_size: int) -> float:
    """Bytes of one position's record in a shard.

    An id takes a bucket, in unary, a place in it, and one bit that marks heads (the cache's id_layout). On text,
    buckets of doubling size from 8 ids on and _PLACE_BITS describe this; the upper bound is buckets of one size (Elias
    and Fano).
    """
    ids = min(record_size, vocab_size)
    any_ids = min(2 * ids + ((vocab_size - 1) >> low) + ids * low for low in range((vocab_size - 1).bit_length() + 1))
    buckets = math.ceil(math.log2(vocab_size / 8 + 1))
    text = 2 * ids + buckets - 1 + ids * _PLACE_BITS + 8 * _LIST_BYTES
    return min(any_ids, text) / 8 + ids * _HEADS + _RECORD_FIXED_BYTES


def cache_bytes(tokens: int, record_size: int, vocab_size: int) -> int:
    """The teacher's records of all tokens, hold-out included."""
    return int(tokens * record_bytes(record_size, vocab_size))


def tokens_bytes(tokens: int, vocab_size: int) -> int:
    """``tokens.h5``, compressed: the bits of an id that could be any, which is more than text needs, and flags."""
    return int(tokens * (math.log2(max(2, vocab_size)) / 8 + 0.3))


def checkpoint_bytes(trained_parameters: int, optimizer: str) -> int:
    """One checkpoint: float32 weights and the optimizer's states of all that is trained."""
    return int(trained_parameters * (4 + _CHECKPOINT_STATE_BYTES[optimizer]))


def run_bytes(
    *,
    tokens: int,
    record_size: int,
    vocab_size: int,
    student: ModelShape,
    setting: StudentSetting,
    keep_checkpoints: int,
    is_cut: bool,
) -> int:
    """Return the maximum bytes of the run's folder at any time.

    Args:
        tokens: of all rows.
        record_size: ids of a record.
        vocab_size: rows of the lm_head.
        student: the student.
        setting: of its training.
        keep_checkpoints: of its training.
        is_cut: whether the student's first weights are in the run's folder.
    """
    optimizer, trained_parameters = setting.optimizer, setting.trained_parameters(student)
    in_files = setting.cpu_offload and setting.device.is_host
    # Each of the ranks that divide the student loads it into a file of its own, before it takes its part.
    loaded_in_files = setting.ranks if setting.sharded else 0
    beside = trained_parameters != student.parameters
    # The ones to keep, the best, and the one that is being written before an old one goes.
    checkpoints = (keep_checkpoints + 2) * checkpoint_bytes(trained_parameters, optimizer)
    weights = student.parameters * 4
    if beside:
        # The trained part by itself, and merged into the student in the format of its files.
        weights = student.parameters * student.stored_bytes + trained_parameters * 4
    initial = student.parameters * student.stored_bytes if is_cut else 0
    # Weights and states that each rank keeps in files while the student trains.
    scratch = checkpoint_bytes(trained_parameters, optimizer) if in_files else 0
    if in_files and beside:
        scratch += student.parameters * 4
    scratch *= 1 if setting.sharded else setting.ranks
    scratch += loaded_in_files * student.parameters * 4
    return (
        scratch
        + cache_bytes(tokens, record_size, vocab_size)
        + tokens_bytes(tokens, vocab_size)
        + checkpoints
        + weights
        + initial
    )
