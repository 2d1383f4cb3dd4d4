"""Scoring from last hidden states to records, one chunk of tokens at a time: full logits are never allocated.

A chunk's logits are [tokens, vocab] float32, and at most two such blocks exist: the logits, which
become log-probabilities in place, and the probabilities for the sampling, in memory that all chunks share. The system
would have to zero new memory for each chunk, which took a third of the scoring's time. An lm_head in half precision
briefly takes another half block for its output.

Chunks are taken from the stream of all scored positions, independent of micro-batches: the last bit of a matrix product
can depend on the number of rows, so a chunk must hold the same positions for whole and streamed teachers.

Knows nothing of files, rows or waves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.cache.record import Records
from engine.models.transfer import to_host
from engine.teacher.sampling import draw_records, scratch_for


@dataclass(frozen=True)
class Scored:
    """Positions to score.

    Attributes:
        hidden_states: [positions, hidden], after the final norm.
        labels: int64 [positions], the token that follows each.
        uniforms: float64 [positions] in [0, 1), the random number of each.
    """

    hidden_states: Tensor
    labels: Tensor
    uniforms: Tensor


def records_from_hidden(
    parts: Iterable[Scored],
    head: Callable[[Tensor], Tensor],
    *,
    vocab_size: int,
    record_size: int,
    temperature: float,
    chunk_tokens: int,
) -> Records:
    """Records of all positions, in order.

    Args:
        parts: positions in pieces of any size; the next piece is taken when the previous one is used up.
        head: logits of [positions, hidden] states, float32 [positions, vocab_rows].
        vocab_size: V_eff; columns past it are padding and are ignored.
        record_size: k.
        temperature: of the recorded distribution; label and top-1 log-probs are at temperature 1.
        chunk_tokens: positions in a chunk.

    Raises:
        BadNumbers: the head gives no distribution for a position.
    """
    gathered = _Gathered()
    scratch: Tensor | None = None
    for chunk in _in_chunks(parts, chunk_tokens):
        logits_CV = head(chunk.hidden_states)
        if scratch is None:
            scratch = scratch_for(chunk_tokens, vocab_size, like=logits_CV)
        gathered.add(_records_of_chunk(chunk, logits_CV, vocab_size, record_size, temperature, scratch))
        del logits_CV
    if not gathered.count:
        return _no_records(min(record_size, vocab_size))
    return Records(**gathered.arrays())


class _Gathered:
    """Arrays that grow by the rows of each chunk, in few memory blocks.

    Small arrays per chunk would fragment the heap between the large temporary ones of later chunks: scoring 4,000
    positions of 152k ids in chunks of 12 took 180 MiB more.
    """

    def __init__(self) -> None:
        self.count = 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Copy the rows of one chunk; every array has as many."""
        end = self.count + len(next(iter(rows.values())))
        for name, values in rows.items():
            held = self._arrays.get(name)
            if held is None or len(held) < end:
                larger = np.empty((max(2 * self.count, end, 4096), *values.shape[1:]), values.dtype)
                if held is not None:
                    larger[: self.count] = held[: self.count]
                self._arrays[name] = held = larger
            held[self.count : end] = values
        self.count = end

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows so far."""
        return {name: values[: self.count] for name, values in self._arrays.items()}


def _records_of_chunk(
    chunk: Scored, logits_CV: Tensor, vocab_size: int, record_size: int, temperature: float, scratch: Tensor
) -> dict[str, np.ndarray]:
    """The records of one chunk; its logits are overwritten."""
    log_probs_CV = _log_softmax_(logits_CV, vocab_size)
    label_log_prob_C = log_probs_CV.gather(1, chunk.labels[:, None])[:, 0]
    top1_log_prob_C = log_probs_CV.amax(1)
    if temperature != 1.0:
        log_probs_CV = _log_softmax_(log_probs_CV.div_(temperature), vocab_size)
    log_probs_CV = log_probs_CV[:, :vocab_size]
    drawn = draw_records(log_probs_CV, record_size=record_size, uniforms=chunk.uniforms, scratch=scratch)
    found = {
        "ids": drawn.ids,
        "num_head": drawn.num_head,
        "head_log_probs": drawn.head_log_probs,
        "tail_mass": drawn.tail_mass,
        "label_log_prob": label_log_prob_C,
        "entropy": drawn.entropy,
        "top1_id": drawn.top1_id,
        "top1_log_prob": top1_log_prob_C,
    }
    kept_as = {"ids": torch.int32, "num_head": torch.uint8, "top1_id": torch.int32}
    here = zip(found, to_host(list(found.values())), strict=True)
    return {name: values.to(kept_as.get(name, values.dtype)).numpy() for name, values in here}


def _log_softmax_(logits_CV: Tensor, vocab_size: int) -> Tensor:
    """Log-softmax over the first ``vocab_size`` columns, in place; -inf in the others."""
    # Cutting the padding off first would copy the block, as log_softmax wants its rows one behind the other.
    if vocab_size < logits_CV.shape[1]:
        logits_CV[:, vocab_size:] = -torch.inf
    # Its kernels read a row for the last time when they write it, so that a row may be its own result; a test looks.
    return torch.log_softmax(logits_CV, -1, out=logits_CV)


def _in_chunks(parts: Iterable[Scored], chunk_tokens: int) -> Iterator[Scored]:
    """The same positions in chunks of ``chunk_tokens``, the last one shorter."""
    waiting: list[Scored] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part.labels)
        if count < chunk_tokens:
            continue
        whole = _joined(waiting)
        last = count - count % chunk_tokens
        for start in range(0, last, chunk_tokens):
            yield _cut(whole, start, start + chunk_tokens)
        # A copy, so that waiting positions do not keep the whole micro-batch alive.
        rest = _cut(whole, last, count)
        count -= last
        waiting = [Scored(rest.hidden_states.clone(), rest.labels, rest.uniforms)] if count else []
        del whole, rest, part
    if count:
        yield _joined(waiting)


def _joined(parts: list[Scored]) -> Scored:
    if len(parts) == 1:
        return parts[0]
    return Scored(
        torch.cat([part.hidden_states for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.uniforms for part in parts]),
    )


def _cut(part: Scored, start: int, end: int) -> Scored:
    return Scored(part.hidden_states[start:end], part.labels[start:end], part.uniforms[start:end])


def _no_records(size: int) -> Records:
    def nothing(dtype: type) -> np.ndarray:
        return np.empty(0, dtype)

    return Records(
        ids=np.empty((0, size), np.int32),
        num_head=nothing(np.uint8),
        head_log_probs=np.empty((0, size), np.float32),
        tail_mass=nothing(np.float32),
        label_log_prob=nothing(np.float32),
        entropy=nothing(np.float32),
        top1_id=nothing(np.int32),
        top1_log_prob=nothing(np.float32),
    )
