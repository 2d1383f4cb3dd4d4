"""Derived sizes of chunks, waves and slices, which no setting controls directly.

Phases and planner both call these functions, so predictions match the execution. The sizes depend only on settings that
a resumed run may not change, never on the free memory: an interrupted run leaves the same shards.
"""

from __future__ import annotations

from engine.machine.device import CPU, Device

_MIB = 2**20


def head_chunk_tokens(vocab_size: int, *, device: Device = CPU) -> int:
    """Positions whose logits exist at a time, in the teacher's scoring and in the student's loss.

    Enough rows for the matrix product to run at full speed (some 50), and a block of logits of 16 MiB where that
    allows: the vocabulary of 50,304 has 83 rows, one of 152k has 48. More than 256 gain nothing, and temporary matrices
    outgrow the caches. A GPU needs more rows to be busy: a block has 128 MiB there, and a vocabulary of 262k 128 rows.
    """
    return min(device.most_rows, max(device.fewest_rows, device.block_bytes // (4 * vocab_size)))


def is_large_block(vocab_size: int, chunk_tokens: int, *, device: Device = CPU) -> bool:
    """Return whether a chunk's logits are larger than they should be, because a product of fewer rows would be slow."""
    return 4 * vocab_size * chunk_tokens > device.block_bytes


def smaller_chunk(chunk_tokens: int) -> int | None:
    """Return a quarter of a chunk, for a phase that ran out of memory; None if that would be too small.

    The head's weights are then read four times as often, so this is not planned with. A streamed teacher of 262k ids
    took 372 MiB instead of 467 with chunks of 12 positions instead of 48.
    """
    return chunk_tokens // 4 if chunk_tokens >= 4 * _FEWEST_ROWS else None


_FEWEST_ROWS = 8


def wave_tokens(hidden_size: int, micro_batch_tokens: int, *, layer_by_layer: bool, device: Device = CPU) -> int:
    """Return the tokens of a wave, which are scored before a shard is committed; at least one micro-batch.

    A wave keeps one hidden state per token: 32 MiB of them at 4 bytes, but never fewer than 2,048 tokens when layers
    are streamed, or reading the layers would take longer than computing them. More than 16,384 tokens gain nothing,
    and would be lost in a crash. A GPU computes faster than any disk reads, so there a wave is eight times as large.
    """
    factor = device.wave_factor
    tokens = min(16_384 * factor, 32 * _MIB * factor // (4 * hidden_size))
    if layer_by_layer:
        tokens = max(tokens, 2_048 * factor)
    return max(1, tokens // micro_batch_tokens) * micro_batch_tokens
