"""A student that is divided among the ranks of a training, by torch's FSDP2: each holds its rows of every parameter.

A rank's parts are ordinary tensors here: the optimizer updates them and keeps its moments of them. The layers are
gathered one after the other in each pass, so all ranks do all passes together; a rank without rows passes a token
without a loss.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models.core import core_hidden_states, find_core, last_hidden_states, patched
from engine.student.batches import MicroBatch
from engine.student.fsdp_on_cpu import as_fsdp, mean_of_ones, shard
from engine.student.head import LinearHead
from engine.student.learner import Learner
from engine.student.loss import LossSums, Objective
from engine.student.parts import Part, Stored, pieces_of, rows_of_rank
from engine.student.world import World

_PIECE_ELEMENTS = 2**23


class ShardedWorld(World):
    """Ranks that each have a part of the student."""

    is_sharded = True

    def add_up(self, sums: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Add up some sums; the gradients were added up in the backward pass, and are given to the parts here."""
        for part in parameters:
            assert isinstance(part, _OwnPart), "the parameters are those of a ShardedModel"
            part.take_gradient()
        sums = sums.clone()
        with self.answers():
            dist.all_reduce(sums)
        return sums

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients of a step, those of other ranks' parts too."""
        squares = super().norm(gradients).double().square()
        with self.answers():
            dist.all_reduce(squares)
        return squares.sqrt()

    def whole(self, tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Parameter]) -> dict[str, Stored]:
        """Return tensors of all ranks as rank 0 can write them, each made of the ranks' parts.

        Args:
            tensors: a rank's, by a parameter's name or ``<parameter>/<anything>``.
            parts: the rank's parameters. Other tensors are the same on all ranks.
        """
        found: dict[str, Stored] = {}
        for key, tensor in tensors.items():
            part = parts.get(key.partition("/")[0])
            found[key] = _Gathered(self, tensor, part) if isinstance(part, Part) else tensor
        return found

    def hand_over(self, tensors: Mapping[str, Stored]) -> None:
        """Give rank 0 this rank's parts, in the order in which it takes them; for ranks that work apart."""
        for tensor in tensors.values():
            for _ in pieces_of(tensor):
                pass


@dataclass(frozen=True)
class _Gathered:
    """A tensor of which each rank has some rows; rank 0 takes its pieces, the others give theirs.

    They do it in :meth:`engine.student.world.World.apart`: until rank 0 takes the next tensor, it may have a file to
    flush to a slow disk.
    """

    world: ShardedWorld
    own: Tensor
    part: Part

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    @property
    def shape(self) -> torch.Size:
        whole = self.part.whole
        if len(whole) < 2:  # a vector, or its moments: one row
            return torch.Size([*self.own.shape[:-1], *whole])
        return torch.Size([whole[0], *self.own.shape[1:]])

    def pieces(self) -> Iterator[Tensor]:
        with self.world.together():
            yield from self._pieces()

    def _pieces(self) -> Iterator[Tensor]:
        own, rank = self.own.detach().reshape(-1), self.world.rank
        each = self.shape.numel() // self.part.whole[0]  # elements of a row
        if rank.number:
            for piece in own.split(_PIECE_ELEMENTS):
                with self.world.answers():
                    dist.send(piece, 0)
            return
        yield from own.split(_PIECE_ELEMENTS)
        for number in range(1, rank.world):
            rows = rows_of_rank(self.part.whole[0], number, rank.world)
            left = (rows.stop - rows.start) * each
            while left:
                piece = own.new_empty(min(left, _PIECE_ELEMENTS))
                with self.world.answers():
                    dist.recv(piece, number)
                yield piece
                left -= len(piece)


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Copy tensors of all ranks into a whole model; for rank 0, while the others hand over."""
    into = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        place = into[name].detach().view(-1)
        start = 0
        for piece in pieces_of(tensor):
            place[start : start + piece.numel()] = piece.reshape(-1)
            start += piece.numel()


class _OwnPart(Part):
    """A part of one of FSDP2's parameters."""

    source: nn.Parameter

    def take_gradient(self) -> None:
        """Move the gradient from FSDP2's parameter to this one."""
        gradient = self.source.grad
        self.source.grad = None
        self.grad = None if gradient is None else gradient.to_local()  # type: ignore[attr-defined]


