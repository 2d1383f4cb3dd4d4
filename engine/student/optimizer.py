"""AdamW with moments in 32 or 8 bits, for whole gradients or rows of them, at once or tensor by tensor.

torch's fused AdamW does the arithmetic. This file adds the place of the moments and how much of them is unpacked at a
time: 8-bit moments are unpacked by pieces that stay in the processor's cache (bitsandbytes' CPU step unpacks a whole
embedding, which takes five times its size), and a gradient that is never whole can be applied row by row.

Matrices decay, vectors (norms, biases) do not. This file knows nothing of losses or schedules.

Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2; 8-bit blocks: Dettmers et al. 2022,
https://arxiv.org/abs/2110.02861, section 2. Its 32-bit exception for embeddings is not needed here: a block lies within
one row, so a rare token never shares its scale with a frequent one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from engine.machine.torch_device import kind_of
from engine.models.transfer import to_device, to_host
from engine.student import eight_bit
from engine.student.mapped import SMALLEST_BYTES, mapped_zeros
from engine.student.parts import own_rows, whole_shape

BETAS = (0.9, 0.95)
EPSILON = 1e-8

# Smaller tensors keep 32-bit moments: there is nothing to save.
_SMALLEST_8BIT = 4096


class AdamW:
    """AdamW over named parameters.

    Args:
        named_parameters: those that are trained; a tied parameter comes once.
        weight_decay: of matrices.
        bits: of the moments: 8 takes 2 bytes a parameter instead of 8.
        offload: keep the moments in main memory while the parameters are on another device.
        scratch: a folder; moments on the CPU are kept in files there instead of in memory.

    Attributes:
        updates: steps begun so far; part of the state.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float,
        bits: Literal[32, 8] = 32,
        offload: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self.parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        self.updates = 0
        self._weight_decay = weight_decay
        self._bits = bits
        self._offload = offload
        self._scratch = scratch
        self._moments: dict[str, _Moments] = {}
        self._learning_rate = 0.0

    def begin_step(self, learning_rate: float) -> None:
        """Begin a new step; all updates until the next call belong to it."""
        self.updates += 1
        self._learning_rate = learning_rate

    def step(self) -> None:
        """Update every parameter that has a gradient, and free the gradients."""
        together: dict[float, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        packed: dict[tuple[float, int], list[_Packed]] = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            weights, moments, decay = self._state_of(name)
            device = kind_of(weights.device)
            is_large = moments.block is not None and weights.numel() > device.piece_elements
            if device.is_host or moments.are_elsewhere or is_large:
                self.update(name, parameter.grad)
            else:
                # All of these in a few calls: kernels for many of them instead of some for each.
                gradient = _as_matrix(parameter.grad).contiguous()
                if moments.block is None:
                    state = (weights, gradient, moments.parts["first"], moments.parts["second"])
                    together.setdefault(decay, []).append(state)
                else:
                    packed.setdefault((decay, moments.block), []).append(_Packed(weights, gradient, moments))
            parameter.grad = None
        for decay, group in together.items():
            weights_of, gradients, first, second = (list(tensors) for tensors in zip(*group, strict=True))
            self._adamw(weights_of, gradients, first, second, decay)
        for (decay, _), rows in packed.items():
            for piece in _in_pieces(rows):
                self._update_together(piece, decay)

    @torch.no_grad()
    def _update_together(self, group: list[_Packed], decay: float) -> None:
        """Update matrices with 8-bit moments: unpacked, changed and packed as if they were one."""
        names = list(group[0].moments.parts)
        block = group[0].moments.block
        assert block is not None, "32-bit moments are not packed"
        width = {name: 1 if name.endswith("_scale") else block for name in names}
        stored = {name: [each.moments.parts[name].view(-1, width[name]) for each in group] for name in names}
        whole = {name: torch.cat(parts) for name, parts in stored.items()}
        first = eight_bit.unpack_first(whole["first"], whole["first_scale"])
        second = eight_bit.unpack_second(whole["second"], whole["second_scale"])
        sizes = [each.weights.numel() // block for each in group]
        each_first, each_second = (
            [part.view_as(one.weights) for part, one in zip(moment.split(sizes), group, strict=True)]
            for moment in (first, second)
        )
        self._adamw([one.weights for one in group], [one.gradient for one in group], each_first, each_second, decay)
        noise = eight_bit.dither(self.updates, block, first.device)
        for name, value, pack in (("first", first, eight_bit.pack_first), ("second", second, eight_bit.pack_second)):
            codes, scale = pack(value, noise)
            torch._foreach_copy_(stored[name], list(codes.split(sizes)))
            torch._foreach_copy_(stored[f"{name}_scale"], list(scale.split(sizes)))

    @torch.no_grad()
    def update(
        self, name: str, gradient: Tensor, rows: slice | Tensor | None = None, *, skip: Tensor | None = None
    ) -> None:
        """Update one parameter, or some of its rows.

        Args:
            name: the parameter's.
            gradient: of the parameter, or [number of rows, columns] of the rows.
            rows: which ones; None is all. Each at most once. A tensor of row numbers is *lazy*: rows that are not
                named keep their moments as they are and do not decay (torch's SparseAdam does the same).
            skip: float32 scalar on the parameter's device; 1 leaves everything as it is, 0 does not. For a condition
                that only the GPU knows yet.
        """
        weights, moments, decay = self._state_of(name)
        gradient = _as_matrix(gradient)
        for piece, part in moments.pieces(rows, weights.shape[0]):
            touched = weights[piece]
            stored, first, second = moments.read(piece, weights.device)
            self._adamw([touched], [gradient[part].contiguous()], [first], [second], decay, skip)
            moments.write(piece, stored, first, second, self.updates, skip)
            if isinstance(piece, Tensor):
                weights[piece] = touched

    def _state_of(self, name: str) -> tuple[Tensor, _Moments, float]:
        """A parameter as a matrix, its moments, and its weight decay."""
        parameter = self.parameters[name]
        assert parameter.is_contiguous(), f"{name} is a view that cannot be updated in place"
        weights = _as_matrix(parameter.detach())
        moments = self._moments.get(name)
        if moments is None:
            moments = self._moments[name] = self._new_moments(parameter)
        return weights, moments, self._weight_decay if parameter.dim() >= 2 else 0.0

    def _adamw(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        decay: float,
        skip: Tensor | None = None,
    ) -> None:
        # As torch.optim.AdamW(fused=True), without its step counters, which are equal for all parameters here.
        # A fill is launched and not waited for; a tensor made of a number would be copied there.
        step = torch.full((), float(self.updates), device=weights[0].device)
        torch._fused_adamw_(
            weights,
            gradients,
            first,
            second,
            [],
            [step] * len(weights),  # only read
            lr=self._learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    def make_moments(self) -> None:
        """Make the moments that are not there yet.

        Made at the first update, small ones would lie in the places of freed activations.
        """
        for name, parameter in self.parameters.items():
            if name not in self._moments:
                self._moments[name] = self._new_moments(parameter)

    def release(self) -> None:
        """Free the moments at the end of the training."""
        self._moments = {}

    def state(self) -> dict[str, Tensor]:
        """Every moment, under ``<parameter>/<part>``; the tensors themselves, not copies."""
        return {f"{name}/{part}": tensor for name, held in self._moments.items() for part, tensor in held.parts.items()}

    def load_state(self, updates: int, state: Mapping[str, Tensor]) -> None:
        """Load a state of :meth:`state`; tensors are copied."""
        self.updates = updates
        self._moments = {}
        for name, parameter in self.parameters.items():
            if not any(key.startswith(f"{name}/") for key in state):
                continue
            held = self._new_moments(parameter)
            for part, tensor in held.parts.items():
                tensor.copy_(own_rows(state, f"{name}/{part}", parameter, is_moment=True))
            self._moments[name] = held

    def _new_moments(self, parameter: nn.Parameter) -> _Moments:
        weights = _as_matrix(parameter.detach())
        # Ranks of one training keep their parts of a matrix alike, however few rows one of them has.
        block = _block_size(whole_shape(parameter)) if self._bits == 8 else None
        return _Moments(weights, block, torch.device("cpu") if self._offload else weights.device, self._scratch)


class _Moments:
    """Adam's two moments of a [rows, columns] matrix.

    Attributes:
        parts: the tensors that hold them.
        block: elements of 8-bit moments that share a scale; None where they have 32 bits.
        are_elsewhere: whether they are on another device than the weights.
    """

    def __init__(self, weights: Tensor, block: int | None, device: torch.device, scratch: Path | None) -> None:
        self.block = block
        self.are_elsewhere = device != weights.device
        self._in_pieces = self.block is not None or self.are_elsewhere
        self._piece_elements = kind_of(weights.device).piece_elements
        rows, columns = weights.shape
        if self.block is None:
            self.parts = {name: _zeros(rows, columns, torch.float32, device, scratch) for name in ("first", "second")}
            return
        self.parts = {}
        for name, dtype in (("first", torch.int8), ("second", torch.uint8)):
            self.parts[name] = _zeros(rows, columns, dtype, device, scratch)
            self.parts[f"{name}_scale"] = torch.zeros(rows, columns // self.block, device=device)

    def pieces(self, rows: slice | Tensor | None, num_rows: int) -> Iterator[tuple[slice | Tensor, slice]]:
        """Rows of the matrix that are updated together, each with the rows of the gradient that belong to them."""
        if isinstance(rows, Tensor):
            first, last = 0, len(rows)
        else:
            first, last, _ = (rows or slice(None)).indices(num_rows)
        columns = self.parts["first"].shape[1]
        unpacked = self._in_pieces or isinstance(rows, Tensor)
        size = max(1, self._piece_elements // columns if unpacked else last - first)
        for start in range(first, last, size):
            piece = slice(start, min(start + size, last))
            part = slice(start - first, piece.stop - first)
            yield (rows[piece], part) if isinstance(rows, Tensor) else (piece, part)

    def read(self, piece: slice | Tensor, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
        """Some rows of what is stored, on the weights' device, and both moments of them in float32.

        The moments are the stored ones themselves where they are stored so, else a copy.
        """
        piece = self._here(piece)
        stored = [part[piece] for part in self.parts.values()]
        if self.are_elsewhere:
            stored = to_device(stored, device)  # all parts in one copy, which nothing waits for
        if self.block is None:
            first, second = stored
            return stored, first, second
        first, first_scale, second, second_scale = stored
        return (
            stored,
            eight_bit.unpack_first(first.view(-1, self.block), first_scale.view(-1, 1)).view_as(first),
            eight_bit.unpack_second(second.view(-1, self.block), second_scale.view(-1, 1)).view_as(second),
        )

    def write(
        self,
        piece: slice | Tensor,
        stored: list[Tensor],
        first: Tensor,
        second: Tensor,
        update: int,
        skip: Tensor | None = None,
    ) -> None:
        """Store the moments from :meth:`read` after they were changed in place; ``update`` selects the rounding.

        If ``skip`` is 1, the stored values stay: rounding them again would change them.
        """
        if isinstance(piece, slice) and not self._in_pieces:
            return  # it was a view
        values = [first, second]
        if self.block is not None:
            noise = eight_bit.dither(update, self.block, first.device)
            values = []
            for value, pack in ((first, eight_bit.pack_first), (second, eight_bit.pack_second)):
                codes, scale = pack(value.view(-1, self.block), noise)
                values += [codes.view_as(value), scale.view(len(value), -1)]
            if skip is not None:
                is_skipped = skip.to(torch.bool)
                values = [torch.where(is_skipped, old, new) for old, new in zip(stored, values, strict=True)]
        piece = self._here(piece)
        for held, value in zip(self.parts.values(), to_host(values) if self.are_elsewhere else values, strict=True):
            held[piece] = value

    def _here(self, piece: slice | Tensor) -> slice | Tensor:
        """Rows by their numbers on the moments' device: offloaded moments cannot be indexed from the GPU."""
        return piece.to(self.parts["first"].device) if isinstance(piece, Tensor) else piece


@dataclass(frozen=True)
class _Packed:
    """A matrix with its gradient and its 8-bit moments, all on one device."""

    weights: Tensor
    gradient: Tensor
    moments: _Moments


def _in_pieces(matrices: list[_Packed]) -> Iterator[list[_Packed]]:
    """Matrices that are unpacked together: as many as make a piece."""
    piece: list[_Packed] = []
    elements = 0
    for matrix in matrices:
        size = matrix.weights.numel()
        if piece and elements + size > kind_of(matrix.weights.device).piece_elements:
            yield piece
            piece, elements = [], 0
        piece.append(matrix)
        elements += size
    if piece:
        yield piece


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1) if tensor.dim() >= 2 else tensor.reshape(1, -1)


def _block_size(shape: torch.Size) -> int | None:
    """Elements that share a scale, all in one row; None where 8 bits are not worth it or rows do not divide."""
    if shape.numel() < _SMALLEST_8BIT or len(shape) < 2 or shape[0] == 1:
        return None
    columns = shape.numel() // shape[0]
    return next((size for size in (256, 128, 64) if columns % size == 0), None)


def _zeros(rows: int, columns: int, dtype: torch.dtype, device: torch.device, scratch: Path | None) -> Tensor:
    if scratch is not None and kind_of(device).is_host and rows * columns * dtype.itemsize >= SMALLEST_BYTES:
        return mapped_zeros(scratch, (rows, columns), dtype)
    return torch.zeros(rows, columns, dtype=dtype, device=device)
