"""Sampling of k ids from a distribution over the vocabulary: exact heads, and an unbiased random tail.

VarOpt sampling. With probabilities p and record size k, a threshold tau solves ``sum(min(1, p_i / tau)) = k``. Ids with
``p_i >= tau`` are the head and keep their own probability; ``k - len(head)`` further ids are drawn with inclusion
probability ``p_i / tau`` and stand for tau each. The weights sum to 1, and the expectation of the record is p itself.

Source: Chao 1982, https://doi.org/10.2307/2336002; Cohen et al. 2009, https://arxiv.org/abs/0803.0473, section 3. The
tail is drawn systematically (Madow 1949): one uniform number u for each position, and the ids at which the running
sum of the tail passes (u + j) * tau.

Knows nothing of models, chunks or files. Rows are independent: the same row and uniform give the same ids in any batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import BadNumbers
from engine.machine.torch_device import exact, kind_of

# Ids are searched in two steps, block then place, so that no running sum over the vocabulary is stored. Blocks
# this long make both steps short; any length gives the same record up to rounding.
BLOCK = 128


@dataclass(frozen=True)
class Drawn:
    """Records of N positions, as tensors on the device of the distribution.

    Attributes:
        ids: int64 [N, k], all different within a row: heads by falling probability, then the tail by rising id.
        num_head: int64 [N], how many of the ids are heads.
        head_log_probs: float32 [N, k], -inf past the heads.
        tail_mass: float32 [N], the probability of the tail; each of its ids has an equal share.
        entropy: float32 [N], of the distribution, in nats.
        top1_id: int64 [N], the likeliest id.
        top1_log_prob: float32 [N], its log-probability.
    """

    ids: Tensor
    num_head: Tensor
    head_log_probs: Tensor
    tail_mass: Tensor
    entropy: Tensor
    top1_id: Tensor
    top1_log_prob: Tensor


def scratch_for(num_rows: int, vocab_size: int, *, like: Tensor) -> Tensor:
    """Allocate reusable memory for :func:`draw_records`, float32 [num_rows, vocab in whole blocks]."""
    return like.new_empty((num_rows, -(-vocab_size // BLOCK) * BLOCK), dtype=torch.float32)


def draw_records(log_probs: Tensor, *, record_size: int, uniforms: Tensor, scratch: Tensor | None = None) -> Drawn:
    """Draw one record from each row.

    Two [N, V] blocks exist at a time: the given one, which is not changed, and the probabilities, plus some
    [N, k, BLOCK], in float64 for the tail.

    Args:
        log_probs: float32 [N, V], normalised; -inf for ids that cannot occur.
        record_size: k; all V ids are taken where it is not below V.
        uniforms: float64 [N] in [0, 1), one for each row.
        scratch: of :func:`scratch_for`, for at least N rows, with any content; new memory by default.

    Raises:
        BadNumbers: a row holds NaN, or no distribution.
    """
    # N = positions, V = vocabulary, K = record size, G = blocks of the vocabulary, B = ids in a block
    num_rows, vocab_size = log_probs.shape
    device = log_probs.device
    size = min(record_size, vocab_size)
    if scratch is None:
        scratch = scratch_for(num_rows, vocab_size, like=log_probs)
    probs_NV = scratch[:num_rows]
    probs_NGB = probs_NV.unflatten(1, (-1, BLOCK))
    torch.exp(log_probs, out=probs_NV[:, :vocab_size])
    entropy_N = _entropy(log_probs, probs_NV)

    has_filling = vocab_size < probs_NV.shape[1]
    if has_filling:
        probs_NV[:, vocab_size:] = -1.0  # what fills the last block is never among the largest,
    top_NK, top_ids_NK, top_blocks_NK = _largest(probs_NV, size)
    if has_filling:
        probs_NV[:, vocab_size:] = 0.0  # and weighs nothing
    # Small probabilities are what is left after the large ones are taken out, not 1 minus these: 1e-30 would be lost.
    probs_NV.scatter_(1, top_ids_NK, 0.0)
    sums_NG = exact(probs_NGB.sum(-1))
    rest_N = sums_NG.sum(-1)
    top_NK = exact(top_NK)
    total_N = rest_N + top_NK.sum(-1)
    _check(total_N)

    num_head_N = _num_heads(top_NK, rest_N)
    is_head_NK = _ranks(size, top_NK.device) < num_head_N[:, None]
    left_over_NK = top_NK.masked_fill(is_head_NK, 0.0)
    probs_NV.scatter_(1, top_ids_NK, left_over_NK.float().to(device))
    _add_to_blocks(sums_NG, top_blocks_NK.to(sums_NG.device), left_over_NK)
    tail_N = sums_NG.sum(-1)

    ids_NK = _draw_tail(probs_NGB, sums_NG, num_head_N, top_ids_NK.to(sums_NG.device), uniforms).to(device)
    is_head_NK = is_head_NK.to(device)
    ids_NK = torch.where(is_head_NK, top_ids_NK, ids_NK)
    top_log_probs_NK = log_probs.gather(1, top_ids_NK)
    return Drawn(
        ids=ids_NK,
        num_head=num_head_N.to(device),
        head_log_probs=torch.where(is_head_NK, top_log_probs_NK, -torch.inf),
        tail_mass=(tail_N / total_N).float().to(device),
        entropy=entropy_N,
        top1_id=top_ids_NK[:, 0],
        top1_log_prob=top_log_probs_NK[:, 0],
    )


def _add_to_blocks(sums_NG: Tensor, blocks_NK: Tensor, amounts_NK: Tensor) -> None:
    """Add each amount to its block.

    A GPU's ``scatter_add_`` adds the values of a block in any order: a draw on the edge could differ between two
    runs. There each block's amounts are summed first, always in one order, and ranks of one block write the same value.
    """
    if kind_of(sums_NG.device).is_host:
        sums_NG.scatter_add_(1, blocks_NK, amounts_NK)  # one thread a row, in order
        return
    is_same_NKK = blocks_NK[:, :, None] == blocks_NK[:, None, :]
    before_NK1 = sums_NG.gather(1, blocks_NK)[:, :, None]
    sums_NG.scatter_(1, blocks_NK, torch.baddbmm(before_NK1, is_same_NKK.double(), amounts_NK[:, :, None])[:, :, 0])


def _entropy(log_probs: Tensor, probs_NV: Tensor) -> Tensor:
    """-sum(p log p) of each row, block by block: no third block of the vocabulary's size."""
    entropy_N = log_probs.new_zeros(log_probs.shape[0])
    # Small enough to come from memory that is there already, however many rows there are.
    is_host = kind_of(log_probs.device).is_host
    piece = max(1, kind_of(log_probs.device).scratch_elements // max(1, log_probs.shape[0]) // BLOCK) * BLOCK
    for start in range(0, log_probs.shape[1], piece):
        log_probs_NP = log_probs[:, start : start + piece].clamp_min(-1e4)  # 0 * -inf would be NaN
        probs_NP = probs_NV[:, start : start + log_probs_NP.shape[1]]
        if is_host:
            entropy_N -= log_probs_NP.mul_(probs_NP).sum(1)
        else:  # two launches instead of four
            entropy_N = entropy_N[:, None, None].baddbmm(log_probs_NP[:, None], probs_NP[:, :, None], alpha=-1)[:, 0, 0]
    return entropy_N


def _largest(probs_NV: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``size`` largest of each row, falling, their ids, and the blocks of these.

    They are in the ``size`` blocks with the largest maxima, so only these are sorted through.
    """
    probs_NGB = probs_NV.unflatten(1, (-1, BLOCK))
    if probs_NGB.shape[1] <= 2 * size:
        values_NK, ids_NK = probs_NV.topk(size, dim=1)
        return values_NK, ids_NK, ids_NK // BLOCK
    blocks_NK = probs_NGB.amax(-1).topk(size, dim=1).indices
    candidates_NKB = probs_NGB.gather(1, blocks_NK[:, :, None].expand(-1, -1, BLOCK))
    values_NK, places_NK = candidates_NKB.flatten(1).topk(size, dim=1)
    home_NK = blocks_NK.gather(1, places_NK // BLOCK)
    return values_NK, home_NK * BLOCK + places_NK % BLOCK, home_NK


def _num_heads(top_NK: Tensor, rest_N: Tensor) -> Tensor:
    """How many ids reach the threshold.

    An id of rank h (from 0) belongs to the tail when ``p < (mass from h on) / (k - h)``, and all after it do too.
    Taking p from both sides gives ``p * (k - h - 1) < mass after h``: no digits are lost however small that is.
    """
    size = top_NK.shape[1]
    after_NK = rest_N[:, None] + (top_NK.flip(1).cumsum(1).flip(1) - top_NK)
    shares_K = _shares(size, top_NK.device)
    first_N = (top_NK * shares_K < after_NK).int().argmax(1)  # the last rank is one when there is any rest
    # Nothing is left past the k largest: what has mass is exact, and nothing is drawn.
    return torch.where(rest_N > 0.0, first_N, (top_NK > 0.0).sum(1))


def _draw_tail(
    probs_NGB: Tensor, sums_NG: Tensor, num_head_N: Tensor, top_ids_NK: Tensor, uniforms_N: Tensor
) -> Tensor:
    """Ids of the tail, in the columns from ``num_head`` on; the other columns hold anything.

    Args:
        probs_NGB: probabilities, 0 for heads.
        sums_NG: sum of each block, float64.
        num_head_N: where each row's tail begins.
        top_ids_NK: the largest ids; they fill the tail of a row that has no mass left, where they weigh nothing.
        uniforms_N: one number in [0, 1) for each row.
    """
    num_blocks, size = probs_NGB.shape[1], top_ids_NK.shape[1]
    sums_to_NG = sums_NG.cumsum(1)
    tail_N = sums_to_NG[:, -1]
    draws_N = (size - num_head_N).clamp_min(1)
    place_NK = (_ranks(size, sums_NG.device) - num_head_N[:, None]).clamp_min(0)
    mark_NK = (uniforms_N.to(sums_NG)[:, None] + place_NK) * (tail_N / draws_N)[:, None]
    mark_NK = torch.minimum(mark_NK, _just_below(tail_N)[:, None])

    block_NK = torch.searchsorted(sums_to_NG, mark_NK, right=True).clamp_max(num_blocks - 1)
    into_NK = mark_NK - (sums_to_NG - sums_NG).gather(1, block_NK).clamp_min(0.0)
    inside_NKB = exact(probs_NGB.gather(1, block_NK.to(probs_NGB.device)[:, :, None].expand(-1, -1, BLOCK))).cumsum(-1)
    whole_NK = inside_NKB[:, :, -1]
    # The block's sum was rounded another way than this running sum: meet in the same proportion.
    into_NK = into_NK * whole_NK / sums_NG.gather(1, block_NK)
    into_NK = torch.minimum(into_NK.nan_to_num(0.0), _just_below(whole_NK)).clamp_min(0.0)
    ids_NK = block_NK * BLOCK + (inside_NKB <= into_NK[:, :, None]).sum(-1).clamp_max(BLOCK - 1)

    is_empty_N = tail_N <= 0.0
    ids_NK = torch.where(is_empty_N[:, None], top_ids_NK, ids_NK)
    return _without_doubles(ids_NK, num_head_N, probs_NGB)


def _without_doubles(ids_NK: Tensor, num_head_N: Tensor, probs_NGB: Tensor) -> Tensor:
    """Replace an id that was drawn twice by the next one in the row that has mass and was not drawn.

    In exact numbers no id is drawn twice, as each has less mass than the distance of two marks; rounding can do it
    where an id's mass equals that distance to the last digit. The tail's mass is not changed.
    """
    places_K = _ranks(ids_NK.shape[1], ids_NK.device)[1:]
    doubles_NK = (ids_NK[:, 1:] == ids_NK[:, :-1]) & (places_K > num_head_N[:, None])
    for row, has_doubles in enumerate(doubles_NK.any(1).tolist()):
        if not has_doubles:
            continue
        first = int(num_head_N[row])
        has_mass_V = probs_NGB[row].flatten().to(ids_NK.device) > 0.0
        has_mass_V[ids_NK[row, first:]] = False
        free = has_mass_V.nonzero().flatten()
        for place in (doubles_NK[row].nonzero().flatten() + 1).tolist():
            later = free[free > ids_NK[row, place]]
            chosen = later[0] if later.numel() else free[0]
            ids_NK[row, place] = chosen
            free = free[free != chosen]
        ids_NK[row, first:] = ids_NK[row, first:].sort().values
    return ids_NK


def _just_below(values: Tensor) -> Tensor:
    return torch.nextafter(values, _zero(values.dtype, values.device))


@functools.lru_cache(maxsize=8)
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 on this device: a kernel for CUDA refuses one that is in main memory."""
    return torch.zeros((), dtype=dtype, device=device)


@functools.lru_cache(maxsize=8)
def _ranks(size: int, device: torch.device) -> Tensor:
    """0 to size - 1, int64; the same for every chunk."""
    return torch.arange(size, device=device)


@functools.lru_cache(maxsize=8)
def _shares(size: int, device: torch.device) -> Tensor:
    """Size - 1 down to 0, float64."""
    return torch.arange(size - 1, -1, -1, device=device, dtype=torch.float64)


def _check(total_N: Tensor) -> None:
    if total_N.numel() and not float((total_N - 1.0).abs().amax()) < 0.01:  # NaN is not, and comes through
        row = int((~((total_N - 1.0).abs() < 0.01)).nonzero()[0])
        raise BadNumbers(
            f"The teacher's probabilities sum to {float(total_N[row]):g} in row {row} of {len(total_N)}.",
            "NaN or infinity came out of the model.",
            "In half precision, try --precision fp32; in fp32 the weights are damaged: save or download them again.",
        )