class ShardedModel:
    """All parameters are trained, a part of each by this rank (:class:`engine.student.trainable.Trainable`)."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self._model = model
        self.parts: dict[str, Part] = {}
        for name, parameter in model.named_parameters():
            rows = rows_of_rank(parameter.shape[0], world.rank.number, world.rank.world)
            local = parameter.detach().to_local()  # type: ignore[attr-defined]
            assert len(local) == rows.stop - rows.start, "FSDP2 divides rows as rows_of_rank does"
            if rows.stop > rows.start:
                part = _OwnPart.of(local, parameter.shape, rows)
                part.source = parameter  # type: ignore[attr-defined]
                self.parts[name] = part

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """See :class:`engine.student.trainable.Trainable`; parameters of which this rank has no row are left out."""
        return self.parts.items()

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's parts and the buffers, in the order of a whole model's."""
        found: dict[str, Tensor] = {}
        names = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if name in self.parts:
                found[name] = self.parts[name]
            elif name not in names and ((key := (tensor.data_ptr(), tensor.shape)) not in seen or not tensor.numel()):
                seen.add(key)
                found[name] = tensor.detach()
        return found


class ShardedLearner(Learner):
    """A student whose parameters are divided among ranks.

    The lm_head is gathered for the loss alone, where it is not the embedding: it is a root of FSDP2's by itself, and
    the loss is its forward pass.

    Args:
        model: the whole student, on the CPU; its parameters are replaced by this rank's parts.
        dtype: of the matrix products.
        gradient_checkpointing: recompute activations in the backward pass.
        world: the ranks.

    Raises:
        ModelError: this student cannot be divided.
    """

    def __init__(
        self, model: PreTrainedModel, *, dtype: torch.dtype, gradient_checkpointing: bool, world: ShardedWorld
    ) -> None:
        super().__init__(model, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
        if not isinstance(self.head, LinearHead):
            raise ModelError(
                f"{type(model).__name__} scales or caps its logits.",
                "Such a student cannot be divided among processes.",
                "Use --no_student_sharded, or --processes 1.",
            )
        if not self.can_be_cut:
            raise ModelError(
                f"{type(model).__name__} cannot be cut between the documents of a row.",
                "A student that is divided among processes reads all documents of a row at once.",
                "Use --no_packing, --no_student_sharded, or --processes 1.",
            )
        self._world = world
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        found = find_core(model)
        self._head_alone = head if not self.tied and _is_core_and_head(model, found.core, head) else None
        self._root: nn.Module = model
        if self._head_alone is None:
            shard(model, found.layers)
        else:
            self._root = found.core
            embedding = model.get_input_embeddings()
            shard(found.core, [*found.layers, embedding], only_forward=[embedding])
            shard(head, [], only_forward=[head])
        with world.answers(), torch.no_grad():
            world.loss_factor = world.rank.world / mean_of_ones(world.rank.world)
            # The first pass decides the places of the parts, and of the gathered matrix of the head.
            last_hidden_states(model, torch.zeros(1, 1, dtype=torch.int64))
        # FSDP2 gathers it into the same tensor in each pass, and frees its memory between them.
        self.head = LinearHead(head.weight, head.bias, self.head.dtype)
        self._free()
        self.trainable = ShardedModel(model, world)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """Last hidden states at the scored positions, [N, H]; all ranks have to call it together."""
        with self._world.passing():
            if self._head_alone is None:
                return super().hidden_states(batch)
            with self._autocast():
                return batch.at_positions(core_hidden_states(self.model, batch.tokens, batch.documents))

    def loss(
        self, states: Tensor, batch: MicroBatch, *, objective: Objective, chunk_tokens: int, scale: float
    ) -> LossSums:
        """See :meth:`engine.student.learner.Learner.loss`; all ranks have to call it together."""
        compute = functools.partial(
            super().loss, batch=batch, objective=objective, chunk_tokens=chunk_tokens, scale=scale
        )
        if self._head_alone is None:
            return compute(states)

        def forward(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            sums = compute(states)
            return sums.loss, sums.ce_sum, sums.kd_sum

        with self._world.passing(), patched(self._head_alone, forward):
            return LossSums(*self._head_alone(states))

    def looked_up_in(self) -> nn.Parameter | None:
        """None where FSDP2 adds up the embedding's gradient by itself, which has to be whole then."""
        return super().looked_up_in() if self._head_alone is None else None

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients and dropout, with the head gathered; afterwards as it was, and all weights are divided."""
        with super().evaluating():
            try:
                if self._head_alone is not None:
                    with self._world.answers():
                        as_fsdp(self._head_alone).unshard()
                yield
            finally:
                self._free()

    def _free(self) -> None:
        for module in (self._root, self._head_alone):
            if module is not None:
                as_fsdp(module).reshard()


@torch.no_grad()
def _is_core_and_head(model: PreTrainedModel, core: nn.Module, head: nn.Module) -> bool:
    """Whether a model has no parameters but those of its core and its head, and the core works by itself."""
    inside = {id(parameter) for module in (core, head) for parameter in module.parameters()}
    if any(id(parameter) not in inside for parameter in model.parameters()):
        return False
    ids = torch.arange(4)[None]
    try:
        return torch.equal(core_hidden_states(model, ids), last_hidden_states(model, ids))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # the core needs what the model gives it
